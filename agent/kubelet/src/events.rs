//! Events about pods and the node, written in the background so that no worker waits for the API server.

use api::event::{Correlator, NORMAL, Notice, Record, WARNING};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

/// More unsent events than this are dropped: events are a courtesy, memory is not.
const QUEUE: usize = 1000;

#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Notice>,
    node_name: String,
}

impl EventRecorder {
    /// Starts the writer; it ends when the last recorder is dropped.
    pub fn start(client: kube::Client, node_name: &str) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(write_events(client, node_name.to_owned(), receiver));
        Self {
            queue,
            node_name: node_name.to_owned(),
        }
    }

    pub fn normal(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.send(about, NORMAL, reason, message.into());
    }

    pub fn warning(&self, about: ObjectReference, reason: &str, message: impl Into<String>) {
        self.send(about, WARNING, reason, message.into());
    }

    /// The node as events name it: upstream's kubelet uses the node's name as its uid.
    pub fn node(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".into()),
            api_version: Some("v1".into()),
            name: Some(self.node_name.clone()),
            uid: Some(self.node_name.clone()),
            ..Default::default()
        }
    }

    fn send(&self, about: ObjectReference, kind: &'static str, reason: &str, message: String) {
        let notice = Notice {
            source: "kubelet",
            about,
            kind,
            reason: reason.to_owned(),
            message,
        };
        if self.queue.try_send(notice).is_err() {
            debug!(reason, "event dropped, the queue is full");
        }
    }
}

pub fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        api_version: Some("v1".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        ..Default::default()
    }
}

/// Names the container inside its pod as upstream does, `spec.containers{name}`.
pub fn container_reference(pod: &Pod, list: &str, name: &str) -> ObjectReference {
    ObjectReference {
        field_path: Some(format!("spec.{list}{{{name}}}")),
        ..pod_reference(pod)
    }
}

async fn write_events(client: kube::Client, node_name: String, mut queue: mpsc::Receiver<Notice>) {
    let mut correlator = Correlator::new(&node_name);
    while let Some(notice) = queue.recv().await {
        let result = match correlator.record(notice.clone(), Timestamp::now()) {
            Record::Create(event) => create(&client, &event).await,
            Record::Repeat {
                namespace,
                name,
                count,
                last,
            } => {
                let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
                let patch = json!({ "count": count, "lastTimestamp": last });
                match events
                    .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
                {
                    Err(kube::Error::Api(status)) if status.code == 404 => {
                        correlator.forget(&name);
                        match correlator.record(notice, Timestamp::now()) {
                            Record::Create(event) => create(&client, &event).await,
                            Record::Repeat { .. } => Ok(()),
                        }
                    }
                    other => other.map(drop),
                }
            }
        };
        if let Err(error) = result {
            debug!(%error, "event not written");
        }
    }
}

async fn create(client: &kube::Client, event: &Event) -> Result<(), kube::Error> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    events.create(&PostParams::default(), event).await.map(drop)
}
