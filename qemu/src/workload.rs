//! The first workload: a Deployment on both nodes, and proof that its Service reaches every pod.

use crate::{kubectl::Kubectl, stage::Stages};
use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

const MANIFEST: &str = include_str!("hello.yaml");
const DEPLOYMENT: &str = "deployment/hello";
const SERVICE: &str = "hello";
/// Requests of one try: two of two pods stay silent in one of 2^23 tries.
const REQUESTS: usize = 24;

/// Applies the manifest, waits for the pods, and asks the Service from a pod on each node until all pods answered.
pub fn run(kubectl: &Kubectl, stages: &mut Stages, deadline: Instant) -> anyhow::Result<()> {
    let left = |deadline: Instant| {
        deadline
            .saturating_duration_since(Instant::now())
            .as_secs()
            .max(1)
    };
    kubectl.run(&["apply", "-f", "-"], MANIFEST)?;
    kubectl.run(
        &[
            "rollout",
            "status",
            DEPLOYMENT,
            &format!("--timeout={}s", left(deadline)),
        ],
        "",
    )?;
    let pods = pods(&kubectl.json(&[
        "get",
        "pods",
        "-l",
        "app=hello",
        "--field-selector=status.phase=Running",
    ])?);
    let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    stages.done(&format!(
        "workload: {DEPLOYMENT} {}/{} on {}",
        pods.len(),
        pods.len(),
        Vec::from_iter(nodes).join(" and ")
    ));

    let service = kubectl.json(&["get", "service", SERVICE])?;
    let address = service["spec"]["clusterIP"]
        .as_str()
        .context("the Service has no clusterIP")?;
    let expected: BTreeSet<String> = pods.iter().map(|pod| pod.name.clone()).collect();
    for pod in &pods {
        let script = format!("for i in $(seq {REQUESTS}); do wget -q -O - http://{address}/; done");
        loop {
            let outcome = kubectl.run(&["exec", &pod.name, "--", "sh", "-c", &script], "");
            match &outcome {
                Ok(text) if answered(text) == expected => break,
                _ if Instant::now() < deadline => thread::sleep(Duration::from_secs(1)),
                Ok(text) => bail!(
                    "asked from {} on {}, the Service {address} was answered by {:?}, not by {expected:?}",
                    pod.name,
                    pod.node,
                    answered(text)
                ),
                Err(error) => bail!(
                    "asking the Service {address} from {} on {}: {error:#}",
                    pod.name,
                    pod.node
                ),
            }
        }
    }
    stages.done(&format!(
        "workload: answered by {} pods through its Service ({address}), asked from each of them",
        expected.len()
    ));
    Ok(())
}

struct Pod {
    name: String,
    node: String,
}

/// The pods of a PodList that are not going away.
fn pods(list: &Value) -> Vec<Pod> {
    let staying = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    staying
        .map(|pod| Pod {
            name: text(&pod["metadata"]["name"]),
            node: text(&pod["spec"]["nodeName"]),
        })
        .collect()
}

fn answered(text: &str) -> BTreeSet<String> {
    text.lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}
