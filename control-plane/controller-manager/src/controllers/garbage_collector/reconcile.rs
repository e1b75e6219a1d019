//! What to do about one object, given its owners and dependents (upstream's `attemptToDeleteItem`,
//! `processDeletingDependentsItem`, `orphanDependents`).

use super::graph::{FOREGROUND, Item, ORPHAN};
use crate::action::{Action, Path};
use crate::key::Key;
use serde_json::{Value, json};

/// What is known of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Absent,
    /// Exists, and is itself waiting for its dependents to go.
    Waiting,
    Solid,
}

pub struct Observed<'a> {
    pub item: &'a Item,
    /// One for each of the item's owner references, in their order.
    pub owners: Vec<Owner>,
    pub dependents: Vec<&'a Item>,
}

/// Actions, and UIDs to look at next.
#[derive(Debug, Default, PartialEq)]
pub struct Verdict {
    pub actions: Vec<Action>,
    pub look: Vec<String>,
}

pub fn reconcile(observed: &Observed) -> Verdict {
    let item = observed.item;
    let mut verdict = Verdict::default();
    if item.orphans_dependents() {
        for dependent in &observed.dependents {
            verdict
                .actions
                .push(without_owners(dependent, |uid| uid == item.uid));
        }
        verdict.actions.push(without_finalizer(item, ORPHAN));
    } else if item.waits_for_dependents() {
        if observed.dependents.iter().any(|d| d.blocks(&item.uid)) {
            verdict.look = observed
                .dependents
                .iter()
                .filter(|d| !d.deleting)
                .map(|d| d.uid.clone())
                .collect();
        } else {
            verdict.actions.push(without_finalizer(item, FOREGROUND));
        }
    } else if !item.deleting && !item.owners.is_empty() {
        verdict.actions = collect(observed);
    }
    verdict
}

fn collect(observed: &Observed) -> Vec<Action> {
    let item = observed.item;
    let is = |wanted: Owner| observed.owners.contains(&wanted);
    if is(Owner::Solid) {
        if !is(Owner::Absent) && !is(Owner::Waiting) {
            return Vec::new();
        }
        let states = item.owners.iter().zip(&observed.owners);
        let gone: Vec<&str> = states
            .filter(|(_, state)| **state != Owner::Solid)
            .map(|(o, _)| o.uid.as_str())
            .collect();
        return vec![without_owners(item, |uid| gone.contains(&uid))];
    }
    if is(Owner::Waiting) && !observed.dependents.is_empty() {
        let mut actions = Vec::new();
        if observed.dependents.iter().any(|d| d.waits_for_dependents()) {
            // A circle of blocking owners would wait for itself.
            let unblocked: Vec<Value> = item
                .owners
                .iter()
                .map(|o| {
                    let mut o = json!(o);
                    o["blockOwnerDeletion"] = json!(false);
                    o
                })
                .collect();
            actions.push(patch(item, json!({"metadata": {"ownerReferences": unblocked}})));
        }
        actions.push(delete(item, "Foreground", actions.is_empty()));
        return actions;
    }
    let propagation = if item.has_finalizer(ORPHAN) {
        "Orphan"
    } else if item.has_finalizer(FOREGROUND) {
        "Foreground"
    } else {
        "Background"
    };
    vec![delete(item, propagation, true)]
}

fn path(item: &Item) -> Path {
    let url = format!("{}/{}", item.kind.url(&item.namespace), item.name);
    Path {
        url,
        key: Key::new(&item.namespace, &item.name),
        kind: None,
    }
}

/// Holds only for the object as it was seen: its owners may have changed since.
fn delete(item: &Item, propagation: &str, as_seen: bool) -> Action {
    let mut options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation,
        "preconditions": {"uid": item.uid},
    });
    if as_seen {
        options["preconditions"]["resourceVersion"] = json!(item.resource_version);
    }
    Action::Delete {
        at: path(item),
        options,
        announce: None,
    }
}

fn patch(item: &Item, mut patch: Value) -> Action {
    patch["metadata"]["uid"] = json!(item.uid);
    patch["metadata"]["resourceVersion"] = json!(item.resource_version);
    Action::Patch {
        at: path(item),
        patch,
    }
}

fn without_owners(item: &Item, gone: impl Fn(&str) -> bool) -> Action {
    let kept: Vec<Value> = item
        .owners
        .iter()
        .filter(|o| !gone(&o.uid))
        .map(|o| json!(o))
        .collect();
    patch(item, json!({"metadata": {"ownerReferences": kept}}))
}

