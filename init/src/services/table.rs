//! Which services this machine runs, and with which arguments: a pure function of configuration and facts.

use super::{Kind, Service};
use node_config::{Cidr, NodeConfig, Role, StoreKind};
use std::{fmt::Display, net::IpAddr, time::Duration};

pub const STATE: &str = "/var/lib/ironlet";
pub const TOKEN_FILE: &str = "/var/lib/ironlet/bootstrap-token";
pub const IMAGE_ARCHIVES: &str = "/usr/share/ironlet/images";
pub const OPENAPI_DESCRIPTIONS: &str = "/usr/share/ironlet/openapi-descriptions.zst";
pub const KUBECONFIG_PORT: &str = "/dev/virtio-ports/io.ironlet.kubeconfig";

/// The service that shows how the machine does, where there is a screen.
pub const NODE_API: &str = "node-api";
/// The first virtual terminal.
const SCREEN: &str = "/dev/tty1";

const CRI_SOCKET: &str = "unix:///run/ironlet/cri.sock";
const POD_CIDR: &str = "10.244.0.0/16";
const SERVICE_CIDR: &str = "10.96.0.0/12";
const CLUSTER_DOMAIN: &str = "cluster.local";
const MIB: u64 = 1 << 20;

/// What became known of the machine since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// /var is where it will stay.
    pub state_ready: bool,
    pub hostname: Option<String>,
    pub node_ip: Option<IpAddr>,
    /// The clock was set, or there is nobody to ask.
    pub time_settled: bool,
    /// The node has its own credentials from an earlier boot.
    pub joined: bool,
    pub image: ImageFacts,
}

/// What the image and the machine offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFacts {
    pub control_plane: bool,
    pub openapi_descriptions: bool,
    /// The port through which a VM's host gets the administrator's kubeconfig.
    pub kubeconfig_port: bool,
    /// A screen that people may look at.
    pub screen: bool,
}

/// Services that can run now, in order, and why others cannot yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub services: Vec<Service>,
    pub waiting: Vec<String>,
}

/// The role said on the command line, else the one the image was built for.
pub fn role(config: &NodeConfig, image: &ImageFacts) -> Role {
    config.role.unwrap_or(if image.control_plane {
        Role::Master
    } else {
        Role::Worker
    })
}

pub fn plan(config: &NodeConfig, facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    if !facts.state_ready {
        plan.waiting.push("the state disk".to_owned());
        return plan;
    }
    plan.services.push(cri(config));
    if facts.hostname.is_none() {
        plan.waiting
            .push("a host name (ironlet.hostname, or a network interface)".to_owned());
    }
    if facts.node_ip.is_none() {
        plan.waiting.push(match config.node_ip {
            Some(wanted) => format!("an interface with the IP address {wanted} (ironlet.node-ip)"),
            None => "an IP address".to_owned(),
        });
    }
    if !facts.time_settled {
        plan.waiting.push("the time".to_owned());
    }
    if let Some(name) = &facts.hostname {
        plan.services.push(node_api(config, &facts.image, name));
    }
    let (Some(name), Some(ip)) = (&facts.hostname, facts.node_ip) else {
        return plan;
    };
    if !plan.waiting.is_empty() {
        return plan;
    }
    match role(config, &facts.image) {
        Role::Master if !facts.image.control_plane => {
            plan.waiting.push("an image with a control plane: ironlet.role=master on a worker's image".to_owned());
        }
        Role::Master if config.server.is_some() => plan.waiting.push(
            "a version that can: a master with ironlet.server (joining other masters) is not supported by this one"
                .to_owned(),
        ),
        Role::Master => {
            plan.services.extend(control_plane(config, facts, name, ip));
            plan.services.push(agent(config, name, ip, Some("https://127.0.0.1:6443"), &["cri", "control-plane"]));
        }
        Role::Worker if config.server.is_none() && !facts.joined => {
            plan.waiting.push("a cluster to join: ironlet.server is not given".to_owned());
        }
        Role::Worker => {
            let server = config.server.as_ref().map(|server| format!("https://{server}"));
            plan.services.push(agent(config, name, ip, server.as_deref(), &["cri"]));
        }
    }
    plan
}

