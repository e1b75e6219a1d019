//! The command lines of `agent` and `agent cri`: contracts that init, tests and users script against.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Taint;

/// Makes this machine a Kubernetes node: kubelet, kube-proxy and routes to other nodes' pods.
///
/// `agent cri --help` describes the container runtime.
#[derive(Parser, Debug)]
#[command(name = "agent", version)]
pub struct Agent {
    /// Credentials for the API server; written after joining, used and kept fresh from then on
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Where the kubelet keeps pods' volumes and its certificates
    #[arg(long, value_name = "DIR")]
    pub root_dir: PathBuf,
    /// The container runtime's socket
    #[arg(long, value_name = "unix:///PATH", default_value = "unix:///run/ironlet/cri.sock", value_parser = endpoint)]
    pub cri_endpoint: String,
    /// The name of the Node object [default: the host name]
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    pub node_name: Option<String>,
    /// The address other nodes reach this one at [default: the default route's]
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// API server to join when there is no working kubeconfig
    #[arg(long, value_name = "https://HOST:PORT", value_parser = server)]
    pub bootstrap_server: Option<String>,
    /// File with the bootstrap token (ID.SECRET)
    #[arg(long, value_name = "FILE", requires = "bootstrap_server")]
    pub bootstrap_token_file: Option<PathBuf>,
    /// Pins the cluster's CA while joining
    #[arg(long, value_name = "sha256:HEX", value_parser = ca_hash, requires = "bootstrap_server")]
    pub bootstrap_ca_hash: Option<String>,
    /// Labels to register the node with
    #[arg(long, value_name = "K=V,…", default_value = "", value_parser = labels, hide_default_value = true)]
    pub node_labels: Labels,
    /// Taints to register the node with
    #[arg(long, value_name = "K=V:EFFECT,…", default_value = "", value_parser = taints, hide_default_value = true)]
    pub node_taints: Taints,
    /// Addresses of the cluster's DNS, given to pods
    #[arg(long, value_name = "IP,…", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's DNS domain
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Networks of all pods, one of each family
    #[arg(
        long,
        value_name = "CIDR,…",
        value_delimiter = ',',
        default_value = "10.244.0.0/16"
    )]
    pub cluster_cidr: Vec<IpNet>,
    /// Address the kubelet's API listens on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub address: IpAddr,
    /// Port of the kubelet's API
    #[arg(long, default_value_t = 10250)]
    pub port: u16,
    /// Port of kube-proxy's /healthz
    #[arg(long, default_value_t = kube_proxy::HEALTH_PORT)]
    pub proxy_healthz_port: u16,
    /// Port of kube-proxy's /metrics, on loopback
    #[arg(long, default_value_t = kube_proxy::METRICS_PORT)]
    pub proxy_metrics_port: u16,
    /// Networks whose addresses of this node are open at node ports [default: all]
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    pub nodeport_addresses: Vec<IpNet>,
    /// Where the runtime's pod network keeps its records: `network` below its --root-dir
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ironlet/cri/network")]
    pub pod_network_dir: PathBuf,
    /// Refuse connections from outside to all ports but those of the node's own services and of Services
    #[arg(long)]
    pub host_firewall: bool,
    /// Where container logs are written
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods")]
    pub pod_logs_dir: PathBuf,
    /// Where init tells what is wrong with the kernel parameters, one error a line
    #[arg(long, value_name = "FILE", default_value = "/run/ironlet/parameter-errors")]
    pub parameter_errors: PathBuf,
    /// KubeletConfiguration (kubelet.config.k8s.io/v1beta1) that overrides defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The cgroup v2 mount
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,
}

