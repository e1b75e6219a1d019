//! The CRI server's side: the bridge, and each pod's attachment to it with a record that outlives
//! the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use netfilter::Family;
use netfilter::iptables::IptablesError;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::warn;

use crate::addresses::{self, AddressError};
use crate::cni::{self, CniError, Sandbox};
use crate::host_ports::{self, PortMapping};
use crate::sys::links::{self, Pair};

pub const BRIDGE: &str = "ironlet0";
/// Where the records of attached pods are, below the pod network's own directory.
pub const ATTACHMENTS: &str = "attachments";

#[derive(Debug, Error)]
pub enum NetworkError {
    #[error("the node has no pod CIDR yet")]
    NotConfigured,
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("cannot {operation}")]
    Link {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot keep {path}")]
    Record {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    #[error(transparent)]
    Cni(#[from] CniError),
}

/// What one pod sandbox has of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub sandbox_id: String,
    /// `namespace/name`, for people who read the record.
    pub pod: String,
    pub addresses: Vec<IpAddr>,
    pub port_mappings: Vec<PortMapping>,
    /// CNI plugins connected it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<cni::Added>,
}

pub struct PodNetwork {
    directory: PathBuf,
    /// Where configurations of CNI plugins appear, and the plugins.
    cni: (PathBuf, PathBuf),
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pod_cidrs: Vec<IpNet>,
    attachments: BTreeMap<String, Attachment>,
    last: BTreeMap<IpNet, IpAddr>,
    /// The bridge carries the current pod CIDRs.
    bridge_ready: bool,
}

impl PodNetwork {
    /// Reads what an earlier process recorded under `directory`.
    pub fn new(directory: &Path) -> Result<Self, NetworkError> {
        Self::with_cni(directory, Path::new(cni::CONFIG_DIR), Path::new(cni::PLUGIN_DIR))
    }

    /// With CNI's directories elsewhere.
    pub fn with_cni(directory: &Path, configs: &Path, plugins: &Path) -> Result<Self, NetworkError> {
        let attachments_dir = directory.join(ATTACHMENTS);
        fs::create_dir_all(&attachments_dir).map_err(|source| NetworkError::Record {
            path: attachments_dir.clone(),
            source,
        })?;
        let state = State {
            pod_cidrs: read(&directory.join("pod-cidrs.json"))?.unwrap_or_default(),
            attachments: read_attachments(&attachments_dir)?,
            ..State::default()
        };
        Ok(Self {
            directory: directory.to_owned(),
            cni: (configs.to_owned(), plugins.to_owned()),
            state: Mutex::new(state),
        })
    }

    /// Takes the node's pod CIDRs (CRI UpdateRuntimeConfig) and brings the bridge up.
    pub async fn configure(&self, pod_cidrs: &[String]) -> Result<(), NetworkError> {
        let nets = pod_cidrs
            .iter()
            .map(|c| addresses::parse(c))
            .collect::<Result<Vec<_>, _>>()?;
        if nets.is_empty() {
            return Err(NetworkError::NotConfigured);
        }
        let mut state = self.state.lock().await;
        if state.pod_cidrs != nets {
            self.write("pod-cidrs.json", &nets)?;
            state.pod_cidrs = nets;
            state.bridge_ready = false;
        }
        match cni::configured(&self.cni.0)? {
            Some(_) => Ok(()),
            None => ensure_bridge(&mut state).await,
        }
    }

    /// Why pods cannot be attached now, if they cannot.
    pub fn readiness(&self) -> Result<(), String> {
        match cni::configured(&self.cni.0) {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(error) => return Err(error.to_string()),
        }
        match self.state.try_lock() {
            Ok(state) if state.pod_cidrs.is_empty() => Err(NetworkError::NotConfigured.to_string()),
            // Busy means that a pod is being attached, which needs a configured network.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Gives the sandbox `eth0` with an address of each family; the same again when it has them.
    pub async fn attach(&self, pod: Sandbox) -> Result<Vec<IpAddr>, NetworkError> {
        let mut state = self.state.lock().await;
        let known = state.attachments.get(&pod.sandbox_id).cloned();
        if let Some(network) = cni::configured(&self.cni.0)?
            && known.as_ref().is_none_or(|known| known.cni.is_some())
        {
            return self.attach_by_plugins(&mut state, network, pod, known).await;
        }
        if state.pod_cidrs.is_empty() {
            return Err(NetworkError::NotConfigured);
        }
        ensure_bridge(&mut state).await?;
        let Sandbox {
            sandbox_id, netns, ..
        } = &pod;
        let attachment = match known {
            Some(known) => known,
            None => attachment(&pod, choose_addresses(&mut state)?, None),
        };
        // The record comes first: a crash from here on is cleaned up by the sandbox's detach.
        self.record(&mut state, &attachment)?;
        let mtu = links::uplink_mtu().await.map_err(link("read the uplink's MTU"))?;
        let addresses = with_gateways(&state.pod_cidrs, &attachment.addresses);
        let host_side = host_side_name(sandbox_id);
        let pair = Pair {
            host_side: &host_side,
            bridge: BRIDGE,
            netns,
            mtu,
            addresses,
            bandwidth: pod.bandwidth,
        };
        links::create_pair(pair)
            .await
            .map_err(link("connect the pod to the bridge"))?;
        if !attachment.port_mappings.is_empty() {
            apply_host_ports(&state).await?;
            forget_flows(&attachment).await;
        }
        Ok(attachment.addresses)
    }

    async fn attach_by_plugins(
        &self,
        state: &mut State,
        network: cni::Network,
        pod: Sandbox,
        known: Option<Attachment>,
    ) -> Result<Vec<IpAddr>, NetworkError> {
        if let Some(known) = known.filter(|known| !known.addresses.is_empty()) {
            return Ok(known.addresses);
        }
        let begun = cni::Added::begin(network, pod.clone());
        self.record(state, &attachment(&pod, Vec::new(), Some(begun.clone())))?;
        let (added, addresses) = cni::add(begun, &self.cni.1).await?;
        self.record(state, &attachment(&pod, addresses.clone(), Some(added)))?;
        Ok(addresses)
    }

    fn record(&self, state: &mut State, attachment: &Attachment) -> Result<(), NetworkError> {
        self.write(&record_name(&attachment.sandbox_id), attachment)?;
        state
            .attachments
            .insert(attachment.sandbox_id.clone(), attachment.clone());
        Ok(())
    }

    /// Takes all of it back; nothing to do is success.
    pub async fn detach(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        let by_plugins = state
            .attachments
            .get(sandbox_id)
            .and_then(|attachment| attachment.cni.clone());
        match &by_plugins {
            Some(added) => cni::delete(added, &self.cni.1).await?,
            None => links::delete(&host_side_name(sandbox_id))
                .await
                .map_err(link("delete the pod's link"))?,
        }
        let Some(gone) = state.attachments.remove(sandbox_id) else {
            return Ok(());
        };
        if by_plugins.is_none()
            && !gone.port_mappings.is_empty()
            && let Err(error) = apply_host_ports(&state).await
        {
            warn!(sandbox = sandbox_id, %error, "host ports stay until the next change");
        }
        let path = self.directory.join(record_name(sandbox_id));
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::Record { path, source })
            }
            _ => Ok(()),
        }
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), NetworkError> {
        let path = self.directory.join(name);
        replace_file(&path, value).map_err(|source| NetworkError::Record { path, source })
    }
}

