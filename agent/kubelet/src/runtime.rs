//! The kubelet's view of CRI: calls with upstream's timeouts, and pods read back as [`RuntimePod`]s.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use cri_api::v1::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use jiff::Timestamp;
use thiserror::Error;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::runtime_pod::{ContainerState, ObservedContainer, ObservedSandbox, RuntimePod};

/// Labels that tie CRI objects to their pod; upstream's, so that crictl and log collectors understand them.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotations that carry what the kubelet needs after a restart.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
pub const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
pub const MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
pub const MESSAGE_FILE: &str = "io.ironlet.container.terminationMessageFile";

const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Error)]
pub enum RuntimeError {
    #[error("rpc error: code = {code:?} desc = {message}", code = .0.code(), message = .0.message())]
    Rpc(#[source] Box<Status>),
    #[error("CRI answered {0} without its {1}")]
    Incomplete(&'static str, &'static str),
    #[error("CRI endpoint {0:?} is not unix:///path")]
    Endpoint(String),
}

impl From<Status> for RuntimeError {
    fn from(status: Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

impl RuntimeError {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Rpc(status) if status.code() == Code::NotFound)
    }

    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Rpc(status) if status.code() == Code::Unimplemented)
    }

    /// The runtime's own words, for events.
    pub fn message(&self) -> String {
        self.to_string()
    }
}

pub type Result<T> = std::result::Result<T, RuntimeError>;

/// Which pod a CRI object belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodIdentity {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

#[derive(Clone)]
pub struct Runtime {
    channel: Channel,
}

fn timed<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

/// Absent objects are what stopping and removing want.
fn absent_is_fine<T: Default>(result: std::result::Result<tonic::Response<T>, Status>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(status.into()),
    }
}

impl Runtime {
    pub fn connect(endpoint: &str) -> Result<Self> {
        let socket =
            cri_api::socket_path(endpoint).ok_or_else(|| RuntimeError::Endpoint(endpoint.to_owned()))?;
        Ok(Self {
            channel: cri_api::channel(Path::new(&socket)),
        })
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(cri_api::MAX_MESSAGE_SIZE)
            .max_encoding_message_size(cri_api::MAX_MESSAGE_SIZE)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(cri_api::MAX_MESSAGE_SIZE)
    }

    pub async fn version(&self) -> Result<v1::VersionResponse> {
        Ok(self
            .runtime()
            .version(timed(v1::VersionRequest::default()))
            .await?
            .into_inner())
    }

    pub async fn status(&self) -> Result<v1::StatusResponse> {
        Ok(self
            .runtime()
            .status(timed(v1::StatusRequest::default()))
            .await?
            .into_inner())
    }

    /// Whether pods can be given a network; the error is upstream's message of `NetworkReady`.
    pub async fn network_ready(&self) -> std::result::Result<(), String> {
        let answer = self
            .status()
            .await
            .map_err(|error| format!("container runtime is down: {error}"))?;
        unmet(&answer, "NetworkReady").map_or(Ok(()), Err)
    }

    pub async fn set_pod_cidr(&self, cidr: &str) -> Result<()> {
        let network_config = Some(v1::NetworkConfig {
            pod_cidr: cidr.to_owned(),
        });
        let request = v1::UpdateRuntimeConfigRequest {
            runtime_config: Some(v1::RuntimeConfig { network_config }),
        };
        self.runtime().update_runtime_config(timed(request)).await?;
        Ok(())
    }

    pub async fn run_sandbox(&self, config: v1::PodSandboxConfig, handler: String) -> Result<String> {
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: handler,
        };
        Ok(self
            .runtime()
            .run_pod_sandbox(timed(request))
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    pub async fn stop_sandbox(&self, id: &str) -> Result<()> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        absent_is_fine(self.runtime().stop_pod_sandbox(timed(request)).await)
    }

