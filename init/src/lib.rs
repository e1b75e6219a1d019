//! PID 1 of a machine: bring the kernel to where services can run, keep them running, and end in order.
//!
//! Boot is one ordered table (`boot::plan`), read top to bottom, each step with its failure policy. Afterwards
//! `machine` is the only loop: threads (network, disk, clock, buttons, reaper) send it facts and events; pure
//! state machines decide; it acts. Nothing here may end PID 1: every thread is watched, every failure told.

pub mod boot;
pub mod console;
pub mod control;
pub mod disk;
pub mod install;
pub mod machine;
pub mod modules;
pub mod network;
pub mod power;
pub mod programs;
pub mod services;
pub mod shutdown;
pub mod sys;
pub mod thread;
pub mod time;
pub mod watchdog;
