//! Standard CNI plugins instead of the built-in network, as soon as somebody puts a configuration where they are
//! looked for (CNI specification 1.1.0).

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::bandwidth::Bandwidth;
use crate::host_ports::PortMapping;

pub const CONFIG_DIR: &str = "/etc/cni/net.d";
pub const PLUGIN_DIR: &str = "/opt/cni/bin";
const INTERFACE: &str = "eth0";

#[derive(Debug, Error)]
pub enum CniError {
    #[error("{path}: {problem}")]
    Configuration { path: PathBuf, problem: String },
    #[error("CNI plugin {plugin}: {source}")]
    Spawn { plugin: String, source: io::Error },
    #[error("CNI plugin {plugin} failed at {command}: {message}")]
    Failed {
        plugin: String,
        command: &'static str,
        message: String,
    },
    #[error("CNI plugin {plugin} answered with no addresses")]
    NoAddresses { plugin: String },
}

/// A network configuration list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    cni_version: String,
    name: String,
    plugins: Vec<Map<String, Value>>,
}

/// A pod that needs a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    pub sandbox_id: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub netns: PathBuf,
    pub port_mappings: Vec<PortMapping>,
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

/// What must be kept to take it all back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    network: Network,
    pod: Sandbox,
    result: Value,
}

/// The first configuration by name; `None` when there is none.
pub fn configured(directory: &Path) -> Result<Option<Network>, CniError> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    paths.retain(|path| {
        let extension = path.extension().and_then(|e| e.to_str());
        matches!(extension, Some("conflist" | "conf" | "json"))
    });
    paths.sort();
    let Some(path) = paths.into_iter().next() else {
        return Ok(None);
    };
    let text = std::fs::read(&path).map_err(|error| problem(&path, &error))?;
    parse(&path, &text).map(Some)
}

