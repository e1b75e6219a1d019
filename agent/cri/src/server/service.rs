//! The gRPC surface: every call of CRI v1, each handed to the runtime.

use super::{Runtime, convert, unknown};
use crate::state::now_nanos;
use cri_api::v1::image_service_server::{ImageService, ImageServiceServer};
use cri_api::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use cri_api::v1::*;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream};
use tonic::{Request, Response, Status, async_trait};

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = BoxStream<'static, Result<T, Status>>;

const RUNTIME_NAME: &str = "ironlet";
const CRI_VERSION: &str = "v1";
/// Kernels from 5.12 on can make whole trees of mounts read-only.
const RECURSIVE_READ_ONLY_SINCE: (u32, u32) = (5, 12);
/// Items a message when lists are streamed.
const STREAM_CHUNK: usize = 100;

pub struct Service(Arc<Runtime>);

/// Serves both services on a unix socket until SIGTERM or SIGINT.
pub async fn serve(
    runtime: Arc<Runtime>,
    listen: &Path,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if let Some(parent) = listen.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::remove_file(listen) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(listen)?;
    std::fs::set_permissions(listen, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    tracing::info!(socket = %listen.display(), "serving CRI v1");
    let limit = cri_api::MAX_MESSAGE_SIZE;
    let serving = tonic::transport::Server::builder()
        .add_service(
            RuntimeServiceServer::new(Service(Arc::clone(&runtime))).max_decoding_message_size(limit),
        )
        .add_service(ImageServiceServer::new(Service(runtime)).max_decoding_message_size(limit))
        .serve_with_incoming(UnixListenerStream::new(listener));
    // Streams of events never end by themselves: a stop does not wait for them.
    tokio::select! {
        served = serving => served?,
        () = stop => {}
    }
    Ok(())
}

/// Work that changes something is done to its end, also when the caller has gone.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    tokio::spawn(work).await.map_err(unknown)?
}

fn ok<T>(value: T) -> Answer<T> {
    Ok(Response::new(value))
}

/// A list as a stream of messages.
fn streamed<I: Send + 'static, T: Send + 'static>(items: Vec<I>, wrap: fn(Vec<I>) -> T) -> Answer<Stream<T>> {
    let mut chunks = Vec::new();
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        chunks.push(Ok(wrap(items.by_ref().take(STREAM_CHUNK).collect())));
    }
    ok(futures::stream::iter(chunks).boxed())
}

impl Service {
    fn sandboxes(&self, filter: Option<PodSandboxFilter>) -> Vec<PodSandbox> {
        let filter = filter.unwrap_or_default();
        let all = self.0.memory.sandboxes();
        all.iter()
            .filter(|sandbox| convert::sandbox_matches(sandbox, &filter))
            .map(convert::sandbox)
            .collect()
    }

    fn containers(&self, filter: Option<ContainerFilter>) -> Vec<Container> {
        let filter = filter.unwrap_or_default();
        let all = self.0.memory.containers();
        all.iter()
            .filter(|container| convert::container_matches(container, &filter))
            .map(convert::container)
            .collect()
    }
}

fn recursive_read_only() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= RECURSIVE_READ_ONLY_SINCE
}

fn condition(name: &str, state: Result<(), (&str, String)>) -> RuntimeCondition {
    let (reason, message) = state.as_ref().err().cloned().unwrap_or_default();
    RuntimeCondition {
        r#type: name.to_owned(),
        status: state.is_ok(),
        reason: reason.to_owned(),
        message,
    }
}

