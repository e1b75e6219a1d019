//! A user with ironctl, a node's API as its own process, and a real API server that says who may what.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use pki::{CertificateAuthority, Credentials, Kubeconfig, LeafRequest, Subject, SubjectAltNames};
use serde_json::Value;
use support::{ControlPlane, Program, TempDir, command, eventually};

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 10270;

/// A cluster of one API server and a machine that is a node of it.
struct World {
    dir: TempDir,
    plane: ControlPlane,
    ca: CertificateAuthority,
    /// A loopback address of this test's own, so that nodes' port is free on it.
    address: String,
    orders: mpsc::Receiver<String>,
    node_api: Option<Program>,
}

impl World {
    fn new(name: &str, flags: &[&str]) -> Self {
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
        let mut world = Self {
            orders: init(&run),
            node_api: None,
            dir,
            plane,
            ca,
            address,
        };
        world.node_api = Some(world.start(flags));
        world
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
    fn kubeconfig(&self, name: &str, user: &Subject, ca: &CertificateAuthority) -> PathBuf {
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

    fn user(&self, name: &str) -> PathBuf {
        self.kubeconfig(name, &Subject::new(name, &["staff"]), &self.ca)
    }

    fn admin(&self) -> PathBuf {
        self.dir.join("plane/admin.kubeconfig")
    }
}

fn now() -> jiff::Timestamp {
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
fn ironctl(kubeconfig: &Path, args: &[&str]) -> Result<String, String> {
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

#[test]
fn the_clusters_rbac_says_who_may_do_what_with_a_machine() {
    let world = World::new("node-api", &["--slot", "A"]);
    let admin = world.admin();
    let on_node =
        |kubeconfig: &Path, args: &[&str]| ironctl(kubeconfig, &[&["--node", "node-1"], args].concat());

    let services = on_node(&admin, &["services"]).unwrap();
    assert!(services.contains("cri     running    71    1m5s"), "{services}");
    assert!(services.contains("agent   back-off"), "{services}");
    let status = on_node(&admin, &["status"]).unwrap();
    assert!(status.contains("Ready:      False (no kubelet here)"), "{status}");
    assert!(status.contains("Slot:       A"), "{status}");
    let version = on_node(&admin, &["version", "-o", "json"]).unwrap();
    let version: Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["node"], "node-1");
    assert_eq!(
        on_node(&admin, &["logs", "agent", "--tail", "1"]).unwrap(),
        "second\n"
    );
    let unknown = on_node(&admin, &["logs", "kubelet"]).unwrap_err();
    assert!(
        unknown.contains("NotFound") && unknown.contains("those that have: agent"),
        "{unknown}"
    );
    let links = on_node(&admin, &["links"]).unwrap();
    assert!(links.contains("127.0.0.1/8"), "{links}");
    assert!(
        on_node(&admin, &["top", "--limit", "3"])
            .unwrap()
            .contains("COMMAND")
    );
    assert!(on_node(&admin, &["disks"]).unwrap().starts_with("DEVICE"));

    let alice = world.user("alice");
    let by_address = |kubeconfig: &Path, args: &[&str]| {
        let endpoint = ["--node", "node-1", "--endpoint", &world.address];
        ironctl(kubeconfig, &[&endpoint, args].concat())
    };
    let refused = by_address(&alice, &["version"]).unwrap_err();
    assert!(
        refused.contains("PermissionDenied: nodes \"node-1\" is forbidden: User \"alice\" cannot get resource \"nodes/ironlet\""),
        "{refused}"
    );
    let bob = world.user("bob");
    let kubectl = &world.plane.kubectl;
    kubectl.run(&[
        "create",
        "clusterrole",
        "look",
        "--verb=get",
        "--resource=nodes/ironlet",
    ]);
    kubectl.run(&[
        "create",
        "clusterrolebinding",
        "look",
        "--clusterrole=look",
        "--user=bob",
    ]);
    assert!(by_address(&bob, &["version"]).unwrap().contains("node-1"));
    let refused = by_address(&bob, &["reboot"]).unwrap_err();
    assert!(
        refused.contains("User \"bob\" cannot update resource \"nodes/ironlet\""),
        "{refused}"
    );
    assert!(world.orders.try_recv().is_err(), "init was asked for nothing");
    assert_eq!(on_node(&admin, &["reboot"]).unwrap(), "the machine restarts\n");
    assert_eq!(world.orders.recv_timeout(SOON).unwrap(), "reboot");
    on_node(&admin, &["shutdown"]).unwrap();
    assert_eq!(world.orders.recv_timeout(SOON).unwrap(), "power-off");

    let missing = on_node(&alice, &["version"]).unwrap_err();
    assert!(
        missing.contains("node-1") && missing.contains("cannot get resource \"nodes\""),
        "{missing}"
    );
    let missing = ironctl(&admin, &["--node", "node-9", "version"]).unwrap_err();
    assert!(missing.contains("nodes \"node-9\" not found"), "{missing}");
}

#[test]
fn a_masters_machine_answers_its_administrators_without_an_api_server() {
    let mut world = World::new("node-api-alone", &[]);
    let (admin, alice) = (world.admin(), world.user("alice"));
    let masters = Subject::new("root", &["system:masters"]);
    let root = world.kubeconfig("root", &masters, &world.ca);
    ironctl(&admin, &["--node", "node-1", "version"]).unwrap();
    world.plane.program.kill();
    let ask = |kubeconfig: &Path, args: &[&str]| {
        let endpoint = ["--node", "node-1", "--endpoint", &world.address];
        ironctl(kubeconfig, &[&endpoint, args].concat())
    };
    let status = ask(&root, &["status"]).unwrap();
    assert!(status.contains("Ready:      not known: "), "{status}");
    ask(&root, &["reboot"]).unwrap();
    assert_eq!(world.orders.recv_timeout(SOON).unwrap(), "reboot");
    ask(&admin, &["services"]).expect("who was let in before stays so");
    let refused = ask(&admin, &["reboot"]).unwrap_err();
    assert!(
        refused.contains("\"kubernetes-admin\" may update nodes/ironlet"),
        "{refused}"
    );
    let refused = ask(&alice, &["version"]).unwrap_err();
    assert!(
        refused.contains("the API server's to say, and it cannot be asked"),
        "{refused}"
    );

    let stranger = CertificateAuthority::generate("kubernetes", now()).unwrap();
    let mallory = world.kubeconfig("mallory", &masters, &stranger);
    let refused = ask(&mallory, &["version"]).unwrap_err();
    assert!(
        refused.contains("the node refuses the kubeconfig's client certificate"),
        "{refused}"
    );
    let mut other = Kubeconfig::parse(&fs::read_to_string(&admin).unwrap()).unwrap();
    other.ca_pem = stranger.certificate_pem().to_owned();
    let path = world.dir.join("other.kubeconfig");
    fs::write(&path, other.render()).unwrap();
    let refused = ask(&path, &["version"]).unwrap_err();
    assert!(
        refused.contains("not signed by the kubeconfig's certificate authority"),
        "{refused}"
    );
    let refused = ironctl(&admin, &["version"]).unwrap_err();
    assert!(refused.contains("--node names it"), "{refused}");
}

#[test]
fn what_a_service_says_is_followed() {
    let world = World::new("node-api-follow", &[]);
    let mut ironctl = command("ironctl");
    ironctl.arg("--kubeconfig").arg(world.admin());
    ironctl.args(["--node", "node-1", "logs", "--follow", "agent"]);
    let mut follower = Program::start(&mut ironctl, world.dir.join("follower.log"));
    let mut shows = |text: &str| {
        eventually(&format!("the follower shows {text:?}"), SOON, || {
            follower.check()?;
            let output = follower.output();
            if output == text { Ok(()) } else { Err(output) }
        });
    };
    shows("first\nsecond\n");
    let log = world.dir.join("run/log/agent");
    let mut file = fs::File::options().append(true).open(&log).unwrap();
    file.write_all(b"third\n").unwrap();
    shows("first\nsecond\nthird\n");
    fs::rename(&log, world.dir.join("run/log/agent.1")).unwrap();
    fs::write(&log, "fourth\n").unwrap();
    shows("first\nsecond\nthird\nfourth\n");
}
