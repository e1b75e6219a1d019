//! The claims a pod needs.

use super::reservations;
use crate::action::Action;
use k8s_openapi::api::core::v1::{Pod, PodResourceClaim};
use k8s_openapi::api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which of the pod's claims a claim was made for.
const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
/// Pods that may share a claim (`ResourceClaimReservedForMaxSize`).
const MOST_CONSUMERS: usize = 256;
/// A hyphen and five random characters follow, to 63.
const LONGEST_BASE: usize = 57;

type Lookup<'a> = &'a (dyn Fn(&str) -> Option<Arc<ResourceClaim>> + Send + Sync);

pub fn claims(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    let spec = pod.spec.as_ref();
    spec.and_then(|s| s.resource_claims.as_ref())
        .into_iter()
        .flatten()
}

/// The claim's name by spec and status: `None` when it is yet to be made, `Some(None)` when none is needed.
pub fn claim_name<'a>(pod: &'a Pod, claim: &'a PodResourceClaim) -> Option<Option<&'a str>> {
    if claim.resource_claim_name.is_some() {
        return Some(claim.resource_claim_name.as_deref());
    }
    let statuses = pod
        .status
        .as_ref()
        .and_then(|s| s.resource_claim_statuses.as_ref());
    let status = statuses
        .into_iter()
        .flatten()
        .find(|status| status.name == claim.name)?;
    Some(status.resource_claim_name.as_deref())
}

fn is_for(claim: &ResourceClaim, pod: &Pod) -> bool {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    api::owner::is_controlled_by(&claim.metadata, uid)
}

fn made_for<'a>(owned: &'a [Arc<ResourceClaim>], claim: &PodResourceClaim) -> Option<&'a ResourceClaim> {
    let is_its = |made: &&Arc<ResourceClaim>| {
        let annotations = made.metadata.annotations.as_ref();
        annotations.and_then(|a| a.get(POD_CLAIM)) == Some(&claim.name)
    };
    owned.iter().find(is_its).map(|made| &**made)
}

/// Those of the pod's claims whose name its status lacks, or that are gone, with their templates' names.
fn unnamed<'a>(pod: &'a Pod, lookup: Lookup<'a>) -> impl Iterator<Item = (&'a PodResourceClaim, &'a str)> {
    claims(pod).filter_map(move |claim| {
        let template = claim.resource_claim_template_name.as_deref()?;
        let is_there = match claim_name(pod, claim) {
            Some(Some(name)) => lookup(name).is_some_and(|made| is_for(&made, pod)),
            Some(None) => true,
            None => false,
        };
        (!is_there).then_some((claim, template))
    })
}

/// The names of claims to be made, with those of their templates.
pub fn missing<'a>(
    pod: &'a Pod,
    owned: &'a [Arc<ResourceClaim>],
    lookup: Lookup<'a>,
) -> Vec<(&'a str, &'a str)> {
    unnamed(pod, lookup)
        .filter(|(claim, _)| made_for(owned, claim).is_none())
        .map(|(claim, template)| (claim.name.as_str(), template))
        .collect()
}

pub fn reconcile(
    pod: &Pod,
    owned: &[Arc<ResourceClaim>],
    lookup: Lookup<'_>,
    templates: &BTreeMap<String, ResourceClaimTemplate>,
) -> Vec<Action> {
    let mut plan = Vec::new();
    let mut statuses: Vec<Value> = Vec::new();
    for (claim, template) in unnamed(pod, lookup) {
        match (made_for(owned, claim), templates.get(template)) {
            (Some(made), _) => {
                statuses.push(json!({"name": claim.name, "resourceClaimName": made.metadata.name}));
            }
            (None, Some(template)) => plan.push(Action::create(&from_template(pod, claim, template))),
            (None, None) => {}
        }
    }
    if !statuses.is_empty() {
        plan.push(Action::strategic_status(
            pod,
            json!({"resourceClaimStatuses": statuses}),
        ));
    }
    // Before that the scheduler reserves.
    if api::pod::node_name(pod).is_some() {
        let named = claims(pod).filter_map(|claim| Some((claim, claim_name(pod, claim)??)));
        plan.extend(named.filter_map(|(wanted, name)| {
            let claim = lookup(name)?;
            let is_its = wanted.resource_claim_name.is_some() || is_for(&claim, pod);
            is_its.then(|| reserve(&claim, pod)).flatten()
        }));
    }
    plan
}

