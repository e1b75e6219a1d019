//! What the runtime promises, one case each.

use crate::node::{IMAGE, Node};
use crate::{spdy_client, stream_client};
use cri_api::v1::{self, *};
use futures::future::LocalBoxFuture;
use tonic::Code;

type Case = for<'a> fn(&'a mut Node) -> LocalBoxFuture<'a, ()>;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        pub const ALL: &[(&str, Case)] = &[$((stringify!($name), |node| Box::pin($name(node)))),*];
    };
}

cases!(
    images_are_imported_once,
    a_container_runs_and_is_logged,
    a_missing_program_is_a_start_error,
    commands_run_beside_a_container,
    a_stop_asks_before_it_kills,
    the_servers_death_loses_nothing,
    containers_are_confined,
    a_pod_can_share_its_processes,
    users_and_groups_follow_the_image,
    volumes_and_pod_files_are_mounted,
    exec_streams_over_websocket,
    exec_streams_over_spdy,
    attach_reaches_the_terminal_and_the_input,
    ports_are_forwarded,
    events_statistics_and_rotation,
    sandboxes_tell_their_state,
);

fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

async fn images_are_imported_once(node: &mut Node) {
    let before = node
        .images()
        .list_images(ListImagesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(before.len(), 1);
    assert_eq!(before[0].repo_tags, [IMAGE]);
    assert!(before[0].pinned && before[0].size > 100_000);
    node.kill_server();
    node.start().await;
    let after = node
        .images()
        .list_images(ListImagesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(before, after);
    for name in [
        IMAGE,
        &before[0].id,
        &before[0].repo_digests[0],
        before[0].id.trim_start_matches("sha256:"),
    ] {
        let image = ImageSpec {
            image: name.into(),
            ..Default::default()
        };
        let request = ImageStatusRequest {
            image: Some(image),
            verbose: false,
        };
        let found = node
            .images()
            .image_status(request)
            .await
            .unwrap()
            .into_inner()
            .image;
        assert_eq!(found.expect(name).id, before[0].id);
    }
    let unused = RemoveImageRequest {
        image: Some(ImageSpec {
            image: IMAGE.into(),
            ..Default::default()
        }),
    };
    node.images().remove_image(unused.clone()).await.unwrap();
    node.images().remove_image(unused).await.unwrap();
    let layers = std::fs::read_dir(node.folder.join("root/l")).unwrap().count();
    assert_eq!(layers, 0, "layers go with their image");
}

async fn a_container_runs_and_is_logged(node: &mut Node) {
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

async fn a_missing_program_is_a_start_error(node: &mut Node) {
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

async fn commands_run_beside_a_container(node: &mut Node) {
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

async fn a_stop_asks_before_it_kills(node: &mut Node) {
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

async fn the_servers_death_loses_nothing(node: &mut Node) {
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

async fn containers_are_confined(node: &mut Node) {
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

async fn a_pod_can_share_its_processes(node: &mut Node) {
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

async fn users_and_groups_follow_the_image(node: &mut Node) {
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

async fn volumes_and_pod_files_are_mounted(node: &mut Node) {
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
        image: Some(ImageSpec {
            image: IMAGE.into(),
            ..Default::default()
        }),
        image_sub_path: "etc".into(),
        ..Default::default()
    };
    let script = "cat /a/b/file /image/shown /etc/resolv.conf /etc/hostname; echo x > /w/new; echo x > /a/b/new; echo x > /dev/shm/y && echo shm";
    let mut config = node.script("c", script);
    config.mounts = vec![mount("/a/b", true), mount("/w", false), image];
    let (_, text) = node.output(&sandbox, config).await;
    assert!(
        text.starts_with("from the host\nnew\nnameserver 10.96.0.10\npod-name\n"),
        "{text}"
    );
    assert!(
        text.contains("Read-only file system") && text.contains("shm"),
        "{text}"
    );
    assert_eq!(std::fs::read_to_string(volume.join("new")).unwrap(), "x\n");
    let mut bad = node.script("d", "true");
    bad.mounts = vec![mount("relative", false)];
    assert_eq!(
        node.create(&sandbox, bad).await.unwrap_err().code(),
        Code::InvalidArgument
    );
}

async fn exec_streams_over_websocket(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let id = node.run(&sandbox, node.script("c", "sleep 1000")).await;
    let request = |script: &str, tty: bool| ExecRequest {
        container_id: id.clone(),
        cmd: vec!["sh".into(), "-c".into(), script.into()],
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
        ..Default::default()
    };
    let url = node
        .runtime()
        .exec(request("cat; echo err >&2; exit 6", false))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = stream_client::open(&url, "v5.channel.k8s.io").await;
    let long = "line\n".repeat(50_000);
    client.stdin(long.as_bytes()).await;
    client.close_stdin().await;
    let ended = client.finish().await;
    assert_eq!(ended.stdout.len(), long.len());
    assert_eq!(ended.stderr, "err\n");
    assert_eq!(ended.status["details"]["causes"][0]["message"], "6");
    assert!(
        stream_client::try_open(&url, "v5.channel.k8s.io").await.is_err(),
        "an address works once"
    );
    let url = node
        .runtime()
        .exec(request("stty size; tty; read line; echo got $line", true))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = stream_client::open(&url, "v4.channel.k8s.io").await;
    client.resize(111, 33).await;
    client.until("/dev/pts/").await;
    client.stdin(b"typed\n").await;
    let ended = client.finish().await;
    assert!(ended.stdout.contains("got typed"), "{}", ended.stdout);
    assert_eq!(ended.status["status"], "Success");
}

async fn exec_streams_over_spdy(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let id = node.run(&sandbox, node.script("c", "sleep 1000")).await;
    let request = ExecRequest {
        container_id: id,
        cmd: vec!["sh".into(), "-c".into(), "cat; exit 6".into()],
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let url = node.runtime().exec(request).await.unwrap().into_inner().url;
    let mut client = spdy_client::open(&url, "v4.channel.k8s.io").await;
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open_stream(stream, &[("streamtype", kind)]).await;
    }
    client.send(3, b"through spdy", true).await;
    assert_eq!(client.read_to_end(5).await, b"through spdy");
    let status: serde_json::Value = serde_json::from_slice(&client.read_to_end(1).await).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "6");
}

async fn attach_reaches_the_terminal_and_the_input(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let mut config = node.script("pipes", "cat; echo end");
    (config.stdin, config.stdin_once) = (true, true);
    let id = node.run(&sandbox, config).await;
    let attach = |id: &str, tty: bool| AttachRequest {
        container_id: id.into(),
        stdin: true,
        stdout: true,
        stderr: !tty,
        tty,
        ..Default::default()
    };
    let url = node
        .runtime()
        .attach(attach(&id, false))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = stream_client::open(&url, "v5.channel.k8s.io").await;
    client.stdin(b"typed\n").await;
    client.until("typed").await;
    client.close_stdin().await;
    assert!(client.finish().await.stdout.ends_with("end\n"));
    assert_eq!(node.wait(&id).await.exit_code, 0);
    assert_eq!(node.lines("pipes"), ["typed", "end"]);
    let mut config = node.script("terminal", "tty; read line; stty size; echo got $line");
    (config.stdin, config.tty) = (true, true);
    let id = node.run(&sandbox, config).await;
    let url = node
        .runtime()
        .attach(attach(&id, true))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = stream_client::open(&url, "v5.channel.k8s.io").await;
    client.resize(99, 44).await;
    client.stdin(b"x\n").await;
    let ended = client.finish().await;
    assert!(
        ended.stdout.contains("44 99") && ended.stdout.contains("got x"),
        "{}",
        ended.stdout
    );
    assert_eq!(node.wait(&id).await.exit_code, 0);
}

async fn ports_are_forwarded(node: &mut Node) {
    let sandbox = node.sandbox().await;
    node.run(
        &sandbox,
        node.script(
            "server",
            "while true; do echo hello from the pod | nc -l -p 8080; done",
        ),
    )
    .await;
    let request = PortForwardRequest {
        pod_sandbox_id: sandbox,
        port: vec![8080],
    };
    for tunnel in [false, true] {
        let text = node
            .until("the pod answers", async || {
                let url = node
                    .runtime()
                    .port_forward(request.clone())
                    .await
                    .unwrap()
                    .into_inner()
                    .url;
                let mut client = if tunnel {
                    spdy_client::open_tunnel(&url, "SPDY/3.1+portforward.k8s.io").await
                } else {
                    spdy_client::open(&url, "portforward.k8s.io").await
                };
                client
                    .open_stream(
                        1,
                        &[("streamtype", "error"), ("port", "8080"), ("requestid", "0")],
                    )
                    .await;
                client
                    .open_stream(3, &[("streamtype", "data"), ("port", "8080"), ("requestid", "0")])
                    .await;
                let text = client.read_to_end(3).await;
                // Refused until the server listens.
                (!text.is_empty()).then_some(text)
            })
            .await;
        assert_eq!(text, b"hello from the pod\n");
    }
    let url = node
        .runtime()
        .port_forward(request)
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = spdy_client::open(&url, "portforward.k8s.io").await;
    client
        .open_stream(1, &[("streamtype", "error"), ("port", "9"), ("requestid", "0")])
        .await;
    client
        .open_stream(3, &[("streamtype", "data"), ("port", "9"), ("requestid", "0")])
        .await;
    let error = String::from_utf8(client.read_to_end(1).await).unwrap();
    assert!(
        error.contains("error forwarding port 9") && error.contains("refused"),
        "{error}"
    );
}

async fn events_statistics_and_rotation(node: &mut Node) {
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

async fn sandboxes_tell_their_state(node: &mut Node) {
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
