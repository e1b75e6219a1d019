//! The socket at which device plugins register themselves.

use std::sync::Arc;

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::api::registration_server::{Registration, RegistrationServer};
use super::api::{Empty, RegisterRequest};
use crate::context::Context;

const VERSION: &str = "v1beta1";

struct Service(Arc<Context>);

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            let message = format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
                request.version
            );
            return Err(Status::invalid_argument(message));
        }
        if !request.resource_name.contains('/') {
            let message = format!("the ResourceName {:?} is invalid", request.resource_name);
            return Err(Status::invalid_argument(message));
        }
        if request.endpoint.contains('/') || request.endpoint.is_empty() {
            return Err(Status::invalid_argument(format!(
                "the endpoint {:?} is not a file name",
                request.endpoint
            )));
        }
        let devices = &self.0.devices;
        let socket = devices.directory.join(&request.endpoint);
        devices.follow(request.resource_name, socket, request.options.unwrap_or_default());
        Ok(Response::new(Empty {}))
    }
}

pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let directory = context.devices.directory.clone();
    let socket = directory.join("kubelet.sock");
    // Plugins watch for a new socket to register again.
    let _ = std::fs::remove_file(&socket);
    let bound = std::fs::create_dir_all(&directory).and_then(|()| UnixListener::bind(&socket));
    let listener = match bound {
        Ok(listener) => listener,
        Err(error) => {
            warn!(socket = %socket.display(), %error, "device plugins cannot register");
            return;
        }
    };
    let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(Service(context)));
    let served = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled());
    if let Err(error) = served.await {
        warn!(%error, "registration of device plugins ended");
    }
}
