//! Sudden deaths: of the server or a shim at any moment, and of the whole machine.

use crate::node::{self, Node};
use cri_api::v1::*;
use std::collections::BTreeSet;
use std::time::Duration;
use tonic::Status;

/// `CRI_TEST_CRASHES` asks for more.
const ROUNDS: u64 = 12;

/// The same moments every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A pod's life, as far as it gets.
async fn life(node: &Node, shared: bool) -> Result<(), Status> {
    let mode = if shared {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    let mut runtime = node.runtime();
    let request = RunPodSandboxRequest {
        config: Some(node.sandbox_config(mode)),
        ..Default::default()
    };
    let pod_sandbox_id = runtime
        .run_pod_sandbox(request)
        .await?
        .into_inner()
        .pod_sandbox_id;
    for name in ["first", "second"] {
        let mut config = node.script(name, "sleep 1000 & sleep 1000");
        super::security_of(&mut config).namespace_options = Some(NamespaceOption {
            pid: mode as i32,
            ..Default::default()
        });
        let container_id = node.create(&pod_sandbox_id, config).await?;
        runtime
            .start_container(StartContainerRequest {
                container_id: container_id.clone(),
            })
            .await?;
        node.exec(&container_id, &["true"], 10).await?;
        if name == "first" {
            runtime
                .stop_container(StopContainerRequest {
                    container_id: container_id.clone(),
                    timeout: 0,
                })
                .await?;
            runtime
                .remove_container(RemoveContainerRequest { container_id })
                .await?;
        }
    }
    runtime
        .stop_pod_sandbox(StopPodSandboxRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
        })
        .await?;
    runtime
        .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
        .await?;
    Ok(())
}

async fn remove_all(node: &Node) {
    let pods = node
        .runtime()
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await
        .unwrap();
    for pod in pods.into_inner().items {
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: pod.id.clone(),
        };
        node.runtime().stop_pod_sandbox(stop).await.unwrap();
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: pod.id,
        };
        node.runtime().remove_pod_sandbox(remove).await.unwrap();
    }
    let containers = node
        .runtime()
        .list_containers(ListContainersRequest::default())
        .await
        .unwrap();
    assert!(containers.into_inner().containers.is_empty());
}

pub async fn crashes_leave_nothing(node: &mut Node) {
    let rounds = std::env::var("CRI_TEST_CRASHES")
        .ok()
        .and_then(|text| text.parse().ok());
    let (mut chance, mut interrupted) = (Chance(7), 0);
    for round in 0..rounds.unwrap_or(ROUNDS) {
        let moment = Duration::from_millis(chance.below(600));
        let victims: &[&str] = match round % 4 {
            0 | 2 => &["serve"],
            1 => &["cri-shim"],
            _ => &["serve", "cri-shim"],
        };
        let strike = async {
            tokio::time::sleep(moment).await;
            for victim in victims {
                node::processes_named(victim).into_iter().for_each(node::kill);
            }
        };
        let (lived, ()) = tokio::join!(life(node, round % 3 == 0), strike);
        interrupted += u32::from(lived.is_err());
        if victims[0] == "serve" {
            node.kill_server();
            node.start().await;
        }
        remove_all(node).await;
    }
    assert!(interrupted > 0, "no life was interrupted");
    let network = std::fs::read_to_string(node.folder.join("network")).unwrap_or_default();
    let told = |what: &str| -> BTreeSet<String> {
        network
            .lines()
            .filter_map(|line| line.strip_prefix(what))
            .map(str::to_owned)
            .collect()
    };
    assert!(told("attach ").is_subset(&told("detach ")), "{network}");
}

pub async fn a_reboot_ends_what_ran(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let running = node.run(&sandbox, node.script("running", "sleep 1000")).await;
    let done = node.run(&sandbox, node.script("done", "exit 3")).await;
    assert_eq!(node.wait(&done).await.exit_code, 3);
    let created = node
        .create(&sandbox, node.script("created", "true"))
        .await
        .unwrap();
    node.kill_server();
    // All that does not survive a reboot: processes, mounts, cgroups, the boot's identity.
    node::clean_up_after_failure(&node.folder);
    node.drop_cgroups().await;
    let identity = node.folder.join("boot_id");
    std::fs::write(&identity, "another-boot\n").unwrap();
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let mount = |args: &[&str]| {
        assert!(
            std::process::Command::new(args[0])
                .args(&args[1..])
                .status()
                .unwrap()
                .success()
        )
    };
    mount(&["mount", "--bind", identity.to_str().unwrap(), boot_id]);
    node.start().await;
    mount(&["umount", boot_id]);
    let lost = node.status(&running).await;
    assert_eq!(
        (lost.state(), lost.exit_code, lost.reason.as_str()),
        (ContainerState::ContainerExited, 255, "Unknown")
    );
    assert!(lost.finished_at >= lost.started_at);
    let known = node.status(&done).await;
    assert_eq!((known.exit_code, known.reason.as_str()), (3, "Error"));
    assert_eq!(
        node.status(&created).await.state(),
        ContainerState::ContainerCreated
    );
    let pods = node
        .runtime()
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(pods.items[0].state(), PodSandboxState::SandboxNotready);
    let start = StartContainerRequest {
        container_id: created,
    };
    assert!(
        node.runtime().start_container(start).await.is_err(),
        "its sandbox is gone"
    );
    remove_all(node).await;
}
