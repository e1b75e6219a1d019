//! The kernel's side of the pod network: netlink requests and network namespaces.

pub mod announce;
pub mod links;
pub mod namespace;
pub mod overlay;
pub mod routes;
pub mod shaping;
