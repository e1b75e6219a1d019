//! kube-scheduler: finds a node for every pod that has none, and binds it.

mod algorithm;
mod batch;
mod bind;
mod carried;
mod cluster;
mod config;
mod feed;
mod framework;
mod metrics;
mod node_info;
mod plugins;
mod pod_info;
mod preemption;
mod profile;
mod queue;
mod server;
mod simulation;
mod state;
mod tally;
mod volumes;

pub use config::{Config, Error};
pub use simulation::Simulation;

use api_client::{Election, Recorder};
use state::Shared;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Runs until `shutdown` is cancelled, or until leadership is lost (an error: restart the process).
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let shared = Arc::new(Shared::new(&config));
    let mut tasks = JoinSet::new();
    if let Some(address) = config.metrics_address {
        tasks.spawn(server::listen(address, shared.clone()).await?);
    }
    let mut election = Election::new(client.clone(), "kube-scheduler", &config.identity);
    if config.leader_elect {
        tokio::select! {
            () = election.acquire() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
    let (recorder, writer) = Recorder::new(client.clone(), "");
    tasks.spawn(writer);
    let started = async {
        feed::start(&client, &shared, &mut tasks).await;
        tracing::info!("caches are filled, scheduling starts");
        bind::schedule_forever(client.clone(), shared.clone(), recorder).await;
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
