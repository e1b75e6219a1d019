//! kube-scheduler: finds a node for every pod that has none, and binds it.

mod config;

pub use config::{Config, Error};
use tokio_util::sync::CancellationToken;

/// Runs until `shutdown` is cancelled, or until leadership is lost (an error: restart the process).
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let _ = (client, config);
    shutdown.cancelled().await;
    Ok(())
}
