//! The cluster's store on a master: its members, and a copy of its database.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, Ipv4Addr, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::mpsc::Sender;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::v1::{EtcdMember, SnapshotPart};

#[allow(clippy::all, rustdoc::all)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}
use pb::cluster_client::ClusterClient;
use pb::maintenance_client::MaintenanceClient;

/// etcd listens there on every master.
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 2379);
/// Relative to the control plane's certificates, in kubeadm's layout.
const CA: &str = "etcd/ca.crt";
const CERTIFICATE: &str = "apiserver-etcd-client.crt";
const KEY: &str = "apiserver-etcd-client.key";

#[derive(Debug, Error)]
pub enum EtcdError {
    #[error("no etcd runs on this machine: it is no master, or ironlet.store=embedded")]
    None,
    #[error("{0}: {1}")]
    Certificate(PathBuf, String),
    #[error("etcd: {0}")]
    Call(String),
}

impl From<EtcdError> for Status {
    fn from(error: EtcdError) -> Self {
        let message = error.to_string();
        match error {
            EtcdError::None => Self::failed_precondition(message),
            EtcdError::Certificate(..) => Self::internal(message),
            EtcdError::Call(_) => Self::unavailable(message),
        }
    }
}

fn call(error: Status) -> EtcdError {
    EtcdError::Call(error.message().to_owned())
}

fn tls(pki: &Path) -> Result<ClientConfig, EtcdError> {
    let read = |name: &str| {
        let path = pki.join(name);
        fs::read(&path).map_err(|error| EtcdError::Certificate(path, error.to_string()))
    };
    let invalid =
        |name: &str, error: &dyn std::fmt::Display| EtcdError::Certificate(pki.join(name), error.to_string());
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(&read(CA)?).map_err(|error| invalid(CA, &error))?;
    roots.add(ca).map_err(|error| invalid(CA, &error))?;
    let pem = read(CERTIFICATE)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(&read(KEY)?).map_err(|error| invalid(KEY, &error))?;
    let mut tls = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain.map_err(|error| invalid(CERTIFICATE, &error))?, key)
        .map_err(|error| invalid(CERTIFICATE, &error))?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Ok(tls)
}

async fn connect(pki: &Path) -> Result<Channel, EtcdError> {
    if !pki.join(KEY).exists() {
        return Err(EtcdError::None);
    }
    let connector = TlsConnector::from(Arc::new(tls(pki)?));
    let dial = service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(std::net::SocketAddr::from(ADDRESS)).await?;
            let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from(ADDRESS.0)));
            Ok::<_, io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    match Endpoint::from_static("http://etcd")
        .connect_with_connector(dial)
        .await
    {
        Ok(channel) => Ok(channel),
        Err(error) => Err(match api_client::innermost(&error) {
            // The embedded store leaves the port to nobody.
            reason if reason.contains("refused") => EtcdError::Call(format!("{reason}: it does not run")),
            reason => EtcdError::Call(reason),
        }),
    }
}

pub async fn members(pki: &Path) -> Result<Vec<EtcdMember>, EtcdError> {
    let channel = connect(pki).await?;
    let list = ClusterClient::new(channel.clone())
        .member_list(pb::MemberListRequest {})
        .await
        .map_err(call)?;
    let status = MaintenanceClient::new(channel)
        .status(pb::StatusRequest {})
        .await
        .map_err(call)?
        .into_inner();
    let own = status.header.map_or(0, |header| header.member_id);
    let member = |member: pb::Member| EtcdMember {
        id: format!("{:x}", member.id),
        leader: member.id == status.leader,
        version: if member.id == own {
            status.version.clone()
        } else {
            String::new()
        },
        database_size: if member.id == own {
            status.db_size.unsigned_abs()
        } else {
            0
        },
        name: member.name,
        peer_urls: member.peer_ur_ls,
        client_urls: member.client_ur_ls,
        learner: member.is_learner,
    };
    Ok(list.into_inner().members.into_iter().map(member).collect())
}

pub async fn snapshot(pki: &Path) -> Result<tonic::Streaming<pb::SnapshotResponse>, EtcdError> {
    let channel = connect(pki).await?;
    let stream = MaintenanceClient::new(channel)
        .snapshot(pb::SnapshotRequest {})
        .await;
    Ok(stream.map_err(call)?.into_inner())
}

/// Passes the database on. etcd's own hash is its end, so that a copy that is cut off is known as one.
pub async fn send(
    mut from: tonic::Streaming<pb::SnapshotResponse>,
    to: Sender<Result<SnapshotPart, Status>>,
) {
    loop {
        let part = match from.message().await {
            Ok(None) => return,
            Ok(Some(part)) => Ok(SnapshotPart { data: part.blob }),
            Err(error) => Err(Status::from(call(error))),
        };
        let failed = part.is_err();
        if to.send(part).await.is_err() || failed {
            return;
        }
    }
}
