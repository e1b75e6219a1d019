//! A node under test: a server process with a folder of its own, and a client of it.

use cri::{PodAttachment, PodNetwork, PodNetworkError};
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::{self, *};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;

pub const IMAGE: &str = "localhost/busybox:test";
const PATIENCE: Duration = Duration::from_secs(30);

/// No interfaces at all: what is asked of the network is written into a file.
struct RecordingNetwork(PathBuf);

impl RecordingNetwork {
    fn note(&self, line: &str) {
        use std::io::Write;
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.0)
            .expect("network file");
        writeln!(file, "{line}").expect("network file");
    }
}

#[async_trait::async_trait]
impl PodNetwork for RecordingNetwork {
    async fn configure(&self, pod_cidrs: &[String]) -> Result<(), PodNetworkError> {
        self.note(&format!("configure {}", pod_cidrs.join(",")));
        Ok(())
    }
    fn readiness(&self) -> Result<(), String> {
        if self.0.exists() {
            Ok(())
        } else {
            Err("no pod CIDR yet".into())
        }
    }
    async fn attach(&self, pod: &PodAttachment) -> Result<Vec<IpAddr>, PodNetworkError> {
        assert!(pod.netns.exists());
        self.note(&format!("attach {}", pod.sandbox_id));
        Ok(vec![IpAddr::from([10, 1, 2, 3])])
    }
    async fn detach(&self, sandbox_id: &str, _: Option<&Path>) -> Result<(), PodNetworkError> {
        self.note(&format!("detach {sandbox_id}"));
        Ok(())
    }
}

/// `serve FOLDER HOST=MIRROR…`: the server process.
pub fn serve(args: &[String]) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".into()))
        .with_writer(std::io::stderr)
        .init();
    let folder = PathBuf::from(&args[0]);
    let config = cri::Config {
        listen: folder.join("cri.sock"),
        root_dir: folder.join("root"),
        image_archives: Some(folder.join("archives")),
        registry_mirrors: args[1..]
            .iter()
            .filter_map(|arg| arg.split_once('='))
            .map(|(host, url)| cri::RegistryMirror {
                host: host.into(),
                url: url.into(),
            })
            .collect(),
        network: Arc::new(RecordingNetwork(folder.join("network"))),
    };
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    match runtime.block_on(cri::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve: {error}");
            ExitCode::FAILURE
        }
    }
}

pub struct Node {
    pub folder: PathBuf,
    /// `HOST=URL`, from the next start on.
    pub mirrors: Vec<String>,
    /// The certificate authorities to trust, from the next start on.
    pub trusted: Option<PathBuf>,
    server: Option<Child>,
    channel: Option<Channel>,
}

