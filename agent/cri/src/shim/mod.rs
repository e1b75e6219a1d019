//! One process a pod: owns its containers' streams, logs and exit codes, whatever becomes of the server.

mod cgroup;
pub mod client;
mod connection;
mod container;
mod launch;
pub mod log;
pub mod protocol;
mod spawn;
mod supervise;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

pub use cgroup::remove as remove_cgroup;
pub use cgroup::{kill as kill_cgroup, oom_killed};

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("usage: cri-shim SANDBOX-ID, with the listening socket as standard input")]
    Usage,
    #[error("{operation}: {source}")]
    System {
        operation: &'static str,
        source: io::Error,
    },
}

/// Where shims live among cgroups: out of the server's, which may be killed as a whole.
const SHIM_CGROUP: &str = "/sys/fs/cgroup/ironlet-shims";
/// The kernel should kill everything else before the keeper of exit codes.
const OOM_SCORE: &str = "-998";

/// `cri-shim SANDBOX-ID`
pub fn main(args: &[String]) -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::WARN)
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the shim ends");
            eprintln!("cri-shim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<(), ShimError> {
    let [sandbox_id] = args else {
        return Err(ShimError::Usage);
    };
    let system = |operation| move |source: io::Error| ShimError::System { operation, source };
    let listener = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(system("take the socket"))?;
    let listener = UnixListener::from(listener);
    listener
        .set_nonblocking(true)
        .map_err(system("take the socket"))?;
    let null = std::fs::File::open("/dev/null").map_err(system("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| system("close standard input")(e.into()))?;
    // A session of its own: signals to the server's group do not reach it.
    rustix::process::setsid().map_err(|e| system("setsid")(e.into()))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| system("become the reaper of orphans")(e.into()))?;
    std::env::set_current_dir("/").map_err(system("chdir /"))?;
    leave_servers_cgroup();
    supervise::Supervisor::new(sandbox_id.clone(), listener)?.run()
}

/// Best effort: without cgroup v2 there is nothing to leave.
fn leave_servers_cgroup() {
    let folder = Path::new(SHIM_CGROUP);
    let moved =
        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(folder.join("cgroup.procs"), "0"));
    if let Err(error) = moved {
        tracing::warn!(%error, "the shim stays in the server's cgroup");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tracing::warn!(%error, "cannot protect the shim from the OOM killer");
    }
}
