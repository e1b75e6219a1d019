//! Containers: start, commands beside them, stop, the server's death.

use crate::node::{IMAGE, Node};
use cri_api::v1::*;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use tonic::Code;

pub async fn a_container_runs_and_is_logged(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let script = "echo out; echo err >&2; echo $FROM_IMAGE $POD; pwd; hostname; cat /etc/hidden /etc/shown; printf end; exit 3";
    let mut config = node.script("c", script);
    config.envs = vec![KeyValue {
        key: "POD".into(),
        value: "p".into(),
    }];
    let id = node.run(&sandbox, config).await;
    let status = node.wait(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.created_at <= status.started_at && status.started_at < status.finished_at);
    assert_eq!(
        status.user.unwrap().linux.unwrap(),
        LinuxContainerUser {
            uid: 0,
            gid: 0,
            supplemental_groups: vec![0]
        }
    );
    let log = std::fs::read_to_string(node.logs_folder().join("c.log")).unwrap();
    assert_eq!(
        status.log_path,
        node.logs_folder().join("c.log").display().to_string()
    );
    let mut stdout = Vec::new();
    for line in log.lines() {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        assert!(parts[0].ends_with('Z') && parts[0].len() == 30, "{line}");
        match (parts[1], parts[2]) {
            ("stdout", tag) => stdout.push((tag, parts[3])),
            ("stderr", "F") => assert!(
                ["err", "cat: can't open '/etc/hidden': No such file or directory"].contains(&parts[3]),
                "{line}"
            ),
            other => panic!("{other:?}"),
        }
    }
    let expected = [
        ("F", "out"),
        ("F", "yes p"),
        ("F", "/made/by/runtime"),
        ("F", "pod-name"),
        ("F", "new"),
        ("P", "end"),
    ];
    assert_eq!(stdout, expected);
    let (code, _) = node.output(&sandbox, node.script("d", "true")).await;
    assert_eq!(code, 0);
    let list = node
        .runtime()
        .list_containers(ListContainersRequest::default())
        .await
        .unwrap()
        .into_inner()
        .containers;
    assert_eq!(list.len(), 2);
}

pub async fn a_missing_program_is_a_start_error(node: &mut Node) {
    let sandbox = node.sandbox().await;
    for (name, program, message) in [
        ("a", "nope", "executable file not found in $PATH"),
        ("b", "/etc/not-executable", "permission denied"),
        ("c", "/nope", "no such file or directory"),
    ] {
        let mut config = node.script(name, "");
        config.command = vec![program.into()];
        let id = node.create(&sandbox, config).await.unwrap();
        let error = node
            .runtime()
            .start_container(StartContainerRequest {
                container_id: id.clone(),
            })
            .await
            .unwrap_err();
        assert!(error.message().contains(message), "{error}");
        let status = node.status(&id).await;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert!(status.message.contains(message), "{}", status.message);
    }
    let mut config = node.script("d", "");
    config.image = Some(ImageSpec {
        image: "localhost/none".into(),
        ..Default::default()
    });
    assert_eq!(
        node.create(&sandbox, config).await.unwrap_err().code(),
        Code::NotFound
    );
}

pub async fn an_unrunnable_program_is_logged(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let program = node.folder.join("program");
    std::fs::write(&program, "#!/no/interpreter\n").unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let mut config = node.script("c", "");
    config.command = vec!["/program".into()];
    config.mounts = vec![Mount {
        container_path: "/program".into(),
        host_path: program.display().to_string(),
        ..Default::default()
    }];
    let id = node.run(&sandbox, config).await;
    assert_eq!(node.wait(&id).await.exit_code, 255);
    assert_eq!(node.lines("c"), ["exec /program: no such file or directory"]);
}

pub async fn commands_run_beside_a_container(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let id = node.run(&sandbox, node.script("c", "sleep 1000")).await;
    let answer = node
        .exec(
            &id,
            &["sh", "-c", "echo out; echo err >&2; echo $FROM_IMAGE; exit 5"],
            10,
        )
        .await
        .unwrap();
    assert_eq!(
        (&answer.stdout[..], &answer.stderr[..], answer.exit_code),
        (&b"out\nyes\n"[..], &b"err\n"[..], 5)
    );
    let error = node.exec(&id, &["nope"], 10).await.unwrap_err();
    assert!(
        error
            .message()
            .contains("exec: \"nope\": executable file not found in $PATH"),
        "{error}"
    );
    // A command that ends in time is not kept waiting by what it leaves behind.
    let answer = node
        .exec(&id, &["sh", "-c", "sleep 1000 & echo done"], 100)
        .await
        .unwrap();
    assert_eq!(&answer.stdout[..], b"done\n");
    let error = node.exec(&id, &["sleep", "777"], 1).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    node.until("the command that took too long is dead", async || {
        let processes = node.exec(&id, &["ps"], 10).await.unwrap().stdout;
        (!String::from_utf8_lossy(&processes).contains("sleep 777")).then_some(())
    })
    .await;
    let many = node
        .exec(
            &id,
            &["sh", "-c", "dd if=/dev/zero bs=1024 count=20000 2>/dev/null"],
            60,
        )
        .await
        .unwrap();
    assert_eq!(many.stdout.len(), (8 << 20) - 4096, "output is cut, not an error");
}

