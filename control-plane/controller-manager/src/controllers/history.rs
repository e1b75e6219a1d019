//! Revisions of a pod template, kept as ControllerRevisions (DaemonSets and StatefulSets).

use crate::action::Action;
use api::names::hash_name;
use api::owner::controller_ref;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub const REVISION_HASH: &str = "controller-revision-hash";

/// The revision that stands for the template as it is now.
pub struct Current {
    pub revision: Arc<ControllerRevision>,
    pub collisions: i32,
    /// What makes the history so.
    pub actions: Vec<Action>,
}

/// The patch that brings this template back; `kubectl rollout undo` applies it.
fn snapshot(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template a revision holds.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

pub fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// Finds or makes the revision of `template`. `owned` are the owner's revisions, `taken` all revisions' names in the
/// namespace. An old template that came back becomes the newest revision again.
pub fn current<O: Resource<DynamicType = ()>>(
    owner: &O,
    template: &PodTemplateSpec,
    collisions: i32,
    owned: &[Arc<ControllerRevision>],
    taken: &HashSet<String>,
) -> Current {
    let data = snapshot(template);
    let same = |r: &&Arc<ControllerRevision>| r.data.as_ref().is_some_and(|d| d.0 == data);
    let newest =
        |list: &mut dyn Iterator<Item = &Arc<ControllerRevision>>| list.max_by_key(|r| r.revision).cloned();
    let known = newest(&mut owned.iter().filter(same));
    let next = newest(&mut owned.iter().filter(|r| !same(r))).map_or(0, |r| r.revision) + 1;
    if let Some(revision) = known {
        if revision.revision >= next {
            return Current {
                revision,
                collisions,
                actions: Vec::new(),
            };
        }
        let mut moved = (*revision).clone();
        moved.revision = next;
        return Current {
            actions: vec![Action::update(&*revision, &moved)],
            revision: Arc::new(moved),
            collisions,
        };
    }
    let owner_name = owner.meta().name.as_deref().unwrap_or_default();
    let mut collisions = collisions;
    let (name, hash) = loop {
        let hash = hash_name(template, collisions);
        let name = format!("{owner_name}-{hash}");
        if !taken.contains(&name) {
            break (name, hash);
        }
        collisions += 1;
    };
    let labels = template.metadata.as_ref().and_then(|m| m.labels.clone());
    let mut labels: BTreeMap<String, String> = labels.unwrap_or_default();
    labels.insert(REVISION_HASH.into(), hash);
    let annotations = owner.meta().annotations.clone().map(|mut annotations| {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        annotations
    });
    let revision = ControllerRevision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations,
            owner_references: Some(vec![controller_ref(
                &O::api_version(&()),
                &O::kind(&()),
                owner.meta(),
            )]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: next,
    };
    Current {
        actions: vec![Action::create(&revision)],
        revision: Arc::new(revision),
        collisions,
    }
}

/// Deletes the oldest revisions beyond `limit` that nothing is of.
pub fn truncate(
    owned: &[Arc<ControllerRevision>],
    limit: i32,
    is_live: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Action> {
    let mut dead: Vec<_> = owned.iter().filter(|r| !is_live(r)).collect();
    dead.sort_by_key(|r| r.revision);
    let surplus = dead
        .len()
        .saturating_sub(usize::try_from(limit).unwrap_or_default());
    dead[..surplus].iter().map(|r| Action::delete(&***r)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::DaemonSet;
    use serde_json::from_value;

    fn template(image: &str) -> PodTemplateSpec {
        from_value(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}}))
            .unwrap()
    }

    fn owner() -> DaemonSet {
        from_value(json!({"metadata": {"name": "d", "namespace": "n", "uid": "1"}})).unwrap()
    }

    #[test]
    fn a_template_finds_its_revision_and_one_that_came_back_is_the_newest() {
        let none = HashSet::new();
        let a = current(&owner(), &template("a"), 0, &[], &none);
        assert_eq!((a.revision.revision, a.actions.len()), (1, 1));
        assert_eq!(template_of(&a.revision), Some(template("a")));
        let b = current(
            &owner(),
            &template("b"),
            0,
            std::slice::from_ref(&a.revision),
            &none,
        );
        assert_eq!(b.revision.revision, 2);
        let both = [a.revision.clone(), b.revision.clone()];
        assert_eq!(current(&owner(), &template("b"), 0, &both, &none).actions, []);
        let back = current(&owner(), &template("a"), 0, &both, &none);
        assert_eq!((back.revision.revision, back.actions.len()), (3, 1));
        assert_eq!(name(&back.revision), name(&a.revision));
    }

    #[test]
    fn a_taken_name_is_a_collision() {
        let a = current(&owner(), &template("a"), 0, &[], &HashSet::new());
        let taken = HashSet::from([name(&a.revision).to_owned()]);
        let other = current(&owner(), &template("a"), 0, &[], &taken);
        assert_eq!(other.collisions, 1);
        assert_ne!(name(&other.revision), name(&a.revision));
    }

    #[test]
    fn the_oldest_dead_revisions_go() {
        let revision = |n: i64| {
            Arc::new(
                from_value::<ControllerRevision>(json!({"metadata": {"name": n.to_string()}, "revision": n}))
                    .unwrap(),
            )
        };
        let all = [revision(3), revision(1), revision(2)];
        let plan = truncate(&all, 1, |r| r.revision == 1);
        let [Action::Delete { at, .. }] = &plan[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(at.key.name, "2");
    }
}
