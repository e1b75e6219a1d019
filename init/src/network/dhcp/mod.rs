//! DHCPv4 (RFC 2131): when to send what is a pure state machine; one thread an interface carries it out.

mod client;
mod frame;
mod message;
mod state;

pub use client::{Change, run};
pub use message::Lease;
