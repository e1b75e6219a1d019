//! What Kubernetes objects mean: pure helpers on `k8s_openapi` types for the components that decide with them.

pub mod condition;
pub mod duration;
pub mod election;
pub mod event;
pub mod intstr;
pub mod metal;
pub mod names;
pub mod node;
pub mod owner;
pub mod pod;
pub mod quantity;
pub mod resources;
pub mod selector;
pub mod taint;
pub mod volume;

/// Well-known names used by more than one component.
pub mod well_known {
    pub const HOSTNAME: &str = "kubernetes.io/hostname";
    pub const ZONE: &str = "topology.kubernetes.io/zone";
    pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
    pub const TAINT_NOT_READY: &str = "node.kubernetes.io/not-ready";
    pub const TAINT_UNREACHABLE: &str = "node.kubernetes.io/unreachable";
    pub const TAINT_UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
    pub const TAINT_MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
    pub const TAINT_DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";
    pub const TAINT_PID_PRESSURE: &str = "node.kubernetes.io/pid-pressure";
    pub const TAINT_NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";
    pub const TAINT_OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
}
