//! The kernel's settings, each with its reason.

use super::{StepError, plan::collect};
use std::{fs, io, path::PathBuf};

const SETTINGS: &[(&str, &str, &str)] = &[
    (
        "net/ipv4/ip_forward",
        "1",
        "pods reach other nodes and the outside through this machine",
    ),
    ("net/ipv6/conf/all/forwarding", "1", "likewise"),
    (
        "net/bridge/bridge-nf-call-iptables",
        "1",
        "Service addresses work between pods of one bridge",
    ),
    ("net/bridge/bridge-nf-call-ip6tables", "1", "likewise"),
    (
        "net/ipv4/conf/all/rp_filter",
        "0",
        "answers may come another way: masquerade, overlays, several interfaces",
    ),
    (
        "net/ipv4/conf/default/rp_filter",
        "0",
        "likewise, for interfaces to come",
    ),
    (
        "net/ipv4/neigh/default/gc_thresh3",
        "8192",
        "room for the neighbours of a large cluster",
    ),
    (
        "net/netfilter/nf_conntrack_max",
        "262144",
        "upstream kube-proxy's value for 8 cores; the default is by memory",
    ),
    (
        "net/netfilter/nf_conntrack_tcp_timeout_established",
        "86400",
        "kube-proxy's default",
    ),
    (
        "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
        "3600",
        "kube-proxy's default",
    ),
    ("net/core/somaxconn", "32768", "backlogs of busy servers in pods"),
    (
        "net/ipv4/ping_group_range",
        "0 2147483647",
        "ping without privileges in pods",
    ),
    (
        "kernel/panic",
        "10",
        "an unattended machine comes back (kubelet's protectKernelDefaults)",
    ),
    (
        "kernel/panic_on_oops",
        "1",
        "a kernel that went wrong must not go on (likewise)",
    ),
    (
        "kernel/keys/root_maxkeys",
        "1000000",
        "kubelet's protectKernelDefaults",
    ),
    ("kernel/keys/root_maxbytes", "25000000", "likewise"),
    ("kernel/pid_max", "4194304", "many containers, many processes"),
    ("kernel/threads-max", "512000", "likewise"),
    (
        "kernel/modprobe",
        "/sbin/modprobe",
        "the kernel asks init for modules",
    ),
    (
        "kernel/printk_devkmsg",
        "on",
        "our own lines must not be rate-limited",
    ),
    (
        "kernel/unprivileged_bpf_disabled",
        "1",
        "pods load no programs into the kernel",
    ),
    ("kernel/kptr_restrict", "1", "pods see no kernel addresses"),
    ("kernel/dmesg_restrict", "1", "pods do not read the kernel's log"),
    (
        "kernel/yama/ptrace_scope",
        "1",
        "a process traces its children only",
    ),
    ("vm/overcommit_memory", "1", "kubelet's protectKernelDefaults"),
    (
        "vm/panic_on_oom",
        "0",
        "likewise: the killer works, the machine stays",
    ),
    ("vm/max_map_count", "262144", "databases in pods ask for it"),
    (
        "fs/inotify/max_user_instances",
        "8192",
        "every pod runs as the same few users",
    ),
    ("fs/inotify/max_user_watches", "524288", "likewise"),
    ("fs/file-max", "2097152", "many containers, many files"),
    (
        "fs/nr_open",
        "1048576",
        "the highest limit a container may ask for",
    ),
    ("fs/protected_hardlinks", "1", "no links to others' files"),
    ("fs/protected_symlinks", "1", "likewise"),
];

pub(super) fn apply() -> Result<(), StepError> {
    collect(SETTINGS.iter().filter_map(|(name, value, reason)| {
        let path = PathBuf::from("/proc/sys").join(name);
        // With its newline: printk_devkmsg insists on one.
        match fs::write(&path, format!("{value}\n")) {
            Ok(()) => None,
            // The kernel was built without it, or its module is not loaded: then it has no effect either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("{}: {error} (wanted {value}: {reason})", path.display())),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::SETTINGS;

    #[test]
    fn every_setting_is_there_once_and_has_a_reason() {
        for (index, (name, value, reason)) in SETTINGS.iter().enumerate() {
            assert!(!value.is_empty() && reason.len() > 5, "{name}");
            assert!(
                SETTINGS[index + 1..].iter().all(|(other, ..)| other != name),
                "{name} is there twice"
            );
        }
    }
}
