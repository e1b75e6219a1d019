//! What every client of the API server does the same way: hold a Lease, write events, ask who may do what, say why it
//! cannot be reached.

mod election;
mod failure;
mod recorder;
mod reviews;

pub use election::{Election, LeadershipLost};
pub use failure::innermost;
pub use recorder::Recorder;
pub use reviews::{Patience, Reviews, Verdict};
