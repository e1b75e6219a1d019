//! What every client of the API server does the same way: hold a Lease, write events.

mod election;
mod recorder;

pub use election::{Election, LeadershipLost};
pub use recorder::Recorder;
