//! Where a cluster keeps its files: one directory, flat, so that `down` can remove exactly what was made.

use std::path::{Path, PathBuf};

/// sun_path of unix(7) holds 108 bytes with the final zero.
const SOCKET_PATH_LIMIT: usize = 107;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub directory: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFiles {
    /// Serial console, kept over restarts.
    pub log: PathBuf,
    /// What QEMU itself says.
    pub qemu_log: PathBuf,
    pub disk: PathBuf,
    pub serial: PathBuf,
    pub monitor: PathBuf,
    /// What the guest wrote to its kubeconfig port.
    pub published: PathBuf,
}

impl Layout {
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub fn record(&self) -> PathBuf {
        self.directory.join("cluster.json")
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// kubectl's discovery cache, which goes by address: another cluster may have had our port.
    pub fn kubectl_cache(&self) -> PathBuf {
        self.directory.join("kubectl-cache")
    }

    pub fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }

    pub fn hub(&self) -> PathBuf {
        self.directory.join("hub.socket")
    }

    pub fn hub_log(&self) -> PathBuf {
        self.directory.join("hub.log")
    }

    pub fn node(&self, name: &str) -> NodeFiles {
        NodeFiles::new(&self.directory, name)
    }

    /// Every file that may exist besides kubectl's cache, for `down`; the lock comes last.
    pub fn all<'a>(&self, nodes: impl IntoIterator<Item = &'a str>) -> Vec<PathBuf> {
        let mut files = vec![self.kubeconfig(), self.hub(), self.hub_log()];
        for name in nodes {
            let NodeFiles {
                log,
                qemu_log,
                disk,
                serial,
                monitor,
                published,
            } = self.node(name);
            files.extend([log, qemu_log, disk, serial, monitor, published]);
        }
        files.extend([self.record(), self.lock()]);
        files
    }

    /// Whether all sockets' paths fit the kernel's limit.
    pub fn sockets_fit<'a>(&self, nodes: impl IntoIterator<Item = &'a str>) -> bool {
        let fits = |path: &Path| path.as_os_str().len() <= SOCKET_PATH_LIMIT;
        fits(&self.hub())
            && nodes
                .into_iter()
                .map(|name| self.node(name))
                .all(|files| fits(&files.serial) && fits(&files.monitor))
    }
}

impl NodeFiles {
    pub fn new(directory: &Path, name: &str) -> Self {
        let file = |extension: &str| directory.join(format!("{name}.{extension}"));
        Self {
            log: file("log"),
            qemu_log: file("qemu.log"),
            disk: file("disk"),
            serial: file("serial"),
            monitor: file("monitor"),
            published: file("published"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_state_directories_are_noticed() {
        assert!(Layout::new("/short".into()).sockets_fit(["master-1"]));
        assert!(!Layout::new(format!("/{}", "x".repeat(100)).into()).sockets_fit(["master-1"]));
    }
}
