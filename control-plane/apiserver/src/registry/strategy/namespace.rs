//! Namespaces: finalized through their own sub-resource, labelled with their name.

use auth::UserInfo;
use serde_json::{Value, json};

use super::Strategy;
use crate::object;

const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub struct Namespace;

impl Strategy for Namespace {
    fn prepare_for_create(&self, object: &mut Value, _user: &UserInfo) {
        let name = object::name(object).to_owned();
        object["status"] = json!({"phase": "Active"});
        object["spec"] = json!({"finalizers": [FINALIZER]});
        label(object, &name);
    }

    fn prepare_for_update(&self, object: &mut Value, old: &Value) {
        object::copy_field(object, old, "spec");
        let name = object::name(old).to_owned();
        label(object, &name);
    }

    fn prepare_for_subresource(&self, subresource: &str, object: &mut Value, wanted: &Value, _old: &Value) {
        if subresource == "finalize" {
            object::copy_field(object, wanted, "spec");
        }
    }
}

fn label(object: &mut Value, name: &str) {
    let labels = object::metadata(object)
        .entry("labels")
        .or_insert_with(|| json!({}));
    if !labels.is_object() {
        *labels = json!({});
    }
    labels[NAME_LABEL] = json!(name);
}
