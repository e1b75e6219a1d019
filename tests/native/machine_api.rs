//! A cluster of one real API server, and the API of a machine that is its node as a process of its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use pki::{CertificateAuthority, Credentials, Kubeconfig, LeafRequest, Subject, SubjectAltNames};
use support::{ControlPlane, Program, TempDir, command, eventually};

pub const SOON: Duration = Duration::from_secs(30);
pub const PORT: u16 = 10270;

pub struct World {
    pub dir: TempDir,
    pub plane: ControlPlane,
    pub ca: CertificateAuthority,
    /// A loopback address of this test's own, so that nodes' port is free on it.
    pub address: String,
    pub orders: mpsc::Receiver<String>,
    node_api: Option<Program>,
}

impl World {
    /// The node API is started by [`World::restart`].
    pub fn new(name: &str) -> Self {
        let dir = TempDir::new(name);
        let plane = ControlPlane::start(&dir.join("plane"), &["--store", "embedded"]);
        let pem =
            |file: &str| fs::read_to_string(dir.join("plane/pki").join(file)).expect("the cluster's CA");
        let ca = CertificateAuthority::from_pem(&pem("ca.crt"), &pem("ca.key")).expect("a CA");
        let pid = std::process::id();
        let address = format!("127.{}.{}.{}", 1 + pid % 200, pid / 200 % 250, 1 + name.len());
        plane
            .kubectl
            .apply("apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n");
        let status = format!(
            r#"{{"status":{{"addresses":[{{"type":"InternalIP","address":"{address}"}}],
            "conditions":[{{"type":"Ready","status":"False","message":"no kubelet here"}}]}}}}"#
        );
        plane
            .kubectl
            .run(&["patch", "node", "node-1", "--subresource=status", "-p", &status]);

        let run = dir.join("run");
        fs::create_dir_all(run.join("log")).expect("a directory");
        fs::write(run.join("log/agent"), "first\nsecond\n").expect("a log");
        Self {
            orders: init(&run),
            node_api: None,
            dir,
            plane,
            ca,
            address,
        }
    }

    pub fn restart(&mut self, flags: &[&str]) {
        self.node_api = None;
        self.node_api = Some(self.start(flags));
    }

    fn start(&self, flags: &[&str]) -> Program {
        let node = Subject::new("system:node:node-1", &["system:nodes"]);
        let names = SubjectAltNames {
            dns_names: vec!["node-1".into()],
            ip_addresses: vec![self.address.parse().expect("an address")],
            ..Default::default()
        };
        let serving = self.issue(&LeafRequest::server(node.clone(), names));
        fs::write(
            self.dir.join("serving.pem"),
            format!("{}{}", serving.0, serving.1),
        )
        .expect("a file");
        let kubeconfig = self.kubeconfig("node", &node, &self.ca);
        let mut agent = command("agent");
        agent.args(["node-api", "--node-name", "node-1", "--address", &self.address]);
        agent.arg("--kubeconfig").arg(kubeconfig);
        agent
            .arg("--serving-certificate")
            .arg(self.dir.join("serving.pem"));
        agent.arg("--run-dir").arg(self.dir.join("run"));
        let mut program = Program::start(agent.args(flags), self.dir.join("node-api.log"));
        eventually("the node API serves", SOON, || {
            program.check()?;
            let port = std::net::TcpStream::connect((self.address.as_str(), PORT));
            port.map(|_| ())
                .map_err(|error| format!("{error}: {}", program.output()))
        });
        program
    }

    fn issue(&self, request: &LeafRequest) -> (String, String) {
        let issued = self.ca.issue(request, now()).expect("a certificate");
        (issued.certificate_pem, issued.key_pem)
    }

    /// A kubeconfig for this cluster whose client certificate is signed by `ca`.
    pub fn kubeconfig(&self, name: &str, user: &Subject, ca: &CertificateAuthority) -> PathBuf {
        let text = fs::read_to_string(self.dir.join("plane/admin.kubeconfig")).expect("the administrator's");
        let issued = ca
            .issue(&LeafRequest::client(user.clone()), now())
            .expect("a certificate");
        let kubeconfig = Kubeconfig {
            user: user.common_name.clone(),
            credentials: Credentials::ClientCertificate {
                certificate_pem: issued.certificate_pem,
                key_pem: issued.key_pem,
            },
            ..Kubeconfig::parse(&text).expect("a kubeconfig")
        };
        let path = self.dir.join(&format!("{name}.kubeconfig"));
        fs::write(&path, kubeconfig.render()).expect("a file");
        path
    }

    pub fn admin(&self) -> PathBuf {
        self.dir.join("plane/admin.kubeconfig")
    }
}

pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// What PID 1 of a machine answers on its socket; orders are passed on instead of carried out.
fn init(run: &Path) -> mpsc::Receiver<String> {
    let listener = UnixListener::bind(run.join("init.sock")).expect("a socket");
    let (sender, orders) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut line = String::new();
            let mut reader = BufReader::new(&stream);
            reader.read_line(&mut line).expect("a line");
            let answer = match line.trim() {
                "state" => {
                    "service\tcri\trunning\t71\t65\t0\t\nservice\tagent\tback-off\t\t0\t3\texit status 1\n"
                }
                order => {
                    let _ = sender.send(order.to_owned());
                    "ok\n"
                }
            };
            (&stream).write_all(answer.as_bytes()).expect("an answer");
        }
    });
    orders
}

/// What ironctl prints, or complains of.
pub fn ironctl(kubeconfig: &Path, args: &[&str]) -> Result<String, String> {
    let output = command("ironctl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(args)
        .output()
        .expect("ironctl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    assert_eq!(output.status.code(), Some(1));
    Err(text(&output.stderr))
}
