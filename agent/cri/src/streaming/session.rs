//! An exec or attach between a client (of whatever protocol) and a container.

use super::Work;
use crate::server::Runtime;
use crate::server::{input_pipe, output_pipe};
use crate::shim::client::{self, Exec};
use crate::shim::protocol::{ExecRequest, frame};
use bytes::Bytes;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

pub enum FromClient {
    Stdin(Bytes),
    StdinEnd,
    Resize { columns: u16, rows: u16 },
}

pub enum ToClient {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// Messages on the way; beyond that the faster side waits.
pub const QUEUE: usize = 32;

/// Runs the work; the value is the `Status` that ends every stream protocol.
pub async fn run(
    runtime: &Runtime,
    work: &Work,
    input: mpsc::Receiver<FromClient>,
    output: mpsc::Sender<ToClient>,
) -> Value {
    match work {
        Work::Exec(request) => match runtime.running(&request.container_id) {
            Ok((folder, container_id, _)) => {
                let order = ExecRequest {
                    container_id,
                    args: request.cmd.clone(),
                    tty: request.tty,
                    kill_on_close: false,
                };
                let ended = if request.tty {
                    exec_terminal(&folder, order, input, output).await
                } else {
                    exec_pipes(&folder, order, request.stdin, input, output).await
                };
                match ended {
                    Ok(0) => success(),
                    Ok(code) => non_zero(code),
                    Err(message) => internal(&format!("error executing command in container: {message}")),
                }
            }
            Err(status) => internal(status.message()),
        },
        Work::Attach(request) => match runtime.running(&request.container_id) {
            Ok((folder, id, _)) => match attach(&folder, &id, request.stdin, input, output).await {
                Ok(()) => success(),
                Err(message) => internal(&format!("error attaching to container: {message}")),
            },
            Err(status) => internal(status.message()),
        },
        Work::PortForward(_) => internal("not an exec or attach"),
    }
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

fn non_zero(code: i32) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn internal(message: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {message}"),
        "details": {"causes": [{"message": message}]},
    })
}

async fn exec_pipes(
    folder: &Path,
    order: ExecRequest,
    stdin: bool,
    mut input: mpsc::Receiver<FromClient>,
    output: mpsc::Sender<ToClient>,
) -> Result<i32, String> {
    let text = |error: io::Error| error.to_string();
    let (stdout, stdout_writer) = output_pipe().map_err(text)?;
    let (stderr, stderr_writer) = output_pipe().map_err(text)?;
    let (writer, stdin_reader) = if stdin {
        let (writer, reader) = input_pipe().map_err(text)?;
        (Some(writer), reader)
    } else {
        (None, OwnedFd::from(File::open("/dev/null").map_err(text)?))
    };
    let descriptors = vec![stdin_reader, stdout_writer, stderr_writer];
    let mut exec = Exec::start(folder, order, descriptors)
        .await
        .map_err(|error| error.to_string())?;
    let feed = async {
        let mut writer = writer;
        while let Some(message) = input.recv().await {
            match message {
                FromClient::Stdin(bytes) => {
                    if let Some(pipe) = &mut writer
                        && pipe.write_all(&bytes).await.is_err()
                    {
                        writer = None;
                    }
                }
                FromClient::StdinEnd => writer = None,
                FromClient::Resize { .. } => {}
            }
        }
    };
    let code = {
        let forward = async {
            let (out, err) = (output.clone(), output.clone());
            tokio::join!(
                pump(&stdout, &out, ToClient::Stdout),
                pump(&stderr, &err, ToClient::Stderr)
            );
        };
        until_exit(&mut exec, feed, forward).await?
    };
    drain(&stdout, &output, ToClient::Stdout).await;
    drain(&stderr, &output, ToClient::Stderr).await;
    Ok(code)
}

