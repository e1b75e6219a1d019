//! From the kernel's hand-over to the machine's loop: an ordered list of named steps, each with a failure policy.

mod cgroups;
mod files;
mod mounts;
mod plan;
mod root;
mod sysctls;

use crate::{
    console,
    install::Payload,
    machine::Machine,
    modules,
    services::{reaper::Reaper, table::ImageFacts},
    sys::{clock, signals},
    thread::{self, keep},
};
use node_config::NodeConfig;
use rustix::system::{RebootCommand, reboot};
use std::{
    io,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

/// Above all services' cgroups.
pub const SERVICE_CGROUPS: &str = "/sys/fs/cgroup/system";

/// What boot finds out and the machine goes on with.
#[derive(Default)]
pub struct Boot {
    pub config: Arc<NodeConfig>,
    pub image: ImageFacts,
    pub reaper: Reaper,
    /// The drivers of all devices present are loaded.
    pub devices_settled: Arc<AtomicBool>,
    /// What an install would write; only while one may be asked for.
    pub payload: Option<Payload>,
    /// Why no service may run, when the machine is beyond that.
    pub rescue: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("{path}: {error}")]
    Path { path: PathBuf, error: io::Error },
    #[error("{0}")]
    Module(#[from] modules::LoadError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{}", .0.join("; "))]
    Several(Vec<String>),
}

impl StepError {
    fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |error| Self::Path { path, error }
    }
}

/// What a failed step means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// Told; what needs the step's effect will fail and tell, too.
    Degrade,
    /// Nothing further makes sense: PID 1 lives on for the console, the power button and a look at the message.
    Rescue,
}

struct Step {
    name: &'static str,
    on_failure: Policy,
    run: fn(&mut Boot) -> Result<(), StepError>,
}

/// PID 1's whole life. It returns only if the kernel refuses to power off.
pub fn run() -> ExitCode {
    thread::report_panics();
    signals::block();
    // Ctrl-Alt-Del is to be a signal to us, not a reset.
    if let Err(error) = reboot(RebootCommand::CadOff) {
        console::say(format_args!("Ctrl-Alt-Del: {error}"));
    }
    console::say(format_args!(
        "init {} started {:.3}s after kernel start",
        env!("CARGO_PKG_VERSION"),
        clock::since_boot().as_secs_f64()
    ));
    let mut boot = Boot::default();
    let reaper = boot.reaper.clone();
    keep("reaper", move || reaper.reap_forever());
    for step in plan::STEPS {
        if let Err(reason) = step.execute(&mut boot)
            && step.on_failure == Policy::Rescue
        {
            boot.rescue = Some(format!("{}: {reason}", step.name));
            break;
        }
    }
    console::say(format_args!(
        "boot steps done {:.3}s after kernel start",
        clock::since_boot().as_secs_f64()
    ));
    Machine::new(boot).run();
    ExitCode::FAILURE
}

impl Step {
    fn execute(&self, boot: &mut Boot) -> Result<(), String> {
        let started = clock::since_boot();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.run)(boot)));
        let result = match result {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err("panicked".to_owned()),
        };
        let took = (clock::since_boot() - started).as_millis();
        match &result {
            Ok(()) => console::say(format_args!("{}: {took} ms", self.name)),
            Err(reason) => console::say(format_args!("{}: FAILED after {took} ms: {reason}", self.name)),
        }
        result
    }
}
