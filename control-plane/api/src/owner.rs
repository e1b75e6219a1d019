//! Owner references: who controls an object, and how a controller claims one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The one reference with `controller: true`.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|r| r.controller == Some(true))
}

pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|r| r.uid == uid)
}

/// Upstream's `metav1.NewControllerRef`.
pub fn controller_ref(api_version: &str, kind: &str, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.into(),
        kind: kind.into(),
        name: owner.name.clone().unwrap_or_default(),
        uid: owner.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What a controller should do about an object it might own (upstream's `ControllerRefManager.ClaimObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours and matching.
    Keep,
    /// Matches our selector, has no controller: take it.
    Adopt,
    /// Ours, but its labels no longer match: let go of it.
    Release,
    /// Not our business.
    Ignore,
}

/// Decides the claim. A controller that is being deleted neither adopts nor releases.
pub fn claim(owner: &ObjectMeta, object: &ObjectMeta, matches: bool) -> Claim {
    let deleting = owner.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(reference) if Some(&reference.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if deleting || object.deletion_timestamp.is_some() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if deleting || !matches || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn claims() {
        let owner: ObjectMeta = from_value(json!({"name": "o", "uid": "1"})).unwrap();
        let dying: ObjectMeta =
            from_value(json!({"name": "o", "uid": "1", "deletionTimestamp": "2026-01-01T00:00:00Z"}))
                .unwrap();
        let by = |uid: &str| {
            json!({"ownerReferences": [
            {"apiVersion": "v1", "kind": "K", "name": "o", "uid": uid, "controller": true}]})
        };
        for (owner, object, matches, expected) in [
            (&owner, by("1"), true, Claim::Keep),
            (&owner, by("1"), false, Claim::Release),
            (&owner, by("2"), true, Claim::Ignore),
            (&owner, json!({}), true, Claim::Adopt),
            (&owner, json!({}), false, Claim::Ignore),
            (
                &owner,
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}),
                true,
                Claim::Ignore,
            ),
            (&dying, json!({}), true, Claim::Ignore),
            (&dying, by("1"), true, Claim::Keep),
            (&dying, by("1"), false, Claim::Ignore),
        ] {
            assert_eq!(
                claim(owner, &from_value(object.clone()).unwrap(), matches),
                expected,
                "{object}"
            );
        }
    }
}
