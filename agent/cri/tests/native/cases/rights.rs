//! Namespaces, system calls, capabilities and users as critest tries them.

use super::{complaint, host, said, security_of as security, sleeper};
use crate::node::Node;
use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::*;
use std::path::Path;

/// "NamespaceOption" and "runtime should support sysctls"
pub async fn namespaces_are_the_hosts_or_the_pods(node: &mut Node) {
    let links = ["net", "ipc", "uts", "pid"];
    let own = links.map(|kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
    for (index, (network, ipc, pid)) in [
        (NamespaceMode::Pod, NamespaceMode::Pod, NamespaceMode::Node),
        (NamespaceMode::Pod, NamespaceMode::Node, NamespaceMode::Pod),
        (NamespaceMode::Node, NamespaceMode::Pod, NamespaceMode::Container),
    ]
    .into_iter()
    .enumerate()
    {
        let options = NamespaceOption {
            network: network as i32,
            ipc: ipc as i32,
            pid: pid as i32,
            ..Default::default()
        };
        let mut config = node.sandbox_config(pid);
        let linux = config.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().namespace_options = Some(options.clone());
        if ipc == NamespaceMode::Pod {
            linux.sysctls = [("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "100")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        }
        let sandbox = node.sandbox_with(config).await;
        let id = sleeper(node, &sandbox, &format!("n{index}"), |config| {
            security(config).namespace_options = Some(options);
        })
        .await;
        let is_host = |mode| mode == NamespaceMode::Node;
        let expected = [is_host(network), is_host(ipc), is_host(network), is_host(pid)];
        for ((kind, own), expected) in links.iter().zip(&own).zip(expected) {
            let path = format!("/proc/self/ns/{kind}");
            let seen = said(node, &id, &["busybox", "readlink", &path]).await;
            assert_eq!(Path::new(&seen) == own, expected, "{kind} of {index}");
        }
        let first = said(node, &id, &["cat", "/proc/1/cmdline"]).await;
        assert_eq!(
            first.contains("sleep"),
            pid == NamespaceMode::Container,
            "{first}"
        );
        if ipc == NamespaceMode::Pod {
            let values = said(
                node,
                &id,
                &[
                    "cat",
                    "/proc/sys/kernel/shm_rmid_forced",
                    "/proc/sys/fs/mqueue/msg_max",
                ],
            )
            .await;
            assert_eq!(values, "1\n100");
        }
    }
    // Only the pod has a user namespace of its own, if at all.
    for mode in [NamespaceMode::Container, NamespaceMode::Target] {
        let mut config = node.sandbox_config(NamespaceMode::Container);
        let linux = config.linux.as_mut().unwrap();
        let security = linux.security_context.as_mut().unwrap();
        security.namespace_options.as_mut().unwrap().userns_options = Some(UserNamespace {
            mode: mode as i32,
            ..Default::default()
        });
        let request = RunPodSandboxRequest {
            config: Some(config),
            ..Default::default()
        };
        let error = node.runtime().run_pod_sandbox(request).await.unwrap_err();
        assert!(error.message().contains("user namespaces"), "{error}");
    }
    let mut config = node.sandbox_config(NamespaceMode::Container);
    config.dns_config = Some(DnsConfig::default());
    let sandbox = node.sandbox_with(config).await;
    let id = sleeper(node, &sandbox, "dns", |_| {}).await;
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(said(node, &id, &["cat", "/etc/resolv.conf"]).await, own.trim());
}

/// "SeccompProfilePath"
pub async fn seccomp_profiles_bind(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let profile = |name: &str, calls: &str| {
        let path = node.folder.join(name);
        let text = format!(
            r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"names": [{calls}], "action": "SCMP_ACT_ERRNO"}}]}}"#
        );
        std::fs::write(&path, text).unwrap();
        SecurityProfile {
            profile_type: ProfileType::Localhost as i32,
            localhost_ref: path.display().to_string(),
        }
    };
    let no_chmod = profile("chmod.json", r#""chmod", "fchmodat", "fchmodat2""#);
    let no_hostname = profile("hostname.json", r#""sethostname""#);
    let unconfined = SecurityProfile {
        profile_type: ProfileType::Unconfined as i32,
        ..Default::default()
    };
    for (name, seccomp, mode) in [
        ("unconfined", Some(unconfined.clone()), "0"),
        ("nil", None, "0"),
        ("default", Some(SecurityProfile::default()), "2"),
    ] {
        let id = sleeper(node, &sandbox, name, |config| security(config).seccomp = seccomp).await;
        let line = said(node, &id, &["busybox", "grep", "Seccomp:", "/proc/self/status"]).await;
        assert_eq!(line.split_whitespace().last(), Some(mode), "{name}");
    }
    let id = sleeper(node, &sandbox, "chmod", |config| {
        security(config).seccomp = Some(no_chmod);
    })
    .await;
    let error = complaint(node, &id, &["busybox", "chmod", "400", "/"]).await;
    assert!(error.contains("Operation not permitted"), "{error}");
    for (name, seccomp, privileged, allowed) in [
        ("free", unconfined, false, true),
        ("bound", no_hostname.clone(), false, false),
        ("privileged", no_hostname, true, true),
    ] {
        let id = sleeper(node, &sandbox, name, |config| {
            security(config).seccomp = Some(seccomp);
            security(config).privileged = privileged;
            security(config).capabilities = Some(Capability {
                add_capabilities: vec!["SYS_ADMIN".into()],
                ..Default::default()
            });
        })
        .await;
        let answer = node.exec(&id, &["hostname", name], 30).await.unwrap();
        assert_eq!(answer.exit_code == 0, allowed, "{name}");
        assert_eq!(said(node, &id, &["hostname"]).await == name, allowed);
    }
}

/// "runtime should support … capability", "MaskedPaths", "ReadonlyPaths", "NoNewPrivs"
pub async fn rights_are_what_was_asked(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let bounding = async |name: &str, add: &[&str], drop: &[&str]| {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let capabilities = Capability {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            ..Default::default()
        };
        let id = sleeper(node, &sandbox, name, |config| {
            security(config).capabilities = Some(capabilities);
        })
        .await;
        let line = said(node, &id, &["busybox", "grep", "CapBnd:", "/proc/self/status"]).await;
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let (net_admin, net_raw) = (1 << 12, 1 << 13);
    let normal = bounding("none", &[], &[]).await;
    assert_eq!((normal & net_admin, normal & net_raw), (0, net_raw));
    assert_eq!(bounding("dropped-all", &[], &["ALL"]).await, 0);
    assert_eq!(
        bounding("dropped", &[], &["CAP_NET_RAW"]).await,
        normal & !net_raw
    );
    assert_eq!(bounding("added", &["NET_ADMIN"], &[]).await, normal | net_admin);
    let all = bounding("added-all", &["ALL"], &[]).await;
    assert!(all.count_ones() > normal.count_ones() && all & net_admin != 0);

    let id = sleeper(node, &sandbox, "paths", |config| {
        security(config).masked_paths = vec!["/etc/shown".into(), "/home".into(), "/not/there".into()];
        security(config).readonly_paths = vec!["/tmp".into()];
    })
    .await;
    assert_eq!(said(node, &id, &["cat", "/etc/shown"]).await, "");
    assert_eq!(said(node, &id, &["ls", "-A", "/home"]).await, "");
    assert_eq!(
        complaint(node, &id, &["touch", "/tmp/test"]).await,
        "touch: /tmp/test: Read-only file system"
    );

    // Programs that change who runs them, unless that is forbidden.
    let program = node.folder.join("su");
    std::fs::copy(crate::packages::BUSYBOX.path(), &program).unwrap();
    host("chmod", &["4755", program.to_str().unwrap()]);
    for (name, no_new_privs) in [("may", false), ("may-not", true)] {
        let id = sleeper(node, &sandbox, name, |config| {
            security(config).no_new_privs = no_new_privs;
            security(config).run_as_user = Some(Int64Value { value: 1000 });
            config.mounts = vec![Mount {
                container_path: "/opt/su".into(),
                host_path: program.display().to_string(),
                ..Default::default()
            }];
        })
        .await;
        let answer = node
            .exec(&id, &["sh", "-c", "/opt/su -c id </dev/null"], 30)
            .await
            .unwrap();
        let text = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert_eq!(text.contains("must be suid"), no_new_privs, "{name}: {text}");
    }
}

/// "bucket" and "SupplementalGroupsPolicy"
pub async fn users_are_told_and_kept_by_commands(node: &mut Node) {
    let features = node.runtime().status(StatusRequest::default()).await.unwrap();
    assert!(features.into_inner().features.unwrap().supplemental_groups_policy);
    let sandbox = node.sandbox().await;
    for (name, policy, groups) in [
        ("merge", SupplementalGroupsPolicy::Merge, vec![44, 1001, 1234]),
        ("strict", SupplementalGroupsPolicy::Strict, vec![1001, 1234]),
    ] {
        let mut config = node.script(name, "id -G; sleep 1000");
        security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        security(&mut config).supplemental_groups = vec![1234];
        security(&mut config).supplemental_groups_policy = policy as i32;
        let id = node.run(&sandbox, config).await;
        let told = node.status(&id).await.user.unwrap().linux.unwrap();
        assert_eq!(
            (told.uid, told.gid, &told.supplemental_groups),
            (1000, 1001, &groups)
        );
        node.until_logged(name, "1001").await;
        let beside = said(node, &id, &["id", "-G"]).await;
        for line in [&node.lines(name)[0], &beside] {
            let mut seen: Vec<i64> = line.split(' ').map(|group| group.parse().unwrap()).collect();
            seen.sort_unstable();
            assert_eq!(seen, groups);
        }
    }
    let mut config = node.script("group", "echo $(id -u):$(id -g)");
    security(&mut config).run_as_user = Some(Int64Value { value: 1001 });
    security(&mut config).run_as_group = Some(Int64Value { value: 1002 });
    assert_eq!(node.output(&sandbox, config).await, (0, "1001:1002".into()));
    let mut config = node.script("no-user", "true");
    security(&mut config).run_as_group = Some(Int64Value { value: 1002 });
    let error = node.create(&sandbox, config).await.unwrap_err();
    assert!(
        error.message().contains("user group is specified without user"),
        "{error}"
    );
}
