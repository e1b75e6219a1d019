//! Where everything lies under the runtime's root folder.

use std::path::{Path, PathBuf};

/// Written by the shim alone while it lives: pid, start, exit.
pub const PROCESS_RECORD: &str = "process.json";

#[derive(Debug, Clone)]
pub struct Layout {
    pub root: PathBuf,
}

impl Layout {
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }
    pub fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }
    pub fn sandbox_record(&self, id: &str) -> PathBuf {
        self.sandbox(id).join("sandbox.json")
    }
    /// Files that namespaces are bound to, so that they live without a process.
    pub fn namespace(&self, sandbox_id: &str, kind: &str) -> PathBuf {
        self.sandbox(sandbox_id).join(format!("ns-{kind}"))
    }
    pub fn shared_memory(&self, sandbox_id: &str) -> PathBuf {
        self.sandbox(sandbox_id).join("shm")
    }

    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }
    pub fn container_record(&self, id: &str) -> PathBuf {
        self.container(id).join("container.json")
    }
    pub fn process_record(&self, id: &str) -> PathBuf {
        self.container(id).join(PROCESS_RECORD)
    }
    pub fn rootfs(&self, container_id: &str) -> PathBuf {
        self.container(container_id).join("rootfs")
    }
    pub fn upper(&self, container_id: &str) -> PathBuf {
        self.container(container_id).join("upper")
    }
    pub fn work(&self, container_id: &str) -> PathBuf {
        self.container(container_id).join("work")
    }
    /// libcontainer's own state, one folder a container.
    pub fn libcontainer(&self) -> PathBuf {
        self.root.join("libcontainer")
    }

    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
    pub fn layers(&self) -> PathBuf {
        self.root.join("l")
    }
    /// Short, because an overlay's whole list of layers must fit in a page.
    pub fn layer(&self, diff_id: &str) -> PathBuf {
        let digest = diff_id.strip_prefix("sha256:").unwrap_or(diff_id);
        self.layers().join(digest.get(..32).unwrap_or(digest))
    }
    pub fn layer_record(&self, diff_id: &str) -> PathBuf {
        self.layer(diff_id).with_extension("json")
    }
    pub fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }
    pub fn imports(&self) -> PathBuf {
        self.root.join("imports.json")
    }
}
