//! The command line: upstream's flag names where upstream has the flag.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use apiserver::AdmissionOptions;
use clap::{Args, ValueEnum};

use crate::access::Access;
use crate::audit::Audit;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// A database inside --data-dir
    Embedded,
    /// The etcd at --etcd-servers
    Etcd,
}

#[derive(Debug, Clone, Args)]
pub struct Cluster {
    /// Networks Services get their addresses from; the first is the primary family
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', default_value = "10.96.0.0/12", value_parser = cidr)]
    #[arg(visible_alias = "service-cidr")]
    pub service_cluster_ip_range: Vec<String>,
    /// DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = domain)]
    pub cluster_domain: String,
}

#[derive(Debug, Clone, Args)]
pub struct Serving {
    /// Address to listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// Port to listen on; 0 takes any free one
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// Address the other nodes reach this API server at [default: --bind-address]
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    /// Ports for Services of type NodePort
    #[arg(long, value_name = "FROM-TO", default_value = "30000-32767", value_parser = port_range)]
    pub service_node_port_range: (u16, u16),
    /// How long events are kept
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub event_ttl: Duration,
    /// Compressed descriptions of the API for `kubectl explain`
    #[arg(long, value_name = "FILE")]
    pub openapi_descriptions: Option<PathBuf>,
    /// CA of the kubelets' serving certificates; without it they are not verified
    #[arg(long, value_name = "FILE")]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// How long to go on serving when told to stop, while /readyz says so
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub shutdown_delay_duration: Duration,
    /// Admission plug-ins to run; those that are built in all do
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plug-ins not to run
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    #[command(flatten)]
    pub audit: Audit,
    #[command(flatten)]
    pub access: Access,
}

impl Serving {
    pub fn admission(&self) -> AdmissionOptions {
        AdmissionOptions {
            enable: self.enable_admission_plugins.clone(),
            disable: self.disable_admission_plugins.clone(),
        }
    }