fn problem(path: &Path, problem: &dyn ToString) -> CniError {
    CniError::Configuration {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// A list, or a single plugin's configuration as a list of one.
fn parse(path: &Path, text: &[u8]) -> Result<Network, CniError> {
    let value: Value = serde_json::from_slice(text).map_err(|error| problem(path, &error))?;
    let list = if value.get("plugins").is_some() {
        value
    } else {
        json!({"cniVersion": value["cniVersion"], "name": value["name"], "plugins": [value]})
    };
    let network: Network = serde_json::from_value(list).map_err(|error| problem(path, &error))?;
    let bad = network
        .plugins
        .iter()
        .any(|plugin| !plugin.get("type").is_some_and(Value::is_string));
    if network.plugins.is_empty() || bad {
        return Err(problem(path, &"plugins: each needs a type"));
    }
    Ok(network)
}

impl Added {
    /// Nothing yet; whoever finds this after a crash takes back what may have been done.
    pub fn begin(network: Network, pod: Sandbox) -> Self {
        Self {
            network,
            pod,
            result: Value::Null,
        }
    }
}

/// Runs all plugins in order; when one fails, those before it take back what they did.
pub async fn add(mut added: Added, plugins: &Path) -> Result<(Added, Vec<IpAddr>), CniError> {
    for index in 0..added.network.plugins.len() {
        match run(&added, index, "ADD", plugins).await {
            Ok(result) => added.result = result,
            Err(error) => {
                if let Err(error) = delete(&added, plugins).await {
                    tracing::warn!(pod = added.pod.name, %error, "CNI plugins could not take back a failed attempt");
                }
                return Err(error);
            }
        }
    }
    let addresses = addresses(&added.result);
    if addresses.is_empty() {
        let plugin = kind(&added.network, 0);
        return Err(CniError::NoAddresses { plugin });
    }
    Ok((added, addresses))
}

/// Runs all plugins in reverse order; the first failure is told after all have had their turn.
pub async fn delete(added: &Added, plugins: &Path) -> Result<(), CniError> {
    let mut outcome = Ok(());
    for index in (0..added.network.plugins.len()).rev() {
        if let Err(error) = run(added, index, "DEL", plugins).await {
            outcome = outcome.and(Err(error));
        }
    }
    outcome
}

fn kind(network: &Network, index: usize) -> String {
    network.plugins[index]
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    let of_this = ips.filter_map(|ip| ip["address"].as_str()?.parse::<IpNet>().ok());
    of_this.map(|net| net.addr()).collect()
}

/// The configuration that one plugin reads: its own, the list's name and version, the result so far, and what the
/// capabilities it declares ask for.
fn input(added: &Added, index: usize) -> Value {
    let Network {
        cni_version,
        name,
        plugins,
    } = &added.network;
    let mut config = plugins[index].clone();
    let capabilities = config.remove("capabilities").unwrap_or_default();
    let mut asked = Map::new();
    if capabilities["portMappings"] == json!(true) {
        let mappings: Vec<Value> = added.pod.port_mappings.iter().map(port_mapping).collect();
        asked.insert("portMappings".into(), json!(mappings));
    }
    if capabilities["bandwidth"] == json!(true) && added.pod.bandwidth != Bandwidth::default() {
        asked.insert("bandwidth".into(), added.pod.bandwidth.runtime_config());
    }
    if !asked.is_empty() {
        config.insert("runtimeConfig".into(), Value::Object(asked));
    }
    config.insert("cniVersion".into(), json!(cni_version));
    config.insert("name".into(), json!(name));
    if !added.result.is_null() {
        config.insert("prevResult".into(), added.result.clone());
    }
    Value::Object(config)
}

fn port_mapping(mapping: &PortMapping) -> Value {
    let PortMapping {
        protocol,
        container_port,
        host_port,
        host_ip,
    } = mapping;
    let mut value =
        json!({"hostPort": host_port, "containerPort": container_port, "protocol": protocol.to_string()});
    if let Some(ip) = host_ip {
        value["hostIP"] = json!(ip);
    }
    value
}

async fn run(added: &Added, index: usize, command: &'static str, plugins: &Path) -> Result<Value, CniError> {
    let plugin = kind(&added.network, index);
    let Sandbox {
        sandbox_id,
        namespace,
        name,
        uid,
        netns,
        ..
    } = &added.pod;
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
         K8S_POD_INFRA_CONTAINER_ID={sandbox_id};K8S_POD_UID={uid}"
    );
    let spawn = |source| CniError::Spawn {
        plugin: plugin.clone(),
        source,
    };
    let mut child = Command::new(plugins.join(&plugin))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", sandbox_id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_ARGS", arguments)
        .env("CNI_PATH", plugins)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When it refuses early, what it says matters, not that the pipe broke.
        let _ = stdin.write_all(input(added, index).to_string().as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(spawn)?;
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if output.status.success() {
        return Ok(told);
    }
    let message = match told["msg"].as_str() {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    };
    Err(CniError::Failed {
        plugin,
        command,
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_reads_its_own_part_of_the_list() {
        let text = json!({"cniVersion": "1.0.0", "name": "lab", "plugins": [
            {"type": "bridge", "bridge": "cni0"}, {"type": "portmap", "capabilities": {"portMappings": true, "bandwidth": true}}]});
        let network = parse(Path::new("x"), text.to_string().as_bytes()).unwrap();
        let port = PortMapping {
            protocol: crate::Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: Some("10.0.0.1".parse().unwrap()),
        };
        let pod = Sandbox {
            sandbox_id: "s".into(),
            namespace: "ns".into(),
            name: "p".into(),
            uid: "u".into(),
            netns: "/run/netns/p".into(),
            port_mappings: vec![port],
            bandwidth: Bandwidth {
                ingress: Some(1_000_000),
                egress: None,
            },
        };
        let mut added = Added {
            network,
            pod,
            result: Value::Null,
        };
        assert_eq!(
            input(&added, 0),
            json!({"type": "bridge", "bridge": "cni0", "cniVersion": "1.0.0", "name": "lab"})
        );
        added.result = json!({"ips": [{"address": "10.1.0.7/24"}, {"address": "fd00::7/64"}]});
        assert_eq!(
            input(&added, 1),
            json!({"type": "portmap", "cniVersion": "1.0.0", "name": "lab", "prevResult": added.result,
                "runtimeConfig": {"bandwidth": {"ingressRate": 1_000_000, "ingressBurst": 524_288}, "portMappings": [
                    {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "10.0.0.1"}]}})
        );
        assert_eq!(
            addresses(&added.result),
            ["10.1.0.7", "fd00::7"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
    }

    #[test]
    fn configurations_that_nobody_can_run_are_named() {
        for text in [
            "",
            "{}",
            r#"{"cniVersion": "1.0.0", "name": "x", "plugins": []}"#,
            r#"{"cniVersion": "1.0.0", "name": "x"}"#,
        ] {
            let error = parse(Path::new("/etc/cni/net.d/10-x.conflist"), text.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("/etc/cni/net.d/10-x.conflist: "), "{error}");
        }
    }
}
