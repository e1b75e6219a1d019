//! Creates and starts a container through libcontainer.

use super::{Failure, program};
use crate::shim::protocol::StartRequest;
use crate::sys::device_filter::{self, Rule};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use std::error::Error;
use std::ffi::CString;
use std::path::Path;

/// The exit code of a container that could not be made (as containerd reports it).
const START_ERROR: i32 = 128;

pub fn start(request: &StartRequest) -> Result<i32, Failure> {
    let failed =
        |what: &str, error: &dyn Error| Failure::new(format!("{what}: {}", chain(error)), START_ERROR);
    if let Some(rules) = &request.devices {
        let mut all = device_filter::DEFAULT_RULES.to_vec();
        all.extend(rules.iter().map(|rule| Rule {
            block: rule.block,
            major: Some(rule.major),
            minor: Some(rule.minor),
            access: rule.access,
        }));
        let bounded = std::fs::create_dir_all(&request.cgroup)
            .and_then(|()| device_filter::attach(&request.cgroup, &all));
        bounded.map_err(|error| failed("bound the container's devices", &error))?;
    }
    std::fs::create_dir_all(&request.libcontainer_root)
        .map_err(|error| failed("create the state folder", &error))?;
    let builder = ContainerBuilder::new(request.container_id.clone(), SyscallType::default())
        .with_root_path(&request.libcontainer_root)
        .map_err(|error| failed("create container", &error))?
        .with_console_socket(request.tty.then(|| request.bundle.join("console.sock")));
    let builder = if request.pause {
        builder.with_executor(Pause)
    } else {
        builder.with_executor(Program)
    };
    let mut container = builder
        .as_init(&request.bundle)
        .with_systemd(false)
        .with_detach(true)
        .as_sibling(true)
        .build()
        .map_err(|error| failed("create container", &error))?;
    container
        .start()
        .map_err(|error| failed("start container", &error))?;
    container
        .pid()
        .map(|pid| pid.as_raw())
        .ok_or_else(|| Failure::new("the container has no process", START_ERROR))
}

/// An error with its causes, each said once.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Runs the image's program.
#[derive(Clone)]
struct Program;

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let arguments = spec
            .process()
            .as_ref()
            .and_then(|process| process.args().as_ref());
        let arguments: Vec<CString> = arguments
            .into_iter()
            .flatten()
            .map(|argument| CString::new(argument.as_str()))
            .collect::<Result<_, _>>()
            .map_err(|_| ExecutorError::InvalidArg)?;
        let program = arguments.first().ok_or(ExecutorError::InvalidArg)?;
        let Err(error) = nix::unistd::execvp(program, &arguments);
        // The container counts as started: its log is where a user of runc would find this.
        let said = format!(
            "exec {}: {}",
            program.to_string_lossy(),
            error.desc().to_lowercase()
        );
        eprintln!("{said}");
        Err(ExecutorError::Other(said))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let missing =
            |what: &str| ExecutorValidationError::ArgValidationError(format!("the spec has no {what}"));
        let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;
        let name = process
            .args()
            .as_ref()
            .and_then(|args| args.first())
            .ok_or_else(|| missing("arguments"))?;
        let environment = process.env().clone().unwrap_or_default();
        program::find(name, program::path_of(&environment), Path::new(process.cwd()))
            .map(drop)
            .map_err(|failure| ExecutorValidationError::ArgValidationError(failure.message))
    }
}

/// A sandbox's PID 1: it adopts and reaps what the pod's containers leave, until it is told to end.
#[derive(Clone)]
struct Pause;

impl Executor for Pause {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        use nix::sys::signal::{SigSet, Signal};
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        crate::sys::close_from(3).map_err(|error| ExecutorError::Other(error.to_string()))?;
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
            signals.add(signal);
        }
        signals
            .thread_block()
            .map_err(|error| ExecutorError::Other(error.to_string()))?;
        loop {
            match signals.wait() {
                Ok(Signal::SIGCHLD) => {
                    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                        if status == WaitStatus::StillAlive {
                            break;
                        }
                    }
                }
                Ok(_) => std::process::exit(0),
                Err(_) => {}
            }
        }
    }

    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        Ok(())
    }
}
