//! The pod network of a node: a bridge, a veth pair per pod, crash-safe addresses, host ports,
//! and routes to the pods of the other nodes.
//!
//! Two processes use it. The CRI server owns [`PodNetwork`] (bridge, pods, host ports); the agent owns what [`run`]
//! keeps (routes, overlay, masquerading, policies, load balancers' addresses, the firewall). Neither touches the
//! other's kernel objects.

mod addresses;
mod announce;
mod bandwidth;
mod cni;
mod firewall;
mod host_ports;
mod masquerade;
#[cfg(test)]
mod native_tests;
mod node;
mod overlay;
mod pod_network;
mod policy;
mod routes;
mod sys;

pub use addresses::AddressError;
pub use bandwidth::{Bandwidth, BandwidthError};
pub use cni::Sandbox;
pub use host_ports::{PortMapping, Protocol};
pub use node::{Config, run};
pub use pod_network::{Attachment, NetworkError, PodNetwork};
pub use policy::{Attached, Observed, Policies};
