//! A container's mounts: the kernel file systems, the sandbox's files, the pod's volumes.

use cri_api::v1;
use serde_json::{Value, json};
use std::path::{Component, Path, PathBuf};

/// The sandbox's own files, mounted unless the pod mounts something there itself.
#[derive(Debug, Default)]
pub struct SandboxFiles {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv_conf: PathBuf,
    pub shared_memory: PathBuf,
}

/// One of the pod's mounts with its source looked up on this host.
#[derive(Debug, Clone)]
pub struct HostMount {
    pub destination: PathBuf,
    pub source: PathBuf,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: v1::MountPropagation,
}

fn kernel_mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// All mounts in the order they are made: parents before what lies in them.
pub fn mounts(
    privileged: bool,
    readonly_root: bool,
    files: &SandboxFiles,
    volumes: &[HostMount],
) -> Vec<Value> {
    let kernel_access = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        kernel_mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        kernel_mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        kernel_mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        kernel_mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        kernel_mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", kernel_access],
        ),
        kernel_mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", kernel_access],
        ),
    ];
    let file_access = if readonly_root { "ro" } else { "rw" };
    for (destination, source) in [
        ("/etc/hosts", &files.hosts),
        ("/etc/hostname", &files.hostname),
        ("/etc/resolv.conf", &files.resolv_conf),
    ] {
        all.push(kernel_mount(
            destination,
            "bind",
            &source.to_string_lossy(),
            &["rbind", "rprivate", file_access],
        ));
    }
    all.push(kernel_mount(
        "/dev/shm",
        "bind",
        &files.shared_memory.to_string_lossy(),
        &["rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"],
    ));
    let replaced = |mount: &Value| {
        volumes.iter().any(|volume| {
            Some(&*normal(&volume.destination).to_string_lossy()) == mount["destination"].as_str()
        })
    };
    all.retain(|mount| !replaced(mount));
    let mut volumes: Vec<&HostMount> = volumes.iter().collect();
    volumes.sort_by_key(|volume| normal(&volume.destination).components().count());
    all.extend(volumes.into_iter().map(volume_mount));
    all
}

fn volume_mount(volume: &HostMount) -> Value {
    json!({
        "destination": normal(&volume.destination),
        "type": "bind",
        "source": volume.source,
        "options": volume_options(volume),
    })
}

fn volume_options(volume: &HostMount) -> Vec<&'static str> {
    let propagation = match volume.propagation {
        v1::MountPropagation::PropagationPrivate => "rprivate",
        v1::MountPropagation::PropagationHostToContainer => "rslave",
        v1::MountPropagation::PropagationBidirectional => "rshared",
    };
    let access = match (volume.readonly, volume.recursive_readonly) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    vec!["rbind", propagation, access]
}

/// How the whole root must propagate for the volumes' wishes to hold.
pub fn root_propagation(volumes: &[HostMount]) -> &'static str {
    let any = |propagation| volumes.iter().any(|volume| volume.propagation == propagation);
    if any(v1::MountPropagation::PropagationBidirectional) {
        "shared"
    } else if any(v1::MountPropagation::PropagationHostToContainer) {
        "slave"
    } else {
        "private"
    }
}

/// Absolute, without `.`, `..` and doubled slashes.
pub fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(part) => out.push(part),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(destination: &str, propagation: v1::MountPropagation, readonly: bool) -> HostMount {
        HostMount {
            destination: destination.into(),
            source: "/volume".into(),
            readonly,
            recursive_readonly: false,
            propagation,
        }
    }

    #[test]
    fn the_pods_mounts_replace_ours_and_parents_come_first() {
        use v1::MountPropagation::PropagationPrivate as Private;
        let volumes = [
            volume("/a/b/", Private, false),
            volume("/etc/hosts", Private, true),
            volume("/a", Private, false),
        ];
        let all = mounts(false, false, &SandboxFiles::default(), &volumes);
        let destinations: Vec<&str> = all.iter().filter_map(|m| m["destination"].as_str()).collect();
        assert_eq!(
            destinations,
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/dev/mqueue",
                "/sys",
                "/sys/fs/cgroup",
                "/etc/hostname",
                "/etc/resolv.conf",
                "/dev/shm",
                "/a",
                "/a/b",
                "/etc/hosts"
            ]
        );
        assert_eq!(all[11]["options"], json!(["rbind", "rprivate", "ro"]));
    }

    #[test]
    fn kernel_trees_are_writable_for_the_privileged_only() {
        for (privileged, expected) in [(true, "rw"), (false, "ro")] {
            let all = mounts(privileged, false, &SandboxFiles::default(), &[]);
            let sys = all.iter().find(|m| m["destination"] == "/sys").unwrap();
            assert!(
                sys["options"].as_array().unwrap().contains(&json!(expected)),
                "{privileged}"
            );
        }
    }

    #[test]
    fn propagation_of_the_root_follows_the_volumes() {
        use v1::MountPropagation::*;
        for (wishes, expected) in [
            (vec![], "private"),
            (vec![PropagationPrivate], "private"),
            (vec![PropagationHostToContainer, PropagationPrivate], "slave"),
            (
                vec![PropagationHostToContainer, PropagationBidirectional],
                "shared",
            ),
        ] {
            let volumes: Vec<_> = wishes.into_iter().map(|wish| volume("/a", wish, false)).collect();
            assert_eq!(root_propagation(&volumes), expected);
        }
    }
}