/// Serves the Container Runtime Interface v1 on a unix socket.
#[derive(Parser, Debug)]
#[command(name = "agent cri", version)]
pub struct Cri {
    /// Socket to serve on
    #[arg(long, value_name = "unix:///PATH", value_parser = endpoint)]
    pub listen: String,
    /// Where images, snapshots, records and the pod network's addresses live
    #[arg(long, value_name = "DIR")]
    pub root_dir: PathBuf,
    /// Folder of OCI archives to import at start
    #[arg(long, value_name = "DIR")]
    pub image_archives: Option<PathBuf>,
    /// Registry mirror, tried before the registry itself; repeatable
    #[arg(long = "registry-mirror", value_name = "HOST=URL", value_parser = mirror)]
    pub registry_mirrors: Vec<cri::RegistryMirror>,
}

/// Serves the API of the machine itself (gRPC): state, logs, restarts. `ironctl` is its client.
///
/// Callers show a client certificate of the cluster's CA; the cluster's RBAC says what they may: get, update, create
/// and delete on nodes/ironlet.
#[derive(Parser, Debug)]
#[command(name = "agent node-api", version)]
pub struct NodeApi {
    /// The node's credentials, as the agent keeps them
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// The kubelet's serving certificate and key, as the agent keeps them
    #[arg(long, value_name = "FILE")]
    pub serving_certificate: PathBuf,
    /// The name of the Node object
    #[arg(long, value_name = "NAME", value_parser = node_name)]
    pub node_name: String,
    /// Address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub address: IpAddr,
    /// Port to listen on
    #[arg(long, default_value_t = node_api::PORT)]
    pub port: u16,
    /// Where init listens and keeps services' logs
    #[arg(long, value_name = "DIR", default_value = "/run/ironlet")]
    pub run_dir: PathBuf,
    /// Show how the machine does on this terminal
    #[arg(long, value_name = "TTY")]
    pub screen: Option<PathBuf>,
    /// The installed system that was booted
    #[arg(long, value_name = "A|B|factory")]
    pub slot: Option<String>,
    /// Where the installed systems are [default: the partition named IRONLET-SYSTEM]
    #[arg(long, value_name = "DEV")]
    pub system_partition: Option<PathBuf>,
    /// Take only upgrades that this minisign key has signed
    #[arg(long, value_name = "BASE64")]
    pub upgrade_key: Option<String>,
    /// Take only upgrades that have a control plane
    #[arg(long)]
    pub master: bool,
    /// Where it is kept what became of upgrades
    #[arg(long, value_name = "DIR", default_value = "/var/lib/ironlet/node-api")]
    pub state_dir: PathBuf,
    /// The control plane's certificates, by which etcd is asked
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/ironlet/control-plane/pki"
    )]
    pub control_plane_pki: PathBuf,
}

/// Clap takes the elements of a bare collection for repeated values; these are one value each.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels(pub BTreeMap<String, String>);
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taints(pub Vec<Taint>);

fn endpoint(value: &str) -> Result<String, String> {
    match value.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(value.to_owned()),
        _ => Err("expected unix:///absolute/path".into()),
    }
}

fn node_name(value: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = label
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        !label.is_empty() && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    if value.len() <= 253 && value.split('.').all(label) {
        return Ok(value.to_owned());
    }
    Err("expected a lower-case DNS name".into())
}

fn server(value: &str) -> Result<String, String> {
    let authority = value
        .strip_prefix("https://")
        .map(|rest| rest.trim_end_matches('/'));
    match authority.and_then(|authority| authority.rsplit_once(':')) {
        Some((host, port)) if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok() => {
            Ok(value.trim_end_matches('/').to_owned())
        }
        _ => Err("expected https://HOST:PORT".into()),
    }
}

fn ca_hash(value: &str) -> Result<String, String> {
    match value.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Ok(value.to_ascii_lowercase())
        }
        _ => Err("expected sha256: and 64 hexadecimal digits".into()),
    }
}

