//! kube-controller-manager: the loops that make the cluster's state follow its specifications.

mod config;

pub use config::{Config, Error, Signer};
use tokio_util::sync::CancellationToken;

/// Runs every enabled controller until `shutdown` is cancelled, or until leadership is lost (an error: restart the
/// process).
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let _ = (client, config);
    shutdown.cancelled().await;
    Ok(())
}
