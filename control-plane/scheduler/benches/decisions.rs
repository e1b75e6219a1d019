//! Decisions a second, by size of the cluster and kind of pod. `cargo bench -p scheduler [NODES…]`

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::Simulation;
use serde_json::{Value, from_value, json};
use std::time::Instant;

const PODS: usize = 5_000;

fn node(at: usize) -> Node {
    from_value(json!({
        "metadata": {"name": format!("node-{at}"), "labels": {
            "kubernetes.io/hostname": format!("node-{at}"), "topology.kubernetes.io/zone": format!("zone-{}", at % 10)}},
        "status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "250"}},
    }))
    .expect("a node")
}

fn pod(at: usize, kind: &str, nodes: usize) -> Pod {
    let mut spec = json!({"containers": [{"name": "c", "image": "registry.example/app:1", "resources": {
        "requests": {"cpu": "100m", "memory": "128Mi"}}}]});
    let mut metadata = json!({"name": format!("pod-{at}"), "namespace": "default", "uid": format!("uid-{at}"),
        "labels": {"app": "web"}});
    let mine = json!({"matchLabels": {"app": "web"}});
    match kind {
        "spread" => {
            spec["topologySpreadConstraints"] = json!([{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule", "labelSelector": mine}]);
        }
        "anti-affinity" => {
            // As many groups as it takes for one pod of each on every node.
            let group = format!("group-{}", at % PODS.div_ceil(nodes).max(1));
            metadata["labels"]["group"] = json!(group);
            spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"group": group}}}]}});
        }
        "replica set" => {
            metadata["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                "uid": "owner", "controller": true}]);
        }
        _ => {}
    }
    from_value(json!({"metadata": metadata, "spec": spec})).expect("a pod")
}

fn owner() -> ReplicaSet {
    let selector: Value = json!({"matchLabels": {"app": "web"}});
    from_value(json!({"metadata": {"name": "web", "uid": "owner"}, "spec": {"selector": selector}}))
        .expect("a set")
}

fn main() {
    let given: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let sizes = if given.is_empty() {
        vec![100, 1_000, 5_000]
    } else {
        given
    };
    println!(
        "{:>6} nodes  {:>14}  {:>10}  {:>9}",
        "", "pods", "pods/s", "µs/pod"
    );
    for nodes in sizes {
        for kind in ["basic", "replica set", "spread", "anti-affinity"] {
            let simulation = Simulation::default();
            (0..nodes).for_each(|at| simulation.add_node(node(at)));
            simulation.add_replica_set(&owner());
            (0..PODS).for_each(|at| simulation.add_pod(pod(at, kind, nodes)));
            let start = Instant::now();
            let (placed, _) = simulation.run();
            let took = start.elapsed().as_secs_f64();
            let rate = placed as f64 / took;
            println!(
                "{nodes:>6} nodes  {kind:>14}  {rate:>10.0}  {:>9.0}  {placed} placed",
                1e6 / rate
            );
        }
    }
}