impl Node {
    pub fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("archives")).expect("folder");
        crate::image::write_archive(&folder.join("archives/busybox.tar.zst"), IMAGE);
        Self {
            folder: folder.to_path_buf(),
            mirrors: Vec::new(),
            trusted: None,
            server: None,
            channel: None,
        }
    }

    pub async fn start(&mut self) {
        let server = Command::new("/proc/self/exe")
            .arg("serve")
            .arg(&self.folder)
            .args(&self.mirrors)
            .envs(self.trusted.iter().map(|path| ("SSL_CERT_FILE", path)))
            .spawn()
            .expect("server");
        self.server = Some(server);
        let socket = self.folder.join("cri.sock");
        let answered = tokio::time::timeout(PATIENCE, async {
            loop {
                self.channel = Some(cri_api::channel(&socket));
                if self.runtime().version(VersionRequest::default()).await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        answered.await.expect("the server answers");
    }

    /// kill -9
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("a server");
        server.kill().expect("kill");
        server.wait().expect("wait");
    }

    /// Stops the server and starts it with what was changed.
    pub async fn restart(&mut self) {
        self.kill_server();
        self.start().await;
    }

    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        cri_api::runtime_client(self.channel.clone().expect("started"))
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        cri_api::image_client(self.channel.clone().expect("started"))
    }

    pub fn logs_folder(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Of this run alone: cgroups outlive the namespaces of a failed one.
    fn cgroup_parent(&self) -> String {
        format!(
            "/{}",
            self.folder
                .display()
                .to_string()
                .trim_start_matches('/')
                .replace('/', "-")
        )
    }

    /// As a reboot would.
    pub async fn drop_cgroups(&self) {
        let parent = format!("/sys/fs/cgroup{}", self.cgroup_parent());
        self.until("the dead have left their cgroups", async || {
            for entry in std::fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = std::fs::remove_dir(entry.path());
            }
            let _ = std::fs::remove_dir(&parent);
            (!Path::new(&parent).exists()).then_some(())
        })
        .await;
    }

    pub fn sandbox_config(&self, pid: NamespaceMode) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "pod".into(),
                uid: "u1".into(),
                namespace: "ns".into(),
                attempt: 0,
            }),
            hostname: "pod-name".into(),
            log_directory: self.logs_folder().display().to_string(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".into()],
                ..Default::default()
            }),
            labels: [("app".to_owned(), "x".to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: pid as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn sandbox(&self) -> String {
        self.sandbox_with(self.sandbox_config(NamespaceMode::Container))
            .await
    }

    pub async fn sandbox_with(&self, config: PodSandboxConfig) -> String {
        let request = RunPodSandboxRequest {
            config: Some(config),
            ..Default::default()
        };
        self.runtime()
            .run_pod_sandbox(request)
            .await
            .expect("sandbox")
            .into_inner()
            .pod_sandbox_id
    }

    /// A container that runs a shell script.
    pub fn script(&self, name: &str, script: &str) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: IMAGE.into(),
                ..Default::default()
            }),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub async fn create(&self, sandbox: &str, config: ContainerConfig) -> Result<String, Status> {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: None,
        };
        Ok(self
            .runtime()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    pub async fn run(&self, sandbox: &str, config: ContainerConfig) -> String {
        let container_id = self.create(sandbox, config).await.expect("create");
        let request = StartContainerRequest {
            container_id: container_id.clone(),
        };
        self.runtime().start_container(request).await.expect("start");
        container_id
    }

    pub async fn status(&self, id: &str) -> v1::ContainerStatus {
        let request = ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        self.runtime()
            .container_status(request)
            .await
            .expect("status")
            .into_inner()
            .status
            .expect("status")
    }

    pub async fn wait(&self, id: &str) -> v1::ContainerStatus {
        self.until(&format!("{id} ends"), async || {
            let status = self.status(id).await;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// Runs a script to its end: exit code and standard output.
    pub async fn output(&self, sandbox: &str, config: ContainerConfig) -> (i32, String) {
        let name = config.metadata.clone().unwrap().name;
        let id = self.run(sandbox, config).await;
        let status = self.wait(&id).await;
        (status.exit_code, self.lines(&name).join("\n"))
    }

    /// The text of a container's log, without times and tags.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text =
            std::fs::read_to_string(self.logs_folder().join(format!("{name}.log"))).unwrap_or_default();
        text.lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned())
            .collect()
    }

    pub async fn until_logged(&self, name: &str, wanted: &str) {
        self.until(&format!("{name} logs {wanted:?}"), async || {
            self.lines(name)
                .iter()
                .any(|line| line.contains(wanted))
                .then_some(())
        })
        .await;
    }

    pub async fn until<T>(&self, what: &str, probe: impl AsyncFn() -> Option<T>) -> T {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(found) = probe().await {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited
            .await
            .unwrap_or_else(|_| panic!("waited in vain until {what}"))
    }

    pub async fn exec(&self, id: &str, cmd: &[&str], timeout: i64) -> Result<ExecSyncResponse, Status> {
        let cmd = cmd.iter().map(|arg| (*arg).to_owned()).collect();
        Ok(self
            .runtime()
            .exec_sync(ExecSyncRequest {
                container_id: id.into(),
                cmd,
                timeout,
            })
            .await?
            .into_inner())
    }

    /// Removes every sandbox, ends the server, and checks that nothing stays behind.
    pub async fn leave_nothing(&mut self) {
        let list = self
            .runtime()
            .list_pod_sandbox(ListPodSandboxRequest::default())
            .await
            .expect("list")
            .into_inner();
        for sandbox in list.items {
            let stop = StopPodSandboxRequest {
                pod_sandbox_id: sandbox.id.clone(),
            };
            self.runtime().stop_pod_sandbox(stop).await.expect("stop");
            let remove = RemovePodSandboxRequest {
                pod_sandbox_id: sandbox.id,
            };
            self.runtime().remove_pod_sandbox(remove).await.expect("remove");
        }
        let mut server = self.server.take().expect("a server");
        let pid = rustix::process::Pid::from_child(&server);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
        assert!(server.wait().expect("wait").success(), "the server ends well");
        self.until("all processes are gone", async || {
            reap();
            processes().is_empty().then_some(())
        })
        .await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let left: Vec<&str> = mounts
            .lines()
            .filter(|line| line.contains(self.folder.to_str().unwrap()))
            .collect();
        assert!(left.is_empty(), "mounts stay: {left:#?}");
        for folder in ["sandboxes", "containers", "libcontainer", "tmp"] {
            let left: Vec<_> = std::fs::read_dir(self.folder.join("root").join(folder))
                .expect("folder")
                .collect();
            assert!(left.is_empty(), "{folder} keeps {left:?}");
        }
        let cgroup = format!("/sys/fs/cgroup{}", self.cgroup_parent());
        let entries = std::fs::read_dir(&cgroup).into_iter().flatten().flatten();
        let left: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect();
        assert!(left.is_empty(), "cgroups stay: {left:?}");
        remove_cgroups(&cgroup);
    }
}

/// PID 1 of the test's namespace adopts what the server leaves, as init would.
fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
}

/// Every process of this PID namespace but the test itself.
fn processes() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| *pid != std::process::id() as i32)
        .collect()
}

/// The processes that run this program in one of its roles.
pub fn processes_named(role: &str) -> Vec<i32> {
    let mut found = processes();
    found.retain(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
    });
    found
}

pub fn kill(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// What the kubelet would remove with the pod, and the shims' empty cgroup.
fn remove_cgroups(parent: &str) {
    for folder in [parent, "/sys/fs/cgroup/ironlet-shims"] {
        let _ = std::fs::remove_dir(folder);
    }
}

/// So that one failure does not look like many.
pub fn clean_up_after_failure(folder: &Path) {
    for pid in processes() {
        kill(pid);
    }
    while !processes().is_empty() {
        reap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let ours = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| path.starts_with(folder.to_str().unwrap()));
    for path in ours.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["-l", path]).status();
    }
}