fn from_template(pod: &Pod, claim: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let meta = template.spec.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    annotations.insert(POD_CLAIM.into(), claim.name.clone());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(base_name(
                pod.metadata.name.as_deref().unwrap_or_default(),
                &claim.name,
            )),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![api::owner::controller_ref("v1", "Pod", &pod.metadata)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

/// Of names that are too long each gives up its share.
fn base_name(pod: &str, claim: &str) -> String {
    let whole = format!("{pod}-{claim}-");
    if whole.len() <= LONGEST_BASE {
        return whole;
    }
    let share = |name: &str| {
        name.chars()
            .take(name.len() * LONGEST_BASE / whole.len())
            .collect::<String>()
    };
    format!("{}-{}", share(pod), share(claim))
}

fn reserve(claim: &ResourceClaim, pod: &Pod) -> Option<Action> {
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let status = claim.status.as_ref()?;
    let reserved = reservations(claim);
    let is_reserved = reserved.iter().any(|consumer| consumer.uid == uid);
    if status.allocation.is_none() || is_reserved || reserved.len() >= MOST_CONSUMERS {
        return None;
    }
    let mut next = status.clone();
    next.reserved_for
        .get_or_insert_default()
        .push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".into(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid,
        });
    Some(Action::patch_status_as_seen(claim, status, &next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    fn pod(status: Value, node: Option<&str>) -> Pod {
        from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "nodeName": node, "resourceClaims": [
                {"name": "made", "resourceClaimTemplateName": "t"}, {"name": "given", "resourceClaimName": "g"}]},
            "status": {"resourceClaimStatuses": status},
        }))
        .unwrap()
    }

    fn claim(name: &str, owner: Option<&str>, status: Value) -> Arc<ResourceClaim> {
        let owners: Vec<Value> = owner
            .map(
                |uid| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}),
            )
            .into_iter()
            .collect();
        let meta = json!({"name": name, "namespace": "n", "ownerReferences": owners, "resourceVersion": "7",
            "annotations": {POD_CLAIM: "made"}});
        Arc::new(from_value(json!({"metadata": meta, "spec": {}, "status": status})).unwrap())
    }

    fn template() -> BTreeMap<String, ResourceClaimTemplate> {
        let spec = json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}});
        let template = from_value(json!({"metadata": {"name": "t"}, "spec": spec})).unwrap();
        BTreeMap::from([("t".to_owned(), template)])
    }

    #[test]
    fn a_claim_is_made_then_named_in_the_status_and_then_left_alone() {
        let fresh = pod(json!([]), None);
        assert_eq!(missing(&fresh, &[], &|_| None), [("made", "t")]);
        let plan = reconcile(&fresh, &[], &|_| None, &template());
        let [Action::Create { body, .. }] = plan.as_slice() else {
            panic!("{plan:?}")
        };
        assert_eq!(body["metadata"]["generateName"], "p-made-");
        assert_eq!(body["metadata"]["annotations"][POD_CLAIM], "made");
        assert_eq!(body["metadata"]["labels"]["a"], "b");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(body["spec"], json!(template()["t"].spec.spec));

        let made = claim("p-made-x", Some("u"), json!({}));
        assert!(missing(&fresh, std::slice::from_ref(&made), &|_| None).is_empty());
        let plan = reconcile(&fresh, std::slice::from_ref(&made), &|_| None, &BTreeMap::new());
        let [Action::StrategicPatch { patch, .. }] = plan.as_slice() else {
            panic!("{plan:?}")
        };
        let named = json!([{"name": "made", "resourceClaimName": "p-made-x"}]);
        assert_eq!(patch["status"]["resourceClaimStatuses"], named);

        let settled = pod(named, None);
        let lookup = |name: &str| (name == "p-made-x").then(|| made.clone());
        assert_eq!(
            reconcile(&settled, std::slice::from_ref(&made), &lookup, &template()),
            []
        );
        let foreign = claim("p-made-x", Some("other"), json!({}));
        assert_eq!(
            missing(&settled, &[], &move |_| Some(foreign.clone())),
            [("made", "t")]
        );
        let needless = pod(json!([{"name": "made"}]), None);
        assert!(missing(&needless, &[], &|_| None).is_empty());
    }

    #[test]
    fn a_placed_pod_reserves_allocated_claims() {
        let allocated = claim(
            "g",
            None,
            json!({"allocation": {}, "reservedFor": [{"resource": "pods", "name": "q", "uid": "q"}]}),
        );
        let needless = json!([{"name": "made"}]);
        let lookup = |name: &str| (name == "g").then(|| allocated.clone());
        let plan = reconcile(
            &pod(needless.clone(), Some("node")),
            &[],
            &lookup,
            &BTreeMap::new(),
        );
        let [Action::Patch { patch, at }] = plan.as_slice() else {
            panic!("{plan:?}")
        };
        assert_eq!(
            at.url,
            "/apis/resource.k8s.io/v1/namespaces/n/resourceclaims/g/status"
        );
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(
            patch["status"]["reservedFor"][1],
            json!({"resource": "pods", "name": "p", "uid": "u"})
        );
        assert_eq!(
            reconcile(&pod(needless.clone(), None), &[], &lookup, &BTreeMap::new()),
            []
        );
        let idle = |_: &str| Some(claim("g", None, json!({})));
        assert_eq!(
            reconcile(&pod(needless, Some("node")), &[], &idle, &BTreeMap::new()),
            []
        );
    }

    #[test]
    fn long_names_are_shortened_alike() {
        assert_eq!(base_name("p", "c"), "p-c-");
        let name = base_name(&"p".repeat(90), &"c".repeat(30));
        assert_eq!(name, format!("{}-{}", "p".repeat(42), "c".repeat(14)));
    }
}
