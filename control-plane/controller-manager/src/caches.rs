//! All the caches of the process: one watch a kind, whoever needs it.

use crate::cache::{Cache, Object, Observers};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment, VolumeAttributesClass};
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use std::any::TypeId;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::task::JoinSet;

type Start = Box<dyn FnOnce(Client) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;
type Synced = Box<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

macro_rules! caches {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $config:expr, $trim:expr;)*) => {
        /// One field a kind.
        pub struct Caches {
            $($(#[$doc])* pub $field: Arc<Cache<$type>>,)*
        }

        impl Caches {
            /// The caches, and their watches, not yet running: handlers come first.
            pub fn new() -> (Self, Watches) {
                let mut watches = Watches::default();
                let caches = Self { $($field: watches.add($config, $trim),)* };
                (caches, watches)
            }
        }
    };
}

caches! {
    pods: Pod = Config::default(), |_| {};
    nodes: Node = Config::default(), |node| if let Some(status) = &mut node.status { status.images = None; };
    namespaces: Namespace = Config::default(), |_| {};
    /// Node leases only.
    leases: Lease = Config::default().fields("metadata.namespace=kube-node-lease"), |_| {};
    service_accounts: ServiceAccount = Config::default(), |_| {};
    /// `kube-root-ca.crt` of every namespace, and `cluster-info`.
    root_ca_maps: ConfigMap = Config::default().fields("metadata.name=kube-root-ca.crt"), |_| {};
    cluster_info: ConfigMap = Config::default().fields("metadata.name=cluster-info,metadata.namespace=kube-public"), |_| {};
    /// Bootstrap tokens.
    token_secrets: Secret = Config::default().fields("type=bootstrap.kubernetes.io/token,metadata.namespace=kube-system"), |_| {};
    /// Service accounts' tokens.
    account_tokens: Secret = Config::default().fields("type=kubernetes.io/service-account-token"), |_| {};
    services: Service = Config::default(), |_| {};
    endpoint_slices: EndpointSlice = Config::default(), |_| {};
    endpoints: Endpoints = Config::default(), |_| {};
    service_cidrs: ServiceCIDR = Config::default(), |_| {};
    ip_addresses: IPAddress = Config::default(), |_| {};
    deployments: Deployment = Config::default(), |_| {};
    replica_sets: ReplicaSet = Config::default(), |_| {};
    replication_controllers: ReplicationController = Config::default(), |_| {};
    cron_jobs: CronJob = Config::default(), |_| {};
    jobs: Job = Config::default(), |_| {};
    persistent_volume_claims: PersistentVolumeClaim = Config::default(), |_| {};
    persistent_volumes: PersistentVolume = Config::default(), |_| {};
    storage_classes: StorageClass = Config::default(), |_| {};
    volume_attachments: VolumeAttachment = Config::default(), |_| {};
    csi_drivers: CSIDriver = Config::default(), |_| {};
    volume_attributes_classes: VolumeAttributesClass = Config::default(), |_| {};
    stateful_sets: StatefulSet = Config::default(), |_| {};
    autoscalers: HorizontalPodAutoscaler = Config::default(), |_| {};
    disruption_budgets: PodDisruptionBudget = Config::default(), |_| {};
    daemon_sets: DaemonSet = Config::default(), |_| {};
    controller_revisions: ControllerRevision = Config::default(), |_| {};
    resource_claims: ResourceClaim = Config::default(), |_| {};
    resource_quotas: ResourceQuota = Config::default(), |_| {};
    cluster_roles: ClusterRole = Config::default(), |_| {};
    signing_requests: CertificateSigningRequest = Config::default(), |_| {};
}

/// Watches waiting for their client.
#[derive(Default)]
pub struct Watches {
    pub observers: Observers,
    starts: Vec<Start>,
    synced: Vec<Synced>,
}

impl Watches {
    fn add<K: Object>(&mut self, config: Config, trim: fn(&mut K)) -> Arc<Cache<K>> {
        let cache = Arc::new(Cache::new(trim));
        self.observers
            .entry(TypeId::of::<K>())
            .or_default()
            .push(cache.clone());
        let running = cache.clone();
        self.starts.push(Box::new(move |client| {
            Box::pin(async move { running.run(Api::all(client), config).await })
        }));
        let waiting = cache.clone();
        self.synced.push(Box::new(move || {
            let cache = waiting.clone();
            Box::pin(async move { cache.wait_synced().await })
        }));
        cache
    }

    /// Starts every watch on `tasks` and returns when each has its first list.
    pub async fn start(&mut self, client: &Client, tasks: &mut JoinSet<()>) {
        for start in self.starts.drain(..) {
            tasks.spawn(start(client.clone()));
        }
        for synced in &self.synced {
            synced().await;
        }
    }
}