    /// The address to tell others; a wildcard is nobody's address.
    pub fn advertised(&self) -> anyhow::Result<IpAddr> {
        match self.advertise_address {
            Some(address) if address.is_unspecified() => {
                anyhow::bail!("--advertise-address: {address} is not an address others can reach")
            }
            Some(address) => Ok(address),
            None if self.bind_address.is_unspecified() => {
                anyhow::bail!(
                    "--advertise-address is needed when --bind-address is {}",
                    self.bind_address
                )
            }
            None => Ok(self.bind_address),
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct Store {
    /// Where objects are kept
    #[arg(long, value_enum, default_value_t = StoreKind::Embedded)]
    pub store: StoreKind,
    /// etcd's client URLs
    #[arg(
        long,
        value_name = "URL,…",
        value_delimiter = ',',
        required_if_eq("store", "etcd")
    )]
    pub etcd_servers: Vec<String>,
    /// CA of etcd's certificate [default for https: DATA-DIR/pki/etcd/ca.crt]
    #[arg(long, value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// Our certificate towards etcd [default for https: DATA-DIR/pki/apiserver-etcd-client.crt]
    #[arg(long, value_name = "FILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// How often the history of objects before the last time is forgotten; 0s: never
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub etcd_compaction_interval: Duration,
    /// EncryptionConfiguration: which kinds are encrypted in the store, and with which keys
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Founding {
    /// Directory of the control plane: pki/, kubeconfigs, and the embedded store
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Bootstrap token joining nodes use; written here when the file does not exist yet
    #[arg(long, value_name = "FILE")]
    pub bootstrap_token_file: Option<PathBuf>,
    /// More names or addresses for the API server's certificate
    #[arg(long, value_name = "NAME|IP,…", value_delimiter = ',')]
    pub apiserver_cert_extra_sans: Vec<String>,
    /// Refuse a --data-dir that belongs to another cluster than this
    #[arg(long, value_name = "ID")]
    pub cluster_id: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Found {
    #[command(flatten)]
    pub founding: Founding,
    #[command(flatten)]
    pub cluster: Cluster,
    /// Address the other nodes reach this API server at
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub advertise_address: IpAddr,
    /// Port of the API server, for the kubeconfigs
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Addon {
    /// The cluster's name server
    Dns,
    /// What nodes and pods use, for kubectl top and autoscaling
    MetricsServer,
}

#[derive(Debug, Clone, Args)]
pub struct All {
    #[command(flatten)]
    pub founding: Founding,
    #[command(flatten)]
    pub cluster: Cluster,
    #[command(flatten)]
    pub serving: Serving,
    #[command(flatten)]
    pub store: Store,
    #[command(flatten)]
    pub controllers: Controllers,
    #[command(flatten)]
    pub cloud: Cloud,
    /// Add-ons to install and keep up to date
    #[arg(long, value_enum, value_name = "NAME,…", value_delimiter = ',')]
    pub addons: Vec<Addon>,
    /// Write the administrator's kubeconfig here, too, once the API server is ready
    #[arg(long, value_name = "PATH")]
    pub publish_kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct Controllers {
    /// Networks the nodes' pod networks are cut out of
    #[arg(
        long,
        value_name = "CIDR,…",
        value_delimiter = ',',
        default_value = "10.244.0.0/16",
        value_parser = cidr
    )]
    pub cluster_cidr: Vec<String>,
    /// Size of a node's IPv4 pod network
    #[arg(long, value_name = "BITS", default_value_t = 24, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub node_cidr_mask_size_ipv4: u8,
    /// Size of a node's IPv6 pod network
    #[arg(long, value_name = "BITS", default_value_t = 64, value_parser = clap::value_parser!(u8).range(1..=128))]
    pub node_cidr_mask_size_ipv6: u8,
    /// Controllers to run: * all by default, name one more, -name one less
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true
    )]
    pub controllers: Vec<String>,
    /// How often node leases are looked at
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub node_monitor_period: Duration,
    /// Silence after which a node counts as unreachable
    #[arg(long, value_name = "DURATION", default_value = "50s", value_parser = duration)]
    pub node_monitor_grace_period: Duration,
    /// The same for a node that never reported
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub node_startup_grace_period: Duration,
    /// Nodes a second that may lose their pods, in a zone that is well
    #[arg(long, value_name = "NUMBER", default_value_t = 0.1)]
    pub node_eviction_rate: f64,
    /// Nodes a second that may lose their pods, in a large zone that is not well
    #[arg(long, value_name = "NUMBER", default_value_t = 0.01)]
    pub secondary_node_eviction_rate: f64,
    /// Share of nodes that are not ready from which a zone is not well
    #[arg(long, value_name = "NUMBER", default_value_t = 0.55)]
    pub unhealthy_zone_threshold: f64,
    /// Nodes up to which a zone that is not well loses no pods
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    pub large_cluster_size_threshold: usize,
    /// Lifetime of the certificates that are signed
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = duration)]
    pub cluster_signing_duration: Duration,
    /// How long a generated token kept in a Secret may be unused before it is marked, and after that before it goes
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = duration)]
    pub legacy_service_account_token_clean_up_period: Duration,
    /// Ended pods kept before the garbage collector deletes some
    #[arg(long, value_name = "COUNT", default_value_t = 12_500)]
    pub terminated_pod_gc_threshold: usize,
    /// How often autoscalers are looked at
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub horizontal_pod_autoscaler_sync_period: Duration,
    /// Removals wait until no recommendation of this time was higher
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// How far from one the ratio of wish and measurement may be
    #[arg(long, value_name = "NUMBER", default_value_t = 0.1)]
    pub horizontal_pod_autoscaler_tolerance: f64,
    /// Time after a pod's start in which its CPU counts only while it is ready
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// Time after a pod's start in which it is not yet seen as ready
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub horizontal_pod_autoscaler_initial_readiness_delay: Duration,
}

