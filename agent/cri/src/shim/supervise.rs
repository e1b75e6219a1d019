//! The shim's loop: one thread, one poll, over sockets, pipes and dead children.

use super::connection::Connection;
use super::container::Container;
use super::log::Stream;
use super::protocol::{Reply, Request, StartRequest, frame};
use super::spawn::Helper;
use super::{ShimError, cgroup};
use crate::state::layout::PROCESS_RECORD;
use crate::state::{self, ProcessRecord, now_nanos};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::net::UnixListener;

pub(super) enum Role {
    Command,
    Subscriber,
    Attached { container: String, stdin: bool },
    Exec { pid: Option<i32>, kill_on_close: bool },
}

pub(super) struct Client {
    pub(super) connection: Connection,
    pub(super) role: Role,
}

pub struct Supervisor {
    sandbox_id: String,
    listener: UnixListener,
    children: SignalFd,
    pub(super) clients: BTreeMap<u64, Client>,
    next_client: u64,
    pub(super) containers: BTreeMap<String, Container>,
    pub(super) helpers: Vec<Helper>,
    /// Children that died before their helper had named them.
    pub(super) early: HashMap<i32, i32>,
    /// Cgroups that still had dying processes.
    leftover: Vec<std::path::PathBuf>,
    over: bool,
}

/// What a ready descriptor stands for.
enum Source {
    Listener,
    Children,
    Client(u64),
    Output(String, Stream),
    Stdin(String),
    Helper(usize),
}

