//! What NetworkPolicies are about, reduced to what deciding needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Namespace, Pod as ApiPod};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;
use netfilter::Family;

pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    /// Its network is the pod network of this node.
    pub local: bool,
    /// Protocol, name and number of its containers' named ports.
    pub ports: Vec<(String, String, u16)>,
}

#[derive(Debug, Default)]
pub struct World {
    pub namespaces: BTreeMap<String, Labels>,
    pub pods: Vec<Pod>,
    /// In order, so that equal worlds make equal rules.
    pub policies: BTreeMap<(String, String), NetworkPolicySpec>,
    /// The networks of this node's pods, and the addresses in them that are the node's own.
    pub pod_cidrs: Vec<IpNet>,
    pub gateways: Vec<IpAddr>,
}

/// Namespace and name of a pod → addresses that the pod network gave it on this node.
pub type Attached = BTreeMap<(String, String), BTreeSet<IpAddr>>;

impl World {
    pub fn local_pods(&self, family: Family) -> impl Iterator<Item = (&Pod, IpAddr)> {
        let local = self.pods.iter().filter(|pod| pod.local);
        local.flat_map(move |pod| pod.addresses_of(family).map(move |address| (pod, address)))
    }

    /// The pods that both selectors choose; without a namespace selector those of `namespace`.
    pub fn select<'a>(
        &'a self,
        namespace: &'a str,
        namespaces: Option<&'a LabelSelector>,
        pods: Option<&'a LabelSelector>,
    ) -> impl Iterator<Item = &'a Pod> {
        self.pods.iter().filter(move |pod| {
            let here = match namespaces {
                None => pod.namespace == namespace,
                Some(selector) => api::selector::matches(selector, self.namespaces.get(&pod.namespace)),
            };
            here && pods.is_none_or(|selector| api::selector::matches(selector, Some(&pod.labels)))
        })
    }
}

impl Pod {
    pub fn addresses_of(&self, family: Family) -> impl Iterator<Item = IpAddr> {
        self.addresses
            .iter()
            .copied()
            .filter(move |address| Family::of(*address) == family)
    }

    /// The number that `name` has in this pod.
    pub fn port(&self, protocol: &str, name: &str) -> Option<u16> {
        let named = self.ports.iter().find(|(p, n, _)| p == protocol && n == name);
        named.map(|(_, _, number)| *number)
    }

    /// `None`: it has no address of the pod network, or not any more.
    pub fn of(pod: &ApiPod, node: &str, attached: &Attached) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.as_ref();
        let phase = status.and_then(|s| s.phase.as_deref());
        if spec.host_network == Some(true) || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let local = spec.node_name.as_deref() == Some(node);
        let key = (pod.namespace().unwrap_or_default(), pod.name_any());
        let told = status
            .iter()
            .flat_map(|s| s.pod_ips.iter().flatten())
            .map(|ip| ip.ip.as_str());
        let mut addresses: BTreeSet<IpAddr> = told.filter_map(|ip| ip.parse().ok()).collect();
        if local {
            addresses.extend(attached.get(&key).into_iter().flatten());
        }
        if addresses.is_empty() {
            return None;
        }
        let sidecars = spec.init_containers.iter().flatten();
        let ports = spec
            .containers
            .iter()
            .chain(sidecars)
            .flat_map(|c| c.ports.iter().flatten());
        let named = ports.filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
            Some((
                protocol,
                port.name.clone()?,
                u16::try_from(port.container_port).ok()?,
            ))
        });
        Some(Self {
            ports: named.collect(),
            labels: pod.labels().clone(),
            namespace: key.0,
            name: key.1,
            addresses: addresses.into_iter().collect(),
            local,
        })
    }
}

pub fn namespaces<'a>(namespaces: impl Iterator<Item = &'a Namespace>) -> BTreeMap<String, Labels> {
    namespaces
        .map(|namespace| (namespace.name_any(), namespace.labels().clone()))
        .collect()
}

pub fn policies<'a>(
    policies: impl Iterator<Item = &'a NetworkPolicy>,
) -> BTreeMap<(String, String), NetworkPolicySpec> {
    let with_spec = policies.filter_map(|policy| {
        let key = (policy.namespace().unwrap_or_default(), policy.name_any());
        Some((key, policy.spec.clone()?))
    });
    with_spec.collect()
}