#[async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        ok(VersionResponse {
            version: "0.1.0".into(),
            runtime_name: RUNTIME_NAME.into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
            runtime_api_version: CRI_VERSION.into(),
        })
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let runtime = Arc::clone(&self.0);
        let pod_sandbox_id =
            whole(async move { runtime.run_pod_sandbox(request.into_inner()).await }).await?;
        ok(RunPodSandboxResponse { pod_sandbox_id })
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let runtime = Arc::clone(&self.0);
        whole(async move { runtime.stop_pod_sandbox(&request.get_ref().pod_sandbox_id).await }).await?;
        ok(StopPodSandboxResponse {})
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let runtime = Arc::clone(&self.0);
        whole(async move {
            runtime
                .remove_pod_sandbox(&request.get_ref().pod_sandbox_id)
                .await
        })
        .await?;
        ok(RemovePodSandboxResponse {})
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let sandbox = self.0.memory.sandbox(&request.pod_sandbox_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            info.insert(
                "info".to_owned(),
                serde_json::to_string(&sandbox).map_err(unknown)?,
            );
        }
        let containers = self.0.memory.containers_of(&sandbox.id);
        ok(PodSandboxStatusResponse {
            status: Some(convert::sandbox_status(&sandbox)),
            info,
            containers_statuses: containers.iter().map(convert::container_status).collect(),
            timestamp: now_nanos(),
        })
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        ok(ListPodSandboxResponse {
            items: self.sandboxes(request.into_inner().filter),
        })
    }

    type StreamPodSandboxesStream = Stream<StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = self.sandboxes(request.into_inner().filter);
        streamed(items, |pod_sandboxes| StreamPodSandboxesResponse {
            pod_sandboxes,
        })
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let runtime = Arc::clone(&self.0);
        let container_id = whole(async move { runtime.create_container(request.into_inner()).await }).await?;
        ok(CreateContainerResponse { container_id })
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let runtime = Arc::clone(&self.0);
        whole(async move { runtime.start_container(&request.get_ref().container_id).await }).await?;
        ok(StartContainerResponse {})
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        let runtime = Arc::clone(&self.0);
        whole(async move {
            runtime
                .stop_container(&request.container_id, request.timeout)
                .await
        })
        .await?;
        ok(StopContainerResponse {})
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let runtime = Arc::clone(&self.0);
        whole(async move { runtime.remove_container(&request.get_ref().container_id).await }).await?;
        ok(RemoveContainerResponse {})
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        ok(ListContainersResponse {
            containers: self.containers(request.into_inner().filter),
        })
    }

    type StreamContainersStream = Stream<StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let items = self.containers(request.into_inner().filter);
        streamed(items, |containers| StreamContainersResponse { containers })
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = self.0.memory.container(&request.container_id)?;
        let mut info = HashMap::new();
        if request.verbose {
            let text = serde_json::json!({
                "sandboxID": container.record.sandbox_id,
                "pid": container.process.as_ref().map_or(0, |process| process.pid),
                "config": container.record.config,
            });
            info.insert("info".to_owned(), text.to_string());
        }
        ok(ContainerStatusResponse {
            status: Some(convert::container_status(&container)),
            info,
        })
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        self.0.update_resources(request.into_inner()).await?;
        ok(UpdateContainerResourcesResponse {})
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        self.0.reopen_log(&request.get_ref().container_id).await?;
        ok(ReopenContainerLogResponse {})
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        ok(self.0.exec_sync(request.into_inner()).await?)
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        ok(ExecResponse {
            url: self.0.exec(request.into_inner())?,
        })
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        ok(AttachResponse {
            url: self.0.attach(request.into_inner())?,
        })
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        ok(PortForwardResponse {
            url: self.0.port_forward(request.into_inner())?,
        })
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let stats = self.0.container_stats(&request.get_ref().container_id).await?;
        ok(ContainerStatsResponse { stats: Some(stats) })
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        ok(ListContainerStatsResponse {
            stats: self.0.list_container_stats(request.into_inner().filter).await?,
        })
    }

    type StreamContainerStatsStream = Stream<StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let items = self.0.list_container_stats(request.into_inner().filter).await?;
        streamed(items, |container_stats| StreamContainerStatsResponse {
            container_stats,
        })
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let stats = self
            .0
            .pod_sandbox_stats(&request.get_ref().pod_sandbox_id)
            .await?;
        ok(PodSandboxStatsResponse { stats: Some(stats) })
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        ok(ListPodSandboxStatsResponse {
            stats: self.0.list_pod_sandbox_stats(request.into_inner().filter).await?,
        })
    }

    type StreamPodSandboxStatsStream = Stream<StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let items = self.0.list_pod_sandbox_stats(request.into_inner().filter).await?;
        streamed(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse {
            pod_sandbox_stats,
        })
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let config = request
            .into_inner()
            .runtime_config
            .and_then(|config| config.network_config)
            .unwrap_or_default();
        let cidrs: Vec<String> = config
            .pod_cidr
            .split(',')
            .filter(|cidr| !cidr.is_empty())
            .map(str::to_owned)
            .collect();
        if !cidrs.is_empty() {
            self.0.network.configure(&cidrs).await.map_err(unknown)?;
        }
        ok(UpdateRuntimeConfigResponse {})
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let network = self
            .0
            .network
            .readiness()
            .map_err(|message| ("NetworkPluginNotReady", message));
        ok(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", Ok(())),
                    condition("NetworkReady", network),
                ],
            }),
            info: HashMap::new(),
            runtime_handlers: vec![RuntimeHandler {
                name: String::new(),
                features: Some(RuntimeHandlerFeatures {
                    recursive_read_only_mounts: recursive_read_only(),
                    user_namespaces: false,
                }),
            }],
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
            }),
        })
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Status::unimplemented(
            "method CheckpointContainer not implemented",
        ))
    }

    type GetContainerEventsStream = Stream<ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        let events = BroadcastStream::new(self.0.events.subscribe());
        let events = events.map(|event| {
            // A reader that fell behind must list again.
            event.map_err(|error| Status::data_loss(error.to_string()))
        });
        ok(events.boxed())
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        ok(ListMetricDescriptorsResponse {
            descriptors: super::metrics::descriptors(),
        })
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        ok(ListPodSandboxMetricsResponse {
            pod_metrics: self.0.pod_sandbox_metrics().await?,
        })
    }

    type StreamPodSandboxMetricsStream = Stream<StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        streamed(self.0.pod_sandbox_metrics().await?, |pod_sandbox_metrics| {
            StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
        })
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration {
            cgroup_driver: CgroupDriver::Cgroupfs as i32,
        };
        ok(RuntimeConfigResponse { linux: Some(linux) })
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        // The kubelet has written the pod's cgroup itself; the record follows.
        let request = request.into_inner();
        let mut sandbox = self.0.memory.sandbox(&request.pod_sandbox_id)?;
        let _lock = self.0.memory.lock(&sandbox.id).await;
        let linux = sandbox.config.linux.get_or_insert_default();
        linux.overhead = request.overhead;
        linux.resources = request.resources;
        self.0.save_sandbox(sandbox)?;
        ok(UpdatePodSandboxResourcesResponse {})
    }
}

#[async_trait]
impl ImageService for Service {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        ok(ListImagesResponse {
            images: self.0.list_images(request.into_inner().filter),
        })
    }

    type StreamImagesStream = Stream<StreamImagesResponse>;
    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        streamed(self.0.list_images(request.into_inner().filter), |images| {
            StreamImagesResponse { images }
        })
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        ok(self.0.image_status(request.into_inner()).await?)
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        ok(PullImageResponse {
            image_ref: self.0.pull_image(request.into_inner()).await?,
        })
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        self.0.remove_image(request.into_inner().image).await?;
        ok(RemoveImageResponse {})
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        ok(self.0.image_fs_info().await?)
    }
}
