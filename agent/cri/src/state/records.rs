//! The records: sandboxes and containers (by the server), processes (by the shim), images.

use cri_api::v1;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    pub config: v1::PodSandboxConfig,
    pub runtime_handler: String,
    pub created_at: i64,
    /// The boot it was made in: namespaces and processes end with it.
    pub boot_id: String,
    pub addresses: Vec<String>,
    pub ready: bool,
    /// Set once the pod network has taken everything back.
    pub network_released: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub config: v1::ContainerConfig,
    pub image_id: String,
    /// `repository@digest` when the image has one, else its ID.
    pub image_ref: String,
    /// The diff IDs below the root file system: they stay as long as the container.
    pub layers: Vec<String>,
    pub created_at: i64,
    pub log_path: Option<PathBuf>,
    pub user: v1::LinuxContainerUser,
    /// Signal number that asks the container to end.
    pub stop_signal: i32,
    /// Below the cgroup root.
    pub cgroup: PathBuf,
}

/// A container's process from start to end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub pid: i32,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub oom_killed: bool,
    /// Its end was not seen: the machine or the shim went down first.
    #[serde(default)]
    pub lost: bool,
    /// Set when the container never ran.
    pub start_error: Option<String>,
}

impl ProcessRecord {
    pub fn running(&self) -> bool {
        self.finished_at == 0
    }

    /// Upstream's termination reasons.
    pub fn reason(&self) -> &'static str {
        match self {
            Self { finished_at: 0, .. } => "",
            Self {
                start_error: Some(_), ..
            } => "StartError",
            Self { lost: true, .. } => "Unknown",
            Self { oom_killed: true, .. } => "OOMKilled",
            Self { exit_code: 0, .. } => "Completed",
            _ => "Error",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the image's configuration.
    pub id: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub size: u64,
    pub layers: Vec<String>,
    pub config: ImageConfig,
    /// Came with the machine: not for garbage collection.
    pub pinned: bool,
}

/// What an image says about running it (OCI image configuration, `config`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    pub user: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

/// An unpacked layer, and what it takes on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    pub diff_id: String,
    pub bytes: u64,
    pub inodes: u64,
    /// The names at its top: a folder that lacks one is not whole. Older records know none.
    #[serde(default)]
    pub names: Option<BTreeSet<String>>,
}
