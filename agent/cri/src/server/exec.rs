//! Running commands in containers: synchronously here, interactively through the streaming server.

use super::{Runtime, unknown};
use crate::shim::client::{Exec, ShimClientError};
use crate::shim::protocol::ExecRequest;
use crate::streaming::Work;
use cri_api::v1;
use rustix::pipe::PipeFlags;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tonic::Status;

/// More output than this of either stream is thrown away (CVE-2022-1708): both must fit one message.
const MAX_OUTPUT: usize = cri_api::MAX_MESSAGE_SIZE / 2 - 4096;

impl Runtime {
    /// The container's shim folder and whole ID, if it runs.
    pub fn running(&self, id: &str) -> Result<(std::path::PathBuf, String, bool), Status> {
        let container = self.memory.container(id)?;
        if !container.running() {
            let state = super::convert::container_state(&container).as_str_name();
            return Err(unknown(format!(
                "container {:?} is in {state} state",
                container.record.id
            )));
        }
        let folder = self.layout.sandbox(&container.record.sandbox_id);
        Ok((folder, container.record.id, container.record.config.tty))
    }

    pub async fn exec_sync(&self, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Status> {
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("cmd: required"));
        }
        let (folder, container_id, _) = self.running(&request.container_id)?;
        let (mut stdout, stdout_writer) = output_pipe().map_err(unknown)?;
        let (mut stderr, stderr_writer) = output_pipe().map_err(unknown)?;
        let stdin = OwnedFd::from(std::fs::File::open("/dev/null").map_err(unknown)?);
        let order = ExecRequest {
            container_id,
            args: request.cmd.clone(),
            tty: false,
            kill_on_close: true,
        };
        let run = async {
            let mut exec = Exec::start(&folder, order, vec![stdin, stdout_writer, stderr_writer]).await?;
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let exit_code = {
                let reading = async {
                    tokio::join!(collect(&mut stdout, &mut out), collect(&mut stderr, &mut err));
                    // Both at their end: only the exit code is missing.
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    code = exec.wait() => code?,
                    () = reading => 0,
                }
            };
            // Children of the command may hold the pipes open: take what is there, no more.
            drain(&stdout, &mut out);
            drain(&stderr, &mut err);
            Ok::<_, ShimClientError>(v1::ExecSyncResponse {
                stdout: out,
                stderr: err,
                exit_code,
            })
        };
        let outcome = match u64::try_from(request.timeout) {
            Ok(seconds) if seconds > 0 => tokio::time::timeout(Duration::from_secs(seconds), run)
                .await
                .map_err(|_| {
                    Status::deadline_exceeded(format!(
                        "failed to exec in container: timeout {seconds}s exceeded: command {:?} timed out",
                        request.cmd
                    ))
                })?,
            _ => run.await,
        };
        outcome.map_err(|error| unknown(format!("failed to exec in container: {error}")))
    }

    pub fn exec(&self, request: v1::ExecRequest) -> Result<String, Status> {
        streams_valid(request.tty, request.stdin, request.stdout, request.stderr)?;
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("cmd: required"));
        }
        self.running(&request.container_id)?;
        self.url(Work::Exec(request))
    }

    pub fn attach(&self, request: v1::AttachRequest) -> Result<String, Status> {
        streams_valid(request.tty, request.stdin, request.stdout, request.stderr)?;
        self.running(&request.container_id)?;
        self.url(Work::Attach(request))
    }

    pub fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, Status> {
        let sandbox = self.memory.sandbox(&request.pod_sandbox_id)?;
        if !sandbox.ready {
            return Err(unknown(format!(
                "sandbox container {:?} is not running",
                sandbox.id
            )));
        }
        self.url(Work::PortForward(request))
    }

    /// A one-time address at which the work waits.
    fn url(&self, work: Work) -> Result<String, Status> {
        let kind = work.kind();
        let token = self.tokens.issue(work).map_err(unknown)?;
        Ok(format!("{}/{kind}/{token}", self.streaming_url))
    }

    /// The network namespace to dial a sandbox's ports in; `None` is the host's.
    pub fn network_namespace(&self, sandbox_id: &str) -> Result<Option<std::path::PathBuf>, Status> {
        let sandbox = self.memory.sandbox(sandbox_id)?;
        let own = super::convert::namespace_options(&sandbox).network() != v1::NamespaceMode::Node;
        Ok(own.then(|| self.layout.namespace(&sandbox.id, "net")))
    }
}

fn streams_valid(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), Status> {
    if !stdin && !stdout && !stderr {
        return Err(Status::invalid_argument(
            "one of stdin, stdout, stderr must be set",
        ));
    }
    if tty && stderr {
        return Err(Status::invalid_argument("tty and stderr cannot both be true"));
    }
    Ok(())
}

/// A pipe whose reading end is this server's and whose writing end a program's.
pub fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((pipe::Receiver::from_owned_fd(reader)?, writer))
}

/// A pipe into a program.
pub fn input_pipe() -> io::Result<(pipe::Sender, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    Ok((pipe::Sender::from_owned_fd(writer)?, reader))
}

async fn collect(pipe: &mut pipe::Receiver, out: &mut Vec<u8>) {
    let mut buffer = vec![0u8; 32 * 1024];
    while let Ok(n) = pipe.read(&mut buffer).await {
        if n == 0 {
            return;
        }
        keep(&buffer[..n], out);
    }
}

fn drain(pipe: &pipe::Receiver, out: &mut Vec<u8>) {
    let mut buffer = vec![0u8; 32 * 1024];
    // `try_read` trusts tokio's last readiness; the descriptor itself knows better.
    while let Ok(n) = rustix::io::read(pipe, &mut buffer) {
        if n == 0 {
            return;
        }
        keep(&buffer[..n], out);
    }
}

fn keep(bytes: &[u8], out: &mut Vec<u8>) {
    let room = MAX_OUTPUT.saturating_sub(out.len()).min(bytes.len());
    out.extend_from_slice(&bytes[..room]);
}
