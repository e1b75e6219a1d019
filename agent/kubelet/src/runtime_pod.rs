//! A pod as CRI reports it: the observed half of every decision about pods.

use std::net::IpAddr;

use jiff::Timestamp;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    #[default]
    Unknown,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedContainer {
    pub id: String,
    pub name: String,
    pub state: ContainerState,
    pub created_at: Timestamp,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_id: String,
    pub restart_count: i32,
    pub hash: String,
    pub log_path: String,
    /// Host file that the container wrote its termination message to.
    pub message_file: String,
    pub message_from_logs: bool,
    pub sandbox_id: String,
    pub user: Option<cri_api::v1::LinuxContainerUser>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedSandbox {
    pub id: String,
    pub ready: bool,
    pub attempt: u32,
    pub created_at: Timestamp,
    pub ips: Vec<IpAddr>,
    pub host_network: bool,
}

/// Sandboxes and containers, each newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimePod {
    pub sandboxes: Vec<ObservedSandbox>,
    pub containers: Vec<ObservedContainer>,
}

impl RuntimePod {
    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&ObservedContainer> {
        self.containers.iter().find(|container| container.name == name)
    }

    pub fn sandbox(&self) -> Option<&ObservedSandbox> {
        self.sandboxes.first()
    }

    pub fn ready_sandbox(&self) -> Option<&ObservedSandbox> {
        self.sandbox().filter(|sandbox| sandbox.ready)
    }

    pub fn running_containers(&self) -> impl Iterator<Item = &ObservedContainer> {
        self.containers
            .iter()
            .filter(|container| container.state == ContainerState::Running)
    }

    /// Nothing of the pod is alive any more.
    pub fn is_stopped(&self) -> bool {
        self.running_containers().next().is_none() && !self.sandboxes.iter().any(|sandbox| sandbox.ready)
    }

    pub fn sort(&mut self) {
        self.sandboxes
            .sort_by_key(|sandbox| std::cmp::Reverse((sandbox.created_at, sandbox.attempt)));
        self.containers
            .sort_by_key(|container| std::cmp::Reverse((container.created_at, container.restart_count)));
    }
}
