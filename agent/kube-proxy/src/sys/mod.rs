//! The kernel's side of kube-proxy.

pub mod conntrack;
