//! The system of an installed machine: written to the slot that does not run, tried by the next boot, kept when the node
//! is Ready with it. The system as it was installed is never written.

pub mod manifest;
mod part;
mod plan;
mod record;
pub mod trial;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use boot_disk::{DiskError, Environment, Slot, Systems};
use thiserror::Error;
use tonic::Status;
use tracing::{info, warn};

use crate::disks::partition_named;
use crate::status::kernel;
use crate::v1::{self, LastUpgrade, UpgradeHeader, UpgradeResult};
use manifest::{Image, Machine, Refusal};
pub use part::Arriving;
use part::{Part, hash};
use plan::{Back, NotNow};
use record::{Outcome, Record};

#[derive(Debug, Error)]
pub enum UpgradeError {
    #[error("this machine was not booted from an installed disk: there are no slots to change")]
    NotInstalled,
    #[error("{0}")]
    Partition(String),
    #[error("another change of the system is under way")]
    Busy,
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("systems on {path}: {error}")]
    Disk { path: PathBuf, error: DiskError },
    #[error("{file}: {found} arrived, {expected} are in the manifest; slot {slot} has no system now")]
    Arrived {
        file: String,
        found: String,
        expected: String,
        slot: Slot,
    },
    #[error("{0}: reads back differently from what was written: the disk is broken")]
    ReadBack(String),
}

impl From<DiskError> for UpgradeError {
    fn from(error: DiskError) -> Self {
        Self::Disk {
            path: PathBuf::new(),
            error,
        }
    }
}

impl From<UpgradeError> for Status {
    fn from(error: UpgradeError) -> Self {
        let message = error.to_string();
        match error {
            UpgradeError::NotInstalled | UpgradeError::NotNow(_) => Self::failed_precondition(message),
            UpgradeError::Refused(Refusal::Unsigned | Refusal::Signature(_) | Refusal::Key(_)) => {
                Self::permission_denied(message)
            }
            UpgradeError::Refused(_) => Self::invalid_argument(message),
            UpgradeError::Arrived { .. } => Self::data_loss(message),
            UpgradeError::Busy => Self::unavailable(message),
            _ => Self::internal(message),
        }
    }
}

/// What the machine says of its own system.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The slot that runs; none when the machine was booted from elsewhere.
    pub slot: Option<String>,
    /// Where the systems are [default: the partition named so].
    pub partition: Option<PathBuf>,
    /// minisign's public key.
    pub key: Option<String>,
    pub is_master: bool,
    pub state_dir: PathBuf,
}

pub struct Upgrader {
    settings: Settings,
    /// The partition has one user at a time.
    turn: Mutex<()>,
}