/// Arguments as they are written: words, then values.
struct Args(Vec<String>);

impl Args {
    fn new(words: &[&str]) -> Self {
        Self(words.iter().map(|&word| word.to_owned()).collect())
    }

    fn flag(mut self, name: &str, value: impl Display) -> Self {
        self.0.push(format!("--{name}"));
        self.0.push(value.to_string());
        self
    }

    fn each<T: Display>(mut self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        for value in values {
            self = self.flag(name, value);
        }
        self
    }
}

fn daemon(
    name: &str,
    program: &str,
    args: Args,
    after: &[&str],
    memory_min: u64,
    oom_score_adj: i32,
) -> Service {
    Service {
        name: name.to_owned(),
        program: program.to_owned(),
        args: args.0,
        kind: Kind::Daemon,
        after: after.iter().map(|&name| name.to_owned()).collect(),
        stop_deadline: Duration::from_secs(10),
        memory_min,
        oom_score_adj,
    }
}

fn cri(config: &NodeConfig) -> Service {
    let args = Args::new(&["cri"])
        .flag("listen", CRI_SOCKET)
        .flag("root-dir", format!("{STATE}/cri"))
        .flag("image-archives", IMAGE_ARCHIVES)
        .each("registry-mirror", &config.registry_mirrors);
    daemon("cri", "/usr/bin/agent", args, &[], 16 * MIB, -999)
}

fn agent(config: &NodeConfig, name: &str, ip: IpAddr, server: Option<&str>, after: &[&str]) -> Service {
    let labels = config
        .node_labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let args = Args::new(&["--host-firewall"])
        .flag("kubeconfig", format!("{STATE}/agent/kubeconfig"))
        .flag("root-dir", format!("{STATE}/agent"))
        .flag("cri-endpoint", CRI_SOCKET)
        .flag("node-name", name)
        .flag("node-ip", ip)
        .each("bootstrap-server", server)
        .each("bootstrap-token-file", server.map(|_| TOKEN_FILE))
        .each("bootstrap-ca-hash", &config.ca_hash)
        .each("node-labels", comma_separated(labels))
        .each("node-taints", comma_separated(&config.node_taints))
        .flag("cluster-dns", cluster_dns(&config.service_cidr))
        .flag(
            "cluster-domain",
            config.cluster_domain.as_deref().unwrap_or(CLUSTER_DOMAIN),
        )
        .flag("cluster-cidr", cidrs(&config.pod_cidr, POD_CIDR));
    daemon("agent", "/usr/bin/agent", args, after, 32 * MIB, -999)
}

/// Runs whatever becomes of the node: who looks after a machine whose kubelet fails needs it most.
fn node_api(config: &NodeConfig, image: &ImageFacts, name: &str) -> Service {
    let mut args = Args::new(&[NODE_API])
        .flag("node-name", name)
        .flag("kubeconfig", format!("{STATE}/agent/kubeconfig"))
        .flag(
            "serving-certificate",
            format!("{STATE}/agent/pki/kubelet-server-current.pem"),
        )
        .each("slot", &config.slot)
        .each("upgrade-key", &config.upgrade_key);
    if role(config, image) == Role::Master {
        args.0.push("--master".to_owned());
    }
    let args = args.each("screen", image.screen.then_some(SCREEN));
    daemon(NODE_API, "/usr/bin/agent", args, &[], 8 * MIB, -998)
}