    pub async fn remove_sandbox(&self, id: &str) -> Result<()> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        absent_is_fine(self.runtime().remove_pod_sandbox(timed(request)).await)
    }

    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        sandbox: v1::PodSandboxConfig,
    ) -> Result<String> {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox),
        };
        Ok(self
            .runtime()
            .create_container(timed(request))
            .await?
            .into_inner()
            .container_id)
    }

    pub async fn start_container(&self, id: &str) -> Result<()> {
        self.runtime()
            .start_container(timed(v1::StartContainerRequest {
                container_id: id.to_owned(),
            }))
            .await?;
        Ok(())
    }

    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let mut request = tonic::Request::new(v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        });
        request.set_timeout(TIMEOUT + grace);
        absent_is_fine(self.runtime().stop_container(request).await)
    }

    pub async fn remove_container(&self, id: &str) -> Result<()> {
        let request = v1::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        absent_is_fine(self.runtime().remove_container(timed(request)).await)
    }

    pub async fn reopen_log(&self, id: &str) -> Result<()> {
        let request = v1::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        self.runtime().reopen_container_log(timed(request)).await?;
        Ok(())
    }

    pub async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        timeout: Duration,
    ) -> Result<v1::ExecSyncResponse> {
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        let message = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd,
            timeout: seconds,
        };
        let mut request = tonic::Request::new(message);
        if !timeout.is_zero() {
            request.set_timeout(timeout + Duration::from_secs(10));
        }
        Ok(self.runtime().exec_sync(request).await?.into_inner())
    }

    pub async fn exec_url(&self, request: v1::ExecRequest) -> Result<String> {
        Ok(self.runtime().exec(timed(request)).await?.into_inner().url)
    }

    pub async fn attach_url(&self, request: v1::AttachRequest) -> Result<String> {
        Ok(self.runtime().attach(timed(request)).await?.into_inner().url)
    }

    pub async fn port_forward_url(&self, request: v1::PortForwardRequest) -> Result<String> {
        Ok(self
            .runtime()
            .port_forward(timed(request))
            .await?
            .into_inner()
            .url)
    }

    pub async fn list_sandboxes(&self) -> Result<Vec<v1::PodSandbox>> {
        Ok(self
            .runtime()
            .list_pod_sandbox(timed(v1::ListPodSandboxRequest::default()))
            .await?
            .into_inner()
            .items)
    }

    pub async fn list_containers(&self) -> Result<Vec<v1::Container>> {
        Ok(self
            .runtime()
            .list_containers(timed(v1::ListContainersRequest::default()))
            .await?
            .into_inner()
            .containers)
    }

    pub async fn container_stats(&self) -> Result<Vec<v1::ContainerStats>> {
        let request = v1::ListContainerStatsRequest::default();
        Ok(self
            .runtime()
            .list_container_stats(timed(request))
            .await?
            .into_inner()
            .stats)
    }

    pub async fn checkpoint(&self, id: &str, location: &str, timeout: i64) -> Result<()> {
        let request = v1::CheckpointContainerRequest {
            container_id: id.to_owned(),
            location: location.to_owned(),
            timeout,
        };
        self.runtime().checkpoint_container(timed(request)).await?;
        Ok(())
    }

    pub async fn pod_stats(&self) -> Result<Vec<v1::PodSandboxStats>> {
        let request = timed(v1::ListPodSandboxStatsRequest::default());
        Ok(self
            .runtime()
            .list_pod_sandbox_stats(request)
            .await?
            .into_inner()
            .stats)
    }

    pub async fn container_stats_of(&self, id: &str) -> Result<Option<v1::ContainerStats>> {
        let request = v1::ContainerStatsRequest {
            container_id: id.to_owned(),
        };
        Ok(self
            .runtime()
            .container_stats(timed(request))
            .await?
            .into_inner()
            .stats)
    }

    pub async fn update_container_resources(
        &self,
        id: &str,
        resources: v1::LinuxContainerResources,
    ) -> Result<()> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            ..Default::default()
        };
        self.runtime().update_container_resources(timed(request)).await?;
        Ok(())
    }

    pub async fn events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>> {
        Ok(self
            .runtime()
            .get_container_events(v1::GetEventsRequest::default())
            .await?
            .into_inner())
    }

    pub async fn image(&self, image: &str) -> Result<Option<v1::Image>> {
        let request = v1::ImageStatusRequest {
            image: Some(image_spec(image)),
            verbose: false,
        };
        match self.images().image_status(timed(request)).await {
            Ok(response) => Ok(response.into_inner().image),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status.into()),
        }
    }

    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<v1::AuthConfig>,
        sandbox: v1::PodSandboxConfig,
    ) -> Result<String> {
        let request = v1::PullImageRequest {
            image: Some(image_spec(image)),
            auth,
            sandbox_config: Some(sandbox),
        };
        Ok(self.images().pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn list_images(&self) -> Result<Vec<v1::Image>> {
        Ok(self
            .images()
            .list_images(timed(v1::ListImagesRequest::default()))
            .await?
            .into_inner()
            .images)
    }

    pub async fn remove_image(&self, image: &str) -> Result<()> {
        let request = v1::RemoveImageRequest {
            image: Some(image_spec(image)),
        };
        absent_is_fine(self.images().remove_image(timed(request)).await)
    }

    /// The pod with everything CRI knows about it.
    pub async fn pod(&self, uid: &str) -> Result<RuntimePod> {
        let labels = HashMap::from([(POD_UID.to_owned(), uid.to_owned())]);
        let filter = v1::PodSandboxFilter {
            label_selector: labels.clone(),
            ..Default::default()
        };
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let mut pod = RuntimePod::default();
        for sandbox in self
            .runtime()
            .list_pod_sandbox(timed(request))
            .await?
            .into_inner()
            .items
        {
            let request = v1::PodSandboxStatusRequest {
                pod_sandbox_id: sandbox.id.clone(),
                verbose: false,
            };
            match self.runtime().pod_sandbox_status(timed(request)).await {
                Ok(response) => pod
                    .sandboxes
                    .extend(response.into_inner().status.map(observed_sandbox)),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(status.into()),
            }
        }
        let filter = v1::ContainerFilter {
            label_selector: labels,
            ..Default::default()
        };
        let request = v1::ListContainersRequest { filter: Some(filter) };
        for container in self
            .runtime()
            .list_containers(timed(request))
            .await?
            .into_inner()
            .containers
        {
            match self.container_status(&container.id).await {
                Ok(status) => pod
                    .containers
                    .push(observed_container(status, container.pod_sandbox_id)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        pod.sort();
        Ok(pod)
    }

    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let response = self
            .runtime()
            .container_status(timed(request))
            .await?
            .into_inner();
        response
            .status
            .ok_or(RuntimeError::Incomplete("ContainerStatus", "status"))
    }
}

fn image_spec(image: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: image.to_owned(),
        user_specified_image: image.to_owned(),
        ..Default::default()
    }
}

/// Why a condition of the runtime does not hold, if so.
pub fn unmet(answer: &v1::StatusResponse, kind: &str) -> Option<String> {
    let what = if kind == "NetworkReady" {
        "container runtime network not ready"
    } else {
        "container runtime is not ready"
    };
    let conditions = answer
        .status
        .as_ref()
        .map(|status| status.conditions.as_slice())
        .unwrap_or_default();
    match conditions.iter().find(|condition| condition.r#type == kind) {
        Some(condition) if condition.status => None,
        Some(condition) => Some(format!(
            "{what}: {kind}=false reason:{} message:{}",
            condition.reason, condition.message
        )),
        None => Some(format!("{what}: the runtime does not report {kind}")),
    }
}

/// The pod that the labels of a sandbox or container name.
pub fn identity(labels: &HashMap<String, String>) -> Option<PodIdentity> {
    let get = |key: &str| labels.get(key).cloned();
    Some(PodIdentity {
        uid: get(POD_UID)?,
        namespace: get(POD_NAMESPACE)?,
        name: get(POD_NAME)?,
    })
}

/// A digest of every pod's sandboxes and containers with their states, to notice changes by comparing.
pub fn fingerprints(
    sandboxes: &[v1::PodSandbox],
    containers: &[v1::Container],
) -> BTreeMap<PodIdentity, Vec<(String, i32)>> {
    let mut pods: BTreeMap<PodIdentity, Vec<(String, i32)>> = BTreeMap::new();
    for sandbox in sandboxes {
        if let Some(pod) = identity(&sandbox.labels) {
            pods.entry(pod)
                .or_default()
                .push((sandbox.id.clone(), sandbox.state));
        }
    }
    for container in containers {
        if let Some(pod) = identity(&container.labels) {
            pods.entry(pod)
                .or_default()
                .push((container.id.clone(), container.state));
        }
    }
    pods.values_mut().for_each(|entries| entries.sort());
    pods
}

fn nanoseconds(value: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(value)).unwrap_or_default()
}

fn observed_sandbox(status: v1::PodSandboxStatus) -> ObservedSandbox {
    let network = status.network.unwrap_or_default();
    let additional = network.additional_ips.into_iter().map(|ip| ip.ip);
    let ips = std::iter::once(network.ip)
        .chain(additional)
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let options = status
        .linux
        .and_then(|linux| linux.namespaces)
        .and_then(|namespaces| namespaces.options);
    ObservedSandbox {
        id: status.id,
        ready: status.state == v1::PodSandboxState::SandboxReady as i32,
        attempt: status.metadata.map_or(0, |metadata| metadata.attempt),
        created_at: nanoseconds(status.created_at),
        ips,
        host_network: options.is_some_and(|options| options.network == v1::NamespaceMode::Node as i32),
    }
}

fn observed_container(status: v1::ContainerStatus, sandbox_id: String) -> ObservedContainer {
    let state = match v1::ContainerState::try_from(status.state) {
        Ok(v1::ContainerState::ContainerCreated) => ContainerState::Created,
        Ok(v1::ContainerState::ContainerRunning) => ContainerState::Running,
        Ok(v1::ContainerState::ContainerExited) => ContainerState::Exited,
        _ => ContainerState::Unknown,
    };
    let metadata = status.metadata.unwrap_or_default();
    let image = status.image.unwrap_or_default();
    ObservedContainer {
        id: status.id,
        name: metadata.name,
        state,
        created_at: nanoseconds(status.created_at),
        started_at: nanoseconds(status.started_at),
        finished_at: nanoseconds(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: if image.user_specified_image.is_empty() {
            image.image
        } else {
            image.user_specified_image
        },
        image_id: status.image_ref,
        restart_count: i32::try_from(metadata.attempt).unwrap_or(i32::MAX),
        hash: status
            .annotations
            .get(CONTAINER_HASH)
            .cloned()
            .unwrap_or_default(),
        log_path: status.log_path,
        message_file: status.annotations.get(MESSAGE_FILE).cloned().unwrap_or_default(),
        message_from_logs: status
            .annotations
            .get(MESSAGE_POLICY)
            .is_some_and(|p| p == "FallbackToLogsOnError"),
        sandbox_id,
        user: status.user.and_then(|user| user.linux),
    }
}
