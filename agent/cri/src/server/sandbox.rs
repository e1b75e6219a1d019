//! Pod sandboxes: namespaces, files, network, and the shim.

use super::{Runtime, blocking, convert, unknown};
use crate::namespaces::{self, Plan};
use crate::network::{PodAttachment, PortMapping};
use crate::shim::client as shim;
use crate::shim::protocol::{Reply, Request, StartRequest};
use crate::state::{self, SandboxRecord, new_id, now_nanos};
use cri_api::v1::{self, NamespaceMode};
use nix::mount::{MsFlags, mount};
use serde_json::json;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tonic::Status;

/// Size of a pod's /dev/shm (containerd's default).
const SHARED_MEMORY: &str = "mode=1777,size=67108864";
/// Below this name lies the sandbox's own PID 1 in the pod's cgroup.
const PAUSE_USER: u32 = 65_535;
/// Ten seconds, for a machine that is busy.
const SHUTDOWN_ATTEMPTS: u32 = 500;

impl Runtime {
    pub async fn run_pod_sandbox(
        self: &Arc<Self>,
        request: v1::RunPodSandboxRequest,
    ) -> Result<String, Status> {
        let config = request
            .config
            .ok_or_else(|| Status::invalid_argument("config: required"))?;
        if config.metadata.is_none() {
            return Err(Status::invalid_argument("config.metadata: required"));
        }
        if !request.runtime_handler.is_empty() {
            return Err(unknown(format!(
                "no runtime for {:?} is configured",
                request.runtime_handler
            )));
        }
        if let Some(user_namespace) = user_namespace(&config) {
            return Err(Status::invalid_argument(format!(
                "user namespaces are not supported: {user_namespace:?}"
            )));
        }
        let record = SandboxRecord {
            id: new_id().map_err(unknown)?,
            config,
            runtime_handler: request.runtime_handler,
            created_at: now_nanos(),
            boot_id: self.boot_id.clone(),
            addresses: Vec::new(),
            ready: false,
            network_released: false,
        };
        let id = record.id.clone();
        let _lock = self.memory.lock(&id).await;
        fs::create_dir_all(self.layout.sandbox(&id)).map_err(unknown)?;
        self.save_sandbox(record.clone())?;
        match self.build_sandbox(record).await {
            Ok(()) => {
                self.watch(&id);
                Ok(id)
            }
            Err(error) => {
                if let Err(cleanup) = self.dismantle(&id).await {
                    tracing::error!(sandbox = id, error = %cleanup, "cannot clean up after a failed start");
                } else if let Err(cleanup) = self.erase_sandbox(&id) {
                    tracing::error!(sandbox = id, error = %cleanup, "cannot clean up after a failed start");
                }
                Err(error)
            }
        }
    }

    async fn build_sandbox(self: &Arc<Self>, mut record: SandboxRecord) -> Result<(), Status> {
        let options = convert::namespace_options(&record);
        let plan = self.namespace_plan(&record, &options);
        let namespaces = plan.clone();
        blocking(move || namespaces::create(&namespaces)).await?;
        self.write_files(&record, &options).map_err(unknown)?;
        if let Some(netns) = &plan.network {
            let attachment = attachment(&record, netns)?;
            let addresses = self.network.attach(&attachment).await.map_err(|error| {
                unknown(format!(
                    "failed to setup network for sandbox {:?}: {error}",
                    record.id
                ))
            })?;
            record.addresses = addresses.iter().map(IpAddr::to_string).collect();
        }
        shim::spawn(&self.layout, &record.id).map_err(unknown)?;
        if options.pid() == NamespaceMode::Pod {
            self.start_pause(&record).await?;
        }
        record.ready = true;
        self.save_sandbox(record)
    }

    fn namespace_plan(&self, record: &SandboxRecord, options: &v1::NamespaceOption) -> Plan {
        let own_network = options.network() != NamespaceMode::Node;
        let path = |wanted: bool, kind: &str| wanted.then(|| self.layout.namespace(&record.id, kind));
        let linux = record.config.linux.clone().unwrap_or_default();
        Plan {
            network: path(own_network, "net"),
            ipc: path(options.ipc() != NamespaceMode::Node, "ipc"),
            // A pod on the host's network carries the host's name.
            uts: path(own_network, "uts"),
            hostname: record.config.hostname.clone(),
            sysctls: linux.sysctls.into_iter().collect(),
        }
    }

