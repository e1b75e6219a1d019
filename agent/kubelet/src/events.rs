//! Events about pods and the node, written in the background so that no worker waits for the API server.

use api::event::{NORMAL, Notice, WARNING};
use api_client::Recorder;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};

#[derive(Clone)]
pub struct EventRecorder {
    recorder: Recorder,
    node_name: String,
}

impl EventRecorder {
    /// Starts the writer; it ends when the last recorder is dropped.
    pub fn start(client: kube::Client, node_name: &str) -> Self {
        let (recorder, writer) = Recorder::new(client, node_name);
        tokio::spawn(writer);
        Self {
            recorder,
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
        self.recorder.record(Notice {
            source: "kubelet",
            about,
            kind,
            reason: reason.to_owned(),
            message,
        });
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
