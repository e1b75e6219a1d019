//! Changes as few slices as possible: endpoints stay where they are, new ones fill gaps, then new slices.

use super::desired::{Groups, Ports, families, groups, has_selector, slice_ports};
use crate::action::Action;
use api::owner::controller_ref;
use api::selector::Labels;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const MAX_ENDPOINTS: usize = 100;

pub struct Observed<'a> {
    pub service: Option<Arc<Service>>,
    /// Pods of the namespace.
    pub pods: Vec<Arc<Pod>>,
    /// Slices that carry the Service's name.
    pub slices: Vec<Arc<EndpointSlice>>,
    pub zone_of: &'a dyn Fn(&str) -> Option<String>,
}

/// What the slices of one Service have in common.
pub struct Owner {
    pub service: String,
    pub namespace: Option<String>,
    /// All of them, those of the slices' own included.
    pub labels: Labels,
    pub annotations: Option<Labels>,
    pub reference: OwnerReference,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let ours = managed_by(&observed.slices, MANAGER);
    let Some(service) = observed.service.as_deref().filter(|s| has_selector(s)) else {
        // The garbage collector takes the slices of a deleted Service; this is for one that lost its selector.
        let orphaned = observed.service.is_some();
        return ours
            .into_iter()
            .filter(|_| orphaned)
            .map(|s| Action::delete(&**s))
            .collect();
    };
    if service.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let mut wanted = groups(service, &observed.pods, observed.zone_of);
    for family in service.spec.as_ref().map(families).unwrap_or_default() {
        // A Service without endpoints keeps one empty slice, so that its absence means "not looked at yet".
        if !wanted.keys().any(|(f, _)| *f == family) {
            wanted.insert((family, Ports::new()), Vec::new());
        }
    }
    place(&owner(service), &wanted, ours)
}

/// Puts the wanted endpoints into slices, the ones there are first.
pub fn place(owner: &Owner, wanted: &Groups, ours: Vec<&Arc<EndpointSlice>>) -> Vec<Action> {
    let mut plan = Vec::new();
    let mut free: Vec<&Arc<EndpointSlice>> = Vec::new();
    let mut by_group: BTreeMap<&(&'static str, Ports), Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    for slice in ours {
        match wanted.keys().find(|(family, ports)| is_of(slice, family, ports)) {
            Some(group) if slice.metadata.deletion_timestamp.is_none() => {
                by_group.entry(group).or_default().push(slice)
            }
            _ => free.push(slice),
        }
    }
    for (group, endpoints) in wanted {
        let slices = by_group.remove(group).unwrap_or_default();
        fill(owner, group, endpoints, &slices, &mut free, &mut plan);
    }
    plan.extend(
        free.into_iter()
            .filter(|s| s.metadata.deletion_timestamp.is_none())
            .map(|s| Action::delete(&**s)),
    );
    plan
}

pub fn managed_by<'a>(slices: &'a [Arc<EndpointSlice>], manager: &str) -> Vec<&'a Arc<EndpointSlice>> {
    let label = |s: &EndpointSlice| Some(s.metadata.labels.as_ref()?.get(MANAGED_BY)? == manager);
    slices.iter().filter(|s| label(s) == Some(true)).collect()
}

fn is_of(slice: &EndpointSlice, family: &str, ports: &Ports) -> bool {
    slice.address_type == family && slice.ports.clone().unwrap_or_default() == slice_ports(ports)
}