#[derive(Debug, Clone, Args)]
pub struct FrontProxy {
    /// CA of the proxies that may say in headers who asks
    #[arg(long, value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names such a proxy may have; none given: any
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers that name the user
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "X-Remote-User"
    )]
    pub requestheader_username_headers: Vec<String>,
    /// Headers that hold the user's UID
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "X-Remote-Uid"
    )]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers that name the user's groups
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = "X-Remote-Group"
    )]
    pub requestheader_group_headers: Vec<String>,
    /// What the names of headers begin with that hold more about the user
    #[arg(
        long,
        value_name = "PREFIX,…",
        value_delimiter = ',',
        default_value = "X-Remote-Extra-"
    )]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// Our certificate towards extension API servers
    #[arg(long, value_name = "FILE", requires = "proxy_client_key_file")]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "proxy_client_cert_file")]
    pub proxy_client_key_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct ApiServer {
    #[command(flatten)]
    pub cluster: Cluster,
    #[command(flatten)]
    pub serving: Serving,
    #[command(flatten)]
    pub store: Store,
    #[command(flatten)]
    pub front_proxy: FrontProxy,
    /// Directory of the embedded store
    #[arg(long, value_name = "DIR", required_if_eq("store", "embedded"))]
    pub data_dir: Option<PathBuf>,
    /// CA of the clients' certificates
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: PathBuf,
    /// Serving certificate
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: PathBuf,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: PathBuf,
    /// Our certificate towards kubelets
    #[arg(long, value_name = "FILE")]
    pub kubelet_client_certificate: PathBuf,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub kubelet_client_key: PathBuf,
    /// Public keys service-account tokens are verified with
    #[arg(long, value_name = "FILE,…", value_delimiter = ',', required = true)]
    pub service_account_key_file: Vec<PathBuf>,
    /// Private key service-account tokens are signed with
    #[arg(long, value_name = "FILE")]
    pub service_account_signing_key_file: PathBuf,
    /// Issuer of service-account tokens [default: https://kubernetes.default.svc.CLUSTER-DOMAIN]
    #[arg(long, value_name = "URL")]
    pub service_account_issuer: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct Scheduler {
    /// How to reach the API server
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Wait for the Lease before scheduling
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    /// A KubeSchedulerConfiguration (kubescheduler.config.k8s.io/v1)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve /metrics and the health checks here, as plain HTTP
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:10259")]
    pub metrics_bind_address: SocketAddr,
}

#[derive(Debug, Clone, Args)]
pub struct Cloud {
    /// Addresses for Services of type LoadBalancer, as CIDRs or ranges; none: the nodes' own addresses
    #[arg(long, value_name = "CIDR|FIRST-LAST,…", value_delimiter = ',')]
    pub load_balancer_pool: Vec<cloud_controller_manager::Pool>,
}

#[derive(Debug, Clone, Args)]
pub struct CloudControllerManager {
    /// How to reach the API server
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Wait for the Lease before controlling
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    #[command(flatten)]
    pub cloud: Cloud,
}

#[derive(Debug, Clone, Args)]
pub struct ControllerManager {
    /// How to reach the API server
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Wait for the Lease before controlling
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    #[command(flatten)]
    pub controllers: Controllers,
    /// Networks Services get their addresses from; never handed out as pod network
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',', value_parser = cidr)]
    pub service_cluster_ip_range: Vec<String>,
    /// CA certificate that signs requests
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// CA certificate published to pods in kube-root-ca.crt
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// Private key that signs the tokens kept in Secrets
    #[arg(long, value_name = "FILE")]
    pub service_account_private_key_file: Option<PathBuf>,
}

fn cidr(text: &str) -> Result<String, String> {
    let (address, bits) = text.split_once('/').ok_or("expected ADDRESS/BITS")?;
    let address: IpAddr = address
        .parse()
        .map_err(|_| format!("{address:?} is not an IP address"))?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    match bits.parse::<u8>() {
        Ok(bits) if bits <= longest => Ok(text.to_owned()),
        _ => Err(format!("{bits:?} is not a prefix length between 0 and {longest}")),
    }
}

fn domain(text: &str) -> Result<String, String> {
    let valid = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if text.split('.').all(valid) {
        Ok(text.to_owned())
    } else {
        Err("not a DNS domain in lower case".into())
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let bounds = text
        .split_once('-')
        .and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    match bounds {
        Some((from, to)) if 0 < from && from <= to => Ok((from, to)),
        _ => Err("expected FROM-TO, two ports in order".into()),
    }
}

/// Go's notation: `1h30m`, `50s`, `100ms`.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
    let wrong = || "expected a duration such as 1h30m, 50s or 100ms".to_owned();
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (unit, factor) = UNITS
            .iter()
            .find(|(unit, _)| tail.starts_with(unit))
            .ok_or_else(wrong)?;
        total = number
            .checked_mul(*factor)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(wrong)?;
        rest = &tail[unit.len()..];
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(Duration::from_millis(total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("1h", 3_600_000),
            ("1h0m0s", 3_600_000),
            ("50s", 50_000),
            ("1m30s", 90_000),
            ("100ms", 100),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "1x", "-1s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn values_are_checked_where_they_are_typed() {
        for good in ["10.96.0.0/12", "fd00::/108"] {
            assert_eq!(cidr(good).as_deref(), Ok(good));
        }
        for bad in [
            "10.96.0.0",
            "10.96.0.0/33",
            "x/8",
            "fd00::/129",
            "/",
            "1.2.3.4/-1",
        ] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
        assert_eq!(port_range("30000-32767"), Ok((30000, 32767)));
        for bad in ["30000", "2-1", "0-5", "1-70000"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
        assert!(domain("cluster.local").is_ok());
        for bad in ["", "a..b", "-a", "A.b", "a b"] {
            assert!(domain(bad).is_err(), "{bad}");
        }
    }
}
