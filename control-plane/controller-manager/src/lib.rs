//! kube-controller-manager: the loops that make the cluster's state follow its specifications.

mod action;
mod cache;
mod caches;
mod config;
mod controllers;
mod discovery;
mod executor;
mod key;
mod queue;
mod runner;
mod scale;

pub use config::{Autoscaling, Config, Error, KeyPem, NodeEviction, Signer};

use api_client::{Election, Recorder};
use caches::Caches;
use executor::Executor;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Runs every enabled controller until `shutdown` is cancelled, or until leadership is lost (an error: restart the
/// process).
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    controllers::check_names(&config.controllers)?;
    let mut election = Election::new(client.clone(), "kube-controller-manager", &config.identity);
    if config.leader_elect {
        tokio::select! {
            () = election.acquire() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
    let mut tasks = JoinSet::new();
    let (recorder, writer) = Recorder::new(client.clone(), "");
    tasks.spawn(writer);
    let (caches, mut watches) = Caches::new();
    let executor = Executor::new(client.clone(), std::mem::take(&mut watches.observers), recorder);
    let context = controllers::Context {
        client: client.clone(),
        caches: Arc::new(caches),
        config: Arc::new(config),
        executor: Arc::new(executor),
    };
    let controllers = controllers::all(&context)?;
    let started = async {
        watches.start(&client, &mut tasks).await;
        tracing::info!(
            controllers = controllers.len(),
            "caches are filled, controllers start"
        );
        for controller in controllers {
            tasks.spawn(controller);
        }
        std::future::pending::<()>().await;
    };
    let kept = async {
        if context.config.leader_elect {
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
