//! Measurements of a booted cluster beside the goals. Printed, never judged: machines differ, and shared
//! ones are noisy, so times are also given as ratios to the kernel's own in the same run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Kubectl, Machines, eventually};

const SOON: Duration = Duration::from_secs(120);
const PODS: usize = 10;

fn main() {
    // `cargo test --benches` runs benchmarks, too, but means to test.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let images = std::env::var_os("IRONLET_IMAGES").expect("IRONLET_IMAGES: tests/run builds the images");
    for (role, goal) in [("worker", 50.0), ("master", 80.0)] {
        image_sizes(Path::new(&images), role, goal);
    }
    let machines = Machines::up("budgets", &[]);
    let kubectl = machines.kubectl();
    for (node, goal) in [("master-1", 6.0), ("worker-1", 3.0)] {
        boot_times(&machines, node, goal);
    }
    memory(&kubectl);
    pod_start(&kubectl);
}

fn row(what: &str, value: String, goal: &str) {
    println!("{what:<52} {value:>14}   {goal}");
}

fn image_sizes(images: &Path, role: &str, goal: f64) {
    println!("\n-- {role} image");
    let path = images.join(role).join("manifest.json");
    let manifest = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest");
    let megabytes = |v: &Value| v["size"].as_f64().unwrap_or_default() / 1e6;
    for part in manifest["parts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|p| megabytes(p) > 0.5)
    {
        row(
            &format!("  {} (raw)", part["name"].as_str().unwrap_or("?")),
            format!("{:.1} MB", megabytes(part)),
            "",
        );
    }
    let total: f64 = manifest["files"]
        .as_array()
        .into_iter()
        .flatten()
        .map(megabytes)
        .sum();
    row(
        "all files, as booted",
        format!("{total:.1} MB"),
        &format!("goal ≤ {goal:.0} MB"),
    );
}

/// The number before `unit` on the first line of the console that contains `said`.
fn seconds(console: &str, said: &str, after: &str) -> Option<f64> {
    let line = console.lines().find(|l| l.contains(said))?;
    let number = line.split(after).nth(1)?;
    let end = number
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(number.len());
    number[..end].parse().ok()
}

fn boot_times(machines: &Machines, node: &str, goal: f64) {
    println!("\n-- {node}, seconds from kernel start");
    let console = machines.console(node);
    let kernel = seconds(&console, "ironlet: init", "started ").expect("init's first line");
    let ready = seconds(&console, "reason=\"NodeReady\"", "seconds_after_kernel_start=")
        .expect("the node to be Ready");
    row("PID 1 runs", format!("{kernel:.1} s"), "");
    row("Node Ready", format!("{ready:.1} s"), "");
    row(
        "ratio to the kernel's own time",
        format!("{:.1} ×", ready / kernel),
        &format!("goal ≤ {goal:.0} ×"),
    );
}

/// One privileged pod a node reads /proc.
fn memory(kubectl: &Kubectl) {
    for (node, goal) in [("master-1", 200), ("worker-1", 80)] {
        let name = format!("probe-{node}");
        kubectl.apply(&format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}"}},"spec":{{"nodeName":"{node}","hostPID":true,
                "terminationGracePeriodSeconds":0,"containers":[{{"name":"c","image":"busybox","imagePullPolicy":"IfNotPresent",
                "command":["sleep","100000"],"securityContext":{{"privileged":true}}}}]}}}}"#
        ));
        kubectl.wait_for(&["pod", &name], "{.status.phase}", "Running", SOON);
        let script = "for p in /proc/[0-9]*; do awk '/^Name:/{n=$2} /^VmRSS:/{print n, $2}' $p/status 2>/dev/null; done; \
                      awk '/^MemTotal:/{t=$2} /^MemAvailable:/{a=$2} END{print \"-used\", t-a}' /proc/meminfo";
        println!("\n-- {node}, memory when idle");
        let mut processes: BTreeMap<String, f64> = BTreeMap::new();
        for line in kubectl.run(&["exec", &name, "--", "sh", "-c", script]).lines() {
            if let Some((process, kilobytes)) = line.split_once(' ') {
                *processes.entry(process.to_owned()).or_default() += kilobytes.parse().unwrap_or(0.0);
            }
        }
        let used = processes.remove("-used").unwrap_or_default();
        for (process, kilobytes) in processes.iter().filter(|(_, k)| **k > 2048.0) {
            row(
                &format!("  {process} (resident, all of the name)"),
                format!("{:.0} MiB", kilobytes / 1024.0),
                "",
            );
        }
        row(
            "whole machine, not available any more",
            format!("{:.0} MiB", used / 1024.0),
            &format!("goal ≤ {goal} MiB"),
        );
        kubectl.run(&["delete", "pod", &name, "--wait=false"]);
    }
}

/// From `kubectl create` to Running seen by kubectl, the image present.
fn pod_start(kubectl: &Kubectl) {
    println!("\n-- pod start, image present, {PODS} pods one after another, kubectl's own start included");
    let mut times: Vec<f64> = (0..PODS)
        .map(|i| start_one(kubectl, &format!("start-{i}")))
        .collect();
    times.sort_by(f64::total_cmp);
    row(
        "create → Running, median",
        format!("{:.2} s", times[PODS / 2]),
        "goal (native) p50 ≤ 0.1 s",
    );
    row(
        "create → Running, slowest",
        format!("{:.2} s", times[PODS - 1]),
        "goal (native) p99 ≤ 0.3 s",
    );
}

fn start_one(kubectl: &Kubectl, name: &str) -> f64 {
    let begin = Instant::now();
    kubectl.run(&[
        "run",
        name,
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--",
        "sleep",
        "1000",
    ]);
    eventually("the pod runs", SOON, || {
        let phase = kubectl.try_run(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])?;
        if phase == "Running" { Ok(()) } else { Err(phase) }
    });
    let took = begin.elapsed().as_secs_f64();
    kubectl.run(&[
        "delete",
        "pod",
        name,
        "--grace-period=0",
        "--force",
        "--wait=false",
    ]);
    took
}
