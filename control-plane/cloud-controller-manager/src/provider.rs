//! What a provider knows that the cluster doesn't.

use k8s_openapi::api::core::v1::{Node, Service};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Where a node is, in the provider's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// `spec.providerID`.
    pub id: String,
    /// `node.kubernetes.io/instance-type`.
    pub kind: String,
}

pub trait Provider: Send + Sync {
    fn instance(&self, node: &Node) -> Instance;

    /// The addresses of a Service: `current` as far as they are good, `taken` never.
    fn addresses(
        &self,
        service: &Service,
        current: &[IpAddr],
        taken: &BTreeSet<IpAddr>,
        nodes: &[&Node],
    ) -> Result<Vec<IpAddr>, String>;
}
