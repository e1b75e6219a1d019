//! Nodes: a kubelet registers with its status, and reports labels and annotations with it.

use serde_json::Value;

use super::Strategy;
use crate::object;

pub struct Node;

impl Strategy for Node {
    fn keeps_status_on_create(&self) -> bool {
        true
    }

    fn prepare_for_subresource(&self, subresource: &str, object: &mut Value, wanted: &Value, _old: &Value) {
        if subresource == "status" {
            for field in ["labels", "annotations"] {
                object::copy_metadata(object, wanted, field);
            }
        }
    }
}