fn attachment(pod: &Sandbox, addresses: Vec<IpAddr>, cni: Option<cni::Added>) -> Attachment {
    Attachment {
        sandbox_id: pod.sandbox_id.clone(),
        pod: format!("{}/{}", pod.namespace, pod.name),
        addresses,
        port_mappings: pod.port_mappings.clone(),
        cni,
    }
}

async fn ensure_bridge(state: &mut State) -> Result<(), NetworkError> {
    if state.bridge_ready {
        return Ok(());
    }
    let gateways: Vec<IpNet> = state
        .pod_cidrs
        .iter()
        .map(|net| with_prefix_of(*net, addresses::gateway(*net)))
        .collect();
    let mtu = links::uplink_mtu().await.map_err(link("read the uplink's MTU"))?;
    links::ensure_bridge(BRIDGE, &gateways, mtu)
        .await
        .map_err(link("bring up the pod bridge"))?;
    state.bridge_ready = true;
    Ok(())
}

fn choose_addresses(state: &mut State) -> Result<Vec<IpAddr>, AddressError> {
    let taken: BTreeSet<IpAddr> = state
        .attachments
        .values()
        .flat_map(|a| a.addresses.iter().copied())
        .collect();
    let mut chosen = Vec::with_capacity(state.pod_cidrs.len());
    for net in &state.pod_cidrs {
        let address = addresses::next_free(*net, &taken, state.last.get(net).copied())?;
        state.last.insert(*net, address);
        chosen.push(address);
    }
    Ok(chosen)
}

