//! Brings the kubelet up: waits for the runtime, gathers facts, then starts its loops and stops them together.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::allocation::Allocations;
use crate::cgroups::Cgroups;
use crate::context::Context;
use crate::devices::{self, Devices};
use crate::events::EventRecorder;
use crate::eviction::{self, Pressures};
use crate::image_collection::{self, ImageHistory};
use crate::images::ImagePuller;
use crate::node::{self, Machine};
use crate::objects::Objects;
use crate::plugins::{self, Drivers};
use crate::pod_manager::{self, Pods};
use crate::probes::ProbeManager;
use crate::runtime::{Runtime, RuntimeError};
use crate::server::{self, Rates, ServerError};
use crate::static_pods::{self, Mirrors};
use crate::{Config, dns, garbage_collection, log_rotation};

#[derive(Debug, Error)]
pub enum Error {
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    #[error("kubelet API: {0}")]
    Server(#[from] ServerError),
    #[error("create {path}: {source}", path = path.display())]
    Directory {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
}

/// Runs the kubelet until `stop`. Pods go on running afterwards.
pub async fn run(client: kube::Client, config: Config, stop: CancellationToken) -> Result<(), Error> {
    for path in [config.root_dir.join("pods"), config.pod_logs_dir.clone()] {
        std::fs::create_dir_all(&path).map_err(|source| Error::Directory { path, source })?;
    }
    let runtime = Runtime::connect(&config.cri_endpoint)?;
    let Some(version) = runtime_version(&runtime, &stop).await else {
        return Ok(());
    };
    let runtime_name = version.runtime_name;
    info!(
        runtime = runtime_name,
        version = version.runtime_version,
        "container runtime answers"
    );
    let machine = Machine::read(
        &config.root_dir,
        format!("{runtime_name}://{}", version.runtime_version),
    );
    let allocations = config.root_dir.join("allocations");
    let (services, writer) = reflector::store();
    let context = Arc::new(Context {
        events: EventRecorder::start(client.clone(), &config.node_name),
        objects: Objects::new(client.clone()),
        services,
        images: ImagePuller::default(),
        probes: ProbeManager::default(),
        cgroups: Cgroups::new(&config.cgroup_root, &node::limits(&machine, &config.settings)),
        pressures: Pressures::default(),
        image_history: ImageHistory::default(),
        devices: Devices::load(&config.root_dir),
        drivers: Drivers::default(),
        rates: Rates::default(),
        mirrors: Mirrors::default(),
        allocations: Allocations::load(&allocations).map_err(|source| Error::Directory {
            path: allocations,
            source,
        })?,
        allocatable: node::allocatable(&machine, &config.settings),
        memory_capacity: i64::try_from(machine.memory_bytes).unwrap_or(i64::MAX),
        node_dns: dns::parse_resolv_conf(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        client,
        runtime,
        runtime_name,
        config,
    });
    let listener = server::bind(&context).await?;
    let pods = Pods::default();
    let (synced, synced_receiver) = watch::channel(false);
    let mut loops = JoinSet::new();
    loops.spawn(follow_services(context.clone(), writer));
    loops.spawn(eviction::run(
        context.clone(),
        pods.clone(),
        machine.clone(),
        stop.clone(),
    ));
    loops.spawn(devices::run_registration(context.clone(), stop.clone()));
    loops.spawn(devices::run_pod_resources(
        context.clone(),
        pods.clone(),
        stop.clone(),
    ));
    loops.spawn(static_pods::run(context.clone(), pods.clone(), stop.clone()));
    loops.spawn(plugins::run(context.clone(), stop.clone()));
    loops.spawn(image_collection::run(context.clone(), stop.clone()));
    loops.spawn(node::run(context.clone(), machine, stop.clone()));
    loops.spawn(node::run_lease(context.clone(), stop.clone()));
    loops.spawn(garbage_collection::run(
        context.clone(),
        pods.clone(),
        stop.clone(),
    ));
    loops.spawn(log_rotation::run(context.clone(), stop.clone()));
    loops.spawn(pod_manager::follow_runtime(
        context.clone(),
        pods.clone(),
        synced_receiver,
        stop.clone(),
    ));
    loops.spawn(start_pods(context.clone(), pods.clone(), synced));
    let result = server::serve(context, pods, listener, stop).await;
    loops.shutdown().await;
    Ok(result?)
}

/// The runtime may start after the kubelet, and takes its time on a busy machine.
async fn runtime_version(
    runtime: &Runtime,
    stop: &CancellationToken,
) -> Option<cri_api::v1::VersionResponse> {
    let mut attempts = 0_u32;
    loop {
        match runtime.version().await {
            Ok(version) => return Some(version),
            Err(error) if attempts.is_multiple_of(10) => warn!(%error, "waiting for the container runtime"),
            Err(_) => {}
        }
        attempts += 1;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            () = stop.cancelled() => return None,
        }
    }
}

async fn follow_services(context: Arc<Context>, writer: reflector::store::Writer<Service>) {
    let services: Api<Service> = Api::all(context.client.clone());
    let events = watcher::watcher(services, watcher::Config::default()).default_backoff();
    let mut stream = std::pin::pin!(reflector::reflector(writer, events));
    while let Some(event) = stream.next().await {
        if let Err(error) = event {
            warn!(%error, "watch of services interrupted");
        }
    }
}

/// Containers need to know the Services before they start.
async fn start_pods(context: Arc<Context>, pods: Pods, synced: watch::Sender<bool>) {
    if context.services.wait_until_ready().await.is_ok() {
        pod_manager::follow_api(context, pods, synced).await;
    }
}

#[cfg(test)]
pub mod testing {
    //! A configuration for the crate's tests.

    use std::sync::Arc;

    use crate::Config;

    #[derive(Debug)]
    struct NoCertificate;

    impl rustls::server::ResolvesServerCert for NoCertificate {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
    }

    pub fn config() -> Config {
        Config {
            node_name: "worker-1".into(),
            node_ip: "192.168.76.21".parse().unwrap(),
            root_dir: "/".into(),
            pod_logs_dir: "/var/log/pods".into(),
            parameter_errors: "/run/ironlet/parameter-errors".into(),
            cri_endpoint: "unix:///run/cri.sock".into(),
            node_labels: Default::default(),
            node_taints: Vec::new(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            bind_address: "127.0.0.1".parse().unwrap(),
            port: 10250,
            cgroup_root: "/sys/fs/cgroup".into(),
            client_ca_pem: String::new(),
            serving_certificate: Arc::new(NoCertificate),
            settings: Default::default(),
        }
    }
}
