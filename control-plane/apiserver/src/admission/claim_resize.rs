//! Bound claims grow where their storage class lets them.

use async_trait::async_trait;
use quota::resources::quantity;
use serde_json::Value;

use super::{forbidden, is, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct PersistentVolumeClaimResize;

/// Where claims named their class before the spec had a field for it; it still wins.
pub const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

const UNBOUND: &str = "Only bound persistent volume claims can be expanded";
const NOT_EXPANDABLE: &str = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";

#[async_trait]
impl Admission for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, context: &AdmissionContext<'_>, claim: Option<&Value>) -> Result<(), ApiError> {
        let concerns = context.operation == Operation::Update && is(context, "", "persistentvolumeclaims");
        let (Some(claim), Some(old)) = (claim.filter(|_| concerns), context.old) else {
            return Ok(());
        };
        if size(claim) <= size(old) {
            return Ok(());
        }
        if old["status"]["phase"] != "Bound" {
            return Err(forbidden(context, Some(claim), UNBOUND));
        }
        let name = class_name(claim);
        let class = if name.is_empty() || name != class_name(old) {
            None
        } else {
            context
                .reader
                .get("storage.k8s.io", "storageclasses", "", name)
                .await?
        };
        if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            Ok(())
        } else {
            Err(forbidden(context, Some(claim), NOT_EXPANDABLE))
        }
    }
}

fn size(claim: &Value) -> Option<schema::quantity::Quantity> {
    quantity(&claim["spec"]["resources"]["requests"]["storage"])
}

fn class_name(claim: &Value) -> &str {
    let annotated = claim["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    annotated.unwrap_or_else(|| text(&claim["spec"]["storageClassName"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Objects, Request};
    use super::*;

    #[test]
    fn claims_grow_only_where_their_class_allows_it() {
        let class = |name: &str, allow: Value| {
            let class = json!({"metadata": {"name": name}, "allowVolumeExpansion": allow});
            ("storageclasses", class)
        };
        let objects = Objects::new(&[class("grows", json!(true)), class("fixed", Value::Null)]);
        let claim = |class: &str, size: &str, phase: &str| {
            json!({"metadata": {"name": "c"}, "status": {"phase": phase},
                "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}})
        };
        for (old, new, why) in [
            (claim("grows", "1Gi", "Bound"), claim("grows", "2Gi", "Bound"), ""),
            (
                claim("fixed", "1Gi", "Bound"),
                claim("fixed", "1024Mi", "Bound"),
                "",
            ),
            (
                claim("fixed", "2Gi", "Pending"),
                claim("fixed", "1Gi", "Pending"),
                "",
            ),
            (
                claim("grows", "1Gi", "Pending"),
                claim("grows", "2Gi", "Bound"),
                UNBOUND,
            ),
            (
                claim("fixed", "1Gi", "Bound"),
                claim("fixed", "2Gi", "Bound"),
                NOT_EXPANDABLE,
            ),
            (
                claim("fixed", "1Gi", "Bound"),
                claim("grows", "2Gi", "Bound"),
                NOT_EXPANDABLE,
            ),
            (
                claim("gone", "1Gi", "Bound"),
                claim("gone", "2Gi", "Bound"),
                NOT_EXPANDABLE,
            ),
            (
                claim("", "1Gi", "Bound"),
                claim("", "2Gi", "Bound"),
                NOT_EXPANDABLE,
            ),
        ] {
            let path = "/api/v1/namespaces/ns/persistentvolumeclaims/c";
            let request = Request::update(path, "PersistentVolumeClaim", old.clone());
            let judged = request.run(&PersistentVolumeClaimResize, &objects, Some(new.clone()));
            let expected = if why.is_empty() {
                String::new()
            } else {
                format!(r#"persistentvolumeclaims "c" is forbidden: {why}"#)
            };
            assert_eq!(judged.err().unwrap_or_default(), expected, "{old} {new}");
        }
    }
}
