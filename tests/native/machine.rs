//! This machine as a node: what init gives one, and the two processes of its agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{Kubectl, Program, command, output};

pub const SOON: Duration = Duration::from_secs(60);
pub const ADDRESS: &str = "192.168.76.11";
/// A file system of the test's own, so that nothing outlives its namespaces.
const HOME: &str = "/run";
pub const READY: &str = "{.status.conditions[?(@.type==\"Ready\")].status}";

/// Made anew outside, where there is a network; found in the cache of packages inside.
pub fn archive() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    let mut image = command("image");
    image.args(["archive", "--name", "busybox", "--out"]);
    output(image.arg(directory.join("busybox.tar")));
    directory
}

fn run(program: &str, args: &[&str]) {
    output(Command::new(program).args(args));
}

/// What init gives a node: cgroups, a runtime directory, a network.
pub fn prepare_machine() {
    run("mount", &["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"]);
    run("mount", &["-t", "tmpfs", "tmpfs", HOME]);
    run("ip", &["link", "set", "lo", "up"]);
    run(
        "ip",
        &["link", "add", "eth0", "type", "veth", "peer", "name", "wire"],
    );
    run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", "eth0"]);
    run("ip", &["link", "set", "eth0", "up"]);
    run("ip", &["link", "set", "wire", "up"]);
    run("ip", &["route", "add", "default", "via", "192.168.76.1"]);
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding of packets");
}

pub fn home(path: &str) -> PathBuf {
    Path::new(HOME).join(path)
}

/// The URL of the API server that the kubeconfig names.
pub fn server(kubectl: &Kubectl) -> String {
    let url = "jsonpath={.clusters[0].cluster.server}";
    kubectl.run(&["config", "view", "--minify", "-o", url])
}

pub struct Node {
    runtime: Program,
    agent: Program,
}

impl Node {
    /// `extra` are more arguments of the agent.
    pub fn start(server: &str, archives: &Path, extra: &[&str]) -> Self {
        let socket = format!("unix://{HOME}/cri.sock");
        let mut runtime = command("agent");
        runtime
            .args(["cri", "--listen", &socket, "--root-dir"])
            .arg(home("cri"));
        runtime.arg("--image-archives").arg(archives);
        let mut agent = command("agent");
        agent.args([
            "--cri-endpoint",
            &socket,
            "--node-name",
            "node-1",
            "--node-ip",
            ADDRESS,
        ]);
        agent.arg("--kubeconfig").arg(home("agent/kubeconfig"));
        agent.arg("--root-dir").arg(home("agent"));
        agent.arg("--pod-logs-dir").arg(home("logs"));
        agent.args(["--bootstrap-server", server, "--bootstrap-token-file"]);
        agent.arg(home("control-plane/bootstrap-token")).args(extra);
        Self {
            runtime: Program::start(&mut runtime, home("cri.log")),
            agent: Program::start(&mut agent, home("agent.log")),
        }
    }

    pub fn kill(&mut self) {
        self.agent.kill();
        self.runtime.kill();
    }
}
