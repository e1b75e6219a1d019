//! The cluster's record on disk: who its processes are, so that later commands find them again.

use crate::{accelerator::Accelerator, cluster::Node, kubeconfig, layout::Layout, process::Process};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub name: String,
    /// Directory with one image a role below it.
    pub image: PathBuf,
    pub accelerator: Accelerator,
    /// Port on 127.0.0.1 that leads to the first master's API server.
    pub api_port: u16,
    /// Port on 127.0.0.1 that leads to each node's own API.
    #[serde(default)]
    pub node_api_ports: BTreeMap<String, u16>,
    pub nodes: Vec<Node>,
    pub hub: Option<Process>,
    /// QEMU of each node that was started.
    pub machines: BTreeMap<String, Process>,
}

impl Record {
    pub fn read(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.record();
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("{}: not a cluster's record", path.display()))
    }

    /// It holds the bootstrap token, so only its owner may read it.
    pub fn write(&self, layout: &Layout) -> anyhow::Result<()> {
        let path = layout.record();
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        kubeconfig::write(&path, &text).with_context(|| format!("write {}", path.display()))
    }

    pub fn is_running(&self, node: &str) -> bool {
        self.machines.get(node).is_some_and(Process::is_alive)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|node| node.name.as_str())
    }
}