    fn write_files(&self, record: &SandboxRecord, options: &v1::NamespaceOption) -> io::Result<()> {
        let folder = self.layout.sandbox(&record.id);
        fs::write(folder.join("hostname"), format!("{}\n", self.hostname(record)))?;
        fs::write(
            folder.join("hosts"),
            fs::read_to_string("/etc/hosts").unwrap_or_default(),
        )?;
        let mut resolv_conf = resolv_conf(record.config.dns_config.as_ref());
        if resolv_conf.is_empty() {
            // Nothing asked for is the host's own, as containerd has it.
            resolv_conf = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        }
        fs::write(folder.join("resolv.conf"), resolv_conf)?;
        if options.ipc() != NamespaceMode::Node {
            let target = self.layout.shared_memory(&record.id);
            fs::create_dir_all(&target)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("shm"), &target, Some("tmpfs"), flags, Some(SHARED_MEMORY))?;
        }
        Ok(())
    }

    pub fn hostname(&self, record: &SandboxRecord) -> String {
        if record.config.hostname.is_empty() {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        } else {
            record.config.hostname.clone()
        }
    }

    /// Where a sandbox's cgroups go: below what the kubelet made for the pod.
    pub fn cgroup_of(&self, record: &SandboxRecord, name: &str) -> PathBuf {
        let parent = record
            .config
            .linux
            .as_ref()
            .map(|linux| linux.cgroup_parent.clone())
            .unwrap_or_default();
        let parent = if parent.is_empty() {
            "/ironlet".to_owned()
        } else {
            parent
        };
        crate::spec::mounts::normal(Path::new(&parent)).join(name)
    }

    /// The PID 1 of a pod whose containers share processes.
    async fn start_pause(&self, record: &SandboxRecord) -> Result<(), Status> {
        let folder = self.layout.sandbox(&record.id);
        let rootfs = folder.join("pause");
        fs::create_dir_all(&rootfs).map_err(unknown)?;
        let cgroup = self.cgroup_of(record, &record.id);
        let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "pid"})];
        for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
            let path = self.layout.namespace(&record.id, file);
            if path.exists() {
                namespaces.push(json!({"type": kind, "path": path}));
            }
        }
        let spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": rootfs, "readonly": true},
            "process": {
                "terminal": false, "cwd": "/", "args": ["pause"], "env": ["PATH=/"], "noNewPrivileges": true,
                "user": {"uid": PAUSE_USER, "gid": PAUSE_USER},
                "capabilities": {"bounding": [], "effective": [], "permitted": [], "inheritable": [], "ambient": []},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            ],
            "linux": {"namespaces": namespaces, "cgroupsPath": cgroup, "rootfsPropagation": "private"},
        });
        state::save(&folder.join("config.json"), &spec).map_err(unknown)?;
        let request = StartRequest {
            container_id: record.id.clone(),
            bundle: folder.clone(),
            libcontainer_root: self.layout.libcontainer(),
            log_path: None,
            tty: false,
            stdin: false,
            stdin_once: false,
            uid: PAUSE_USER,
            cgroup: Path::new(crate::host::CGROUP_ROOT).join(cgroup.strip_prefix("/").unwrap_or(&cgroup)),
            own_pid_namespace: true,
            pause: true,
            devices: None,
        };
        match shim::ask(&folder, &Request::Start(request))
            .await
            .map_err(unknown)?
        {
            Reply::Started { process } => {
                let source = PathBuf::from(format!("/proc/{}/ns/pid", process.pid));
                namespaces::bind(&source, &self.layout.namespace(&record.id, "pid")).map_err(unknown)
            }
            other => Err(unknown(format!("the pod's shim answers {other:?}"))),
        }
    }

    pub fn save_sandbox(&self, record: SandboxRecord) -> Result<(), Status> {
        state::save(&self.layout.sandbox_record(&record.id), &record).map_err(unknown)?;
        self.memory.put_sandbox(record);
        Ok(())
    }

    /// Ends every container, gives the network back, lets the shim go. Idempotent.
    pub async fn stop_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let Ok(sandbox) = self.memory.sandbox(id) else {
            return Ok(());
        };
        let _lock = self.memory.lock(&sandbox.id).await;
        for container in self.memory.containers_of(&sandbox.id) {
            self.stop_container(&container.record.id, 0).await?;
        }
        self.dismantle(&sandbox.id).await
    }

    /// What `stop` does once no container runs; also the clean-up of a half-made sandbox.
    async fn dismantle(&self, id: &str) -> Result<(), Status> {
        let mut record = self.memory.sandbox(id)?;
        if record.ready {
            record.ready = false;
            self.save_sandbox(record.clone())?;
        }
        self.end_pause(&record).await;
        if !record.network_released {
            if convert::namespace_options(&record).network() != NamespaceMode::Node {
                let netns = Some(self.layout.namespace(id, "net")).filter(|path| path.exists());
                self.network.detach(id, netns.as_deref()).await.map_err(|error| {
                    unknown(format!("failed to destroy network for sandbox {id:?}: {error}"))
                })?;
            }
            record.network_released = true;
            self.save_sandbox(record)?;
        }
        for path in ["net", "ipc", "uts", "pid"].map(|kind| self.layout.namespace(id, kind)) {
            namespaces::unmount(&path).map_err(unknown)?;
            let _ = fs::remove_file(&path);
        }
        namespaces::unmount(&self.layout.shared_memory(id)).map_err(unknown)?;
        self.end_shim(id).await
    }

    /// Ends the pod's own PID 1, if it has one: also when a crash came before its namespace was bound, and
    /// when the shim that started it is gone.
    pub async fn end_pause(&self, record: &SandboxRecord) {
        if convert::namespace_options(record).pid() != NamespaceMode::Pod {
            return;
        }
        let request = Request::Kill {
            container_id: record.id.clone(),
            signal: nix::libc::SIGKILL,
        };
        if shim::ask(&self.layout.sandbox(&record.id), &request)
            .await
            .is_err()
        {
            super::adopt::end_cgroup(&super::container::cgroup_folder(
                &self.cgroup_of(record, &record.id),
            ))
            .await;
        }
    }

    /// A shim refuses to go while something runs: a process that dies slowly, or a container whose start was
    /// ordered by a server that has died since.
    async fn end_shim(&self, id: &str) -> Result<(), Status> {
        let folder = self.layout.sandbox(id);
        for _ in 0..SHUTDOWN_ATTEMPTS {
            match shim::ask(&folder, &Request::Shutdown).await {
                Err(shim::ShimClientError::Refused { .. }) => {
                    let containers = self
                        .memory
                        .containers_of(id)
                        .into_iter()
                        .map(|container| container.record.id);
                    for container_id in containers.chain([id.to_owned()]) {
                        let signal = nix::libc::SIGKILL;
                        // Most of them do not run: that is no news.
                        let _ = shim::ask(&folder, &Request::Kill { container_id, signal }).await;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                Ok(_) | Err(shim::ShimClientError::Gone) => {
                    self.end_cgroups(id).await;
                    return Ok(());
                }
                Err(error) => return Err(unknown(error)),
            }
        }
        Err(unknown("the pod's shim still has a running container"))
    }

    /// What a shim that was killed, or left while processes died, did not remove.
    async fn end_cgroups(&self, id: &str) {
        let mut cgroups: Vec<PathBuf> = self
            .memory
            .containers_of(id)
            .into_iter()
            .map(|container| container.record.cgroup)
            .collect();
        cgroups.extend(
            self.memory
                .sandbox(id)
                .ok()
                .map(|record| self.cgroup_of(&record, id)),
        );
        for folder in cgroups
            .iter()
            .map(|cgroup| super::container::cgroup_folder(cgroup))
        {
            if folder.exists() {
                super::adopt::end_cgroup(&folder).await;
            }
        }
    }

    pub async fn remove_pod_sandbox(self: &Arc<Self>, id: &str) -> Result<(), Status> {
        let Ok(sandbox) = self.memory.sandbox(id) else {
            return Ok(());
        };
        self.stop_pod_sandbox(&sandbox.id).await?;
        for container in self.memory.containers_of(&sandbox.id) {
            self.remove_container(&container.record.id).await?;
        }
        let _lock = self.memory.lock(&sandbox.id).await;
        self.erase_sandbox(&sandbox.id)
    }

    fn erase_sandbox(&self, id: &str) -> Result<(), Status> {
        // The record first: without it, what is left is removed at the next start.
        state::remove_record(&self.layout.sandbox_record(id)).map_err(unknown)?;
        state::remove_tree(&self.layout.libcontainer().join(id)).map_err(unknown)?;
        state::remove_tree(&self.layout.sandbox(id)).map_err(unknown)?;
        self.memory.forget_sandbox(id);
        Ok(())
    }
}

fn user_namespace(config: &v1::PodSandboxConfig) -> Option<v1::UserNamespace> {
    let options = config
        .linux
        .as_ref()?
        .security_context
        .as_ref()?
        .namespace_options
        .as_ref()?;
    options
        .userns_options
        .clone()
        .filter(|userns| match userns.mode() {
            NamespaceMode::Node => false,
            // The zero value of a field that says nothing else is no wish.
            NamespaceMode::Pod => !userns.uids.is_empty(),
            NamespaceMode::Container | NamespaceMode::Target => true,
        })
}

fn attachment(record: &SandboxRecord, netns: &Path) -> Result<PodAttachment, Status> {
    let metadata = record.config.metadata.clone().unwrap_or_default();
    let port_mappings = record
        .config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let port = |field: &str, value: i32| {
                u16::try_from(value).map_err(|_| {
                    Status::invalid_argument(format!("config.port_mappings.{field}: {value} is not a port"))
                })
            };
            let host_ip = match mapping.host_ip.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    Status::invalid_argument(format!(
                        "config.port_mappings.host_ip: {text:?} is not an IP address"
                    ))
                })?),
            };
            Ok(PortMapping {
                protocol: mapping.protocol().as_str_name(),
                container_port: port("container_port", mapping.container_port)?,
                host_port: port("host_port", mapping.host_port)?,
                host_ip,
            })
        });
    Ok(PodAttachment {
        sandbox_id: record.id.clone(),
        netns: netns.to_path_buf(),
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        port_mappings: port_mappings.collect::<Result<_, Status>>()?,
        annotations: record.config.annotations.clone().into_iter().collect(),
    })
}

