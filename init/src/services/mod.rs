//! The machine's services: which there are, when each runs, and how they are kept running.

pub mod output;
pub mod reaper;
pub mod runner;
pub mod supervisor;
pub mod table;

use std::time::Duration;

/// One service: what to run and how to treat it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    pub program: String,
    pub args: Vec<String>,
    pub kind: Kind,
    /// Services that must be running (daemons) or have succeeded (oneshots) first.
    pub after: Vec<String>,
    /// Time between the request to stop and the kill.
    pub stop_deadline: Duration,
    /// Bytes the kernel does not reclaim from it (`memory.min`).
    pub memory_min: u64,
    pub oom_score_adj: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs for ever: every end is followed by a restart.
    Daemon,
    /// Runs until it once exits with status 0.
    Oneshot,
}
