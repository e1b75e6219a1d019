//! Claims and volumes are born with the finalizer that keeps them while they are in use.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{is, list_mut};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct StorageObjectInUseProtection;

const FINALIZERS: [(&str, &str); 2] = [
    ("persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("persistentvolumes", "kubernetes.io/pv-protection"),
];

#[async_trait]
impl Admission for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        if context.operation != Operation::Create {
            return Ok(());
        }
        for (_, finalizer) in FINALIZERS
            .iter()
            .filter(|(resource, _)| is(context, "", resource))
        {
            let finalizers = list_mut(&mut object["metadata"], "finalizers");
            if !finalizers.iter().any(|present| present == finalizer) {
                finalizers.push(json!(finalizer));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Objects, Request};
    use super::*;

    #[test]
    fn new_claims_and_volumes_are_protected_once() {
        let finalizers = |request: &Request, given: Value| {
            let object = json!({"metadata": {"name": "o", "finalizers": given}});
            let admitted = request.run(&StorageObjectInUseProtection, &Objects::default(), Some(object));
            admitted.unwrap().unwrap()["metadata"]["finalizers"].take()
        };
        let claims = "/api/v1/namespaces/ns/persistentvolumeclaims";
        let secrets = Request::create("/api/v1/namespaces/ns/secrets", "Secret");
        let claim = Request::create(claims, "PersistentVolumeClaim");
        let volume = Request::create("/api/v1/persistentvolumes", "PersistentVolume");
        for (request, given, expected) in [
            (&secrets, Value::Null, Value::Null),
            (&claim, Value::Null, json!(["kubernetes.io/pvc-protection"])),
            (
                &claim,
                json!(["a/b"]),
                json!(["a/b", "kubernetes.io/pvc-protection"]),
            ),
            (
                &claim,
                json!(["kubernetes.io/pvc-protection"]),
                json!(["kubernetes.io/pvc-protection"]),
            ),
            (&volume, Value::Null, json!(["kubernetes.io/pv-protection"])),
        ] {
            assert_eq!(
                finalizers(request, given.clone()),
                expected,
                "{} {given}",
                request.kind
            );
        }
        let update = Request::update(claims, "PersistentVolumeClaim", json!({}));
        assert_eq!(finalizers(&update, json!([])), json!([]));
    }
}
