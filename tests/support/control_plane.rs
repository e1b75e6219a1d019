//! `control-plane all` and etcd as processes on loopback.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use crate::kubectl::Kubectl;
use crate::programs::{Program, command, eventually};

const START: Duration = Duration::from_secs(30);

pub struct ControlPlane {
    pub program: Program,
    pub kubectl: Kubectl,
}

impl ControlPlane {
    /// On a free port, with what `data_dir` holds, ready.
    pub fn start(data_dir: &Path, extra: &[&str]) -> Self {
        let kubeconfig = data_dir.join("admin.kubeconfig");
        let mut all = command("control-plane");
        all.arg("all")
            .arg("--data-dir")
            .arg(data_dir)
            .args(["--secure-port", "0"])
            .args(extra);
        let log = data_dir.with_extension("log");
        let _ = std::fs::remove_file(&log);
        let mut program = Program::start(&mut all, log);
        let kubectl = Kubectl::new(&kubeconfig);
        eventually("the control plane is ready", START, || {
            program.check()?;
            kubectl.try_run(&["get", "--raw", "/readyz"]).map(|_| ())
        });
        Self { program, kubectl }
    }
}

/// One etcd member without TLS on a free loopback port.
pub struct Etcd {
    pub program: Program,
    pub endpoint: String,
}

impl Etcd {
    /// The binary is `$IRONLET_TEST_ETCD`, which tests/run takes from the packages of the image.
    pub fn start(data_dir: &Path) -> Self {
        let binary = std::env::var_os("IRONLET_TEST_ETCD").unwrap_or_else(|| "etcd".into());
        let endpoint = format!("http://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut etcd = std::process::Command::new(binary);
        etcd.arg("--data-dir").arg(data_dir).args([
            "--name",
            "test",
            "--initial-cluster",
            &format!("test={peer}"),
        ]);
        etcd.args([
            "--listen-client-urls",
            &endpoint,
            "--advertise-client-urls",
            &endpoint,
        ]);
        etcd.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        let mut program = Program::start(&mut etcd, data_dir.with_extension("log"));
        eventually("etcd listens", START, || {
            program.check()?;
            let address = endpoint.trim_start_matches("http://");
            std::net::TcpStream::connect(address)
                .map(|_| ())
                .map_err(|e| e.to_string())
        });
        Self { program, endpoint }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}
