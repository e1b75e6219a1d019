//! What the `metal` cloud provider and the agents on the nodes tell each other through objects.

/// The provisioner of the StorageClass `local`.
pub const PROVISIONER: &str = "metal.ironlet.dev";
/// On the node: a directory a volume, named as the volume.
pub const VOLUMES: &str = "/var/lib/ironlet/volumes";
/// On a Node: volumes whose directories shall be removed, separated by commas. The agent takes off what it has removed.
pub const DELETE_VOLUMES: &str = "ironlet.dev/delete-volumes";
/// On a Service: the node whose agent answers ARP and NDP for its load balancer's addresses.
pub const ANNOUNCED_BY: &str = "ironlet.dev/announced-by";