fn labels(value: &str) -> Result<Labels, String> {
    let pairs = value.split(',').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("{pair:?} is not KEY=VALUE"))?;
        if key.is_empty() {
            Err(format!("{pair:?} has no key"))
        } else {
            Ok((key.to_owned(), value.to_owned()))
        }
    });
    pairs.collect::<Result<_, _>>().map(Labels)
}

fn taints(value: &str) -> Result<Taints, String> {
    let taints = value.split(',').filter(|taint| !taint.is_empty()).map(|text| {
        let (pair, effect) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("{text:?} is not KEY=VALUE:EFFECT"))?;
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            return Err(format!(
                "{text:?}: effect must be NoSchedule, PreferNoSchedule or NoExecute"
            ));
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key.is_empty() {
            return Err(format!("{text:?} has no key"));
        }
        let value = (!value.is_empty()).then(|| value.to_owned());
        Ok(Taint {
            key: key.to_owned(),
            value,
            effect: effect.to_owned(),
            time_added: None,
        })
    });
    taints.collect::<Result<_, _>>().map(Taints)
}

fn mirror(value: &str) -> Result<cri::RegistryMirror, String> {
    match value.split_once('=') {
        Some((host, url))
            if !host.is_empty() && (url.starts_with("http://") || url.starts_with("https://")) =>
        {
            Ok(cri::RegistryMirror {
                host: host.to_owned(),
                url: url.to_owned(),
            })
        }
        _ => Err("expected HOST=http(s)://…".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: [&str; 5] = ["agent", "--kubeconfig", "/k", "--root-dir", "/r"];

    fn parse(more: &[&str]) -> Result<Agent, String> {
        Agent::try_parse_from(BASE.iter().chain(more)).map_err(|error| error.to_string())
    }

    #[test]
    fn labels_and_taints() {
        let agent = parse(&[
            "--node-labels",
            "a=1,b=",
            "--node-taints",
            "k=v:NoSchedule,x:NoExecute",
        ])
        .unwrap();
        assert_eq!(
            agent.node_labels.0,
            BTreeMap::from([("a".into(), "1".into()), ("b".into(), "".into())])
        );
        let taints: Vec<_> = agent
            .node_taints
            .0
            .iter()
            .map(|t| (t.key.as_str(), t.value.as_deref(), t.effect.as_str()))
            .collect();
        assert_eq!(taints, [("k", Some("v"), "NoSchedule"), ("x", None, "NoExecute")]);
        assert!(parse(&[]).unwrap().node_labels.0.is_empty());
    }

    #[test]
    fn bad_values_name_their_flag() {
        for (flag, value) in [
            ("--cri-endpoint", "tcp://x"),
            ("--node-name", "Upper"),
            ("--node-ip", "1.2.3"),
            ("--bootstrap-server", "http://h:1"),
            ("--bootstrap-server", "https://h"),
            ("--node-labels", "novalue"),
            ("--node-taints", "k=v:Sometimes"),
            ("--cluster-dns", "10.96.0.10,x"),
            ("--cluster-cidr", "10.244.0.0/99"),
        ] {
            let error = parse(&[flag, value]).unwrap_err();
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
        let error = parse(&[
            "--bootstrap-server",
            "https://h:1",
            "--bootstrap-ca-hash",
            "sha256:12",
        ])
        .unwrap_err();
        assert!(error.contains("--bootstrap-ca-hash"), "{error}");
    }

    #[test]
    fn the_runtimes_flags() {
        let cri = Cri::try_parse_from([
            "cri",
            "--listen",
            "unix:///s",
            "--root-dir",
            "/r",
            "--registry-mirror",
            "docker.io=http://m:5000",
        ]);
        let mirrors = cri.unwrap().registry_mirrors;
        assert_eq!(
            mirrors,
            [cri::RegistryMirror {
                host: "docker.io".into(),
                url: "http://m:5000".into()
            }]
        );
        let error = Cri::try_parse_from(["cri", "--listen", "s", "--root-dir", "/r"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("--listen"), "{error}");
    }
}