impl Supervisor {
    pub fn new(sandbox_id: String, listener: UnixListener) -> Result<Self, ShimError> {
        let system = |operation| {
            move |source: nix::Error| ShimError::System {
                operation,
                source: source.into(),
            }
        };
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        // The server's stop must not end the pod: only `Shutdown` does.
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGHUP);
        signals.thread_block().map_err(system("block signals"))?;
        let children = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(system("signalfd"))?;
        Ok(Self {
            sandbox_id,
            listener,
            children,
            clients: BTreeMap::new(),
            next_client: 0,
            containers: BTreeMap::new(),
            helpers: Vec::new(),
            early: HashMap::new(),
            leftover: Vec::new(),
            over: false,
        })
    }

    pub fn run(mut self) -> Result<(), ShimError> {
        while !self.over {
            for source in self.wait()? {
                self.serve(source);
            }
            self.sweep();
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Vec<Source>, ShimError> {
        let mut sources = vec![Source::Listener, Source::Children];
        let mut polled = vec![
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.children, PollFlags::IN),
        ];
        for (id, client) in &self.clients {
            let blocked = matches!(&client.role, Role::Attached { container, .. }
                if self.containers.get(container).is_some_and(|c| !c.accepts_stdin()));
            let mut flags = if blocked {
                PollFlags::empty()
            } else {
                PollFlags::IN
            };
            if client.connection.wants_to_write() {
                flags |= PollFlags::OUT;
            }
            sources.push(Source::Client(*id));
            polled.push(PollFd::new(&client.connection.stream, flags));
        }
        for (id, container) in &self.containers {
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let Some(descriptor) = container.output(stream) {
                    sources.push(Source::Output(id.clone(), stream));
                    polled.push(PollFd::from_borrowed_fd(descriptor, PollFlags::IN));
                }
            }
            if let Some(descriptor) = container.stdin_waits() {
                sources.push(Source::Stdin(id.clone()));
                polled.push(PollFd::from_borrowed_fd(descriptor, PollFlags::OUT));
            }
        }
        for (index, helper) in self.helpers.iter().enumerate() {
            sources.push(Source::Helper(index));
            polled.push(PollFd::new(&helper.result, PollFlags::IN));
        }
        let soon = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 10_000_000,
        };
        let timeout = (!self.leftover.is_empty()).then_some(&soon);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                return Err(ShimError::System {
                    operation: "poll",
                    source: error.into(),
                });
            }
        }
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        // Helpers from the last to the first, so that removing one leaves the others' places.
        let (mut helpers, mut others): (Vec<_>, Vec<_>) = sources
            .into_iter()
            .zip(ready)
            .filter_map(|(source, ready)| ready.then_some(source))
            .partition(|source| matches!(source, Source::Helper(_)));
        helpers.reverse();
        others.splice(0..0, helpers);
        Ok(others)
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Listener => self.accept(),
            Source::Children => self.reap(),
            Source::Client(id) => self.serve_client(id),
            Source::Output(id, stream) => self.forward(&id, stream),
            Source::Stdin(id) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.flush_stdin();
                }
            }
            Source::Helper(index) => self.hear_helper(index),
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if let Ok(connection) = Connection::new(stream) {
                self.clients.insert(
                    self.next_client,
                    Client {
                        connection,
                        role: Role::Command,
                    },
                );
                self.next_client += 1;
            }
        }
    }

    fn serve_client(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.connection.flush();
        client.connection.receive();
        match &client.role {
            Role::Command => {
                if let Some(line) = client.connection.line() {
                    match serde_json::from_slice(&line) {
                        Ok(request) => self.perform(id, request),
                        Err(error) => self.answer(id, &failed(format!("request: {error}"), 0)),
                    }
                }
            }
            Role::Attached { container, stdin } => {
                let (container, stdin) = (container.clone(), *stdin);
                self.take_frames(id, &container, stdin);
            }
            Role::Subscriber | Role::Exec { .. } => {}
        }
    }

    fn take_frames(&mut self, id: u64, container: &str, stdin: bool) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let Some(container) = self.containers.get_mut(container) else {
            return;
        };
        loop {
            match frame::decode(&mut client.connection.input) {
                Ok(Some((frame::STDIN, bytes))) if stdin => container.write_stdin(&bytes),
                Ok(Some((frame::CLOSE_STDIN, _))) if stdin && container.request.stdin_once => {
                    container.finish_stdin()
                }
                Ok(Some((frame::RESIZE, bytes))) => container.resize(&bytes),
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => {
                    client.connection.closed = true;
                    return;
                }
            }
        }
    }

    fn perform(&mut self, id: u64, request: Request) {
        match request {
            Request::Start(request) => self.start(id, request),
            Request::Exec(request) => self.exec(id, request),
            Request::Attach { container_id, stdin } => self.attach(id, container_id, stdin),
            Request::Kill { container_id, signal } => {
                let reply = self.kill(&container_id, signal);
                self.answer(id, &reply);
            }
            Request::ReopenLog { container_id } => {
                let reply = match self
                    .containers
                    .get_mut(&container_id)
                    .map(|container| container.log.reopen())
                {
                    Some(Ok(())) => Reply::Done,
                    Some(Err(error)) => failed(format!("reopen the log: {error}"), 0),
                    None => failed(format!("container {container_id} is not running"), 0),
                };
                self.answer(id, &reply);
            }
            Request::Subscribe => {
                if let Some(client) = self.clients.get_mut(&id) {
                    client.role = Role::Subscriber;
                    client.connection.send_line(&Reply::Done);
                }
            }
            Request::Shutdown => {
                let idle = self.containers.is_empty() && self.helpers.is_empty() && self.leftover.is_empty();
                let reply = if idle {
                    Reply::Done
                } else {
                    failed("a container is running".into(), 0)
                };
                self.answer(id, &reply);
                self.over = idle;
            }
        }
    }

    pub(super) fn answer(&mut self, id: u64, reply: &Reply) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.connection.send_line(reply);
            client.connection.finished = true;
        }
    }

    pub(super) fn save(&self, request: &StartRequest, process: &ProcessRecord) {
        if let Err(error) = state::save(&request.bundle.join(PROCESS_RECORD), process) {
            tracing::error!(container = request.container_id, %error, "cannot record a process");
        }
    }

    fn attach(&mut self, id: u64, container: String, stdin: bool) {
        if self
            .containers
            .get(&container)
            .is_none_or(|container| container.process.pid == 0)
        {
            return self.answer(id, &failed(format!("container {container} is not running"), 0));
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.connection.send_line(&Reply::Done);
            client.role = Role::Attached {
                container: container.clone(),
                stdin,
            };
            self.take_frames(id, &container, stdin);
        }
    }

    fn kill(&self, container: &str, signal: i32) -> Reply {
        // The process is this shim's own unreaped child: its number cannot have been given away.
        let pid = self
            .containers
            .get(container)
            .map(|container| container.process.pid)
            .filter(|pid| *pid != 0);
        let Some(pid) = pid else {
            return failed(format!("container {container} is not running"), 0);
        };
        let raw = nix::libc::c_int::from(signal);
        let sent = Signal::try_from(raw).map_err(io::Error::from).and_then(|signal| {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).map_err(io::Error::from)
        });
        match sent {
            Ok(()) => Reply::Done,
            Err(error) => failed(format!("signal {signal}: {error}"), 0),
        }
    }

    fn forward(&mut self, id: &str, stream: Stream) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let bytes = container.read(stream);
        if bytes.is_empty() {
            return;
        }
        let kind = if stream == Stream::Stdout {
            frame::STDOUT
        } else {
            frame::STDERR
        };
        let mut encoded = Vec::with_capacity(bytes.len() + frame::HEADER);
        frame::encode(kind, &bytes, &mut encoded);
        for client in self.clients.values_mut() {
            if matches!(&client.role, Role::Attached { container, .. } if container == id) {
                client.connection.send(&encoded);
            }
        }
    }

    /// Reaps every dead child; the exit of a container's first process ends the container.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => return,
                Ok(_) | Err(nix::Error::EINTR) => continue,
                Err(error) => return tracing::error!(%error, "waitpid"),
            };
            let container = self
                .containers
                .iter()
                .find(|(_, c)| c.process.pid == pid)
                .map(|(id, _)| id.clone());
            let exec = self
                .clients
                .iter()
                .find(|(_, client)| matches!(client.role, Role::Exec { pid: Some(p), .. } if p == pid));
            match (container, exec.map(|(id, _)| *id)) {
                (Some(id), _) => self.exited(&id, code),
                (None, Some(id)) => self.answer(id, &Reply::Ended { exit_code: code }),
                (None, None) if !self.helpers.is_empty() => drop(self.early.insert(pid, code)),
                (None, None) => {}
            }
        }
    }

    /// What was written before the exit is in the pipes: into the log with it, then the exit is told.
    pub(super) fn exited(&mut self, id: &str, exit_code: i32) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            while self
                .containers
                .get(id)
                .is_some_and(|container| readable(container, stream))
            {
                self.forward(id, stream);
            }
        }
        let Some(mut container) = self.containers.remove(id) else {
            return;
        };
        container.log.finish();
        let cgroup = container.request.cgroup.clone();
        if !container.request.own_pid_namespace {
            cgroup::kill(&cgroup);
        }
        container.process.finished_at = now_nanos();
        container.process.exit_code = exit_code;
        container.process.oom_killed = cgroup::oom_killed(&cgroup);
        self.save(&container.request, &container.process);
        self.remove_cgroup(&cgroup);
        let told = Reply::Exited {
            container_id: id.to_owned(),
            process: container.process,
        };
        for client in self.clients.values_mut() {
            match &client.role {
                Role::Subscriber => client.connection.send_line(&told),
                Role::Attached { container, .. } if container == id => client.connection.finished = true,
                _ => {}
            }
        }
    }

    pub(super) fn tell_began(&mut self, container_id: &str, process: &ProcessRecord) {
        let told = Reply::Began {
            container_id: container_id.to_owned(),
            process: process.clone(),
        };
        for client in self
            .clients
            .values_mut()
            .filter(|client| matches!(client.role, Role::Subscriber))
        {
            client.connection.send_line(&told);
        }
    }

    pub(super) fn remove_cgroup(&mut self, cgroup: &std::path::Path) {
        match cgroup::remove(cgroup) {
            Ok(true) => {}
            Ok(false) => self.leftover.push(cgroup.to_path_buf()),
            Err(error) => tracing::warn!(cgroup = %cgroup.display(), %error, "cannot remove a cgroup"),
        }
    }

    /// Drops connections that are over, and cgroups whose last process has died.
    fn sweep(&mut self) {
        let over: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| c.connection.is_over())
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            let Some(client) = self.clients.remove(&id) else {
                continue;
            };
            match client.role {
                Role::Exec {
                    pid: Some(pid),
                    kill_on_close: true,
                } if !client.connection.finished => kill_exec(pid),
                Role::Attached {
                    container,
                    stdin: true,
                } => {
                    if let Some(container) = self
                        .containers
                        .get_mut(&container)
                        .filter(|c| c.request.stdin_once)
                    {
                        container.finish_stdin();
                    }
                }
                _ => {}
            }
        }
        let leftover = std::mem::take(&mut self.leftover);
        for cgroup in leftover {
            self.remove_cgroup(&cgroup);
        }
        if self.over {
            tracing::debug!(sandbox = self.sandbox_id, "the shim has nothing left to keep");
        }
    }
}

pub(super) fn failed(message: String, exit_code: i32) -> Reply {
    Reply::Failed { message, exit_code }
}

pub(super) fn kill_exec(pid: i32) {
    if let Err(error) = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL) {
        tracing::warn!(pid, %error, "cannot end an exec");
    }
}

fn readable(container: &Container, stream: Stream) -> bool {
    let Some(descriptor) = container.output(stream) else {
        return false;
    };
    let mut polled = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}
