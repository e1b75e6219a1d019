//! Forgets history older than one or two of `--etcd-compaction-interval`, as upstream's compactor does.

use store::StoreError;

use crate::state::ApiServer;

pub async fn keep(server: &ApiServer) {
    let interval = server.config.compaction_interval;
    if interval.is_zero() {
        return;
    }
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
        tokio::time::sleep(interval).await;
    }
}
