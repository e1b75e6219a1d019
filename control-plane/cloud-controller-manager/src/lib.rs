//! cloud-controller-manager: what a cloud would do for the cluster, done by a provider: nodes, load balancers, volumes.

mod config;
mod metal;
mod node;
mod provider;
mod service;
mod volume;
mod world;
mod write;

pub use config::{Config, Error, Pool};

use api_client::{Election, Recorder};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use world::World;
use write::Writer;

/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(50);
/// Looked at again after this long, and after this long when a write failed.
const PERIOD: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(2);

/// Runs until `shutdown` is cancelled, or until leadership is lost (an error: restart the process).
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let mut election = Election::new(client.clone(), "cloud-controller-manager", &config.identity);
    if config.leader_elect {
        tokio::select! {
            () = election.acquire() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
    let mut tasks = JoinSet::new();
    let (recorder, events) = Recorder::new(client.clone(), "");
    tasks.spawn(events);
    let provider = metal::Metal::new(config.pool);
    let started = async {
        let world = World::start(&client, &mut tasks).await;
        tracing::info!("caches are filled, controllers start");
        let mut writer = Writer::new(client.clone(), recorder);
        writer.write(volume::default_class()).await;
        loop {
            let changed = world.changed();
            let snapshot = world.snapshot();
            let mut plan = node::reconcile(&snapshot, &provider);
            plan.extend(service::reconcile(&snapshot, &provider));
            plan.extend(volume::reconcile(&snapshot));
            let mut failed = false;
            for write in plan {
                failed |= !writer.write(write).await;
            }
            let pause = if failed { RETRY } else { PERIOD };
            let _ = tokio::time::timeout(pause, changed).await;
            tokio::time::sleep(GATHER).await;
        }
    };
    let kept = async {
        if config.leader_elect {
            election.keep().await
        } else {
            std::future::pending().await
        }
    };
    tokio::select! {
        () = started => Ok(()),
        lost = kept => Err(lost.into()),
        () = shutdown.cancelled() => Ok(()),
    }
}
