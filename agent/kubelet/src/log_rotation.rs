//! Keeps container logs from filling the disk: a log that has grown is set aside and the runtime opens a new one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::quantity::Quantity;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::context::Context;

/// Upstream's default of `containerLogMonitorInterval`.
const PERIOD: Duration = Duration::from_secs(10);

pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = rotate_all(&context).await {
            warn!(%error, "logs not rotated");
        }
    }
}

async fn rotate_all(context: &Context) -> Result<(), crate::runtime::RuntimeError> {
    let settings = &context.config.settings;
    let limit = settings
        .container_log_max_size
        .parse::<Quantity>()
        .map_or(i64::MAX, |size| size.value());
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let running = cri_api::v1::ContainerState::ContainerRunning as i32;
    let containers = context.runtime.list_containers().await?;
    for container in containers.iter().filter(|container| container.state == running) {
        let status = context.runtime.container_status(&container.id).await?;
        let log = PathBuf::from(status.log_path);
        if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > limit) {
            match set_aside(&log, settings.container_log_max_files, Timestamp::now()) {
                Ok(()) => context.runtime.reopen_log(&container.id).await?,
                Err(error) => warn!(log = %log.display(), %error, "log not rotated"),
            }
        }
    }
    Ok(())
}

/// Renames the log and removes the oldest of those set aside before.
fn set_aside(log: &Path, files: usize, now: Timestamp) -> std::io::Result<()> {
    let name = log.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let directory = log.parent().unwrap_or(Path::new("/"));
    fs::rename(
        log,
        directory.join(format!("{name}.{}", now.strftime("%Y%m%d-%H%M%S%.9f"))),
    )?;
    let mut earlier: Vec<PathBuf> = fs::read_dir(directory)?
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(&format!("{name}."))
        })
        .map(|entry| entry.path())
        .collect();
    earlier.sort();
    // The new log counts as one of the files.
    let excess = earlier.len().saturating_sub(files.saturating_sub(1));
    earlier.iter().take(excess).try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_files_are_kept() {
        let dir = crate::volumes::testing::TempDir::new("rotation");
        let log = dir.path().join("0.log");
        for second in 0..7 {
            fs::write(&log, second.to_string()).unwrap();
            set_aside(&log, 5, Timestamp::from_second(second).unwrap()).unwrap();
        }
        fs::write(dir.path().join("1.log"), "").unwrap();
        let mut kept: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
            .filter(|content| !content.is_empty())
            .collect();
        kept.sort();
        assert_eq!(kept, ["3", "4", "5", "6"]);
    }
}
