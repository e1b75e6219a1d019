//! Port-forward: each connection of the client's is a pair of SPDY streams, data and error.

use super::spdy::{self, Stream};
use crate::server::Runtime;
use bytes::Bytes;
use cri_api::v1;
use futures::FutureExt;
use futures::future::BoxFuture;
use nix::sched::{CloneFlags, setns};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

pub async fn serve<S: AsyncRead + AsyncWrite + Send + 'static>(
    runtime: &Runtime,
    request: &v1::PortForwardRequest,
    stream: S,
) {
    let netns = match runtime.network_namespace(&request.pod_sandbox_id) {
        Ok(netns) => netns,
        Err(error) => return tracing::warn!(%error, "port-forward"),
    };
    let mut opened = spdy::accept(stream, true);
    let mut waiting: HashMap<String, Stream> = HashMap::new();
    while let Some(stream) = opened.recv().await {
        let key = format!("{}/{}", stream.header("requestid"), stream.header("port"));
        let Some(other) = waiting.remove(&key) else {
            waiting.insert(key, stream);
            continue;
        };
        let (data, error) = match (stream.header("streamtype"), other.header("streamtype")) {
            ("data", "error") => (stream, other),
            ("error", "data") => (other, stream),
            _ => continue,
        };
        let (netns, sandbox) = (netns.clone(), request.pod_sandbox_id.clone());
        tokio::spawn(async move {
            if let Err(message) = forward_stream(data, netns).await {
                error
                    .send(
                        format!(
                            "error forwarding port {} to pod {sandbox}: {message}",
                            error.header("port")
                        )
                        .as_bytes(),
                    )
                    .await;
            }
            error.finish().await;
        });
    }
}

async fn forward_stream(mut data: Stream, netns: Option<PathBuf>) -> Result<(), String> {
    let port = data
        .header("port")
        .parse()
        .map_err(|_| format!("port {:?} is not a number", data.header("port")))?;
    let incoming = data.take_incoming();
    let data = Arc::new(data);
    let outlet = Arc::clone(&data);
    let send = move |bytes: Bytes| {
        let outlet = Arc::clone(&outlet);
        async move { outlet.send(&bytes).await }.boxed()
    };
    let ended = forward(port, netns, incoming, send).await;
    data.finish().await;
    ended
}

/// Connects and passes bytes both ways, neither waiting for the other, until the pod's side ends.
pub async fn forward(
    port: u16,
    netns: Option<PathBuf>,
    mut incoming: mpsc::Receiver<Bytes>,
    send: impl Fn(Bytes) -> BoxFuture<'static, bool> + Send,
) -> Result<(), String> {
    let socket = tokio::task::spawn_blocking(move || dial(netns.as_deref(), port))
        .await
        .map_err(|error| error.to_string())?
        .and_then(TcpStream::from_std)
        .map_err(|error| {
            format!("failed to connect to localhost:{port} inside the pod's network: {error}")
        })?;
    let (mut reader, mut writer) = socket.into_split();
    let upstream = async {
        while let Some(bytes) = incoming.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
        std::future::pending::<()>().await;
    };
    let downstream = async {
        let mut buffer = vec![0u8; 32 * 1024];
        loop {
            match reader.read(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(n) if send(Bytes::copy_from_slice(&buffer[..n])).await => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    tokio::select! {
        ended = downstream => ended,
        () = upstream => Ok(()),
    }
}

/// Connects to the pod's loopback, in a thread that has joined its network and ends with it.
fn dial(netns: Option<&Path>, port: u16) -> io::Result<std::net::TcpStream> {
    let namespace = netns.map(File::open).transpose()?;
    let connect = move || {
        if let Some(namespace) = namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
        }
        let attempt =
            |host: std::net::IpAddr| std::net::TcpStream::connect_timeout(&(host, port).into(), DIAL_TIMEOUT);
        let loopback = [
            std::net::Ipv4Addr::LOCALHOST.into(),
            std::net::Ipv6Addr::LOCALHOST.into(),
        ];
        let socket = attempt(loopback[0]).or_else(|first| attempt(loopback[1]).map_err(|_| first))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let thread = std::thread::Builder::new()
        .name("port-forward".into())
        .spawn(connect)?;
    thread
        .join()
        .map_err(|_| io::Error::other("the dialling thread died"))?
}
