//! A sandbox's namespaces, kept alive by bind mounts instead of a process.

use crate::sys;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("{operation}: {source}")]
    System {
        operation: &'static str,
        source: io::Error,
    },
    #[error("sysctl {name:?} cannot be set to {value:?}: {source}")]
    Sysctl {
        name: String,
        value: String,
        source: io::Error,
    },
    #[error("sysctl {0:?} is not of the pod's own namespaces")]
    ForeignSysctl(String),
    #[error("the thread that makes namespaces died")]
    Thread,
}

/// Which namespaces to make, and where to bind them; what is missing is the host's.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub hostname: String,
    pub sysctls: BTreeMap<String, String>,
}

/// Sysctls that containerd sets in every pod's own network: any user may ping and use low ports.
const NETWORK_DEFAULTS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// The namespace a sysctl belongs to, when it has one.
fn owner(sysctl: &str) -> Option<&'static str> {
    let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    if sysctl.starts_with("net.") {
        Some("network")
    } else if ipc.iter().any(|prefix| sysctl.starts_with(prefix)) {
        Some("ipc")
    } else {
        None
    }
}

/// All sysctls to set, defaults first, or the one that would change the host.
fn sysctls(plan: &Plan) -> Result<BTreeMap<String, String>, NamespaceError> {
    let mut all = BTreeMap::new();
    if plan.network.is_some() {
        all.extend(NETWORK_DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    for (name, value) in &plan.sysctls {
        let name = name.replace('/', ".");
        let ours = match owner(&name) {
            Some("network") => plan.network.is_some(),
            Some(_) => plan.ipc.is_some(),
            None => false,
        };
        if !ours {
            return Err(NamespaceError::ForeignSysctl(name));
        }
        all.insert(name, value.clone());
    }
    Ok(all)
}

/// Makes the namespaces in a thread of their own and binds them to their files. Blocks.
pub fn create(plan: &Plan) -> Result<(), NamespaceError> {
    let sysctls = sysctls(plan)?;
    let plan = plan.clone();
    // A thread that has left the host's namespaces must not go back to a pool.
    std::thread::Builder::new()
        .name("namespaces".into())
        .spawn(move || create_here(&plan, &sysctls))
        .map_err(|source| NamespaceError::System {
            operation: "start a thread",
            source,
        })?
        .join()
        .map_err(|_| NamespaceError::Thread)?
}

fn create_here(plan: &Plan, sysctls: &BTreeMap<String, String>) -> Result<(), NamespaceError> {
    let system = |operation| move |source: io::Error| NamespaceError::System { operation, source };
    let mut flags = CloneFlags::empty();
    for (wanted, flag) in [
        (&plan.network, CloneFlags::CLONE_NEWNET),
        (&plan.ipc, CloneFlags::CLONE_NEWIPC),
        (&plan.uts, CloneFlags::CLONE_NEWUTS),
    ] {
        flags.set(flag, wanted.is_some());
    }
    unshare(flags).map_err(|e| system("unshare")(e.into()))?;
    if plan.uts.is_some() {
        rustix::system::sethostname(plan.hostname.as_bytes())
            .map_err(|e| system("set the hostname")(e.into()))?;
    }
    if plan.network.is_some() {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            None,
        )
        .map_err(|e| system("open a socket")(e.into()))?;
        sys::loopback_up(&socket).map_err(system("bring up loopback"))?;
    }
    for (name, value) in sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        match fs::write(&path, value) {
            // A default that this kernel does not know is no reason to refuse a pod.
            Err(error) if !plan.sysctls.contains_key(name) => {
                tracing::debug!(sysctl = name, %error, "not set")
            }
            Err(source) => {
                return Err(NamespaceError::Sysctl {
                    name: name.clone(),
                    value: value.clone(),
                    source,
                });
            }
            Ok(()) => {}
        }
    }
    for (target, kind) in [(&plan.network, "net"), (&plan.ipc, "ipc"), (&plan.uts, "uts")] {
        if let Some(target) = target {
            bind(&Path::new("/proc/thread-self/ns").join(kind), target)
                .map_err(system("bind a namespace"))?;
        }
    }
    Ok(())
}

/// Binds a namespace (or any file) to a new file.
pub fn bind(source: &Path, target: &Path) -> io::Result<()> {
    File::create(target)?;
    Ok(mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?)
}

/// Unmounts, and forgets what was mounted even when it is in use. A missing mount is fine.
pub fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Unmounts whatever is mounted below a folder, the latest first.
pub fn unmount_below(folder: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Path::new)
        .filter(|path| path.starts_with(folder) && *path != folder);
    below.collect::<Vec<_>>().into_iter().rev().try_for_each(unmount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_of_the_host_are_refused() {
        let plan = |network: bool, name: &str| Plan {
            network: network.then(|| "/n".into()),
            ipc: Some("/i".into()),
            sysctls: [(name.to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert!(
            sysctls(&plan(true, "net.core.somaxconn"))
                .unwrap()
                .contains_key("net.core.somaxconn")
        );
        assert_eq!(
            sysctls(&plan(true, "net/ipv4/ip_unprivileged_port_start")).unwrap()["net.ipv4.ip_unprivileged_port_start"],
            "1"
        );
        assert_eq!(sysctls(&plan(false, "kernel.shmmax")).unwrap().len(), 1);
        for (network, name) in [
            (false, "net.core.somaxconn"),
            (true, "kernel.panic"),
            (true, "vm.swappiness"),
        ] {
            assert!(
                matches!(
                    sysctls(&plan(network, name)),
                    Err(NamespaceError::ForeignSysctl(_))
                ),
                "{name}"
            );
        }
    }
}