pub async fn a_stop_asks_before_it_kills(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let polite = node
        .run(
            &sandbox,
            node.script(
                "polite",
                "trap 'echo bye; exit 7' TERM; echo ready; while true; do sleep 0.05; done",
            ),
        )
        .await;
    node.until_logged("polite", "ready").await;
    node.runtime()
        .stop_container(StopContainerRequest {
            container_id: polite.clone(),
            timeout: 20,
        })
        .await
        .unwrap();
    let status = node.status(&polite).await;
    assert_eq!(
        (status.exit_code, status.state()),
        (7, ContainerState::ContainerExited)
    );
    assert_eq!(node.lines("polite"), ["ready", "bye"]);
    let deaf = node
        .run(
            &sandbox,
            node.script(
                "deaf",
                "trap '' TERM; echo ready; while true; do sleep 0.05; done",
            ),
        )
        .await;
    node.until_logged("deaf", "ready").await;
    node.runtime()
        .stop_container(StopContainerRequest {
            container_id: deaf.clone(),
            timeout: 1,
        })
        .await
        .unwrap();
    assert_eq!(node.status(&deaf).await.exit_code, 137);
    for id in [&deaf, "none"] {
        node.runtime()
            .stop_container(StopContainerRequest {
                container_id: id.to_owned(),
                timeout: 1,
            })
            .await
            .unwrap();
    }
    node.runtime()
        .remove_container(RemoveContainerRequest {
            container_id: deaf.clone(),
        })
        .await
        .unwrap();
    node.runtime()
        .remove_container(RemoveContainerRequest { container_id: deaf })
        .await
        .unwrap();
}

pub async fn the_servers_death_loses_nothing(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let gate = |name: &str| {
        format!("echo {name} up; while ! test -e /gate/{name}; do sleep 0.02; done; echo {name} done; exit 9")
    };
    let gates = node.folder.join("gates");
    std::fs::create_dir_all(&gates).unwrap();
    let mount = Mount {
        container_path: "/gate".into(),
        host_path: gates.display().to_string(),
        ..Default::default()
    };
    let mut ids = Vec::new();
    for name in ["during", "after"] {
        let mut config = node.script(name, &gate(name));
        config.mounts = vec![mount.clone()];
        ids.push(node.run(&sandbox, config).await);
        node.until_logged(name, "up").await;
    }
    let created = node
        .create(&sandbox, node.script("created", "echo late"))
        .await
        .unwrap();
    node.kill_server();
    std::fs::write(gates.join("during"), "").unwrap();
    node.until_logged("during", "done").await;
    node.start().await;
    let during = node.wait(&ids[0]).await;
    assert_eq!((during.exit_code, during.reason.as_str()), (9, "Error"));
    assert_eq!(
        node.status(&ids[1]).await.state(),
        ContainerState::ContainerRunning
    );
    assert_eq!(
        &node.exec(&ids[1], &["echo", "alive"], 10).await.unwrap().stdout[..],
        b"alive\n"
    );
    std::fs::write(gates.join("after"), "").unwrap();
    assert_eq!(node.wait(&ids[1]).await.exit_code, 9);
    assert_eq!(node.lines("during"), ["during up", "during done"]);
    assert_eq!(node.lines("after"), ["after up", "after done"]);
    node.runtime()
        .start_container(StartContainerRequest {
            container_id: created.clone(),
        })
        .await
        .unwrap();
    assert_eq!(node.wait(&created).await.exit_code, 0);
    let ready = node
        .runtime()
        .pod_sandbox_status(PodSandboxStatusRequest {
            pod_sandbox_id: sandbox,
            verbose: false,
        })
        .await;
    assert_eq!(
        ready.unwrap().into_inner().status.unwrap().state(),
        PodSandboxState::SandboxReady
    );
}

