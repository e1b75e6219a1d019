//! The CRI server: sandboxes, containers and images behind one runtime value.

mod adopt;
mod container;
mod container_files;
mod convert;
mod exec;
mod images;
mod memory;
mod metrics;
mod sandbox;
mod service;
mod stats;

pub use exec::{input_pipe, output_pipe};

use crate::image::ImageStore;
use crate::image::registry::Registry;
use crate::network::PodNetwork;
use crate::spec::Host;
use crate::state::Layout;
use crate::streaming::Tokens;
use crate::{Config, RunError};
use cri_api::v1;
use memory::Memory;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::broadcast;
use tonic::Status;

/// Events kept for a slow reader of GetContainerEvents.
const EVENT_BACKLOG: usize = 1024;

pub struct Runtime {
    layout: Layout,
    images: Arc<ImageStore>,
    /// Images that come with the machine.
    image_archives: Option<PathBuf>,
    registry: Registry,
    network: Arc<dyn PodNetwork>,
    host: Host,
    boot_id: String,
    memory: Memory,
    events: broadcast::Sender<v1::ContainerEventResponse>,
    tokens: Tokens,
    /// `http://127.0.0.1:PORT` of the streaming server.
    streaming_url: String,
}

/// Serves until told to stop.
pub async fn run(config: Config) -> Result<(), RunError> {
    let start = |what: &str, error: &dyn std::fmt::Display| RunError::Start(format!("{what}: {error}"));
    let layout = Layout::new(&config.root_dir);
    for folder in [layout.sandboxes(), layout.containers(), layout.libcontainer()] {
        std::fs::create_dir_all(&folder).map_err(|error| start(&folder.display().to_string(), &error))?;
    }
    let host = crate::host::read();
    if host.controllers.is_empty() {
        tracing::warn!(
            root = crate::host::CGROUP_ROOT,
            "no cgroup v2 controllers: limits cannot be enforced"
        );
    }
    let images = {
        let layout = layout.clone();
        tokio::task::spawn_blocking(move || ImageStore::open(layout))
            .await
            .map_err(|error| start("open the image store", &error))?
            .map_err(|error| start("open the image store", &error))?
    };
    let images = Arc::new(images);
    let image_archives = config.image_archives.clone().filter(|folder| folder.is_dir());
    if let Some(folder) = image_archives.clone() {
        let images = Arc::clone(&images);
        let imported =
            tokio::task::spawn_blocking(move || crate::image::archive::import_all(&images, &folder)).await;
        match imported {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot import image archives"),
            Err(error) => tracing::error!(%error, "cannot import image archives"),
        }
    }
    let streams = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(|error| start("bind 127.0.0.1", &error))?;
    let address = streams
        .local_addr()
        .map_err(|error| start("bind 127.0.0.1", &error))?;
    let runtime = Arc::new(Runtime {
        layout,
        images,
        image_archives,
        registry: Registry::new(config.registry_mirrors.clone()),
        network: Arc::clone(&config.network),
        host,
        boot_id: crate::host::boot_id(),
        memory: Memory::default(),
        events: broadcast::channel(EVENT_BACKLOG).0,
        tokens: Tokens::default(),
        streaming_url: format!("http://{address}"),
    });
    runtime.adopt().await;
    tokio::spawn(crate::streaming::serve(streams, Arc::clone(&runtime)));
    service::serve(runtime, &config.listen)
        .await
        .map_err(|error| start(&config.listen.display().to_string(), &error))
}

impl Runtime {
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }
}

/// An error of ours as gRPC carries it.
fn unknown(error: impl std::fmt::Display) -> Status {
    Status::unknown(error.to_string())
}

/// A blocking job on its own thread.
async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    job: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(job)
        .await
        .map_err(unknown)?
        .map_err(unknown)
}