fn control_plane(config: &NodeConfig, facts: &Facts, name: &str, ip: IpAddr) -> Vec<Service> {
    let data = format!("{STATE}/control-plane");
    let service_cidr = cidrs(&config.service_cidr, SERVICE_CIDR);
    let domain = config.cluster_domain.as_deref().unwrap_or(CLUSTER_DOMAIN);
    let found = Args::new(&["found"])
        .flag("data-dir", &data)
        .flag("advertise-address", ip)
        .flag("service-cidr", &service_cidr)
        .flag("cluster-domain", domain)
        .flag("apiserver-cert-extra-sans", name)
        .flag("bootstrap-token-file", TOKEN_FILE);
    let mut services = vec![Service {
        kind: Kind::Oneshot,
        ..daemon("found", "/usr/bin/control-plane", found, &[], 0, -997)
    }];
    let store = config.store.unwrap_or(StoreKind::Etcd);
    let mut after = vec!["found"];
    if store == StoreKind::Etcd {
        services.push(etcd(name, &data));
        after = vec!["etcd"];
    }
    let mut all = Args::new(&["all"])
        .flag("data-dir", &data)
        .flag("bind-address", "0.0.0.0")
        .flag("advertise-address", ip)
        .flag("store", store);
    if store == StoreKind::Etcd {
        all = all.flag("etcd-servers", "https://127.0.0.1:2379");
    }
    let all = all
        .flag("cluster-cidr", cidrs(&config.pod_cidr, POD_CIDR))
        .flag("service-cluster-ip-range", &service_cidr)
        .flag("cluster-domain", domain)
        .flag("apiserver-cert-extra-sans", name)
        .flag("addons", "dns,metrics-server")
        .each(
            "publish-kubeconfig",
            facts.image.kubeconfig_port.then_some(KUBECONFIG_PORT),
        )
        .each(
            "openapi-descriptions",
            facts.image.openapi_descriptions.then_some(OPENAPI_DESCRIPTIONS),
        );
    services.push(daemon(
        "control-plane",
        "/usr/bin/control-plane",
        all,
        &after,
        64 * MIB,
        -997,
    ));
    services
}

/// A single member on the loopback interface. Its certificates are the founder's, in kubeadm's layout.
fn etcd(name: &str, data: &str) -> Service {
    let pki = format!("{data}/pki/etcd");
    let client = "https://127.0.0.1:2379";
    let peer = "https://127.0.0.1:2380";
    let args = Args::new(&[])
        .flag("name", name)
        .flag("data-dir", format!("{STATE}/etcd"))
        .flag("listen-client-urls", client)
        .flag("advertise-client-urls", client)
        .flag("listen-peer-urls", peer)
        .flag("initial-advertise-peer-urls", peer)
        .flag("initial-cluster", format!("{name}={peer}"))
        .flag("cert-file", format!("{pki}/server.crt"))
        .flag("key-file", format!("{pki}/server.key"))
        .flag("trusted-ca-file", format!("{pki}/ca.crt"))
        .flag("peer-cert-file", format!("{pki}/peer.crt"))
        .flag("peer-key-file", format!("{pki}/peer.key"))
        .flag("peer-trusted-ca-file", format!("{pki}/ca.crt"))
        // Fewer entries kept in memory than the default 100,000.
        .flag("snapshot-count", 10_000)
        // Its warnings are about slow requests, hundreds of them on a slow machine; what fails is an error.
        .flag("log-level", "error");
    let mut service = daemon("etcd", "/usr/bin/etcd", args, &["found"], 48 * MIB, -997);
    service.args.extend([
        "--client-cert-auth".to_owned(),
        "--peer-client-cert-auth".to_owned(),
    ]);
    service
}

/// The name server's place is the tenth address of the first Service network: the control plane counts alike.
fn cluster_dns(service_cidrs: &[Cidr]) -> IpAddr {
    match service_cidrs.first().map(|cidr| cidr.address) {
        None => IpAddr::from([10, 96, 0, 10]),
        Some(IpAddr::V4(network)) => IpAddr::from((network.to_bits() + 10).to_be_bytes()),
        Some(IpAddr::V6(network)) => IpAddr::from((network.to_bits() + 10).to_be_bytes()),
    }
}