pub async fn volumes_and_pod_files_are_mounted(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let volume = node.folder.join("volume");
    std::fs::create_dir_all(volume.join("sub")).unwrap();
    std::fs::write(volume.join("file"), "from the host\n").unwrap();
    let mount = |path: &str, readonly| Mount {
        container_path: path.into(),
        host_path: volume.display().to_string(),
        readonly,
        ..Default::default()
    };
    let image = Mount {
        container_path: "/image".into(),
        readonly: true,
        image: Some(ImageSpec {
            image: IMAGE.into(),
            ..Default::default()
        }),
        image_sub_path: "etc".into(),
        ..Default::default()
    };
    let device = |host: &str, path: &str| Device {
        host_path: host.into(),
        container_path: path.into(),
        permissions: "rwm".into(),
    };
    let script = "test -c /opt/0 && test -c /dev/other && head -c 2 /opt/0 | wc -c; cat /a/b/file /image/shown /etc/resolv.conf /etc/hostname; echo x > /w/new; echo x > /a/b/new; echo x > /dev/shm/y && echo shm";
    let mut config = node.script("c", script);
    config.mounts = vec![mount("/a/b", true), mount("/w", false), image];
    config.devices = vec![device("/dev/zero", "/opt/0"), device("/dev/zero", "/dev/other")];
    let id = node.run(&sandbox, config).await;
    let mounts = node.wait(&id).await.mounts;
    let image_ref = &mounts[2].image.as_ref().unwrap().image_ref;
    assert!(image_ref.starts_with("sha256:"), "{image_ref}");
    let text = node.lines("c").join("\n");
    assert!(
        text.starts_with("2\nfrom the host\nnew\nnameserver 10.96.0.10\npod-name\n"),
        "{text}"
    );
    assert!(
        text.contains("Read-only file system") && text.contains("shm"),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(volume.join("new")).unwrap(), "x\n");
    let writable_image = Mount {
        container_path: "/image".into(),
        image: Some(ImageSpec {
            image: IMAGE.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    for mounts in [vec![mount("relative", false)], vec![writable_image]] {
        let mut bad = node.script("d", "true");
        bad.mounts = mounts;
        assert_eq!(
            node.create(&sandbox, bad).await.unwrap_err().code(),
            Code::InvalidArgument
        );
    }
}

pub async fn events_statistics_and_rotation(node: &mut Node) {
    let mut events = node
        .runtime()
        .get_container_events(GetEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    let sandbox = node.sandbox().await;
    let id = node
        .run(
            &sandbox,
            node.script(
                "c",
                "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done",
            ),
        )
        .await;
    node.until_logged("c", "line").await;
    let stats = node
        .runtime()
        .container_stats(ContainerStatsRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap()
        .into_inner();
    let stats = stats.stats.unwrap();
    assert_eq!(stats.attributes.unwrap().id, id);
    assert!(stats.writable_layer.unwrap().used_bytes.unwrap().value > 0);
    assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    let pods = node
        .runtime()
        .list_pod_sandbox_stats(ListPodSandboxStatsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .stats;
    assert_eq!(pods[0].linux.as_ref().unwrap().containers.len(), 1);
    let families = node
        .runtime()
        .list_metric_descriptors(ListMetricDescriptorsRequest {})
        .await
        .unwrap();
    let families = families.into_inner().descriptors;
    let metrics = node
        .runtime()
        .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {})
        .await
        .unwrap();
    let pod = metrics.into_inner().pod_metrics.remove(0);
    assert_eq!(pod.pod_sandbox_id, sandbox);
    for metric in &pod.container_metrics[0].metrics {
        let family = families
            .iter()
            .find(|family| family.name == metric.name)
            .expect(&metric.name);
        assert_eq!(
            family.label_keys.len(),
            metric.label_values.len(),
            "{}",
            metric.name
        );
        assert_eq!(metric.label_values[1], id);
    }
    let value = |name: &str| {
        let found = pod.container_metrics[0]
            .metrics
            .iter()
            .find(|metric| metric.name == name);
        found.expect(name).value.unwrap().value
    };
    assert!(value("container_processes") >= 1 && value("container_file_descriptors") >= 3);
    assert!(value("container_fs_usage_bytes") > 0 && value("container_start_time_seconds") > 1_600_000_000);
    let rotated = node.logs_folder().join("c.log.1");
    std::fs::rename(node.logs_folder().join("c.log"), &rotated).unwrap();
    node.runtime()
        .reopen_container_log(ReopenContainerLogRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap();
    node.until_logged("c", "line").await;
    node.runtime()
        .stop_container(StopContainerRequest {
            container_id: id.clone(),
            timeout: 0,
        })
        .await
        .unwrap();
    let old = std::fs::read_to_string(rotated).unwrap();
    let last: u32 = old
        .lines()
        .last()
        .unwrap()
        .rsplit(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let first: u32 = node.lines("c")[0].rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(first, last + 1, "no line is lost in between");
    node.runtime()
        .remove_container(RemoveContainerRequest {
            container_id: id.clone(),
        })
        .await
        .unwrap();
    for expected in [
        ContainerEventType::ContainerCreatedEvent,
        ContainerEventType::ContainerStartedEvent,
        ContainerEventType::ContainerStoppedEvent,
        ContainerEventType::ContainerDeletedEvent,
    ] {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!(
            (event.container_event_type(), &event.container_id),
            (expected, &id)
        );
        assert_eq!(event.pod_sandbox_status.unwrap().id, sandbox);
    }
    let info = node
        .images()
        .image_fs_info(ImageFsInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(info.image_filesystems[0].used_bytes.unwrap().value > 1_000_000);
}
