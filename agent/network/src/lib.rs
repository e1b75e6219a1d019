//! The pod network of a node: a bridge, a veth pair per pod, crash-safe addresses, host ports,
//! and routes to the pods of the other nodes.
//!
//! Two processes use it. The CRI server owns [`PodNetwork`] (bridge, pods, host ports); the agent
//! owns [`run_routes`] (routes, masquerading). Neither touches the other's kernel objects.

mod addresses;
mod host_ports;
mod masquerade;
mod pod_network;
mod routes;
mod sys;

pub use addresses::AddressError;
pub use host_ports::{PortMapping, Protocol};
pub use pod_network::{Attachment, NetworkError, PodNetwork};
pub use routes::{RoutesConfig, run_routes};
