//! How the machine does, in a few figures.

use std::fs;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::{Api, Client};
use node_config::machine_state::MachineState;

use crate::v1::{Service, StatusInfo};

/// Where init mounts the state.
const STATE: &str = "/var";
/// Above the cgroups of init's services.
const SERVICE_CGROUPS: &str = "/sys/fs/cgroup/system";
const API_ANSWERS_WITHIN: Duration = Duration::from_secs(3);
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

pub fn services(state: &MachineState) -> Vec<Service> {
    let service = |service: &node_config::machine_state::ServiceState| Service {
        name: service.name.clone(),
        state: service.state.clone(),
        pid: service.pid.unwrap_or(0),
        seconds_running: service.seconds,
        failures: service.failures,
        last_end: service.last_end.clone(),
        memory: number(
            &Path::new(SERVICE_CGROUPS)
                .join(&service.name)
                .join("memory.current"),
        ),
    };
    state.services.iter().map(service).collect()
}

/// What the machine knows of itself; Kubernetes' view is added by [`ask_node`].
pub fn status(state: &MachineState, run_dir: &Path) -> StatusInfo {
    let (memory_total, memory_available) = memory();
    let space = rustix::fs::statvfs(STATE).ok();
    let is_up = |state: &str| ["running", "done"].contains(&state);
    let running = state
        .services
        .iter()
        .filter(|service| is_up(&service.state))
        .count();
    let errors = fs::read_to_string(run_dir.join("parameter-errors")).unwrap_or_default();
    StatusInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: kernel(),
        uptime_seconds: uptime(&fs::read_to_string("/proc/uptime").unwrap_or_default()),
        boot_id: boot_id(),
        memory_total,
        memory_available,
        load: load(),
        state_device: state.state_device.clone().unwrap_or_default(),
        state_total: space.as_ref().map_or(0, |space| space.f_blocks * space.f_frsize),
        state_available: space.map_or(0, |space| space.f_bavail * space.f_frsize),
        services_running: running as u32,
        services_total: state.services.len() as u32,
        waiting: state.waiting.clone(),
        parameter_errors: errors.lines().map(str::to_owned).collect(),
        ..StatusInfo::default()
    }
}

/// The Node object, if the API server answers soon.
pub async fn ask_node(client: &Client, name: &str) -> Result<Node, String> {
    let nodes: Api<Node> = Api::all(client.clone());
    match tokio::time::timeout(API_ANSWERS_WITHIN, nodes.get(name)).await {
        Ok(Ok(node)) => Ok(node),
        Ok(Err(error)) => Err(api_client::innermost(&error)),
        Err(_) => Err(format!(
            "the API server has not answered within {} s",
            API_ANSWERS_WITHIN.as_secs()
        )),
    }
}

pub fn ready_condition(node: &Node) -> Option<&NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready")
}

pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

pub fn architecture() -> String {
    rustix::system::uname().machine().to_string_lossy().into_owned()
}

pub fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned()
}

fn number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn uptime(text: &str) -> u64 {
    let seconds = text.split('.').next().unwrap_or_default();
    seconds.parse().unwrap_or(0)
}

/// Bytes: all, and what could still be had.
pub fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (meminfo(&text, "MemTotal"), meminfo(&text, "MemAvailable"))
}

fn meminfo(text: &str, name: &str) -> u64 {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

pub fn load() -> Vec<f64> {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .take(3)
        .filter_map(|word| word.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_config::machine_state::ServiceState;

    #[test]
    fn proc_is_read() {
        let text = "MemTotal:        2030908 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), 2_030_908 * 1024);
        assert_eq!(meminfo(text, "MemAvailable"), 1 << 20);
        assert_eq!(meminfo(text, "Mem"), 0);
        assert_eq!(uptime("12345.67 99.0\n"), 12_345);
    }

    #[test]
    fn services_that_are_done_count_as_well() {
        let service = |name: &str, state: &str| ServiceState {
            name: name.into(),
            state: state.into(),
            ..ServiceState::default()
        };
        let state = MachineState {
            services: vec![
                service("found", "done"),
                service("agent", "running"),
                service("etcd", "back-off"),
            ],
            ..MachineState::default()
        };
        let status = status(&state, Path::new("/nowhere"));
        assert_eq!((status.services_running, status.services_total), (2, 3));
        assert!(!status.kernel.is_empty() && status.memory_total > 0);
    }
}
