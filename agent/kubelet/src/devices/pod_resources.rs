//! The pod resources API (v1): tells monitors of this node which container has which devices.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::lock;
use crate::context::{Context, name, namespace, uid};
use crate::pod_manager::Pods;

#[allow(clippy::all, clippy::pedantic)]
mod api {
    tonic::include_proto!("v1");
}

use api::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};

struct Service {
    context: Arc<Context>,
    pods: Pods,
}

impl Service {
    fn of(&self, pod: &Pod) -> api::PodResources {
        let mut assigned = lock(&self.context.devices.state).assignments.of_pod(uid(pod));
        let specified = pod.spec.iter().flat_map(|spec| &spec.containers);
        let containers = specified.map(|container| {
            let devices = assigned.remove(&container.name).unwrap_or_default().into_iter();
            api::ContainerResources {
                name: container.name.clone(),
                devices: devices
                    .map(|(resource_name, ids)| api::ContainerDevices {
                        resource_name,
                        device_ids: ids.into_iter().collect(),
                    })
                    .collect(),
                cpu_ids: Vec::new(),
            }
        });
        api::PodResources {
            name: name(pod).to_owned(),
            namespace: namespace(pod).to_owned(),
            containers: containers.collect(),
        }
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Service {
    async fn list(
        &self,
        _: Request<api::ListPodResourcesRequest>,
    ) -> Result<Response<api::ListPodResourcesResponse>, Status> {
        let pod_resources = self.pods.all().iter().map(|pod| self.of(pod)).collect();
        Ok(Response::new(api::ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<api::AllocatableResourcesRequest>,
    ) -> Result<Response<api::AllocatableResourcesResponse>, Status> {
        let state = lock(&self.context.devices.state);
        let devices = state
            .plugins
            .iter()
            .map(|(resource, plugin)| api::ContainerDevices {
                resource_name: resource.clone(),
                device_ids: plugin
                    .devices
                    .iter()
                    .filter(|(_, healthy)| **healthy)
                    .map(|(id, _)| id.clone())
                    .collect(),
            });
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Response::new(api::AllocatableResourcesResponse {
            devices: devices.collect(),
            cpu_ids: (0..i64::try_from(cpus).unwrap_or(1)).collect(),
        }))
    }

    async fn get(
        &self,
        request: Request<api::GetPodResourcesRequest>,
    ) -> Result<Response<api::GetPodResourcesResponse>, Status> {
        let request = request.into_inner();
        let (pod_namespace, pod_name) = (request.pod_namespace, request.pod_name);
        let missing = || Status::not_found(format!("pod {pod_name} in namespace {pod_namespace} not found"));
        let pod = self.pods.find(&pod_namespace, &pod_name).ok_or_else(missing)?;
        Ok(Response::new(api::GetPodResourcesResponse {
            pod_resources: Some(self.of(&pod)),
        }))
    }
}

pub async fn run(context: Arc<Context>, pods: Pods, stop: CancellationToken) {
    let directory = context.config.root_dir.join("pod-resources");
    let socket = directory.join("kubelet.sock");
    let _ = std::fs::remove_file(&socket);
    let bound = std::fs::create_dir_all(&directory).and_then(|()| UnixListener::bind(&socket));
    let listener = match bound {
        Ok(listener) => listener,
        Err(error) => {
            warn!(socket = %socket.display(), %error, "pod resources are not served");
            return;
        }
    };
    let service = PodResourcesListerServer::new(Service { context, pods });
    let server = tonic::transport::Server::builder().add_service(service);
    let served = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled());
    if let Err(error) = served.await {
        warn!(%error, "pod resources are not served any more");
    }
}
