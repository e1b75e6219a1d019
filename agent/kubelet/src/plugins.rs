//! Plugins that live on the node: found by the sockets they put into the registration directory (KEP-595), asked who
//! they are, and handed to whoever speaks with their kind.

pub mod csi_node;
pub mod grpc;
mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::Context;

const PERIOD: Duration = Duration::from_secs(1);

/// Drivers of volumes by name, with the sockets of their node services.
#[derive(Default)]
pub struct Drivers(Mutex<BTreeMap<String, PathBuf>>);

impl Drivers {
    pub fn socket(&self, driver: &str) -> Option<PathBuf> {
        self.lock().get(driver).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, PathBuf>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Sockets in the directory and in directories below it.
fn sockets(directory: &Path) -> BTreeSet<PathBuf> {
    use std::os::unix::fs::FileTypeExt;
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !hidden => found.extend(sockets(&entry.path())),
            Ok(kind) if kind.is_socket() && !hidden => drop(found.insert(entry.path())),
            _ => {}
        }
    }
    found
}

/// Follows the registration directory until told to stop.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let directory = context.config.root_dir.join("plugins_registry");
    if let Err(error) = std::fs::create_dir_all(&directory) {
        warn!(directory = %directory.display(), %error, "plugins cannot register");
        return;
    }
    let mut known: BTreeMap<PathBuf, Option<String>> = BTreeMap::new();
    let mut node_known = false;
    while !stop.is_cancelled() {
        if !node_known {
            node_known = csi_node::ensure(&context).await.is_ok();
        }
        let present = sockets(&directory);
        known.retain(|socket, driver| {
            let stays = present.contains(socket);
            if let (false, Some(driver)) = (stays, driver) {
                info!(driver, "volume driver gone");
                context.drivers.lock().remove(driver);
                let (context, driver) = (context.clone(), driver.clone());
                tokio::spawn(async move {
                    if let Err(error) = csi_node::remove(&context, &driver).await {
                        warn!(driver, %error, "volume driver still listed in the CSINode");
                    }
                });
            }
            stays
        });
        for socket in present {
            if known.get(&socket).is_some_and(Option::is_some) {
                continue;
            }
            let first = !known.contains_key(&socket);
            match register(&context, &socket).await {
                Ok(driver) => drop(known.insert(socket, Some(driver))),
                Err(error) => {
                    if first {
                        warn!(socket = %socket.display(), error, "plugin not registered yet");
                    }
                    known.insert(socket, None);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn register(context: &Context, socket: &Path) -> Result<String, String> {
    let plugin = registration::info(socket).await?;
    let result = match plugin.kind.as_str() {
        "CSIPlugin" => csi_node::add(context, &plugin.name, &plugin.endpoint).await,
        "DevicePlugin" => {
            registration::notify(socket, None).await?;
            context
                .devices
                .follow(plugin.name.clone(), plugin.endpoint, Default::default());
            return Ok(plugin.name);
        }
        other => Err(format!("no handler registered for plugin type: {other}")),
    };
    registration::notify(socket, result.as_ref().err().map(String::as_str)).await?;
    result?;
    info!(driver = plugin.name, endpoint = %plugin.endpoint.display(), "volume driver registered");
    context
        .drivers
        .lock()
        .insert(plugin.name.clone(), plugin.endpoint);
    Ok(plugin.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;
    use std::os::unix::net::UnixListener;

    #[test]
    fn sockets_are_found_at_any_depth() {
        let dir = TempDir::new("plugins");
        std::fs::create_dir_all(dir.path().join("a/.hidden")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let _sockets = ["x.sock", "a/y.sock", "a/.hidden/z.sock"]
            .map(|name| UnixListener::bind(dir.path().join(name)).unwrap());
        let found = sockets(dir.path());
        assert_eq!(
            found,
            ["a/y.sock", "x.sock"].map(|name| dir.path().join(name)).into()
        );
    }
}
