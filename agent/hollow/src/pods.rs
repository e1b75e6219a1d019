//! Watches pods and carries out what each does next, one request a pod at a time.

use crate::node::Nodes;
use crate::pod::{Place, Step, next};
use crate::usage::Meter;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector::ObjectRef};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::time::DelayQueue;

/// Pod addresses are handed out from here, never twice.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const RETRY: Duration = Duration::from_secs(1);

type Key = ObjectRef<Pod>;
/// What came of a write: the pod as it is now, unless it was removed.
type Outcome = Result<Option<Pod>, kube::Error>;
type Write = std::pin::Pin<Box<dyn Future<Output = (Key, Outcome)> + Send>>;

struct Pods {
    client: Client,
    nodes: Arc<Nodes>,
    start_delay: Duration,
    meter: Arc<Meter>,
    known: HashMap<Key, Pod>,
    writing: HashSet<Key>,
    writes: FuturesUnordered<Write>,
    delays: DelayQueue<Key>,
    last_address: u32,
}

pub async fn run(
    client: Client,
    nodes: Arc<Nodes>,
    meter: Arc<Meter>,
    start_delay: Duration,
) -> anyhow::Result<()> {
    let bound = Config::default().fields("spec.nodeName!=");
    let watch = watcher(Api::<Pod>::all(client.clone()), bound).default_backoff();
    let mut watch = std::pin::pin!(watch);
    let mut pods = Pods {
        client,
        nodes,
        start_delay,
        meter,
        known: HashMap::new(),
        writing: HashSet::new(),
        writes: FuturesUnordered::new(),
        delays: DelayQueue::new(),
        last_address: u32::from(FIRST_ADDRESS),
    };
    loop {
        tokio::select! {
            event = watch.next() => match event {
                Some(Ok(event)) => pods.observe(event),
                Some(Err(error)) => tracing::warn!(%error, "watching pods failed, trying again"),
                None => anyhow::bail!("the watch of pods ended"),
            },
            Some((key, outcome)) = pods.writes.next() => pods.written(key, outcome),
            Some(due) = pods.delays.next() => pods.advance(due.into_inner()),
        }
    }
}

impl Pods {
    fn observe(&mut self, event: Event<Pod>) {
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => {
                let key = Key::from_obj(&pod);
                if self.learn(&key, pod) {
                    self.advance(key);
                }
            }
            Event::Delete(pod) => {
                self.meter.forget(&pod);
                self.known.remove(&Key::from_obj(&pod));
            }
            Event::Init | Event::InitDone => {}
        }
    }

    /// False for strangers' pods, and for news that are none.
    fn learn(&mut self, key: &Key, pod: Pod) -> bool {
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        if node.and_then(|name| self.nodes.address(name)).is_none() {
            return false;
        }
        let version = |pod: &Pod| pod.resource_version().and_then(|v| v.parse::<u64>().ok());
        if self
            .known
            .get(key)
            .is_some_and(|known| version(known) > version(&pod))
        {
            return false;
        }
        let address = pod
            .status
            .as_ref()
            .and_then(|s| s.pod_ip.as_deref()?.parse::<Ipv4Addr>().ok());
        if let Some(address) = address.filter(|a| !pod_is_on_host(&pod) && a.octets()[0] == 10) {
            self.last_address = self.last_address.max(u32::from(address));
        }
        self.meter.observe(&pod, Timestamp::now());
        self.known.insert(key.clone(), pod);
        true
    }

    fn advance(&mut self, key: Key) {
        if self.writing.contains(&key) {
            return;
        }
        let Some(pod) = self.known.get(&key) else { return };
        let node = pod
            .spec
            .as_ref()
            .and_then(|s| s.node_name.as_deref())
            .unwrap_or_default();
        let host_ip = self.nodes.address(node).unwrap_or_default();
        let place = Place {
            host_ip: &host_ip,
            pod_ip: &Ipv4Addr::from(self.last_address + 1).to_string(),
            start_delay: self.start_delay,
        };
        let api: Api<Pod> = Api::namespaced(
            self.client.clone(),
            pod.namespace().as_deref().unwrap_or_default(),
        );
        let (name, uid) = (pod.name_any(), pod.uid());
        let write = match next(pod, &place, Timestamp::now()) {
            Step::Rest => return,
            Step::Wait(wait) => {
                self.delays.insert(key, wait);
                return;
            }
            Step::Status(status) => {
                self.last_address += 1;
                let patch = json!({"metadata": {"uid": uid}, "status": status});
                async move {
                    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch))
                        .await
                        .map(Some)
                }
                .boxed()
            }
            Step::Remove => {
                let this = DeleteParams::default()
                    .grace_period(0)
                    .preconditions(Preconditions {
                        uid,
                        resource_version: None,
                    });
                async move { api.delete(&name, &this).await.map(|_| None) }.boxed()
            }
        };
        self.writing.insert(key.clone());
        self.writes.push(Box::pin(write.map(|outcome| (key, outcome))));
    }

    fn written(&mut self, key: Key, outcome: Outcome) {
        self.writing.remove(&key);
        match outcome {
            Ok(Some(pod)) => {
                self.learn(&key, pod);
                self.advance(key);
            }
            Ok(None) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.known.remove(&key);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.delays.insert(key, RETRY);
            }
            Err(error) => {
                tracing::warn!(pod = %key, %error, "a pod could not be written, trying again");
                self.delays.insert(key, RETRY);
            }
        }
    }
}

fn pod_is_on_host(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or_default()
}
