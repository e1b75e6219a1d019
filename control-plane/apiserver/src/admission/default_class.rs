//! Claims and Ingresses that name no class get the cluster's default one.

use async_trait::async_trait;
use serde_json::Value;

use super::{is, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

/// One kind whose objects have a class.
pub struct DefaultClass {
    name: &'static str,
    /// Group and resource of the objects, and where they name their class: in the spec, or once in an annotation.
    objects: (&'static str, &'static str),
    field: &'static str,
    annotation: &'static str,
    /// Group and resource of the classes, and the annotations that make one the default.
    classes: (&'static str, &'static str),
    marks: &'static [&'static str],
}

pub const STORAGE: DefaultClass = DefaultClass {
    name: "DefaultStorageClass",
    objects: ("", "persistentvolumeclaims"),
    field: "storageClassName",
    annotation: super::claim_resize::CLASS_ANNOTATION,
    classes: ("storage.k8s.io", "storageclasses"),
    marks: &[
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ],
};

pub const INGRESS: DefaultClass = DefaultClass {
    name: "DefaultIngressClass",
    objects: ("networking.k8s.io", "ingresses"),
    field: "ingressClassName",
    annotation: "kubernetes.io/ingress.class",
    classes: ("networking.k8s.io", "ingressclasses"),
    marks: &["ingressclass.kubernetes.io/is-default-class"],
};

#[async_trait]
impl Admission for DefaultClass {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        let concerns = context.operation == Operation::Create && is(context, self.objects.0, self.objects.1);
        let has_class = |object: &Value| {
            !object["spec"][self.field].is_null()
                || !object["metadata"]["annotations"][self.annotation].is_null()
        };
        if !concerns || has_class(object) {
            return Ok(());
        }
        let classes = context.reader.list(self.classes.0, self.classes.1, "").await?;
        if let Some(class) = newest(&classes, self.marks) {
            object["spec"][self.field] = class["metadata"]["name"].clone();
        }
        Ok(())
    }
}

/// Of several defaults the newest counts, of equally old ones the first by name.
fn newest<'a>(classes: &'a [Value], marks: &[&str]) -> Option<&'a Value> {
    let is_default = |class: &&Value| {
        let mut marks = marks.iter();
        marks.any(|mark| class["metadata"]["annotations"][*mark] == "true")
    };
    classes.iter().filter(is_default).min_by_key(|class| {
        let metadata = &class["metadata"];
        (
            std::cmp::Reverse(text(&metadata["creationTimestamp"])),
            text(&metadata["name"]),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Objects, Request};
    use super::*;

    #[test]
    fn the_newest_default_class_is_filled_in() {
        for (plugin, path, kind) in [
            (
                STORAGE,
                "/api/v1/namespaces/ns/persistentvolumeclaims",
                "PersistentVolumeClaim",
            ),
            (
                INGRESS,
                "/apis/networking.k8s.io/v1/namespaces/ns/ingresses",
                "Ingress",
            ),
        ] {
            let class = |name: &str, mark: &str, created: &str| {
                let annotations = json!({plugin.marks[0]: mark});
                let metadata =
                    json!({"name": name, "annotations": annotations, "creationTimestamp": created});
                (plugin.classes.1, json!({"metadata": metadata}))
            };
            let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
            let plain = class("plain", "false", new);
            let (first, second) = (class("a", "true", old), class("b", "true", old));
            let newer = class("z", "true", new);
            let object = |spec: Value, annotation: &str| json!({"metadata": {"name": "o", "annotations": {annotation: "own"}}, "spec": spec});
            let (without, own) = (object(json!({}), "x"), object(json!({plugin.field: ""}), "x"));
            let annotated = object(json!({}), plugin.annotation);
            for (classes, object, expected) in [
                (vec![plain.clone()], &without, Value::Null),
                (vec![plain.clone(), second.clone()], &without, json!("b")),
                (vec![second.clone(), first.clone()], &without, json!("a")),
                (vec![first.clone(), newer.clone()], &without, json!("z")),
                (vec![newer.clone()], &own, json!("")),
                (vec![newer.clone()], &annotated, Value::Null),
            ] {
                let objects = Objects::new(&classes);
                let run = |request: Request| {
                    let admitted = request.run(&plugin, &objects, Some(object.clone())).unwrap();
                    admitted.unwrap()["spec"][plugin.field].take()
                };
                assert_eq!(run(Request::create(path, kind)), expected, "{kind} {classes:?}");
                let updated = run(Request::update(path, kind, object.clone()));
                assert_eq!(updated, object["spec"][plugin.field], "{kind} {classes:?}");
            }
        }
    }

    #[test]
    fn the_old_annotation_marks_a_default_too() {
        let class = json!({"metadata": {"name": "old", "annotations": {STORAGE.marks[1]: "true"}}});
        let classes = [class];
        assert_eq!(newest(&classes, STORAGE.marks), classes.first());
        assert_eq!(newest(&classes, INGRESS.marks), None);
    }
}