async fn exec_terminal(
    folder: &Path,
    order: ExecRequest,
    mut input: mpsc::Receiver<FromClient>,
    output: mpsc::Sender<ToClient>,
) -> Result<i32, String> {
    let text = |error: io::Error| error.to_string();
    let (ours, theirs) = UnixStream::pair().map_err(text)?;
    let mut exec = Exec::start(folder, order, vec![theirs.into()])
        .await
        .map_err(|error| error.to_string())?;
    let master = receive_descriptor(&ours).map_err(text)?;
    rustix::io::ioctl_fionbio(&master, true).map_err(|error| error.to_string())?;
    let keep = master.try_clone().map_err(text)?;
    let reader =
        pipe::Receiver::from_file_unchecked(File::from(master.try_clone().map_err(text)?)).map_err(text)?;
    let mut writer = pipe::Sender::from_file_unchecked(File::from(master)).map_err(text)?;
    let feed = async {
        while let Some(message) = input.recv().await {
            match message {
                FromClient::Stdin(bytes) => {
                    if writer.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                FromClient::Resize { columns, rows } => {
                    let size = rustix::termios::Winsize {
                        ws_row: rows,
                        ws_col: columns,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    let _ = rustix::termios::tcsetwinsize(&keep, size);
                }
                FromClient::StdinEnd => {}
            }
        }
    };
    let code = until_exit(&mut exec, feed, pump(&reader, &output, ToClient::Stdout)).await?;
    drain(&reader, &output, ToClient::Stdout).await;
    Ok(code)
}

/// Feeds and forwards until the program has ended; a client that left does not end it.
async fn until_exit(
    exec: &mut Exec,
    feed: impl Future<Output = ()>,
    forward: impl Future<Output = ()>,
) -> Result<i32, String> {
    let streams = async {
        tokio::join!(feed, forward);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        code = exec.wait() => code.map_err(|error| error.to_string()),
        () = streams => Err("streams ended".into()),
    }
}

async fn pump(pipe: &pipe::Receiver, output: &mpsc::Sender<ToClient>, wrap: fn(Bytes) -> ToClient) {
    let mut buffer = vec![0u8; 32 * 1024];
    loop {
        if pipe.readable().await.is_err() {
            return;
        }
        match pipe.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                if output
                    .send(wrap(Bytes::copy_from_slice(&buffer[..n])))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // A terminal whose program is gone says EIO.
            Err(_) => return,
        }
    }
}

/// What was written before the exit, without waiting for children that hold the pipe.
async fn drain(pipe: &pipe::Receiver, output: &mpsc::Sender<ToClient>, wrap: fn(Bytes) -> ToClient) {
    let mut buffer = vec![0u8; 32 * 1024];
    while let Ok(n) = rustix::io::read(pipe, &mut buffer) {
        if n == 0
            || output
                .send(wrap(Bytes::copy_from_slice(&buffer[..n])))
                .await
                .is_err()
        {
            return;
        }
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut buffer = [0u8; 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, flags)?;
    control
        .drain()
        .find_map(|item| match item {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("no terminal was sent"))
}

async fn attach(
    folder: &Path,
    container_id: &str,
    stdin: bool,
    mut input: mpsc::Receiver<FromClient>,
    output: mpsc::Sender<ToClient>,
) -> Result<(), String> {
    let stream = client::attach(folder, container_id, stdin)
        .await
        .map_err(|error| error.to_string())?;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let feed = async {
        while let Some(message) = input.recv().await {
            let mut bytes = Vec::new();
            match message {
                FromClient::Stdin(data) => frame::encode(frame::STDIN, &data, &mut bytes),
                FromClient::StdinEnd => frame::encode(frame::CLOSE_STDIN, &[], &mut bytes),
                FromClient::Resize { columns, rows } => {
                    let size = [columns.to_be_bytes(), rows.to_be_bytes()].concat();
                    frame::encode(frame::RESIZE, &size, &mut bytes);
                }
            }
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    };
    let forward = async {
        let mut buffer = Vec::new();
        loop {
            while let Some((kind, bytes)) = frame::decode(&mut buffer).map_err(str::to_owned)? {
                let message = match kind {
                    frame::STDOUT => ToClient::Stdout(bytes.into()),
                    frame::STDERR => ToClient::Stderr(bytes.into()),
                    _ => continue,
                };
                if output.send(message).await.is_err() {
                    return Ok(());
                }
            }
            match reader.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => {}
            }
        }
    };
    // The client's leaving ends an attach; the end of its input alone does not.
    tokio::select! {
        ended = forward => ended,
        () = async { feed.await; output.closed().await } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_told_with_its_code() {
        let status = non_zero(3);
        assert_eq!(status["details"]["causes"][0]["message"], "3");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["message"],
            "command terminated with non-zero exit code: exit status 3"
        );
    }
}
