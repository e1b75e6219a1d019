//! A system on trial is kept when the node is Ready with it; one that something else has replaced has failed, and the
//! reason is kept. init leaves a system that is not kept in time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use node_config::machine_state::Order;
use tracing::{error, info, warn};

use super::plan::{Trial, not_ready, trial};
use super::record::Outcome;
use super::{UpgradeError, Upgrader};
use crate::{machine, status};

const LOOK: Duration = Duration::from_secs(3);
/// Nothing is known of a system that could not even say why it failed.
const NO_WORD: &str =
    "it was started and never came as far as its node API: a panic, a hang, or a file that is no system";

pub struct Judge {
    pub upgrader: Arc<Upgrader>,
    pub client: Client,
    pub node_name: String,
    pub run_dir: PathBuf,
}

impl Judge {
    /// Looks at the boot that has just been, once, and waits with a system on trial until it is good.
    pub async fn run(self) {
        let Some(running) = self.upgrader.settings.slot.clone() else {
            return;
        };
        let found = loop {
            match self.environment(&running) {
                Ok(found) => break found,
                Err(UpgradeError::Busy) => tokio::time::sleep(LOOK).await,
                Err(error) => {
                    warn!(%error, "whether a system is on trial is not known");
                    return;
                }
            }
        };
        match found {
            Trial::None | Trial::Pending(_) => {}
            Trial::Failed(slot) => self.failed(&slot),
            Trial::Running(slot) => self.wait_until_good(&slot).await,
        }
    }

    fn environment(&self, running: &str) -> Result<Trial, UpgradeError> {
        let _turn = self.upgrader.turn()?;
        let environment = self.upgrader.with_systems(|systems| Ok(systems.environment()?))?;
        Ok(trial(&environment, running))
    }

    fn failed(&self, slot: &str) {
        self.upgrader.note(|record| {
            slot.clone_into(&mut record.to);
            record.outcome = Outcome::Failed;
            if record.reason.is_empty() {
                NO_WORD.clone_into(&mut record.reason);
            }
            error!(
                slot,
                reason = record.reason,
                "the system on trial was not good: this is the one of before"
            );
        });
        if let Err(error) = self
            .upgrader
            .change_environment(boot_disk::Environment::end_trial)
        {
            warn!(%error, "boot environment");
        }
    }

    async fn wait_until_good(&self, slot: &str) {
        info!(slot, "this system is on trial until the node is Ready");
        let boot_id = status::boot_id();
        loop {
            let reason = match status::ask_node(&self.client, &self.node_name).await {
                Ok(node) => not_ready(&node, &boot_id),
                Err(error) => Some(format!(
                    "the API server cannot be asked whether the node is Ready: {error}"
                )),
            };
            match reason {
                Some(reason) => self.upgrader.note(|record| record.reason = reason),
                None if self.keep(slot).await => return,
                None => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn keep(&self, slot: &str) -> bool {
        if let Err(error) = self
            .upgrader
            .change_environment(|environment| environment.keep(slot))
        {
            warn!(%error, "the system is good and cannot be kept");
            return false;
        }
        self.upgrader.note(|record| {
            record.outcome = Outcome::Kept;
            record.reason.clear();
        });
        info!(slot, "the node is Ready: this system is kept");
        if let Err(error) = machine::order(&self.run_dir, Order::Good).await {
            warn!(%error, "init does not know yet that the system is good");
            return false;
        }
        true
    }
}
