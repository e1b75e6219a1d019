//! The CRI sandbox a pod asks for.

use std::collections::HashMap;

use cri_api::v1::{
    LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping,
    Protocol,
};
use k8s_openapi::api::core::v1::{ContainerPort, Pod};

use crate::context::{Context, name, namespace, uid};
use crate::pod_actions::is_sidecar;
use crate::{dns, etc_hosts, resources, runtime, security_context, user_namespaces};

pub fn pod_labels(pod: &Pod) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = pod
        .metadata
        .labels
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    labels.insert(runtime::POD_NAME.into(), name(pod).into());
    labels.insert(runtime::POD_NAMESPACE.into(), namespace(pod).into());
    labels.insert(runtime::POD_UID.into(), uid(pod).into());
    labels
}

pub fn sandbox_config(context: &Context, pod: &Pod, attempt: u32) -> Result<PodSandboxConfig, String> {
    let config = &context.config;
    let users = user_namespaces::of(&config.root_dir.join("pods"), pod)?;
    let spec = pod.spec.clone().unwrap_or_default();
    let (host, full) = etc_hosts::host_names(name(pod), namespace(pod), &spec, &config.cluster_domain);
    let host_network = spec.host_network == Some(true);
    let hostname = match full.filter(|_| spec.set_hostname_as_fqdn == Some(true)) {
        _ if host_network => String::new(),
        Some(full) => full,
        None => host,
    };
    let sysctls = spec
        .security_context
        .as_ref()
        .and_then(|context| context.sysctls.as_ref());
    let sysctls = sysctls
        .into_iter()
        .flatten()
        .map(|s| (s.name.clone(), s.value.clone()))
        .collect();
    let mut annotations: HashMap<String, String> = pod
        .metadata
        .annotations
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    annotations.insert(runtime::GRACE_PERIOD.into(), grace.to_string());
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name(pod).into(),
            uid: uid(pod).into(),
            namespace: namespace(pod).into(),
            attempt,
        }),
        hostname,
        log_directory: context.pod_log_dir(pod).display().to_string(),
        dns_config: Some(dns::pod_dns(
            &spec,
            namespace(pod),
            &config.cluster_dns,
            &config.cluster_domain,
            &context.node_dns,
        )),
        port_mappings: if host_network {
            Vec::new()
        } else {
            port_mappings(&spec)
        },
        labels: pod_labels(pod),
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: context.cgroups.parent(pod),
            security_context: Some(security_context::sandbox_security(
                &spec,
                config.settings.seccomp_default,
                users.as_ref(),
            )),
            sysctls,
            resources: Some(LinuxContainerResources {
                cpu_period: resources::CPU_PERIOD,
                cpu_shares: resources::MIN_SHARES,
                ..Default::default()
            }),
            overhead: None,
        }),
        windows: None,
    })
}

fn port_mappings(spec: &k8s_openapi::api::core::v1::PodSpec) -> Vec<PortMapping> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| is_sidecar(container));
    let ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    ports
        .filter(|port| port.host_port.is_some_and(|port| port > 0))
        .map(port_mapping)
        .collect()
}

fn port_mapping(port: &ContainerPort) -> PortMapping {
    let protocol = match port.protocol.as_deref() {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    PortMapping {
        protocol: protocol as i32,
        container_port: port.container_port,
        host_port: port.host_port.unwrap_or_default(),
        host_ip: port.host_ip.clone().unwrap_or_default(),
    }
}
