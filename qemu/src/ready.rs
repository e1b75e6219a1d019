//! Waiting until a cluster works: the master's kubeconfig, then every node Ready.

use crate::{kubeconfig, kubectl::Kubectl, layout::Layout, record::Record, stage::Stages};
use anyhow::{Context, bail};
use node_config::Role;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(250);
/// How much of a console is shown when something did not come.
const CONSOLE_LINES: usize = 25;

/// Waits for all of it until `deadline`.
pub fn wait(
    record: &Record,
    layout: &Layout,
    stages: &mut Stages,
    deadline: Instant,
) -> anyhow::Result<Kubectl> {
    wait_for_kubeconfig(record, layout, deadline)?;
    stages.done("API server ready, kubeconfig received");
    let kubectl = Kubectl::find(layout)?;
    let mut waiting: BTreeSet<&str> = record.names().collect();
    while !waiting.is_empty() {
        let ready = kubectl
            .json(&["get", "nodes"])
            .map(|list| ready_nodes(&list))
            .unwrap_or_default();
        for name in record.names() {
            if ready.contains(name) && waiting.remove(name) {
                let guest =
                    guest_ready_seconds(&fs::read_to_string(layout.node(name).log).unwrap_or_default());
                let guest = guest
                    .map(|seconds| format!(" ({seconds:.1} s after its kernel started)"))
                    .unwrap_or_default();
                stages.done(&format!("{name}  Ready{guest}"));
            }
        }
        if !waiting.is_empty() {
            check(record, layout, deadline, || {
                format!(
                    "not Ready: {}",
                    Vec::from_iter(waiting.iter().copied()).join(", ")
                )
            })?;
        }
    }
    Ok(kubectl)
}

fn wait_for_kubeconfig(record: &Record, layout: &Layout, deadline: Instant) -> anyhow::Result<()> {
    let master = record
        .nodes
        .iter()
        .find(|node| node.role == Role::Master)
        .context("the cluster has no master")?;
    let published = layout.node(&master.name).published;
    loop {
        let text = fs::read_to_string(&published).unwrap_or_default();
        if let Some(config) = kubeconfig::rewrite(&text, record.api_port) {
            let path = layout.kubeconfig();
            return kubeconfig::write(&path, &config).with_context(|| format!("write {}", path.display()));
        }
        check(record, layout, deadline, || {
            format!("{} has not published its kubeconfig", master.name)
        })?;
    }
}

/// One turn of waiting: fails when a machine has ended or the time is over, with what the consoles said.
fn check(
    record: &Record,
    layout: &Layout,
    deadline: Instant,
    waiting_for: impl Fn() -> String,
) -> anyhow::Result<()> {
    for name in record.names() {
        if !record.is_running(name) {
            let said = fs::read_to_string(layout.node(name).qemu_log).unwrap_or_default();
            bail!(
                "the machine {name} has ended: {}\n{}",
                said.trim(),
                consoles(record, layout)
            );
        }
    }
    if Instant::now() >= deadline {
        bail!(
            "the time is over, {}; the machines run on\n{}",
            waiting_for(),
            consoles(record, layout)
        );
    }
    thread::sleep(POLL);
    Ok(())
}

fn consoles(record: &Record, layout: &Layout) -> String {
    let tail = |name: &str| {
        let path = layout.node(name).log;
        let text = fs::read(&path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n  ");
        format!("--- the end of {}\n  {last}", path.display())
    };
    record.names().map(tail).collect::<Vec<_>>().join("\n")
}

/// Names of the nodes of a NodeList whose condition Ready is True.
fn ready_nodes(list: &Value) -> BTreeSet<String> {
    let ready = |node: &&Value| {
        let conditions = node["status"]["conditions"].as_array();
        conditions.is_some_and(|conditions| {
            conditions
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
    };
    let nodes = list["items"].as_array().into_iter().flatten().filter(ready);
    nodes
        .filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}

/// Seconds from kernel start to Ready, as the agent last said on the console.
fn guest_ready_seconds(log: &str) -> Option<f64> {
    const READY: &str = "reason=\"NodeReady\"";
    const SECONDS: &str = "seconds_after_kernel_start=";
    let line = log.lines().rfind(|line| line.contains(READY))?;
    let (_, rest) = line.split_once(SECONDS)?;
    rest.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_nodes_that_are_ready_count() {
        let node = |name: &str, kind: &str, status: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "DiskPressure", "status": "True"}, {"type": kind, "status": status}]}});
        let list = json!({"items": [node("a", "Ready", "True"), node("b", "Ready", "Unknown"), node("c", "MemoryPressure", "True"), json!({"metadata": {"name": "d"}})]});
        assert_eq!(ready_nodes(&list), BTreeSet::from(["a".to_owned()]));
        assert_eq!(ready_nodes(&json!({})), BTreeSet::new());
    }

    #[test]
    fn the_guests_own_time_is_the_last_one_said() {
        let said = |reason: &str, seconds: f64| {
            format!(
                "agent: INFO kubelet::node: node readiness changed node=\"n\" reason=\"{reason}\" seconds_after_kernel_start={seconds}\r\n"
            )
        };
        let log = [
            said("NodeReady", 12.5),
            said("NodeNotReady", 30.0),
            said("NodeReady", 7.25),
            "more".into(),
        ]
        .concat();
        assert_eq!(guest_ready_seconds(&log), Some(7.25));
        assert_eq!(guest_ready_seconds(&said("NodeNotReady", 3.0)), None);
    }
}
