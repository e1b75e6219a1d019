//! Starts containers and commands: orders to helpers, and what becomes of them.

use super::cgroup;
use super::connection::Connection;
use super::container::Container;
use super::log::Log;
use super::protocol::{ExecRequest, Reply, Request, StartRequest};
use super::spawn::{self, Helper};
use super::supervise::{Role, Supervisor, failed, kill_exec};
use crate::helper::HelperResult;
use crate::state::{ProcessRecord, now_nanos};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;

impl Supervisor {
    pub(super) fn start(&mut self, id: u64, request: StartRequest) {
        if self.containers.contains_key(&request.container_id) {
            return self.answer(id, &failed("the container runs already".into(), 0));
        }
        let log = match Log::open(request.log_path.clone()) {
            Ok(log) => log,
            Err(error) => {
                let message = format!(
                    "open the log {:?}: {error}",
                    request.log_path.clone().unwrap_or_default()
                );
                return self.fail_start(id, &request, message, 128);
            }
        };
        match spawn::start(&request, id) {
            Ok((helper, pipes)) => {
                let mut container = Container::new(request.clone(), log);
                (container.stdin, container.stdout, container.stderr) =
                    (pipes.stdin, pipes.stdout, pipes.stderr);
                self.containers.insert(request.container_id.clone(), container);
                self.helpers.push(helper);
            }
            Err(error) => self.fail_start(id, &request, format!("start the container helper: {error}"), 128),
        }
    }

    fn fail_start(&mut self, id: u64, request: &StartRequest, message: String, exit_code: i32) {
        let now = now_nanos();
        let process = ProcessRecord {
            started_at: now,
            finished_at: now,
            exit_code,
            start_error: Some(message.clone()),
            ..Default::default()
        };
        self.save(request, &process);
        self.tell_began(&request.container_id, &process);
        self.answer(id, &failed(message, exit_code));
    }

    pub(super) fn exec(&mut self, id: u64, request: ExecRequest) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let descriptors: Vec<OwnedFd> = client.connection.descriptors.drain(..).collect();
        client.role = Role::Exec {
            pid: None,
            kill_on_close: request.kill_on_close,
        };
        let running = self
            .containers
            .get(&request.container_id)
            .filter(|container| container.process.pid != 0);
        let Some(container) = running else {
            return self.answer(
                id,
                &failed(format!("container {} is not running", request.container_id), 0),
            );
        };
        if descriptors.len() != if request.tty { 1 } else { 3 } {
            return self.answer(id, &failed("exec: wrong number of descriptors".into(), 0));
        }
        match spawn::exec(&request, container, descriptors, id) {
            Ok(helper) => self.helpers.push(helper),
            Err(error) => self.answer(id, &failed(format!("start the container helper: {error}"), 126)),
        }
    }

    pub(super) fn hear_helper(&mut self, index: usize) {
        let helper = &mut self.helpers[index];
        let mut buffer = [0u8; 4096];
        loop {
            match rustix::io::read(&helper.result, &mut buffer) {
                Ok(0) => break,
                Ok(n) => helper.answer.extend_from_slice(&buffer[..n]),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        let helper = self.helpers.remove(index);
        match helper.purpose.clone() {
            Request::Start(request) => self.started(helper, &request),
            Request::Exec(_) => self.exec_started(&helper),
            _ => {}
        }
        if self.helpers.is_empty() {
            self.early.clear();
        }
    }

    fn started(&mut self, helper: Helper, request: &StartRequest) {
        let Some(container) = self.containers.get_mut(&request.container_id) else {
            return;
        };
        let outcome = match helper.outcome() {
            HelperResult::Running { pid } if request.tty => match receive_terminal(&helper) {
                Ok(master) => container
                    .set_terminal(master)
                    .map(|()| pid)
                    .map_err(|e| (format!("terminal: {e}"), 128)),
                Err(error) => Err((format!("terminal: {error}"), 128)),
            },
            HelperResult::Running { pid } => Ok(pid),
            HelperResult::Failed { message, exit_code } => Err((message, exit_code)),
        };
        let _ = std::fs::remove_file(request.bundle.join(spawn::CONSOLE_SOCKET));
        match outcome {
            Ok(pid) => {
                container.process = ProcessRecord {
                    pid,
                    started_at: now_nanos(),
                    ..Default::default()
                };
                let process = container.process.clone();
                self.save(request, &process);
                self.tell_began(&request.container_id, &process);
                self.answer(helper.connection, &Reply::Started { process });
                if let Some(code) = self.early.remove(&pid) {
                    self.exited(&request.container_id, code);
                }
            }
            Err((message, exit_code)) => {
                self.containers.remove(&request.container_id);
                cgroup::kill(&request.cgroup);
                self.remove_cgroup(&request.cgroup);
                self.fail_start(helper.connection, request, message, exit_code);
            }
        }
    }

    fn exec_started(&mut self, helper: &Helper) {
        match helper.outcome() {
            HelperResult::Failed { message, exit_code } => {
                self.answer(helper.connection, &failed(message, exit_code))
            }
            HelperResult::Running { pid } => {
                let ended = self.early.remove(&pid);
                match self.clients.get_mut(&helper.connection) {
                    Some(client) => {
                        client.role = match client.role {
                            Role::Exec { kill_on_close, .. } => Role::Exec {
                                pid: Some(pid),
                                kill_on_close,
                            },
                            _ => return,
                        };
                        client.connection.send_line(&Reply::Running);
                        if let Some(exit_code) = ended {
                            self.answer(helper.connection, &Reply::Ended { exit_code });
                        }
                    }
                    // Nobody waits any more: what nobody can stop must not go on.
                    None => kill_exec(pid),
                }
            }
        }
    }
}

/// The terminal that libcontainer has sent to the console socket while it made the container.
fn receive_terminal(helper: &Helper) -> io::Result<OwnedFd> {
    let listener = helper
        .console
        .as_ref()
        .ok_or_else(|| io::Error::other("no console socket"))?;
    let (stream, _) = listener.accept()?;
    let mut connection = Connection::new(stream)?;
    connection.receive();
    connection
        .descriptors
        .pop()
        .ok_or_else(|| io::Error::other("no terminal was sent"))
}
