//! The calls: each asks the module that knows.

use kube::Client;
use node_config::machine_state::Order;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::info;

use crate::access::User;
use crate::kernel_log::{self, KernelLog};
use crate::logs::{self, Log};
use crate::v1::node_server::Node;
use crate::v1::{
    Accepted, DiskList, DisksRequest, DmesgRequest, KernelMessages, LinkList, LinksRequest, LogLines,
    LogsRequest, RebootRequest, ServiceList, ServicesRequest, ShutdownRequest, StatusInfo, StatusRequest,
    TopInfo, TopRequest, VersionInfo, VersionRequest,
};
use crate::{Config, disks, links, machine, processes, status};

/// Messages that wait for a slow caller.
const QUEUE: usize = 4;

pub struct Machine {
    client: Client,
    config: Config,
}

impl Machine {
    pub fn new(client: Client, config: Config) -> Self {
        Self { client, config }
    }

    async fn order<T>(&self, request: &Request<T>, order: Order) -> Result<Response<Accepted>, Status> {
        info!(user = user(request), %order, "order");
        machine::order(&self.config.run_dir, order).await?;
        Ok(Response::new(Accepted {}))
    }
}

/// Who calls; the gate has put it there.
fn user<T>(request: &Request<T>) -> &str {
    request.extensions().get::<User>().map_or("", |user| &user.name)
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Node for Machine {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionInfo> {
        Ok(Response::new(VersionInfo {
            node: self.config.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: status::kernel(),
            architecture: status::architecture(),
        }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusInfo> {
        let state = machine::state(&self.config.run_dir).await?;
        let mut info = status::status(&state, &self.config.run_dir);
        info.node.clone_from(&self.config.node_name);
        info.slot = self.config.slot.clone().unwrap_or_default();
        match status::ask_node(&self.client, &self.config.node_name).await {
            Ok(node) => {
                if let Some(ready) = status::ready_condition(&node) {
                    info.ready.clone_from(&ready.status);
                    info.ready_message = ready.message.clone().unwrap_or_default();
                }
            }
            Err(error) => info.api_error = error,
        }
        Ok(Response::new(info))
    }

    async fn services(&self, _: Request<ServicesRequest>) -> Answer<ServiceList> {
        let state = machine::state(&self.config.run_dir).await?;
        Ok(Response::new(ServiceList {
            services: status::services(&state),
        }))
    }

    type LogsStream = ReceiverStream<Result<LogLines, Status>>;

    async fn logs(&self, request: Request<LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let log = Log::open(&self.config.run_dir.join("log"), &request.service)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(QUEUE);
        tokio::spawn(logs::send(log, request, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    type DmesgStream = ReceiverStream<Result<KernelMessages, Status>>;

    async fn dmesg(&self, request: Request<DmesgRequest>) -> Answer<Self::DmesgStream> {
        let log = KernelLog::open().map_err(|error| Status::internal(format!("kernel log: {error}")))?;
        let (sender, receiver) = tokio::sync::mpsc::channel(QUEUE);
        tokio::spawn(kernel_log::send(log, request.into_inner().follow, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn top(&self, _: Request<TopRequest>) -> Answer<TopInfo> {
        Ok(Response::new(processes::top().await))
    }

    async fn disks(&self, _: Request<DisksRequest>) -> Answer<DiskList> {
        Ok(Response::new(DiskList {
            disks: disks::disks(),
        }))
    }

    async fn links(&self, _: Request<LinksRequest>) -> Answer<LinkList> {
        Ok(Response::new(LinkList {
            links: links::links().await?,
        }))
    }

    async fn reboot(&self, request: Request<RebootRequest>) -> Answer<Accepted> {
        self.order(&request, Order::Reboot).await
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Answer<Accepted> {
        self.order(&request, Order::PowerOff).await
    }
}
