//! What the scheduler is told when it starts.

/// Upstream's flag names, where they exist.
#[derive(Clone, Debug)]
pub struct Config {
    /// `spec.schedulerName` of the pods that are ours.
    pub scheduler_name: String,
    /// Wait for the `kube-system/kube-scheduler` Lease before scheduling. `false` in a process that is alone by
    /// construction (`control-plane all` on the embedded store).
    pub leader_elect: bool,
    /// This instance's name in the Lease; must differ between masters.
    pub identity: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            leader_elect: true,
            identity: "scheduler".into(),
        }
    }
}

/// Why [`crate::run`] ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    LeadershipLost(#[from] api_client::LeadershipLost),
}
