//! What every client of the API server does the same way: hold a Lease, write events, ask who may do what.

mod election;
mod recorder;
mod reviews;

pub use election::{Election, LeadershipLost};
pub use recorder::Recorder;
pub use reviews::{Patience, Reviews, Verdict};