impl Upgrader {
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            turn: Mutex::new(()),
        })
    }

    fn turn(&self) -> Result<MutexGuard<'_, ()>, UpgradeError> {
        match self.turn.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(UpgradeError::Busy),
        }
    }

    fn running(&self) -> Result<&str, UpgradeError> {
        self.settings.slot.as_deref().ok_or(UpgradeError::NotInstalled)
    }

    fn partition(&self) -> Result<PathBuf, UpgradeError> {
        match &self.settings.partition {
            Some(path) => Ok(path.clone()),
            None => partition_named(boot_disk::SYSTEM_NAME).map_err(UpgradeError::Partition),
        }
    }

    /// Works on the partition, and makes what was changed durable before it returns.
    fn with_systems<T>(
        &self,
        work: impl FnOnce(&Systems<'_, File>) -> Result<T, UpgradeError>,
    ) -> Result<T, UpgradeError> {
        let path = self.partition()?;
        let at = |error| UpgradeError::Io {
            path: path.clone(),
            error,
        };
        // Exclusive: not while somebody has mounted it.
        let mut device = File::options()
            .read(true)
            .write(true)
            .custom_flags(rustix::fs::OFlags::EXCL.bits() as i32)
            .open(&path)
            .map_err(at)?;
        let named = |error: UpgradeError| match error {
            UpgradeError::Disk { error, .. } => UpgradeError::Disk {
                path: path.clone(),
                error,
            },
            error => error,
        };
        let systems = Systems::open(&mut device).map_err(|error| named(error.into()))?;
        let result = work(&systems).map_err(named);
        systems.close().map_err(|error| named(error.into()))?;
        device.sync_all().map_err(at)?;
        // Later reads come from the medium.
        rustix::fs::fadvise(&device, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|error| at(error.into()))?;
        result
    }

    fn change_environment(&self, change: impl FnOnce(&mut Environment)) -> Result<(), UpgradeError> {
        self.with_systems(|systems| {
            let mut environment = systems.environment()?;
            change(&mut environment);
            Ok(systems.set_environment(&environment)?)
        })
    }

    pub fn check(&self, header: &UpgradeHeader) -> Result<Image, UpgradeError> {
        self.running()?;
        let machine = Machine {
            is_master: self.settings.is_master,
            kernel: &kernel(),
            key: self.settings.key.as_deref(),
        };
        Ok(manifest::check(header, &machine)?)
    }

    /// Writes the image whose bytes `data` has, kernel first, and has the next boot try it.
    pub fn upgrade(&self, image: &Image, mut data: impl Read) -> Result<UpgradeResult, UpgradeError> {
        let _turn = self.turn()?;
        let running = self.running()?;
        let slot = self.with_systems(|systems| {
            let mut environment = systems.environment()?;
            let slot = plan::idle_slot(&environment, running)?;
            environment.end_trial();
            systems.set_environment(&environment)?;
            Ok(slot)
        })?;
        info!(%slot, version = image.version, "upgrade");
        self.with_systems(|systems| {
            systems.clear(slot)?;
            let source = std::cell::RefCell::new(&mut data);
            let [kernel, initramfs] = &image.files;
            let (mut first, mut second) = (
                Part::new(&source, kernel.size),
                Part::new(&source, initramfs.size),
            );
            let written = systems.write(slot, running, &image.version, [&mut first, &mut second]);
            if let Err(error) = written {
                // What is there is not whole; room for the next attempt.
                systems.clear(slot)?;
                return Err(error.into());
            }
            for (facts, found) in image.files.iter().zip([first.finish(), second.finish()]) {
                if found != (facts.size, facts.sha256.clone()) {
                    systems.clear(slot)?;
                    let describe =
                        |(size, sha256): &(u64, String)| format!("{size} bytes with SHA-256 {sha256}");
                    return Err(UpgradeError::Arrived {
                        file: facts.name.clone(),
                        found: describe(&found),
                        expected: describe(&(facts.size, facts.sha256.clone())),
                        slot,
                    });
                }
            }
            Ok(())
        })?;
        self.with_systems(|systems| {
            systems.prove(slot, |position, file| {
                let facts = &image.files[position];
                match hash(file) {
                    Ok(sha256) if sha256 == facts.sha256 => Ok(()),
                    Ok(_) => Err(UpgradeError::ReadBack(format!("slot {slot}, {}", facts.name))),
                    Err(error) => Err(UpgradeError::Io {
                        path: PathBuf::from(&facts.name),
                        error,
                    }),
                }
            })
        })?;
        self.try_next(slot, &image.version)?;
        Ok(UpgradeResult {
            slot: slot.to_string(),
            version: image.version.clone(),
            signature_checked: image.signature_checked,
        })
    }

    pub fn rollback(&self) -> Result<UpgradeResult, UpgradeError> {
        let _turn = self.turn()?;
        let running = self.running()?;
        let (back, version) = self.with_systems(|systems| {
            let environment = systems.environment()?;
            let back = plan::back(&environment, running, |slot| systems.is_complete(slot))?;
            let version = match &back {
                Back::Try(slot) => systems.version(&slot.to_string()),
                Back::Leave(slot) => systems.version(slot),
            };
            Ok((back, version.unwrap_or_default()))
        })?;
        let slot = match back {
            Back::Try(slot) => {
                self.try_next(slot, &version)?;
                slot.to_string()
            }
            Back::Leave(slot) => {
                self.change_environment(Environment::end_trial)?;
                self.note(|record| {
                    record.outcome = Outcome::Failed;
                    "rolled back by request".clone_into(&mut record.reason);
                });
                slot
            }
        };
        Ok(UpgradeResult {
            slot,
            version,
            signature_checked: false,
        })
    }

    fn try_next(&self, slot: Slot, version: &str) -> Result<(), UpgradeError> {
        let record = Record {
            from: self.running()?.to_owned(),
            to: slot.to_string(),
            version: version.to_owned(),
            ..Record::default()
        };
        record
            .write(&self.settings.state_dir)
            .map_err(|(path, error)| UpgradeError::Io { path, error })?;
        self.change_environment(|environment| environment.try_next(&slot.to_string()))
    }

    /// Changes the record of the last change. It is for people: that it cannot be written stops nothing.
    fn note(&self, change: impl FnOnce(&mut Record)) {
        let mut record = Record::read(&self.settings.state_dir).unwrap_or_default();
        let before = record.clone();
        change(&mut record);
        if record != before
            && let Err((path, error)) = record.write(&self.settings.state_dir)
        {
            warn!(path = %path.display(), %error, "the upgrade's outcome is not kept");
        }
    }

    pub fn last(&self) -> Option<LastUpgrade> {
        Record::read(&self.settings.state_dir).map(|record| record.to_message())
    }

    pub fn slots(&self) -> Result<Vec<v1::Slot>, UpgradeError> {
        let _turn = self.turn()?;
        let running = self.running()?;
        self.with_systems(|systems| {
            let environment = systems.environment()?;
            let next = environment.trial().map(|(next, _)| next.to_owned());
            let slot = |name: &str| v1::Slot {
                name: name.to_owned(),
                version: systems.version(name).unwrap_or_default(),
                complete: systems.is_complete(name),
                chosen: environment.slot() == name,
                running: running == name,
                on_trial: next.as_deref() == Some(name),
            };
            Ok(["A", "B", "factory"].map(slot).to_vec())
        })
    }
}
