//! Pods carry the zone and region of their node, for the downward API to show (KEP-4742).

use async_trait::async_trait;
use serde_json::Value;

use super::{is, is_sub, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct PodTopologyLabels;

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

#[async_trait]
impl Admission for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    /// A binding's labels become its pod's.
    async fn mutate(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        let node = match context.operation {
            Operation::Create if is(context, "", "pods") => text(&object["spec"]["nodeName"]),
            Operation::Create
                if is_sub(context, "", "pods", "binding") && object["target"]["kind"] == "Node" =>
            {
                text(&object["target"]["name"])
            }
            _ => "",
        };
        if node.is_empty() {
            return Ok(());
        }
        let Some(node) = context.reader.get("", "nodes", "", node).await? else {
            return Ok(());
        };
        for label in LABELS {
            let value = &node["metadata"]["labels"][label];
            let present = &object["metadata"]["labels"][label];
            if !value.is_null() && present.is_null() {
                object["metadata"]["labels"][label] = value.clone();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Objects, Request};
    use super::*;

    #[test]
    fn zones_and_regions_are_copied_where_none_is_given() {
        let labels = json!({LABELS[0]: "z1", LABELS[1]: "r1", "disk": "fast"});
        let objects = Objects::new(&[("nodes", json!({"metadata": {"name": "n", "labels": labels}}))]);
        let run = |path, kind, object: Value| {
            let request = Request::create(path, kind);
            let admitted = request.run(&PodTopologyLabels, &objects, Some(object));
            admitted.unwrap().unwrap()["metadata"]["labels"].take()
        };
        let (pods, bindings) = (
            "/api/v1/namespaces/ns/pods",
            "/api/v1/namespaces/ns/pods/p/binding",
        );
        let both = json!({LABELS[0]: "z1", LABELS[1]: "r1"});
        for (path, kind, object, expected) in [
            (pods, "Pod", json!({"spec": {"nodeName": "n"}}), both.clone()),
            (pods, "Pod", json!({"spec": {}}), Value::Null),
            (pods, "Pod", json!({"spec": {"nodeName": "unknown"}}), Value::Null),
            (
                bindings,
                "Binding",
                json!({"target": {"kind": "Node", "name": "n"}}),
                both,
            ),
            (
                bindings,
                "Binding",
                json!({"target": {"kind": "Other", "name": "n"}}),
                Value::Null,
            ),
            (
                bindings,
                "Binding",
                json!({"metadata": {"labels": {LABELS[0]: "own"}}, "target": {"kind": "Node", "name": "n"}}),
                json!({LABELS[0]: "own", LABELS[1]: "r1"}),
            ),
        ] {
            assert_eq!(run(path, kind, object.clone()), expected, "{object}");
        }
    }
}
