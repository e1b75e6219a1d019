//! The state disk: found, formatted when blank, checked, mounted at /var. Without one, /var is memory, said loudly.

pub mod devices;
mod find;
mod prepare;
pub mod signature;

use crate::{console, services::reaper::Reaper, sys::clock, thread::keep};
use node_config::DiskSelector;
use rustix::mount::{MountFlags, mount};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

pub const MOUNT_POINT: &str = "/var";

/// The label of the disk that is taken when the command line names none.
pub const LABEL: &str = boot_disk::STATE_NAME;

/// How long a disk that may or may not exist is waited for.
const OPTIONAL_WITHIN: Duration = Duration::from_secs(2);

const RETRY: Duration = Duration::from_millis(250);

/// The same trouble is told again after this long.
const REMIND: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{0} is not there")]
    Absent(DiskSelector),
    #[error("{device} holds {content}: it is not formatted, since only a blank disk is")]
    Foreign { device: PathBuf, content: String },
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{program} is not in the image")]
    NoProgram { program: &'static str },
    #[error("{program} {device}: {exit}")]
    Program {
        program: &'static str,
        device: PathBuf,
        exit: crate::sys::process::Exit,
    },
}

/// What /var is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Disk(PathBuf),
    Memory,
}

impl State {
    pub fn device(&self) -> Option<String> {
        match self {
            Self::Disk(device) => Some(device.display().to_string()),
            Self::Memory => None,
        }
    }
}

/// Mounts /var, in a thread of its own, and tells when that is done. A disk that the command line names is waited
/// for without end: a node told to keep its state must not begin a new life in memory.
pub fn start(
    selector: Option<DiskSelector>,
    devices_settled: Arc<AtomicBool>,
    reaper: Reaper,
    ready: impl Fn(State) + Send + 'static,
) {
    keep("state-disk", move || {
        let state = settle(selector.as_ref(), &devices_settled, &reaper);
        ready(state);
    });
}

fn settle(selector: Option<&DiskSelector>, devices_settled: &AtomicBool, reaper: &Reaper) -> State {
    let optional = selector.is_none();
    let selector = selector
        .cloned()
        .unwrap_or_else(|| DiskSelector::Label(LABEL.to_owned()));
    if selector == DiskSelector::None {
        return memory("ironlet.disk=none");
    }
    let mut started = clock::since_boot();
    let mut told: Option<(String, Duration)> = None;
    loop {
        let error = match prepare::state_disk(&selector, reaper) {
            Ok(device) => return State::Disk(device),
            Err(error) => error,
        };
        let now = clock::since_boot();
        if !devices_settled.load(Ordering::Acquire) {
            // No driver, no disk: the wait for it begins later.
            started = now;
        }
        if optional && matches!(error, DiskError::Absent(_)) {
            if now - started > OPTIONAL_WITHIN {
                return memory(&format!("no disk is labelled {LABEL}"));
            }
        } else {
            let text = error.to_string();
            let due = match &told {
                Some((before, at)) => *before != text || now - *at >= REMIND,
                // A disk may need a moment to appear.
                None => !matches!(error, DiskError::Absent(_)) || now - started > OPTIONAL_WITHIN,
            };
            if due {
                console::say(format_args!(
                    "state disk: {text}; no service starts without it, trying on"
                ));
                told = Some((text, now));
            }
        }
        thread::sleep(if matches!(error, DiskError::Absent(_)) {
            RETRY
        } else {
            RETRY * 20
        });
    }
}

/// Makes /var memory; nothing of it will outlive the machine's power.
fn memory(reason: &str) -> State {
    console::say(format_args!(
        "WARNING: no state disk ({reason}): all state is in memory and LOST at power-off"
    ));
    if let Err(error) = mount(
        "tmpfs",
        MOUNT_POINT,
        "tmpfs",
        MountFlags::NODEV | MountFlags::NOSUID,
        c"mode=0755",
    ) {
        console::say(format_args!("{MOUNT_POINT}: {error}"));
    }
    State::Memory
}