/// resolv.conf(5) of a pod.
fn resolv_conf(dns: Option<&v1::DnsConfig>) -> String {
    let mut text = String::new();
    let Some(dns) = dns else { return text };
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_settings_become_a_resolv_conf() {
        let own = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let dns = v1::DnsConfig {
            servers: own(&["10.96.0.10", "::1"]),
            searches: own(&["default.svc.cluster.local", "svc.cluster.local"]),
            options: own(&["ndots:5"]),
        };
        assert_eq!(
            resolv_conf(Some(&dns)),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver ::1\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(Some(&v1::DnsConfig::default())), "");
    }

    #[test]
    fn port_mappings_without_a_host_port_are_not_for_the_network() {
        let mapping = |host_port, host_ip: &str| v1::PortMapping {
            container_port: 80,
            host_port,
            host_ip: host_ip.into(),
            protocol: v1::Protocol::Udp as i32,
        };
        let record = |mappings| SandboxRecord {
            id: "s".into(),
            config: v1::PodSandboxConfig {
                port_mappings: mappings,
                ..Default::default()
            },
            runtime_handler: String::new(),
            created_at: 1,
            boot_id: String::new(),
            addresses: vec![],
            ready: false,
            network_released: false,
        };
        let made = attachment(
            &record(vec![mapping(0, ""), mapping(8080, "10.0.0.1")]),
            Path::new("/n"),
        )
        .unwrap();
        let expected = PortMapping {
            protocol: "UDP",
            container_port: 80,
            host_port: 8080,
            host_ip: "10.0.0.1".parse().ok(),
        };
        assert_eq!(made.port_mappings, [expected]);
        assert!(attachment(&record(vec![mapping(70_000, "")]), Path::new("/n")).is_err());
        assert!(attachment(&record(vec![mapping(80, "nonsense")]), Path::new("/n")).is_err());
    }
}
