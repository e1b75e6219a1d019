//! Endpoints: the older form of EndpointSlices, one object a Service, for clients that still read it.

use super::endpointslice::{Ports, has_selector, pod_ports};
use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// More are cut off, and the object says so.
const CAPACITY: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

struct EndpointsController(Arc<Caches>);

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .services
        .on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    context
        .caches
        .endpoints
        .on(move |change| to.add(change.key.clone()));
    super::enqueue_services_of_pods(context, &queue);
    Ok(super::spawn(
        context,
        EndpointsController(context.caches.clone()),
        queue,
    ))
}

impl Controller for EndpointsController {
    const NAME: &'static str = "endpoints-controller";

    async fn plan(&self, key: &Key, _: Timestamp) -> Result<Vec<Action>, Error> {
        let service = self.0.services.get(key);
        let pods = if service.is_some() {
            self.0.pods.list_in(&key.namespace)
        } else {
            Vec::new()
        };
        Ok(reconcile(
            service.as_deref(),
            &pods,
            self.0.endpoints.get(key).as_deref(),
        ))
    }
}

fn reconcile(service: Option<&Service>, pods: &[Arc<Pod>], current: Option<&Endpoints>) -> Vec<Action> {
    let Some(service) = service else {
        let ours = current.filter(|e| {
            e.metadata
                .labels
                .as_ref()
                .and_then(|l| l.get(MANAGED_BY))
                .is_some_and(|m| m == MANAGER)
        });
        return ours.map(Action::delete).into_iter().collect();
    };
    if !has_selector(service) {
        return Vec::new();
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    let (subsets, cut) = subsets(service, pods);
    let mut wanted = current.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        ..Endpoints::default()
    });
    wanted.metadata.labels = Some(labels);
    wanted.subsets = (!subsets.is_empty()).then_some(subsets);
    if cut {
        wanted
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(OVER_CAPACITY.into(), "truncated".into());
    } else if let Some(annotations) = &mut wanted.metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    match current {
        None => vec![Action::create(&wanted)],
        Some(current) if *current != wanted => vec![Action::update(current, &wanted)],
        Some(_) => Vec::new(),
    }
}

fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let Some(spec) = &service.spec else {
        return (Vec::new(), false);
    };
    let selector = spec.selector.clone().unwrap_or_default();
    let publish = spec.publish_not_ready_addresses.unwrap_or_default();
    let mut groups: BTreeMap<Ports, (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    let mut selected: Vec<(&str, &Arc<Pod>)> = pods
        .iter()
        .filter(|p| {
            !api::pod::is_terminal(p)
                && (publish || !api::pod::is_terminating(p))
                && api::selector::matches_map(&selector, p.metadata.labels.as_ref())
        })
        .filter_map(|p| Some((api::pod::ips(p).first().copied()?, p)))
        .collect();
    let cut = selected.len() > CAPACITY;
    selected.sort_by_key(|(ip, pod)| (!api::pod::is_ready(pod), ip.to_string()));
    selected.truncate(CAPACITY);
    for (ip, pod) in selected {
        let (ready, not_ready) = groups.entry(pod_ports(spec, pod)).or_default();
        let list = if publish || api::pod::is_ready(pod) {
            ready
        } else {
            not_ready
        };
        list.push(address(service, pod, ip));
    }
    let some = |list: Vec<EndpointAddress>| (!list.is_empty()).then_some(list);
    let subset = |(ports, (ready, not_ready))| EndpointSubset {
        addresses: some(ready),
        not_ready_addresses: some(not_ready),
        ports: subset_ports(ports),
    };
    (groups.into_iter().map(subset).collect(), cut)
}

fn subset_ports(ports: Ports) -> Option<Vec<EndpointPort>> {
    let port = |(name, protocol, port, app_protocol): (String, String, i32, Option<String>)| EndpointPort {
        name: (!name.is_empty()).then_some(name),
        protocol: Some(protocol),
        port,
        app_protocol,
    };
    let list: Vec<EndpointPort> = ports.into_iter().map(port).collect();
    (!list.is_empty()).then_some(list)
}

fn address(service: &Service, pod: &Pod, ip: &str) -> EndpointAddress {
    let spec = pod.spec.as_ref();
    let subdomain = spec.and_then(|s| s.subdomain.as_deref());
    EndpointAddress {
        ip: ip.to_owned(),
        hostname: spec
            .and_then(|s| s.hostname.clone())
            .filter(|h| !h.is_empty() && subdomain == service.metadata.name.as_deref()),
        node_name: api::pod::node_name(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn service() -> Service {
        from_value(json!({"metadata": {"name": "web", "namespace": "n"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: &str) -> Arc<Pod> {
        Arc::new(
            from_value(
                json!({"metadata": {"name": name, "namespace": "n", "labels": {"app": "web"}},
                "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": ready}]}}),
            )
            .unwrap(),
        )
    }

    #[test]
    fn ready_and_not_ready_addresses() {
        let pods = [
            pod("b", "10.0.0.2", "True"),
            pod("a", "10.0.0.1", "True"),
            pod("c", "10.0.0.3", "False"),
        ];
        let plan = reconcile(Some(&service()), &pods, None);
        let [Action::Create { body, .. }] = &plan[..] else {
            panic!("{plan:?}")
        };
        let made: Endpoints = from_value(body.clone()).unwrap();
        let subset = &made.subsets.as_ref().unwrap()[0];
        let ips: Vec<&str> = subset.addresses.iter().flatten().map(|a| a.ip.as_str()).collect();
        assert_eq!(ips, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(subset.not_ready_addresses.as_ref().unwrap().len(), 1);
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
        assert_eq!(reconcile(Some(&service()), &pods, Some(&made)), [], "converged");
        assert!(matches!(
            &reconcile(None, &[], Some(&made))[..],
            [Action::Delete { .. }]
        ));
    }

    #[test]
    fn somebody_elses_endpoints_are_left_alone() {
        let foreign = Endpoints::default();
        assert_eq!(reconcile(None, &[], Some(&foreign)), []);
        let mut manual = service();
        manual.spec.as_mut().unwrap().selector = None;
        assert_eq!(reconcile(Some(&manual), &[], Some(&foreign)), []);
    }
}
