//! The server's side of the conversation with a shim.

use super::protocol::{ExecRequest, Reply, Request, SOCKET_NAME, socket_path};
use crate::state::Layout;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

#[derive(Debug, thiserror::Error)]
pub enum ShimClientError {
    #[error("{operation}: {source}")]
    Io {
        operation: &'static str,
        source: io::Error,
    },
    #[error("the pod's shim is gone")]
    Gone,
    #[error("{message}")]
    Refused { message: String, exit_code: i32 },
    #[error("the pod's shim answers {0:?}")]
    Unexpected(Reply),
}

fn io_error(operation: &'static str) -> impl Fn(io::Error) -> ShimClientError {
    move |source| match source.kind() {
        // It went while this connection still waited to be accepted.
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => ShimClientError::Gone,
        _ => ShimClientError::Io { operation, source },
    }
}

/// Starts the shim of a sandbox: it outlives this server.
pub fn spawn(layout: &Layout, sandbox_id: &str) -> Result<(), ShimClientError> {
    let folder = layout.sandbox(sandbox_id);
    let _ = std::fs::remove_file(folder.join(SOCKET_NAME));
    let opened = File::open(&folder).map_err(io_error("open the sandbox's folder"))?;
    let listener = std::os::unix::net::UnixListener::bind(socket_path(&opened))
        .map_err(io_error("bind the shim's socket"))?;
    let child = tokio::process::Command::new("/proc/self/exe")
        .arg("cri-shim")
        .arg(sandbox_id)
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(io_error("start the shim"))?;
    // Reaped here while this server lives, by PID 1 afterwards.
    tokio::spawn(async move {
        let mut child = child;
        match child.wait().await {
            Ok(status) => tracing::debug!(%status, "shim ended"),
            Err(error) => tracing::warn!(%error, "cannot wait for a shim"),
        }
    });
    Ok(())
}

/// A connection to a sandbox's shim.
pub struct ShimConnection {
    stream: BufReader<UnixStream>,
}

impl ShimConnection {
    pub fn open(folder: &Path) -> Result<Self, ShimClientError> {
        let opened = File::open(folder).map_err(|_| ShimClientError::Gone)?;
        let stream = StdUnixStream::connect(socket_path(&opened)).map_err(|_| ShimClientError::Gone)?;
        stream
            .set_nonblocking(true)
            .map_err(io_error("talk to the shim"))?;
        let stream = UnixStream::from_std(stream).map_err(io_error("talk to the shim"))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a request with descriptors beside its first byte.
    pub async fn send(&mut self, request: &Request, descriptors: &[OwnedFd]) -> Result<(), ShimClientError> {
        let mut line =
            serde_json::to_vec(request).map_err(|error| io_error("write a request")(error.into()))?;
        line.push(b'\n');
        let mut rest = &line[..];
        if !descriptors.is_empty() {
            let stream = self.stream.get_ref();
            let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            let sent = stream
                .async_io(tokio::io::Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    control.push(SendAncillaryMessage::ScmRights(&borrowed));
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    rustix::net::sendmsg(stream, &[IoSlice::new(rest)], &mut control, flags)
                        .map_err(io::Error::from)
                })
                .await
                .map_err(io_error("talk to the shim"))?;
            rest = &rest[sent..];
        }
        self.stream
            .get_mut()
            .write_all(rest)
            .await
            .map_err(io_error("talk to the shim"))
    }

    /// The next answer.
    pub async fn receive(&mut self) -> Result<Reply, ShimClientError> {
        let mut line = String::new();
        let read = self
            .stream
            .read_line(&mut line)
            .await
            .map_err(io_error("hear the shim"))?;
        if read == 0 {
            return Err(ShimClientError::Gone);
        }
        serde_json::from_str(&line).map_err(|error| io_error("understand the shim")(error.into()))
    }

    async fn ask(&mut self, request: &Request, descriptors: &[OwnedFd]) -> Result<Reply, ShimClientError> {
        self.send(request, descriptors).await?;
        match self.receive().await? {
            Reply::Failed { message, exit_code } => Err(ShimClientError::Refused { message, exit_code }),
            reply => Ok(reply),
        }
    }

    /// The raw stream, for frames after `Attach`.
    pub fn into_inner(self) -> BufReader<UnixStream> {
        self.stream
    }
}

/// One request, one answer.
pub async fn ask(folder: &Path, request: &Request) -> Result<Reply, ShimClientError> {
    ShimConnection::open(folder)?.ask(request, &[]).await
}

/// A process running beside a container.
pub struct Exec {
    connection: ShimConnection,
}

impl Exec {
    pub async fn start(
        folder: &Path,
        request: ExecRequest,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, ShimClientError> {
        let mut connection = ShimConnection::open(folder)?;
        match connection.ask(&Request::Exec(request), &descriptors).await? {
            Reply::Running => Ok(Self { connection }),
            other => Err(ShimClientError::Unexpected(other)),
        }
    }

    /// Waits for the program's end. Dropping this instead ends a program that asked for it.
    pub async fn wait(&mut self) -> Result<i32, ShimClientError> {
        match self.connection.receive().await? {
            Reply::Ended { exit_code } => Ok(exit_code),
            other => Err(ShimClientError::Unexpected(other)),
        }
    }
}

/// The container's streams as frames, both ways.
pub async fn attach(
    folder: &Path,
    container_id: &str,
    stdin: bool,
) -> Result<BufReader<UnixStream>, ShimClientError> {
    let mut connection = ShimConnection::open(folder)?;
    match connection
        .ask(
            &Request::Attach {
                container_id: container_id.to_owned(),
                stdin,
            },
            &[],
        )
        .await?
    {
        Reply::Done => Ok(connection.into_inner()),
        other => Err(ShimClientError::Unexpected(other)),
    }
}
