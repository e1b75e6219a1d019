//! Nodes that have the pod's images already are better, the more so the larger these are.

use crate::cluster::{Cluster, NodeInfo};
use crate::framework::{EventKind, MAX_SCORE, Plugin, Prepared, Scope};
use crate::pod_info::PodInfo;

const MB: i64 = 1024 * 1024;
const MIN_SIZE: i64 = 23 * MB;
const MAX_SIZE_PER_CONTAINER: i64 = 1000 * MB;

pub struct ImageLocality;

struct Images {
    /// Names, and the share of nodes that have each: a rare image must not pull all pods to one node.
    wanted: Vec<(String, f64)>,
    containers: i64,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn weight(&self) -> i64 {
        1
    }

    fn wakes_on(&self, _: EventKind) -> bool {
        false
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<Box<dyn Prepared + 'a>> {
        let total = cluster.nodes().len();
        let spec = pod.spec();
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        let images: Vec<String> = containers
            .filter_map(|c| c.image.as_deref())
            .map(normalized)
            .collect();
        let count = images.len() as i64;
        let wanted: Vec<(String, f64)> = images
            .into_iter()
            .map(|name| {
                let having = cluster.nodes_with_image(&name);
                (name, having as f64 / total.max(1) as f64)
            })
            .filter(|(_, share)| *share > 0.0)
            .collect();
        (!wanted.is_empty()).then(|| {
            Box::new(Images {
                wanted,
                containers: count,
            }) as Box<dyn Prepared + 'a>
        })
    }
}

impl Prepared for Images {
    fn scope(&self) -> Scope {
        Scope::Node
    }

    fn score(&self, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let sum = |node: &&NodeInfo| -> i64 {
            let sizes = self
                .wanted
                .iter()
                .filter_map(|(name, share)| Some((node.images.get(name)?, share)));
            sizes.map(|(size, share)| (*size as f64 * share) as i64).sum()
        };
        Some(
            nodes
                .iter()
                .map(|node| score(sum(node), self.containers))
                .collect(),
        )
    }
}

fn score(sum: i64, containers: i64) -> i64 {
    let max = MAX_SIZE_PER_CONTAINER * containers.max(1);
    MAX_SCORE * (sum.clamp(MIN_SIZE, max) - MIN_SIZE) / (max - MIN_SIZE)
}

/// Names in Node.status always carry a tag or digest.
fn normalized(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains(':') || name.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::{cluster, pod};
    use serde_json::json;

    #[test]
    fn the_node_with_the_image_is_better() {
        let having =
            json!({"status": {"images": [{"names": ["host:5000/app:latest"], "sizeBytes": 1000 * MB}]}});
        let cluster = cluster(&[("has", having), ("not", json!({}))], &[]);
        let pod = pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "image": "host:5000/app"}]}}),
        );
        let prepared = ImageLocality.prepare(&pod, &cluster).unwrap();
        let scores = prepared
            .score(&[cluster.node("has").unwrap(), cluster.node("not").unwrap()])
            .unwrap();
        assert_eq!(scores, [MAX_SCORE * (500 - 23) / (1000 - 23), 0]);
    }
}
