//! Starts helpers: the own binary again, single-threaded, with a container's stdio.

use super::protocol::{ExecRequest, Request, StartRequest};
use crate::helper::{ExecOrder, HelperResult, StartOrder};
use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

/// A helper at work: its answer comes through the pipe, its death through SIGCHLD.
pub struct Helper {
    pub result: OwnedFd,
    pub answer: Vec<u8>,
    pub purpose: Request,
    pub connection: u64,
    /// A new container's terminal comes in here.
    pub console: Option<UnixListener>,
}

impl Helper {
    /// What the helper said; its silence is an error too.
    pub fn outcome(&self) -> HelperResult {
        serde_json::from_slice(&self.answer).unwrap_or_else(|_| HelperResult::Failed {
            message: "the container helper died without an answer".into(),
            exit_code: 128,
        })
    }
}

pub const CONSOLE_SOCKET: &str = "console.sock";

/// The shim's ends of a container's pipes.
#[derive(Default)]
pub struct Pipes {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

pub fn start(request: &StartRequest, connection: u64) -> io::Result<(Helper, Pipes)> {
    let mut pipes = Pipes::default();
    let mut stdio = [Stdio::null(), Stdio::null(), Stdio::null()];
    let mut console = None;
    if request.tty {
        let path = request.bundle.join(CONSOLE_SOCKET);
        let _ = std::fs::remove_file(&path);
        let folder = std::fs::File::open(&request.bundle)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{CONSOLE_SOCKET}", folder.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        console = Some(listener);
    } else if !request.pause {
        let mut outputs = Vec::new();
        for slot in &mut stdio[1..] {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            own(&writer, request.uid)?;
            rustix::io::ioctl_fionbio(&reader, true)?;
            outputs.push(reader);
            *slot = writer.into();
        }
        pipes.stderr = outputs.pop();
        pipes.stdout = outputs.pop();
        if request.stdin {
            let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            own(&reader, request.uid)?;
            rustix::io::ioctl_fionbio(&writer, true)?;
            stdio[0] = reader.into();
            pipes.stdin = Some(writer);
        }
    }
    let order = StartOrder {
        request: request.clone(),
    };
    let result = run("start", &order, stdio, None)?;
    let helper = Helper {
        result,
        answer: Vec::new(),
        purpose: Request::Start(request.clone()),
        connection,
        console,
    };
    Ok((helper, pipes))
}

pub fn exec(
    request: &ExecRequest,
    target: &super::container::Container,
    descriptors: Vec<OwnedFd>,
    connection: u64,
) -> io::Result<Helper> {
    let order = ExecOrder {
        pid: target.process.pid,
        bundle: target.request.bundle.clone(),
        cgroup: target.request.cgroup.clone(),
        args: request.args.clone(),
        tty: request.tty,
    };
    let mut stdio = [Stdio::null(), Stdio::null(), Stdio::null()];
    let mut console = None;
    if request.tty {
        console = descriptors.into_iter().next();
    } else {
        for (slot, descriptor) in stdio.iter_mut().zip(descriptors) {
            own(&descriptor, target.request.uid)?;
            *slot = descriptor.into();
        }
    }
    let result = run("exec", &order, stdio, console)?;
    Ok(Helper {
        result,
        answer: Vec::new(),
        purpose: Request::Exec(request.clone()),
        connection,
        console: None,
    })
}

/// Lets the container's user reopen `/dev/stdout` and the like.
fn own(descriptor: &OwnedFd, uid: u32) -> io::Result<()> {
    Ok(rustix::fs::fchown(
        descriptor,
        Some(rustix::fs::Uid::from_raw(uid)),
        None,
    )?)
}

/// Runs `cri-helper KIND ORDER RESULT [CONSOLE]`, the last three being inherited descriptors.
fn run(
    kind: &str,
    order: &impl serde::Serialize,
    [stdin, stdout, stderr]: [Stdio; 3],
    console: Option<OwnedFd>,
) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(rustix::fs::memfd_create("order", MemfdFlags::empty())?);
    file.write_all(&serde_json::to_vec(order).map_err(io::Error::other)?)?;
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    let (result, writer) = rustix::pipe::pipe_with(PipeFlags::empty())?;
    rustix::io::fcntl_setfd(&result, FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&result, true)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("cri-helper")
        .arg(kind)
        .arg(file.as_raw_fd().to_string())
        .arg(writer.as_raw_fd().to_string());
    if let Some(console) = &console {
        rustix::io::fcntl_setfd(console, FdFlags::empty())?;
        command.arg(console.as_raw_fd().to_string());
    }
    let child = command
        .env_clear()
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .spawn()?;
    // Its end is seen by the shim's one reaper, not through this handle.
    drop(child);
    Ok(result)
}
