//! Runs one more process in a running container: joins its namespaces and cgroup, takes on its limits.
//!
//! libcontainer's own way in drops the seccomp filter, so this goes by hand with its parts.

use super::{ExecOrder, Failure, program};
use crate::sys::{Fork, close_on_exec_from, fork};
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::{capabilities, seccomp};
use nix::sched::CloneFlags;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::FdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags};
use rustix::pty::OpenptFlags;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

/// The code for "found but could not be run".
const CANNOT_RUN: i32 = 126;

fn at<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> Failure {
    move |error| Failure::new(format!("exec: {what}: {error}"), CANNOT_RUN)
}

pub fn exec(order: &ExecOrder, console: Option<OwnedFd>) -> Result<i32, Failure> {
    let spec = Spec::load(order.bundle.join("config.json")).map_err(at("load the container's spec"))?;
    let process = spec
        .process()
        .clone()
        .ok_or_else(|| Failure::new("exec: the spec has no process", CANNOT_RUN))?;
    let filter = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    // Nothing in the container may look into this process while it is half inside.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(at("prctl"))?;
    let target =
        Pid::from_raw(order.pid).ok_or_else(|| Failure::new("exec: the container has ended", CANNOT_RUN))?;
    let target =
        rustix::process::pidfd_open(target, PidfdFlags::empty()).map_err(at("the container has ended"))?;
    std::fs::write(order.cgroup.join("cgroup.procs"), "0").map_err(at("join the container's cgroup"))?;
    if let Some(score) = process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(at("set oom_score_adj"))?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::setns(&target, namespaces).map_err(at("join the container's namespaces"))?;
    let terminal = if order.tty {
        Some(open_terminal(console)?)
    } else {
        None
    };
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(at("pipe"))?;
    match fork().map_err(at("fork"))? {
        Fork::Parent(pid) => {
            drop(writer);
            let mut text = String::new();
            File::from(reader)
                .read_to_string(&mut text)
                .map_err(at("wait for the program"))?;
            match text.split_once(' ') {
                // The pipe closed with the exec: the program runs.
                None => Ok(pid),
                Some((code, message)) => Err(Failure::new(message, code.parse().unwrap_or(CANNOT_RUN))),
            }
        }
        Fork::Child => {
            let Err(failure) = become_program(order, &process, filter.as_ref(), terminal);
            let _ =
                File::from(writer).write_all(format!("{} {}", failure.exit_code, failure.message).as_bytes());
            std::process::exit(failure.exit_code);
        }
    }
}

/// A new terminal of the container's own devpts; its master goes to the server.
fn open_terminal(console: Option<OwnedFd>) -> Result<OwnedFd, Failure> {
    let console = console.ok_or_else(|| Failure::new("exec: no console socket", CANNOT_RUN))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).map_err(at("open /dev/pts/ptmx"))?;
    rustix::pty::unlockpt(&master).map_err(at("unlock the terminal"))?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(at("open the terminal"))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [master.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(&console, &[IoSlice::new(b"t")], &mut control, SendFlags::NOSIGNAL)
        .map_err(at("send the terminal"))?;
    Ok(slave)
}

/// Takes on the container's identity step by step, the filter as late as its privileges allow, and runs.
fn become_program(
    order: &ExecOrder,
    process: &Process,
    filter: Option<&LinuxSeccomp>,
    terminal: Option<OwnedFd>,
) -> Result<std::convert::Infallible, Failure> {
    rustix::process::setsid().map_err(at("setsid"))?;
    if let Some(terminal) = terminal {
        rustix::process::ioctl_tiocsctty(&terminal).map_err(at("take the terminal"))?;
        let owner = Some(Uid::from_raw(process.user().uid()));
        rustix::fs::fchown(&terminal, owner, None::<Gid>).map_err(at("own the terminal"))?;
        rustix::stdio::dup2_stdin(&terminal).map_err(at("terminal"))?;
        rustix::stdio::dup2_stdout(&terminal).map_err(at("terminal"))?;
        rustix::stdio::dup2_stderr(&terminal).map_err(at("terminal"))?;
    }
    for descriptor in [io::stdin().as_fd(), io::stdout().as_fd(), io::stderr().as_fd()] {
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).map_err(at("keep the streams"))?;
    }
    std::env::set_current_dir(process.cwd()).map_err(at("chdir to cwd"))?;
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(at("no_new_privs"))?;
    }
    let environment: Vec<String> = process.env().clone().unwrap_or_default();
    let name = order
        .args
        .first()
        .ok_or_else(|| Failure::new("exec: no command", CANNOT_RUN))?;
    let groups: Vec<Gid> = process
        .user()
        .additional_gids()
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).map_err(at("set groups"))?;
    rustix::thread::set_keep_capabilities(true).map_err(at("keep capabilities"))?;
    let (uid, gid) = (
        Uid::from_raw(process.user().uid()),
        Gid::from_raw(process.user().gid()),
    );
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at("set the group"))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at("set the user"))?;
    rustix::thread::set_keep_capabilities(false).map_err(at("keep capabilities"))?;
    let syscall = create_syscall();
    capabilities::reset_effective(&*syscall).map_err(at("take capabilities"))?;
    close_on_exec_from(3).map_err(at("close_range"))?;
    // Loading a filter takes a capability unless no_new_privs is set, as in libcontainer's start.
    let load = || {
        filter
            .map_or(Ok(None), seccomp::initialize_seccomp)
            .map_err(at("seccomp"))
    };
    if !no_new_privileges {
        load()?;
    }
    if let Some(wanted) = process.capabilities() {
        capabilities::drop_privileges(wanted, &*syscall).map_err(at("drop capabilities"))?;
    }
    let found = program::find(name, program::path_of(&environment), process.cwd())?;
    if no_new_privileges {
        load()?;
    }
    let text = |text: &str| CString::new(text).map_err(at("argument"));
    let args = order
        .args
        .iter()
        .map(|arg| text(arg))
        .collect::<Result<Vec<_>, _>>()?;
    let environment = environment
        .iter()
        .map(|entry| text(entry))
        .collect::<Result<Vec<_>, _>>()?;
    let path = CString::new(found.into_os_string().into_encoded_bytes()).map_err(at("program"))?;
    nix::unistd::execve(&path, &args, &environment).map_err(|error| {
        Failure::new(
            format!("exec: {name:?}: {}", error.desc().to_lowercase()),
            CANNOT_RUN,
        )
    })
}