fn cidrs(given: &[Cidr], default: &str) -> String {
    comma_separated(given).unwrap_or_else(|| default.to_owned())
}

fn comma_separated<T: Display>(values: impl IntoIterator<Item = T>) -> Option<String> {
    let values: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_name_server_is_in_the_service_network() {
        for (cidr, want) in [
            ("10.96.0.0/12", "10.96.0.10"),
            ("172.20.7.0/24", "172.20.7.10"),
            ("fd00:96::/112", "fd00:96::a"),
        ] {
            assert_eq!(super::cluster_dns(&[cidr.parse().unwrap()]).to_string(), want);
        }
        assert_eq!(super::cluster_dns(&[]).to_string(), "10.96.0.10");
    }

    use super::*;

    fn config(cmdline: &str) -> NodeConfig {
        let (config, errors) = node_config::parse(cmdline);
        assert_eq!(errors, []);
        config
    }

    fn ready(control_plane: bool) -> Facts {
        Facts {
            state_ready: true,
            hostname: Some("node-1".to_owned()),
            node_ip: Some("192.168.76.11".parse().unwrap()),
            time_settled: true,
            joined: false,
            image: ImageFacts {
                control_plane,
                openapi_descriptions: true,
                kubeconfig_port: true,
                screen: false,
            },
        }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.services
            .iter()
            .map(|service| service.name.as_str())
            .collect()
    }

    fn line(plan: &Plan, name: &str) -> String {
        let service = plan.services.iter().find(|service| service.name == name).unwrap();
        format!("{} {}", service.program, service.args.join(" "))
    }

    #[test]
    fn a_founding_master_runs_everything_in_order() {
        let plan = plan(
            &config("ironlet.registry-mirror=docker.io=http://10.0.2.2:5000"),
            &ready(true),
        );
        assert_eq!(
            names(&plan),
            ["cri", "node-api", "found", "etcd", "control-plane", "agent"]
        );
        assert_eq!(plan.waiting, [""; 0]);
        assert_eq!(
            line(&plan, "cri"),
            "/usr/bin/agent cri --listen unix:///run/ironlet/cri.sock --root-dir /var/lib/ironlet/cri \
             --image-archives /usr/share/ironlet/images --registry-mirror docker.io=http://10.0.2.2:5000"
        );
        assert_eq!(
            line(&plan, "found"),
            "/usr/bin/control-plane found --data-dir /var/lib/ironlet/control-plane --advertise-address 192.168.76.11 \
             --service-cidr 10.96.0.0/12 --cluster-domain cluster.local --apiserver-cert-extra-sans node-1 \
             --bootstrap-token-file /var/lib/ironlet/bootstrap-token"
        );
        assert_eq!(
            line(&plan, "control-plane"),
            "/usr/bin/control-plane all --data-dir /var/lib/ironlet/control-plane --bind-address 0.0.0.0 \
             --advertise-address 192.168.76.11 --store etcd --etcd-servers https://127.0.0.1:2379 \
             --cluster-cidr 10.244.0.0/16 --service-cluster-ip-range 10.96.0.0/12 --cluster-domain cluster.local \
             --apiserver-cert-extra-sans node-1 --addons dns,metrics-server \
             --publish-kubeconfig /dev/virtio-ports/io.ironlet.kubeconfig \
             --openapi-descriptions /usr/share/ironlet/openapi-descriptions.zst"
        );
        assert!(line(&plan, "agent").contains("--bootstrap-server https://127.0.0.1:6443"));
        assert!(line(&plan, "etcd").ends_with("--client-cert-auth --peer-client-cert-auth"));
    }

    #[test]
    fn the_embedded_store_needs_no_etcd() {
        let plan = plan(
            &config("ironlet.store=embedded ironlet.pod-cidr=10.1.0.0/16"),
            &ready(true),
        );
        assert_eq!(
            names(&plan),
            ["cri", "node-api", "found", "control-plane", "agent"]
        );
        assert!(line(&plan, "control-plane").contains("--store embedded --cluster-cidr 10.1.0.0/16"));
        assert_eq!(plan.services[3].after, ["found"]);
    }

    #[test]
    fn a_worker_joins_its_server() {
        let cmdline = "ironlet.server=192.168.76.11 ironlet.token=abcdef.0123456789abcdef \
                       ironlet.node-labels=a=b,c=d ironlet.node-taints=x=y:NoSchedule";
        let plan = plan(&config(cmdline), &ready(false));
        assert_eq!(names(&plan), ["cri", "node-api", "agent"]);
        let line = line(&plan, "agent");
        assert!(
            line.contains("--bootstrap-server https://192.168.76.11:6443"),
            "{line}"
        );
        assert!(
            line.contains("--node-labels a=b,c=d --node-taints x=y:NoSchedule"),
            "{line}"
        );
        assert!(
            !format!("{plan:?}").contains("0123456789abcdef"),
            "secrets never stand in arguments"
        );
    }

    #[test]
    fn what_is_missing_is_named_and_the_rest_runs() {
        let server = config("ironlet.server=m");
        let node_ip = config("ironlet.server=m ironlet.node-ip=10.9.9.9");
        let cases: [(&str, NodeConfig, Facts); 8] = [
            (
                "10.9.9.9 (ironlet.node-ip)",
                node_ip,
                Facts {
                    node_ip: None,
                    ..ready(false)
                },
            ),
            (
                "state disk",
                server.clone(),
                Facts {
                    state_ready: false,
                    ..ready(false)
                },
            ),
            (
                "host name",
                server.clone(),
                Facts {
                    hostname: None,
                    ..ready(false)
                },
            ),
            (
                "IP address",
                server.clone(),
                Facts {
                    node_ip: None,
                    ..ready(false)
                },
            ),
            (
                "the time",
                server.clone(),
                Facts {
                    time_settled: false,
                    ..ready(false)
                },
            ),
            ("ironlet.server is not given", config(""), ready(false)),
            ("a worker's image", config("ironlet.role=master"), ready(false)),
            ("not supported", server, ready(true)),
        ];
        for (reason, config, facts) in cases {
            let plan = plan(&config, &facts);
            assert!(
                plan.waiting.iter().any(|waiting| waiting.contains(reason)),
                "{reason}: {:?}",
                plan.waiting
            );
            let expected: &[&str] = match (facts.state_ready, &facts.hostname) {
                (false, _) => &[],
                (true, None) => &["cri"],
                (true, Some(_)) => &["cri", "node-api"],
            };
            assert_eq!(names(&plan), expected, "{reason}");
        }
    }

    #[test]
    fn a_node_that_has_joined_needs_no_server() {
        let plan = plan(
            &config(""),
            &Facts {
                joined: true,
                ..ready(false)
            },
        );
        assert_eq!(names(&plan), ["cri", "node-api", "agent"]);
        assert!(!line(&plan, "agent").contains("bootstrap"));
    }

    #[test]
    fn a_screen_gets_a_page() {
        let server = config("ironlet.server=10.0.0.1");
        let mut facts = ready(false);
        assert!(!line(&plan(&server, &facts), NODE_API).contains("--screen"));
        facts.image.screen = true;
        assert!(line(&plan(&server, &facts), NODE_API).contains("--screen /dev/tty1"));
    }

    #[test]
    fn a_master_image_may_boot_as_a_worker() {
        let plan = plan(
            &config("ironlet.role=worker ironlet.server=10.0.0.1:7443"),
            &ready(true),
        );
        assert_eq!(names(&plan), ["cri", "node-api", "agent"]);
    }
}
