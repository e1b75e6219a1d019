//! Which slices mirror one Endpoints object.

use crate::action::Action;
use crate::controllers::endpointslice::{
    Groups, HEADLESS, MANAGED_BY, Owner, Ports, SERVICE_NAME, address_type, managed_by, place,
};
use api::owner::controller_ref;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use std::collections::BTreeSet;
use std::sync::Arc;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Of one subset, as many addresses are mirrored.
const MOST: usize = 1000;

pub struct Observed {
    pub endpoints: Option<Arc<Endpoints>>,
    pub service: Option<Arc<Service>>,
    /// Those that carry the Service's name.
    pub slices: Vec<Arc<EndpointSlice>>,
}

pub fn reconcile(observed: &Observed) -> Vec<Action> {
    let ours = managed_by(&observed.slices, MANAGER);
    let Some(endpoints) = mirrored(observed) else {
        let live = ours
            .into_iter()
            .filter(|s| s.metadata.deletion_timestamp.is_none());
        return live.map(|s| Action::delete(&**s)).collect();
    };
    let subsets = endpoints.subsets.as_deref().unwrap_or_default();
    place(&owner(endpoints), &groups(subsets), ours)
}

/// The Endpoints, if they are to be mirrored.
fn mirrored(observed: &Observed) -> Option<&Endpoints> {
    let endpoints = observed.endpoints.as_deref()?;
    let selector = observed.service.as_deref()?.spec.as_ref()?.selector.as_ref();
    let has = |map: &Option<api::selector::Labels>, key: &str| map.as_ref().and_then(|m| m.get(key).cloned());
    let wanted = endpoints.metadata.deletion_timestamp.is_none()
        && selector.is_none()
        && has(&endpoints.metadata.labels, SKIP).as_deref() != Some("true")
        && has(&endpoints.metadata.annotations, LEADER).is_none();
    wanted.then_some(endpoints)
}

fn groups(subsets: &[EndpointSubset]) -> Groups {
    let mut groups = Groups::new();
    for subset in subsets {
        let ports: Ports = subset
            .ports
            .iter()
            .flatten()
            .map(|p| {
                let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
                (
                    p.name.clone().unwrap_or_default(),
                    protocol,
                    p.port,
                    p.app_protocol.clone(),
                )
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|a| (a, false));
        let mut seen = BTreeSet::new();
        for (address, ready) in ready
            .chain(unready)
            .filter(|(a, _)| seen.insert(a.ip.clone()))
            .take(MOST)
        {
            if let Some(family) = address_type(&address.ip) {
                let list = groups.entry((family, ports.clone())).or_default();
                list.push(endpoint(address, ready));
            }
        }
    }
    groups
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|h| !h.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn owner(endpoints: &Endpoints) -> Owner {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.into(), name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    let annotations = endpoints.metadata.annotations.clone().map(|mut annotations| {
        annotations.remove(LAST_APPLIED);
        annotations
    });
    Owner {
        service: name,
        namespace: endpoints.metadata.namespace.clone(),
        labels,
        annotations: annotations.filter(|a| !a.is_empty()),
        reference: controller_ref("v1", "Endpoints", &endpoints.metadata),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    fn observed(selector: Value, labels: Value, address: &str, slices: Vec<EndpointSlice>) -> Observed {
        let meta = json!({"name": "ext", "namespace": "n", "uid": "e", "labels": labels});
        let subsets = json!([{"addresses": [{"ip": address}], "notReadyAddresses": [{"ip": "fd00::1"}],
            "ports": [{"name": "web", "port": 9090, "protocol": "TCP"}]}]);
        Observed {
            endpoints: Some(Arc::new(
                from_value(json!({"metadata": meta, "subsets": subsets})).unwrap(),
            )),
            service: Some(Arc::new(
                from_value(json!({"metadata": {"name": "ext"}, "spec": {"selector": selector}})).unwrap(),
            )),
            slices: slices.into_iter().map(Arc::new).collect(),
        }
    }

    fn created(plan: Vec<Action>) -> Vec<EndpointSlice> {
        let slice = |(n, action)| {
            let Action::Create { mut body, .. } = action else {
                panic!("{action:?}")
            };
            body["metadata"]["name"] = json!(format!("ext-{n}"));
            from_value(body).unwrap()
        };
        plan.into_iter().enumerate().map(slice).collect()
    }

    #[test]
    fn endpoints_are_mirrored_changed_and_deleted() {
        let slices = created(reconcile(&observed(
            json!(null),
            json!({"a": "b"}),
            "10.0.0.1",
            vec![],
        )));
        let told = |s: &EndpointSlice| {
            let endpoint = &s.endpoints.as_ref().unwrap()[0];
            let ready = endpoint.conditions.as_ref().unwrap().ready;
            (s.address_type.clone(), endpoint.addresses[0].clone(), ready)
        };
        assert_eq!(told(&slices[0]), ("IPv4".into(), "10.0.0.1".into(), Some(true)));
        assert_eq!(told(&slices[1]), ("IPv6".into(), "fd00::1".into(), Some(false)));
        let labels = slices[0].metadata.labels.clone().unwrap();
        assert_eq!(
            (labels[SERVICE_NAME].as_str(), labels["a"].as_str()),
            ("ext", "b")
        );
        assert_eq!(
            reconcile(&observed(
                json!(null),
                json!({"a": "b"}),
                "10.0.0.1",
                slices.clone()
            )),
            []
        );
        let moved = reconcile(&observed(
            json!(null),
            json!({"a": "b"}),
            "10.0.0.2",
            slices.clone(),
        ));
        let [Action::Patch { at, patch }] = &moved[..] else {
            panic!("{moved:?}")
        };
        assert_eq!(
            (at.key.name.as_str(), &patch["endpoints"][0]["addresses"]),
            ("ext-0", &json!(["10.0.0.2"]))
        );
        let mut gone = observed(json!(null), json!({}), "10.0.0.1", slices);
        gone.endpoints = None;
        assert_eq!(reconcile(&gone).len(), 2);
    }

    #[test]
    fn what_others_look_after_is_not_mirrored() {
        for (selector, labels) in [
            (json!({"app": "web"}), json!({})),
            (json!(null), json!({SKIP: "true"})),
        ] {
            assert_eq!(reconcile(&observed(selector, labels, "10.0.0.1", vec![])), []);
        }
    }
}
