//! Nodes: a kubelet registers with its status.

use super::Strategy;

pub struct Node;

impl Strategy for Node {
    fn keeps_status_on_create(&self) -> bool {
        true
    }
}
