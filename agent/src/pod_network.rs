//! Puts the pod network behind the runtime's seam for it.

use std::net::IpAddr;
use std::path::Path;

use async_trait::async_trait;
use cri::{PodAttachment, PodNetwork, PodNetworkError};

pub struct Adapter(pub network::PodNetwork);

fn refused(error: network::NetworkError) -> PodNetworkError {
    PodNetworkError(error.to_string())
}

fn protocol(name: &str) -> network::Protocol {
    match name {
        "UDP" => network::Protocol::Udp,
        "SCTP" => network::Protocol::Sctp,
        _ => network::Protocol::Tcp,
    }
}

#[async_trait]
impl PodNetwork for Adapter {
    async fn configure(&self, pod_cidrs: &[String]) -> Result<(), PodNetworkError> {
        self.0.configure(pod_cidrs).await.map_err(refused)
    }

    fn readiness(&self) -> Result<(), String> {
        self.0.readiness()
    }

    async fn attach(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError> {
        let ports = pod.port_mappings.iter().map(|mapping| network::PortMapping {
            protocol: protocol(mapping.protocol),
            container_port: mapping.container_port,
            host_port: mapping.host_port,
            host_ip: mapping.host_ip,
        });
        let bandwidth =
            network::Bandwidth::of(&pod.annotations).map_err(|error| PodNetworkError(error.to_string()))?;
        let sandbox = network::Sandbox {
            sandbox_id: pod.sandbox_id.clone(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            netns: pod.netns.clone(),
            port_mappings: ports.collect(),
            bandwidth,
        };
        self.0.attach(sandbox).await.map_err(refused)
    }

    async fn detach(&self, sandbox_id: &str, _netns: Option<&Path>) -> Result<(), PodNetworkError> {
        self.0.detach(sandbox_id).await.map_err(refused)
    }
}