/// One group's slices.
fn fill<'a>(
    owner: &Owner,
    (family, ports): &(&'static str, Ports),
    endpoints: &[Endpoint],
    slices: &[&'a Arc<EndpointSlice>],
    free: &mut Vec<&'a Arc<EndpointSlice>>,
    plan: &mut Vec<Action>,
) {
    let target = |e: &Endpoint| {
        (
            e.target_ref.as_ref().and_then(|t| t.uid.clone()),
            e.addresses.clone(),
        )
    };
    let mut left: BTreeMap<_, &Endpoint> = endpoints.iter().map(|e| (target(e), e)).collect();
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = slices
        .iter()
        .map(|slice| {
            let stay = slice
                .endpoints
                .iter()
                .flatten()
                .filter_map(|e| left.remove(&target(e)).cloned());
            (*slice, stay.take(MAX_ENDPOINTS).collect())
        })
        .collect();
    let mut homeless: VecDeque<Endpoint> = endpoints
        .iter()
        .filter(|e| left.contains_key(&target(e)))
        .cloned()
        .collect();
    // The fullest first, so that slices end up full rather than many.
    kept.sort_by_key(|(_, endpoints)| std::cmp::Reverse(endpoints.len()));
    for (_, endpoints) in &mut kept {
        let room = MAX_ENDPOINTS - endpoints.len();
        endpoints.extend(homeless.drain(..room.min(homeless.len())));
    }
    let mut filled = kept.iter().any(|(_, endpoints)| !endpoints.is_empty());
    for (slice, endpoints) in kept {
        if endpoints.is_empty() && (filled || !homeless.is_empty()) {
            free.push(slice);
            continue;
        }
        filled = true;
        let mut changed = (**slice).clone();
        changed.endpoints = if endpoints.is_empty() {
            slice.endpoints.as_ref().map(|_| Vec::new())
        } else {
            Some(endpoints)
        };
        decorate(&mut changed.metadata, owner);
        if changed != **slice {
            plan.push(Action::update(&**slice, &changed));
        }
    }
    while !homeless.is_empty() || !filled {
        filled = true;
        let endpoints: Vec<Endpoint> = homeless.drain(..MAX_ENDPOINTS.min(homeless.len())).collect();
        plan.push(Action::create(&new_slice(owner, family, ports, endpoints)));
    }
}

/// Labels are the Service's and our own.
fn owner(service: &Service) -> Owner {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    Owner {
        service: name,
        namespace: service.metadata.namespace.clone(),
        labels,
        annotations: None,
        reference: controller_ref("v1", "Service", &service.metadata),
    }
}

fn decorate(meta: &mut ObjectMeta, owner: &Owner) {
    meta.labels = Some(owner.labels.clone());
    if owner.annotations.is_some() {
        meta.annotations.clone_from(&owner.annotations);
    }
}

fn new_slice(owner: &Owner, family: &str, ports: &Ports, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut metadata = ObjectMeta {
        generate_name: Some(format!("{}-", owner.service)),
        namespace: owner.namespace.clone(),
        owner_references: Some(vec![owner.reference.clone()]),
        ..ObjectMeta::default()
    };
    decorate(&mut metadata, owner);
    EndpointSlice {
        metadata,
        address_type: family.to_owned(),
        ports: Some(slice_ports(ports)),
        endpoints: Some(endpoints),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn service(spec: Value) -> Arc<Service> {
        Arc::new(
            from_value(json!({"metadata": {"name": "web", "namespace": "n", "uid": "s"}, "spec": spec}))
                .unwrap(),
        )
    }

    fn web() -> Arc<Service> {
        service(json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}))
    }

    fn pod(name: &str, ip: &str, port: i32, ready: bool) -> Arc<Pod> {
        Arc::new(
            from_value(json!({
                "metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"app": "web"}},
                "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
                "status": {"podIPs": [{"ip": ip}], "conditions": [
                    {"type": "Ready", "status": if ready { "True" } else { "False" }}]}}))
            .unwrap(),
        )
    }

    fn run(service: &Arc<Service>, pods: &[Arc<Pod>], slices: &[EndpointSlice]) -> Vec<Action> {
        reconcile(&Observed {
            service: Some(service.clone()),
            pods: pods.to_vec(),
            slices: slices.iter().cloned().map(Arc::new).collect(),
            zone_of: &|_| Some("z".into()),
        })
    }

    /// What the server would hold after the plan's creations.
    fn created(plan: &[Action]) -> Vec<EndpointSlice> {
        let mut slices: Vec<EndpointSlice> = plan
            .iter()
            .map(|a| match a {
                Action::Create { body, .. } => from_value(body.clone()).unwrap(),
                other => panic!("unexpected {other:?}"),
            })
            .collect();
        for (n, slice) in slices.iter_mut().enumerate() {
            slice.metadata.name = Some(format!("web-{n}"));
        }
        slices
    }

    #[test]
    fn a_service_gets_slices_and_then_rest() {
        let pods = [
            pod("a", "10.0.0.1", 8080, true),
            pod("b", "10.0.0.2", 8080, false),
        ];
        let slices = created(&run(&web(), &pods, &[]));
        assert_eq!(slices.len(), 1);
        let endpoints = slices[0].endpoints.as_ref().unwrap();
        assert_eq!(endpoints[0].zone.as_deref(), Some("z"));
        let ready: Vec<_> = endpoints
            .iter()
            .map(|e| e.conditions.as_ref().unwrap().ready)
            .collect();
        assert_eq!(ready, [Some(true), Some(false)]);
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(run(&web(), &pods, &slices), [], "converged");
    }

    #[test]
    fn an_empty_service_has_one_empty_slice() {
        let slices = created(&run(&web(), &[], &[]));
        assert_eq!(slices.len(), 1);
        assert_eq!(run(&web(), &[], &slices), []);
        let plan = run(&web(), &[pod("a", "10.0.0.1", 80, true)], &slices);
        assert!(
            matches!(&plan[..], [Action::Create { .. }, Action::Delete { .. }]),
            "{plan:?}"
        );
    }

    #[test]
    fn slices_hold_a_hundred_and_endpoints_stay_where_they_are() {
        let pods: Vec<_> = (0..150)
            .map(|n| pod(&format!("p{n:03}"), &format!("10.0.0.{n}"), 80, true))
            .collect();
        let slices = created(&run(&web(), &pods, &[]));
        assert_eq!(
            slices
                .iter()
                .map(|s| s.endpoints.as_ref().unwrap().len())
                .collect::<Vec<_>>(),
            [100, 50]
        );
        let plan = run(&web(), &pods[1..], &slices);
        let [Action::Patch { at, patch }] = &plan[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(at.key.name, "web-0");
        assert_eq!(patch["endpoints"].as_array().unwrap().len(), 99);
    }

    #[test]
    fn named_ports_that_differ_make_groups() {
        let pods = [pod("a", "10.0.0.1", 80, true), pod("b", "10.0.0.2", 81, true)];
        assert_eq!(groups(&web(), &pods, &|_| None).len(), 2);
        assert_eq!(created(&run(&web(), &pods, &[])).len(), 2);
    }

    #[test]
    fn dual_stack_and_foreign_slices() {
        let dual = service(
            json!({"selector": {"app": "web"}, "ipFamilies": ["IPv4", "IPv6"], "ports": [{"port": 80}]}),
        );
        let mut two = (*pod("a", "10.0.0.1", 80, true)).clone();
        two.status.as_mut().unwrap().pod_ips =
            from_value(json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}])).unwrap();
        let slices = created(&run(&dual, &[Arc::new(two)], &[]));
        assert_eq!(
            slices.iter().map(|s| s.address_type.as_str()).collect::<Vec<_>>(),
            ["IPv4", "IPv6"]
        );
        let manual = service(json!({"ports": [{"port": 80}]}));
        let mut foreign = slices[0].clone();
        foreign.metadata.labels = Some([(SERVICE_NAME.to_owned(), "web".to_owned())].into());
        assert_eq!(run(&manual, &[], &[foreign]), []);
    }
}