fn without_finalizer(item: &Item, finalizer: &str) -> Action {
    let kept: Vec<&String> = item.finalizers.iter().filter(|f| *f != finalizer).collect();
    patch(item, json!({"metadata": {"finalizers": kept}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Kind;
    use kube::discovery::ApiResource;
    use serde_json::from_value;
    use std::sync::Arc;

    fn item(uid: &str, meta: Value) -> Item {
        let resource = ApiResource {
            group: "apps".into(),
            version: "v1".into(),
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            plural: "replicasets".into(),
        };
        let kind = Arc::new(Kind {
            resource,
            namespaced: true,
            collectively: true,
            watchable: true,
        });
        let mut meta = meta;
        meta["uid"] = json!(uid);
        meta["name"] = json!(uid);
        meta["namespace"] = json!("n");
        Item::new(&kind, &from_value(meta).unwrap())
    }

    fn owned_by(owners: &[&str]) -> Value {
        let refs: Vec<Value> = owners
            .iter()
            .map(
                |o| json!({"apiVersion": "v1", "kind": "K", "name": o, "uid": o, "blockOwnerDeletion": true}),
            )
            .collect();
        json!({"ownerReferences": refs})
    }

    fn deleted_with(finalizer: &str) -> Value {
        json!({"finalizers": ["mine", finalizer], "deletionTimestamp": "2026-01-01T00:00:00Z"})
    }

    fn run(item: &Item, owners: &[Owner], dependents: &[&Item]) -> Verdict {
        reconcile(&Observed {
            item,
            owners: owners.to_vec(),
            dependents: dependents.to_vec(),
        })
    }

    #[test]
    fn owned_objects_stay_while_an_owner_is_there() {
        assert_eq!(run(&item("a", json!({})), &[], &[]), Verdict::default());
        assert_eq!(
            run(&item("a", owned_by(&["x"])), &[Owner::Solid], &[]),
            Verdict::default()
        );
        let verdict = run(
            &item("a", owned_by(&["x", "y"])),
            &[Owner::Solid, Owner::Absent],
            &[],
        );
        let [Action::Patch { patch, .. }] = &verdict.actions[..] else {
            panic!("{verdict:?}")
        };
        assert_eq!(patch["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn without_owners_they_go() {
        for (finalizers, owner, dependents, policy) in [
            (json!([]), Owner::Absent, 0, "Background"),
            (json!([ORPHAN]), Owner::Absent, 0, "Orphan"),
            (json!([FOREGROUND]), Owner::Absent, 1, "Foreground"),
            (json!([]), Owner::Waiting, 0, "Background"),
            (json!([]), Owner::Waiting, 1, "Foreground"),
        ] {
            let mut meta = owned_by(&["x"]);
            meta["finalizers"] = finalizers;
            meta["resourceVersion"] = json!("7");
            let child = item("c", owned_by(&["a"]));
            let verdict = run(&item("a", meta), &[owner], &vec![&child; dependents]);
            let [Action::Delete { at, options, .. }] = &verdict.actions[..] else {
                panic!("{verdict:?}")
            };
            assert_eq!(at.url, "/apis/apps/v1/namespaces/n/replicasets/a");
            assert_eq!(options["propagationPolicy"], policy);
            assert_eq!(
                options["preconditions"],
                json!({"uid": "a", "resourceVersion": "7"})
            );
        }
    }

    #[test]
    fn orphaning_frees_dependents_first() {
        let (owner, child) = (item("a", deleted_with(ORPHAN)), item("c", owned_by(&["a"])));
        let verdict = run(&owner, &[], &[&child]);
        let [
            Action::Patch { patch: first, .. },
            Action::Patch { patch: last, .. },
        ] = &verdict.actions[..]
        else {
            panic!("{verdict:?}")
        };
        assert_eq!(first["metadata"]["ownerReferences"], json!([]));
        assert_eq!(last["metadata"]["finalizers"], json!(["mine"]));
    }

    #[test]
    fn the_foreground_waits_for_those_that_block() {
        let owner = item("a", deleted_with(FOREGROUND));
        let blocking = item("c", owned_by(&["a"]));
        let verdict = run(&owner, &[], &[&blocking]);
        assert_eq!((verdict.actions.len(), verdict.look), (0, vec!["c".to_owned()]));
        let mut free = owned_by(&["a"]);
        free["ownerReferences"][0]["blockOwnerDeletion"] = json!(false);
        let verdict = run(&owner, &[], &[&item("d", free)]);
        let [Action::Patch { patch, .. }] = &verdict.actions[..] else {
            panic!("{verdict:?}")
        };
        assert_eq!(patch["metadata"]["finalizers"], json!(["mine"]));
    }

    #[test]
    fn circles_are_broken() {
        let child = item("c", {
            let mut meta = deleted_with(FOREGROUND);
            meta["ownerReferences"] = owned_by(&["a"])["ownerReferences"].clone();
            meta
        });
        let verdict = run(&item("a", owned_by(&["c"])), &[Owner::Waiting], &[&child]);
        let [Action::Patch { patch, .. }, Action::Delete { .. }] = &verdict.actions[..] else {
            panic!("{verdict:?}")
        };
        assert_eq!(
            patch["metadata"]["ownerReferences"][0]["blockOwnerDeletion"],
            false
        );
    }
}
