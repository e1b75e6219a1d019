//! What the generated spec promises.

use super::*;

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["arg".into()],
        env: vec!["PATH=/image".into(), "A=1".into()],
        working_dir: "/work".into(),
        ..Default::default()
    }
}

fn spec_of(config: &v1::ContainerConfig) -> Value {
    let host = Host {
        controllers: ["cpu", "memory"].map(String::from).into(),
        capabilities: u64::MAX,
        lowest_oom_score: -1000,
        apparmor: false,
        open_files: 4096,
        devices: vec![DeviceNode {
            path: "/dev/kvm".into(),
            block: false,
            major: 10,
            minor: 232,
            mode: 0o600,
            uid: 0,
            gid: 0,
        }],
    };
    let input = Input {
        config,
        image: &image(),
        host: &host,
        user: &User {
            uid: 7,
            gid: 8,
            groups: vec![8, 9],
            home: Some("/home/x".into()),
        },
        hostname: "pod-a",
        rootfs: Path::new("/rootfs"),
        cgroup: Path::new("/kubepods/pod1/c1"),
        namespaces: &Namespaces {
            network: Some("/ns/net".into()),
            ipc: Some("/ns/ipc".into()),
            uts: None,
            pid: Some(None),
        },
        files: &SandboxFiles::default(),
        volumes: &[],
        devices: &[],
    };
    generate(&input).unwrap().0
}

fn with_security(security: v1::LinuxContainerSecurityContext) -> v1::ContainerConfig {
    v1::ContainerConfig {
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn command_and_arguments_override_the_images() {
    let own = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    for (command, args, expected) in [
        (vec![], vec![], vec!["/entry", "arg"]),
        (vec![], vec!["x"], vec!["/entry", "x"]),
        (vec!["sh"], vec![], vec!["sh"]),
        (vec!["sh"], vec!["-c"], vec!["sh", "-c"]),
    ] {
        let config = v1::ContainerConfig {
            command: own(&command),
            args: own(&args),
            ..Default::default()
        };
        assert_eq!(spec_of(&config)["process"]["args"], json!(expected));
    }
}

#[test]
fn the_pods_environment_wins_over_the_images() {
    let key_value = |key: &str, value: &str| v1::KeyValue {
        key: key.into(),
        value: value.into(),
    };
    let config = v1::ContainerConfig {
        envs: vec![key_value("A", "2"), key_value("B", "")],
        ..Default::default()
    };
    assert_eq!(
        spec_of(&config)["process"]["env"],
        json!(["PATH=/image", "HOSTNAME=pod-a", "HOME=/home/x", "A=2", "B="])
    );
}

#[test]
fn an_ordinary_container_is_confined() {
    let security = v1::LinuxContainerSecurityContext {
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        no_new_privs: true,
        readonly_rootfs: true,
        seccomp: Some(v1::SecurityProfile::default()),
        ..Default::default()
    };
    let spec = spec_of(&with_security(security));
    assert_eq!(
        spec["linux"]["maskedPaths"],
        json!(["/proc/kcore", "/proc/cmdline"])
    );
    assert_eq!(spec["linux"]["readonlyPaths"], json!(["/proc/sys"]));
    assert_eq!(spec["linux"]["devices"], json!([]));
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(
        spec["process"]["user"],
        json!({"uid": 7, "gid": 8, "additionalGids": [8, 9]})
    );
    assert_eq!(spec["process"]["cwd"], "/work");
    assert_eq!(
        spec["linux"]["namespaces"],
        json!([{"type": "mount"}, {"type": "cgroup"}, {"type": "network", "path": "/ns/net"},
               {"type": "ipc", "path": "/ns/ipc"}, {"type": "pid"}])
    );
}

#[test]
fn the_kernel_command_line_is_hidden_from_the_privileged_too() {
    let security = v1::LinuxContainerSecurityContext {
        privileged: true,
        masked_paths: vec!["/proc/kcore".into()],
        seccomp: Some(v1::SecurityProfile::default()),
        ..Default::default()
    };
    let spec = spec_of(&with_security(security));
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/proc/cmdline"]));
    assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/kvm");
    assert!(spec["linux"]["seccomp"].is_null() && spec["process"]["noNewPrivileges"].is_null());
    assert_eq!(
        spec["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        41
    );
}

#[test]
fn seccomp_follows_the_profile_asked_for() {
    use v1::security_profile::ProfileType;
    let profile = |kind: ProfileType, path: &str| {
        with_security(v1::LinuxContainerSecurityContext {
            seccomp: Some(v1::SecurityProfile {
                profile_type: kind as i32,
                localhost_ref: path.into(),
            }),
            ..Default::default()
        })
    };
    assert!(spec_of(&v1::ContainerConfig::default())["linux"]["seccomp"].is_null());
    assert!(spec_of(&profile(ProfileType::Unconfined, ""))["linux"]["seccomp"].is_null());
    assert!(spec_of(&profile(ProfileType::RuntimeDefault, ""))["linux"]["seccomp"].is_object());
    let dir = crate::test_support::TempDir::new("seccomp");
    let path = dir.path().join("p.json");
    std::fs::write(&path, r#"{"defaultAction":"SCMP_ACT_LOG"}"#).unwrap();
    let spec = spec_of(&profile(ProfileType::Localhost, path.to_str().unwrap()));
    assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_LOG");
}
