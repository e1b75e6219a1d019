//! What became of the last change of the system, kept on the state disk: the system that failed can tell no more.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::v1::LastUpgrade;

const FILE: &str = "upgrade.json";

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Record {
    pub from: String,
    pub to: String,
    pub version: String,
    pub outcome: Outcome,
    /// Why it failed, or what it waits for.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    #[default]
    Pending,
    Kept,
    Failed,
}

impl Record {
    pub fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()
    }

    pub fn write(&self, directory: &Path) -> Result<(), (PathBuf, io::Error)> {
        let path = directory.join(FILE);
        let partial = directory.join(format!("{FILE}.new"));
        let text = serde_json::to_vec(self).unwrap_or_default();
        let written = fs::create_dir_all(directory)
            .and_then(|()| File::create(&partial))
            .and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&partial, &path));
        written.map_err(|error| (path, error))
    }

    pub fn to_message(&self) -> LastUpgrade {
        let outcome = match self.outcome {
            Outcome::Pending => "pending",
            Outcome::Kept => "kept",
            Outcome::Failed => "failed",
        };
        LastUpgrade {
            from: self.from.clone(),
            to: self.to.clone(),
            version: self.version.clone(),
            outcome: outcome.to_owned(),
            reason: self.reason.clone(),
        }
    }
}
