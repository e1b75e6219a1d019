//! Forgets history older than five to ten minutes, as upstream's compactor does.

use std::time::Duration;

use store::StoreError;

use crate::state::ApiServer;

const INTERVAL: Duration = Duration::from_secs(300);

pub async fn keep(server: &ApiServer) {
    let mut previous = None;
    loop {
        let now = server.store.revision().await;
        match (previous, &now) {
            (Some(revision), Ok(current)) if revision < *current => {
                match server.store.compact(revision).await {
                    // Another API server was faster.
                    Ok(()) | Err(StoreError::Compacted) => {}
                    Err(error) => tracing::warn!(%error, revision, "cannot compact the store"),
                }
            }
            (_, Err(error)) => tracing::warn!(%error, "cannot read the store's revision"),
            _ => {}
        }
        previous = now.ok().or(previous);
        tokio::time::sleep(INTERVAL).await;
    }
}
