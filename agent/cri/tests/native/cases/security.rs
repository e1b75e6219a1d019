//! What bounds a container: capabilities, filters, users, shared namespaces.

use super::security_of as security;
use crate::node::Node;
use cri_api::v1::{self, *};

pub async fn containers_are_confined(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let mut config = node.script(
        "c",
        "mknod /tmp/mem c 1 1; head -c 1 /tmp/mem; cat /proc/cmdline; unshare -n true; touch /x; sleep 1000",
    );
    security(&mut config).seccomp = Some(SecurityProfile::default());
    security(&mut config).capabilities = Some(v1::Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        ..Default::default()
    });
    security(&mut config).readonly_rootfs = true;
    config.mounts = vec![Mount {
        container_path: "/tmp".into(),
        host_path: node.folder.join("tmp").display().to_string(),
        ..Default::default()
    }];
    let id = node.run(&sandbox, config).await;
    node.until_logged("c", "Read-only file system").await;
    let lines = node.lines("c").join("\n");
    assert!(
        lines.contains("head: /tmp/mem: Operation not permitted"),
        "{lines}"
    );
    assert!(lines.contains("unshare"), "{lines}");
    assert!(
        !lines.contains("BOOT_IMAGE") && !lines.contains("console="),
        "{lines}"
    );
    // A command beside it is bound by the same filter and capabilities.
    let answer = node
        .exec(&id, &["cat", "/proc/self/status", "/proc/1/status"], 10)
        .await
        .unwrap();
    let status = String::from_utf8(answer.stdout).unwrap();
    for field in ["Seccomp:", "CapEff:", "CapBnd:", "NoNewPrivs:"] {
        let values: Vec<&str> = status.lines().filter(|line| line.starts_with(field)).collect();
        assert_eq!(values[0], values[1]);
    }
    assert!(status.contains("Seccomp:\t2"), "{status}");
    let mut config = node.script(
        "privileged",
        "cat /proc/cmdline; ls /dev; echo 1 > /proc/sys/net/ipv4/ip_forward && echo rw",
    );
    security(&mut config).privileged = true;
    let (_, text) = node.output(&sandbox, config).await;
    assert!(text.contains("\nrw") && text.contains("\nnull"), "{text}");
    assert!(!text.contains("root=") && !text.contains("console="), "{text}");
}

pub async fn a_pod_can_share_its_processes(node: &mut Node) {
    let sandbox = node.sandbox_with(node.sandbox_config(NamespaceMode::Pod)).await;
    let share = |mut config: ContainerConfig| {
        security(&mut config).namespace_options = Some(NamespaceOption::default());
        config
    };
    let first = node
        .run(&sandbox, share(node.script("first", "sleep 4321")))
        .await;
    let (_, seen) = node
        .output(
            &sandbox,
            share(node.script("second", "ps; cat /proc/1/status; ls /proc/1/root/; sleep 0")),
        )
        .await;
    assert!(seen.contains("sleep 4321"), "{seen}");
    assert!(seen.contains("Uid:\t65535"), "{seen}");
    assert!(!seen.contains("busybox-static"), "{seen}");
    // Children left behind go with their container, although the pod's PID 1 lives on.
    let third = node
        .run(&sandbox, share(node.script("third", "sleep 5432 & exit 4")))
        .await;
    assert_eq!(node.wait(&third).await.exit_code, 4);
    node.until("the child is gone", async || {
        let seen = node.exec(&first, &["ps"], 10).await.unwrap().stdout;
        (!String::from_utf8_lossy(&seen).contains("5432")).then_some(())
    })
    .await;
    node.kill_server();
    node.start().await;
    assert_eq!(
        node.status(&first).await.state(),
        ContainerState::ContainerRunning
    );
    // A debug container looks into another's processes.
    let lonely = node.sandbox().await;
    let target = node.run(&lonely, node.script("target", "sleep 6543")).await;
    let mut debug = node.script("debug", "ps");
    let options = NamespaceOption {
        pid: NamespaceMode::Target as i32,
        target_id: target,
        ..Default::default()
    };
    security(&mut debug).namespace_options = Some(options);
    let (_, seen) = node.output(&lonely, debug).await;
    assert!(seen.contains("sleep 6543"), "{seen}");
}

pub async fn users_and_groups_follow_the_image(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let mut config = node.script(
        "c",
        "id; echo again > /dev/stdout; touch /home/mine && echo $HOME",
    );
    security(&mut config).run_as_username = "app".into();
    security(&mut config).supplemental_groups = vec![77];
    let (_, text) = node.output(&sandbox, config).await;
    assert_eq!(
        text,
        "uid=1000(app) gid=1001(app) groups=44(video),77,1001(app)\nagain\n/home"
    );
    let mut config = node.script("d", "id -u");
    security(&mut config).run_as_username = "nobody".into();
    let error = node.create(&sandbox, config).await.unwrap_err();
    assert!(error.message().contains("unable to find user nobody"), "{error}");
}
