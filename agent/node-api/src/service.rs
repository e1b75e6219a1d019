//! The calls: each asks the module that knows.

use std::io;
use std::sync::Arc;

use kube::Client;
use node_config::machine_state::Order;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::info;

use crate::access::User;
use crate::kernel_log::{self, KernelLog};
use crate::logs::{self, Log};
use crate::upgrade::{Arriving, UpgradeError, Upgrader};
use crate::v1::node_server::Node;
use crate::v1::upgrade_part;
use crate::v1::{
    Accepted, DiskList, DisksRequest, DmesgRequest, EtcdMemberList, EtcdMembersRequest, EtcdSnapshotRequest,
    KernelMessages, LinkList, LinksRequest, LogLines, LogsRequest, RebootRequest, ResetRequest,
    RollbackRequest, ServiceList, ServicesRequest, ShutdownRequest, SnapshotPart, StatusInfo, StatusRequest,
    TopInfo, TopRequest, UpgradePart, UpgradeResult, VersionInfo, VersionRequest,
};
use crate::{Config, disks, etcd, links, machine, processes, status};

/// Messages that wait for a slow caller.
const QUEUE: usize = 4;

pub struct Machine {
    client: Client,
    config: Config,
    upgrader: Arc<Upgrader>,
}

impl Machine {
    pub fn new(client: Client, config: Config, upgrader: Arc<Upgrader>) -> Self {
        Self {
            client,
            config,
            upgrader,
        }
    }

    async fn order<T>(&self, request: &Request<T>, order: Order) -> Result<Response<Accepted>, Status> {
        info!(user = user(request), %order, "order");
        machine::order(&self.config.run_dir, order).await?;
        Ok(Response::new(Accepted {}))
    }
}

/// The disk is waited for on a thread of its own.
async fn blocking<T: Send + 'static>(
    upgrader: &Arc<Upgrader>,
    work: impl FnOnce(&Upgrader) -> Result<T, UpgradeError> + Send + 'static,
) -> Result<T, Status> {
    let upgrader = upgrader.clone();
    let done = tokio::task::spawn_blocking(move || work(&upgrader)).await;
    Ok(done.map_err(|error| Status::internal(error.to_string()))??)
}

/// Hands an upgrade's bytes to who writes them, and why there are no more.
async fn pass_on(mut parts: Streaming<UpgradePart>, to: tokio::sync::mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let chunk = match parts.message().await {
            Ok(None) => return,
            Ok(Some(UpgradePart {
                part: Some(upgrade_part::Part::Data(data)),
            })) => Ok(data),
            Ok(Some(_)) => Err(io::Error::other("after its header an upgrade has data only")),
            Err(status) => Err(io::Error::other(status.message().to_owned())),
        };
        let failed = chunk.is_err();
        if to.send(chunk).await.is_err() || failed {
            return;
        }
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
        info.slot = self.config.upgrade.slot.clone().unwrap_or_default();
        info.last_upgrade = self.upgrader.last();
        // Without slots, or while they are written, there is nothing to say of them.
        info.slots = blocking(&self.upgrader, Upgrader::slots)
            .await
            .unwrap_or_default();
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

    async fn upgrade(&self, request: Request<Streaming<UpgradePart>>) -> Answer<UpgradeResult> {
        let user = user(&request).to_owned();
        let mut parts = request.into_inner();
        let first = parts.message().await?.and_then(|part| part.part);
        let Some(upgrade_part::Part::Header(header)) = first else {
            return Err(Status::invalid_argument("an upgrade begins with its header"));
        };
        let image = self.upgrader.check(&header)?;
        info!(user, version = image.version, "upgrade");
        let (sender, receiver) = tokio::sync::mpsc::channel(QUEUE);
        tokio::spawn(pass_on(parts, sender));
        let written = blocking(&self.upgrader, move |upgrader| {
            upgrader.upgrade(&image, Arriving::new(receiver))
        });
        Ok(Response::new(written.await?))
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Answer<UpgradeResult> {
        info!(user = user(&request), "rollback");
        Ok(Response::new(blocking(&self.upgrader, Upgrader::rollback).await?))
    }

    async fn reset(&self, request: Request<ResetRequest>) -> Answer<Accepted> {
        self.order(&request, Order::Reset).await
    }

    async fn etcd_members(&self, _: Request<EtcdMembersRequest>) -> Answer<EtcdMemberList> {
        Ok(Response::new(EtcdMemberList {
            members: etcd::members(&self.config.control_plane_pki).await?,
        }))
    }

    type EtcdSnapshotStream = ReceiverStream<Result<SnapshotPart, Status>>;

    async fn etcd_snapshot(&self, request: Request<EtcdSnapshotRequest>) -> Answer<Self::EtcdSnapshotStream> {
        info!(user = user(&request), "etcd snapshot");
        let snapshot = etcd::snapshot(&self.config.control_plane_pki).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(QUEUE);
        tokio::spawn(etcd::send(snapshot, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}
