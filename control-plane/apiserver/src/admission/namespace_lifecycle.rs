//! No content in namespaces that do not exist or are going away; the system's own namespaces stay.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{forbidden, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

#[async_trait]
impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        check(context, Some(object)).await
    }

    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        // Writes were checked before they were mutated.
        if context.operation == Operation::Delete {
            check(context, object).await
        } else {
            Ok(())
        }
    }
}

async fn check(context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
    let info = context.info;
    let is_namespace = info.group.is_empty() && info.resource == "namespaces";
    if is_namespace && context.operation == Operation::Delete && IMMORTAL.contains(&info.name.as_str()) {
        return Err(ApiError::forbidden(
            "namespaces",
            &info.name,
            "this namespace may not be deleted",
        ));
    }
    let review = info.group == "authorization.k8s.io";
    if is_namespace || info.namespace.is_empty() || context.operation == Operation::Delete || review {
        return Ok(());
    }
    let namespace = context.reader.get("", "namespaces", "", &info.namespace).await?;
    let Some(namespace) = namespace else {
        return Err(ApiError::not_found("namespaces", &info.namespace));
    };
    if context.operation != Operation::Create || text(&namespace["status"]["phase"]) != "Terminating" {
        return Ok(());
    }
    let name = &info.namespace;
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    let mut error = forbidden(context, object, why);
    error.details["causes"] = json!([{
        "reason": "NamespaceTerminating",
        "message": format!("namespace {name} is being terminated"),
        "field": "metadata.namespace",
    }]);
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Objects, Request};
    use super::*;

    #[test]
    fn content_needs_a_living_namespace() {
        let objects = Objects::new(&[
            (
                "namespaces",
                json!({"metadata": {"name": "live"}, "status": {"phase": "Active"}}),
            ),
            (
                "namespaces",
                json!({"metadata": {"name": "dying"}, "status": {"phase": "Terminating"}}),
            ),
        ]);
        let pod = json!({"metadata": {"name": "p"}});
        let create =
            |path| Request::create(path, "Pod").run(&NamespaceLifecycle, &objects, Some(pod.clone()));
        assert!(create("/api/v1/namespaces/live/pods").is_ok());
        assert_eq!(
            create("/api/v1/namespaces/gone/pods").unwrap_err(),
            r#"namespaces "gone" not found"#
        );
        assert_eq!(
            create("/api/v1/namespaces/dying/pods").unwrap_err(),
            r#"pods "p" is forbidden: unable to create new content in namespace dying because it is being terminated"#
        );
        let update = Request::update("/api/v1/namespaces/dying/pods/p", "Pod", pod.clone());
        assert!(
            update
                .run(&NamespaceLifecycle, &objects, Some(pod.clone()))
                .is_ok()
        );
        let delete = Request::delete("/api/v1/namespaces/dying/pods/p", "Pod", pod);
        assert!(delete.run(&NamespaceLifecycle, &objects, None).is_ok());
    }

    #[test]
    fn system_namespaces_may_not_be_deleted() {
        let delete = |path| {
            Request::delete(path, "Namespace", json!({})).run(&NamespaceLifecycle, &Objects::default(), None)
        };
        assert_eq!(
            delete("/api/v1/namespaces/kube-system").unwrap_err(),
            r#"namespaces "kube-system" is forbidden: this namespace may not be deleted"#
        );
        assert!(delete("/api/v1/namespaces/mine").is_ok());
    }
}
