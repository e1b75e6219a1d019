//! The only place that calls libcontainer: a short-lived, single-threaded process.

mod exec;
mod program;
mod start;

use crate::shim::protocol::StartRequest;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Serialize, Deserialize)]
pub struct StartOrder {
    pub request: StartRequest,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ExecOrder {
    pub pid: i32,
    pub bundle: PathBuf,
    pub cgroup: PathBuf,
    pub args: Vec<String>,
    pub tty: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum HelperResult {
    Running { pid: i32 },
    Failed { message: String, exit_code: i32 },
}

/// Why a program does not run; the exit code is the one a shell would give.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub exit_code: i32,
}

impl Failure {
    pub fn new(message: impl Into<String>, exit_code: i32) -> Self {
        Self {
            message: message.into(),
            exit_code,
        }
    }
}

/// `cri-helper start|exec ORDER RESULT [CONSOLE]`: three inherited descriptors.
pub fn main(args: &[String]) -> ExitCode {
    let descriptors: Option<Vec<i32>> = args.iter().skip(1).map(|arg| arg.parse().ok()).collect();
    let (Some(kind), Some([order, result, console @ ..])) = (args.first(), descriptors.as_deref()) else {
        eprintln!("usage: cri-helper start|exec ORDER-FD RESULT-FD [CONSOLE-FD]");
        return ExitCode::FAILURE;
    };
    let (order, result) = (crate::sys::inherited(*order), crate::sys::inherited(*result));
    let console = console
        .first()
        .map(|descriptor| crate::sys::inherited(*descriptor));
    let mut text = String::new();
    let read = File::from(order)
        .read_to_string(&mut text)
        .map_err(|error| Failure::new(error.to_string(), 128));
    let outcome = read.and_then(|_| perform(kind, &text, console));
    let answer = match outcome {
        Ok(pid) => HelperResult::Running { pid },
        Err(Failure { message, exit_code }) => HelperResult::Failed { message, exit_code },
    };
    let sent = serde_json::to_vec(&answer)
        .map_err(std::io::Error::other)
        .and_then(|bytes| File::from(result).write_all(&bytes));
    if sent.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn perform(kind: &str, order: &str, console: Option<OwnedFd>) -> Result<i32, Failure> {
    // Without its shim nobody would hear of what it starts.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|error| Failure::new(format!("prctl: {error}"), 128))?;
    crate::sys::restore_signals().map_err(|error| Failure::new(format!("signals: {error}"), 128))?;
    crate::sys::close_on_exec_from(3).map_err(|error| Failure::new(format!("close_range: {error}"), 128))?;
    let bad = |error: serde_json::Error| Failure::new(format!("order: {error}"), 128);
    match kind {
        "start" => start::start(&serde_json::from_str::<StartOrder>(order).map_err(bad)?.request),
        "exec" => exec::exec(&serde_json::from_str(order).map_err(bad)?, console),
        other => Err(Failure::new(format!("unknown helper {other:?}"), 128)),
    }
}