async fn apply_host_ports(state: &State) -> Result<(), NetworkError> {
    let own = state
        .attachments
        .values()
        .filter(|attachment| attachment.cni.is_none());
    let all: Vec<Attachment> = own.cloned().collect();
    let families: BTreeSet<bool> = state.pod_cidrs.iter().map(|n| n.addr().is_ipv6()).collect();
    for v6 in families {
        host_ports::apply(if v6 { Family::V6 } else { Family::V4 }, &all).await?;
    }
    Ok(())
}

async fn forget_flows(attachment: &Attachment) {
    for family in attachment.addresses.iter().map(|address| Family::of(*address)) {
        let of = attachment.clone();
        let work = tokio::task::spawn_blocking(move || host_ports::forget_flows(family, &of));
        if let Ok(Err(error)) = work.await {
            warn!(pod = attachment.pod, %error, "old flows to the pod's host ports may go astray");
        }
    }
}

fn with_gateways(pod_cidrs: &[IpNet], pod: &[IpAddr]) -> Vec<(IpNet, IpAddr)> {
    let net_of = |a: &IpAddr| pod_cidrs.iter().find(|n| n.contains(a)).copied();
    pod.iter()
        .filter_map(|a| net_of(a).map(|net| (with_prefix_of(net, *a), addresses::gateway(net))))
        .collect()
}

fn with_prefix_of(net: IpNet, address: IpAddr) -> IpNet {
    IpNet::new_assert(address, net.prefix_len())
}

/// Interface names hold 15 bytes (IFNAMSIZ); sandbox IDs are hexadecimal and random.
fn host_side_name(sandbox_id: &str) -> String {
    let short: String = sandbox_id
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(11)
        .collect();
    format!("veth{short}")
}

fn record_name(sandbox_id: &str) -> String {
    format!("{ATTACHMENTS}/{sandbox_id}.json")
}

fn link(operation: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Link { operation, source }
}

fn read_attachments(directory: &Path) -> Result<BTreeMap<String, Attachment>, NetworkError> {
    let failed = |source| NetworkError::Record {
        path: directory.to_owned(),
        source,
    };
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "json")
            && let Some(attachment) = read::<Attachment>(&path)?
        {
            found.insert(attachment.sandbox_id.clone(), attachment);
        }
    }
    Ok(found)
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, NetworkError> {
    let failed = |source| NetworkError::Record {
        path: path.to_owned(),
        source,
    };
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| failed(e.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

/// Old content or new content, never half of one (rename(2)), also after a power cut.
pub(crate) fn replace_file(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_side_names_fit_and_are_the_sandbox_s() {
        assert_eq!(host_side_name("0123456789abcdef0123"), "veth0123456789a");
        assert!(host_side_name(&"f".repeat(64)).len() <= 15);
    }

    #[test]
    fn records_survive_the_process() {
        let dir = std::env::temp_dir().join(format!("ironlet-network-{}", std::process::id()));
        let network = PodNetwork::new(&dir).unwrap();
        assert!(network.readiness().is_err());
        let attachment = Attachment {
            sandbox_id: "a1".into(),
            pod: "default/a".into(),
            addresses: vec!["10.244.1.2".parse().unwrap()],
            port_mappings: vec![],
            cni: None,
        };
        network.write(&record_name("a1"), &attachment).unwrap();
        network
            .write("pod-cidrs.json", &["10.244.1.0/24".parse::<IpNet>().unwrap()])
            .unwrap();

        let again = PodNetwork::new(&dir).unwrap();
        assert!(again.readiness().is_ok());
        let mut state = again.state.into_inner();
        assert_eq!(state.attachments["a1"], attachment);
        assert_eq!(
            choose_addresses(&mut state).unwrap(),
            ["10.244.1.3".parse::<IpAddr>().unwrap()]
        );
        fs::remove_dir_all(dir).unwrap();
    }
}
