//! What the controller manager is told when it starts.

use k8s_openapi::jiff::SignedDuration;
use std::time::Duration;

/// Upstream's flag names, where they exist; files are read by the caller and come as PEM text.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--controllers`: `*` is every controller, `name` enables one, `-name` disables one.
    pub controllers: Vec<String>,
    /// `--cluster-cidr`: pod networks are cut out of these (at most one an address family). Empty: no allocation.
    pub cluster_cidr: Vec<String>,
    /// `--service-cluster-ip-range`: never handed out as pod network.
    pub service_cluster_ip_range: Vec<String>,
    /// `--node-cidr-mask-size-ipv4`.
    pub node_cidr_mask_size_ipv4: u8,
    /// `--node-cidr-mask-size-ipv6`.
    pub node_cidr_mask_size_ipv6: u8,
    /// `--node-monitor-period`.
    pub node_monitor_period: Duration,
    /// `--node-monitor-grace-period`: silence after which a node's conditions become Unknown.
    pub node_monitor_grace_period: Duration,
    /// `--node-startup-grace-period`: the same for a node that never reported.
    pub node_startup_grace_period: Duration,
    pub node_eviction: NodeEviction,
    /// `--cluster-signing-cert-file`, `--cluster-signing-key-file`; without it no request is signed.
    pub cluster_signing: Option<Signer>,
    /// `--cluster-signing-duration`.
    pub cluster_signing_duration: Duration,
    /// `--root-ca-file`: content of `kube-root-ca.crt`; without it the ConfigMap isn't published.
    pub root_ca_pem: Option<String>,
    /// `--service-account-private-key-file`; without it Secrets for service accounts' tokens stay empty.
    pub service_account_private_key_pem: Option<KeyPem>,
    /// `--legacy-service-account-token-clean-up-period`.
    pub legacy_service_account_token_clean_up_period: Duration,
    /// `--terminated-pod-gc-threshold`.
    pub terminated_pod_gc_threshold: usize,
    pub autoscaling: Autoscaling,
    /// `--leader-elect`. `false` in a process that is alone by construction (`control-plane all` on the embedded
    /// store): it costs a round trip at start.
    pub leader_elect: bool,
    /// This instance's name in the Lease; must differ between masters.
    pub identity: String,
}

/// How fast the nodes of a zone may lose their pods.
#[derive(Clone, Copy, Debug)]
pub struct NodeEviction {
    /// `--node-eviction-rate`: nodes a second in a zone that is well.
    pub rate: f64,
    /// `--secondary-node-eviction-rate`: the same in a large zone that is not.
    pub secondary_rate: f64,
    /// `--unhealthy-zone-threshold`: the share of nodes that are not ready from which a zone is not well.
    pub unhealthy_zone_threshold: f64,
    /// `--large-cluster-size-threshold`: up to this size nobody is evicted in a zone that is not well.
    pub large_cluster_size_threshold: usize,
}

impl Default for NodeEviction {
    fn default() -> Self {
        Self {
            rate: 0.1,
            secondary_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_cluster_size_threshold: 50,
        }
    }
}

/// `--horizontal-pod-autoscaler-…`.
#[derive(Clone, Debug)]
pub struct Autoscaling {
    pub sync_period: Duration,
    /// Recommendations of this time hold back removals.
    pub downscale_stabilization: SignedDuration,
    /// How far a ratio may be from one.
    pub tolerance: f64,
    /// CPU samples of a pod that began within this and is not ready say nothing.
    pub cpu_initialization_period: SignedDuration,
    /// A pod that became unready within this after its start was never ready.
    pub initial_readiness_delay: SignedDuration,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self {
            sync_period: Duration::from_secs(15),
            downscale_stabilization: SignedDuration::from_mins(5),
            tolerance: 0.1,
            cpu_initialization_period: SignedDuration::from_mins(5),
            initial_readiness_delay: SignedDuration::from_secs(30),
        }
    }
}

/// A private key as PEM text.
#[derive(Clone)]
pub struct KeyPem(pub String);

impl std::fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("KeyPem").finish_non_exhaustive()
    }
}

/// A certificate authority as PEM text.
#[derive(Clone)]
pub struct Signer {
    /// The CA certificate.
    pub cert_pem: String,
    /// Its key.
    pub key_pem: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            controllers: vec!["*".into()],
            cluster_cidr: Vec::new(),
            service_cluster_ip_range: Vec::new(),
            node_cidr_mask_size_ipv4: 24,
            node_cidr_mask_size_ipv6: 64,
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            node_eviction: NodeEviction::default(),
            cluster_signing: None,
            cluster_signing_duration: Duration::from_secs(365 * 24 * 3600),
            root_ca_pem: None,
            service_account_private_key_pem: None,
            legacy_service_account_token_clean_up_period: Duration::from_secs(365 * 24 * 3600),
            terminated_pod_gc_threshold: 12_500,
            autoscaling: Autoscaling::default(),
            leader_elect: true,
            identity: "controller-manager".into(),
        }
    }
}

/// Why [`crate::run`] ended before it was told to, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    LeadershipLost(#[from] api_client::LeadershipLost),
    /// A name in `--controllers` is not one of ours.
    #[error("--controllers: {name:?} is not a controller; known: {known}")]
    UnknownController { name: String, known: String },
    /// A name in `--controllers` is one of upstream's that we do not have.
    #[error(
        "--controllers: {name:?} is a controller of Kubernetes that this controller manager does not have"
    )]
    LackingController { name: String },
    /// A network in `--cluster-cidr` or `--service-cluster-ip-range` cannot be read.
    #[error("{flag}: {value:?} is not a CIDR: {reason}")]
    InvalidCidr {
        flag: &'static str,
        value: String,
        reason: String,
    },
    /// The signing certificate authority cannot be used.
    #[error("--cluster-signing-cert-file, --cluster-signing-key-file: {reason}")]
    InvalidSigner { reason: String },
    /// Service accounts' tokens cannot be signed with this key.
    #[error("--service-account-private-key-file: {reason}")]
    InvalidServiceAccountKey { reason: String },
}
