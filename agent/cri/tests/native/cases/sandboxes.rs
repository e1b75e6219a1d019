//! Pod sandboxes and the runtime's own state.

use super::security_of as security;
use crate::node::Node;
use cri_api::v1::*;
use tonic::Code;

pub async fn sandboxes_tell_their_state(node: &mut Node) {
    let status = node
        .runtime()
        .status(StatusRequest::default())
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|c| (c.r#type.as_str(), c.status, c.reason.as_str()))
        .collect();
    assert_eq!(
        conditions,
        [
            ("RuntimeReady", true, ""),
            ("NetworkReady", false, "NetworkPluginNotReady")
        ]
    );
    let network_config = Some(NetworkConfig {
        pod_cidr: "10.1.0.0/24,fd00::/64".into(),
    });
    let config = UpdateRuntimeConfigRequest {
        runtime_config: Some(RuntimeConfig { network_config }),
    };
    node.runtime().update_runtime_config(config).await.unwrap();
    let driver = node
        .runtime()
        .runtime_config(RuntimeConfigRequest {})
        .await
        .unwrap()
        .into_inner()
        .linux
        .unwrap();
    assert_eq!(driver.cgroup_driver(), CgroupDriver::Cgroupfs);
    let mut config = node.sandbox_config(NamespaceMode::Container);
    config.linux.as_mut().unwrap().sysctls = [("net.core.somaxconn".to_owned(), "77".to_owned())].into();
    let id = node.sandbox_with(config.clone()).await;
    let (_, text) = node.output(&id, node.script("c", "cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_unprivileged_port_start; ls /sys/class/net")).await;
    assert_eq!(text, "77\n0\nlo");
    let get = |verbose| PodSandboxStatusRequest {
        pod_sandbox_id: id.clone(),
        verbose,
    };
    let status = node
        .runtime()
        .pod_sandbox_status(get(true))
        .await
        .unwrap()
        .into_inner();
    assert!(status.info.contains_key("info") && status.containers_statuses.len() == 1);
    let status = status.status.unwrap();
    assert_eq!(
        (status.state(), status.network.unwrap().ip.as_str()),
        (PodSandboxState::SandboxReady, "10.1.2.3")
    );
    assert_eq!(status.labels["app"], "x");
    let stop = StopPodSandboxRequest {
        pod_sandbox_id: id.clone(),
    };
    for _ in 0..2 {
        node.runtime().stop_pod_sandbox(stop.clone()).await.unwrap();
    }
    let status = node
        .runtime()
        .pod_sandbox_status(get(false))
        .await
        .unwrap()
        .into_inner()
        .status
        .unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    assert!(node.create(&id, node.script("late", "true")).await.is_err());
    let network = std::fs::read_to_string(node.folder.join("network")).unwrap();
    assert_eq!(
        network,
        format!("configure 10.1.0.0/24,fd00::/64\nattach {id}\ndetach {id}\n")
    );
    let remove = RemovePodSandboxRequest {
        pod_sandbox_id: id.clone(),
    };
    for _ in 0..2 {
        node.runtime().remove_pod_sandbox(remove.clone()).await.unwrap();
    }
    assert_eq!(
        node.runtime()
            .pod_sandbox_status(get(false))
            .await
            .unwrap_err()
            .code(),
        Code::NotFound
    );
    config.linux.as_mut().unwrap().sysctls = [("kernel.panic".to_owned(), "1".to_owned())].into();
    let refused = RunPodSandboxRequest {
        config: Some(config.clone()),
        ..Default::default()
    };
    assert!(
        node.runtime()
            .run_pod_sandbox(refused)
            .await
            .unwrap_err()
            .message()
            .contains("kernel.panic")
    );
    config.linux.as_mut().unwrap().sysctls.clear();
    let unknown = RunPodSandboxRequest {
        config: Some(config.clone()),
        runtime_handler: "kata".into(),
    };
    assert!(
        node.runtime()
            .run_pod_sandbox(unknown)
            .await
            .unwrap_err()
            .message()
            .contains("kata")
    );
    let options = config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
        .namespace_options
        .as_mut()
        .unwrap();
    (options.network, options.ipc, options.pid) = (
        NamespaceMode::Node as i32,
        NamespaceMode::Node as i32,
        NamespaceMode::Node as i32,
    );
    let host = node.sandbox_with(config).await;
    let mut shared = node.script("host", "echo $(ls /proc | head -1); hostname");
    security(&mut shared).namespace_options = Some(NamespaceOption {
        network: NamespaceMode::Node as i32,
        pid: NamespaceMode::Node as i32,
        ipc: NamespaceMode::Node as i32,
        ..Default::default()
    });
    let (code, text) = node.output(&host, shared).await;
    assert_eq!(code, 0);
    assert!(!text.contains("pod-name"), "{text}");
}
