//! Writes events beside the work, never in its way.

use api::event::{Correlator, Notice, Record};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

/// Events waiting to be written; more are dropped, as upstream drops them.
const WAITING: usize = 1000;

#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Notice>);

impl Recorder {
    /// The recorder, and the task that writes for it; `host` is where the component runs, if that matters.
    pub fn new(client: Client, host: &str) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), write(client, Correlator::new(host), receiver))
    }

    pub fn record(&self, notice: Notice) {
        if let Err(error) = self.0.try_send(notice) {
            tracing::warn!(%error, "event dropped");
        }
    }
}

async fn write(client: Client, mut correlator: Correlator, mut notices: mpsc::Receiver<Notice>) {
    while let Some(notice) = notices.recv().await {
        let mut record = correlator.record(notice.clone(), Timestamp::now());
        if let Record::Repeat {
            namespace,
            name,
            count,
            last,
        } = &record
        {
            let api: Api<Event> = Api::namespaced(client.clone(), namespace);
            let patch = Patch::Merge(json!({"count": count, "lastTimestamp": last}));
            match api.patch(name, &PatchParams::default(), &patch).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    correlator.forget(name);
                    record = correlator.record(notice, Timestamp::now());
                }
                Err(error) => tracing::warn!(event = %name, %error, "event not updated"),
                Ok(_) => {}
            }
        }
        if let Record::Create(event) = record {
            let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
            let api: Api<Event> = Api::namespaced(client.clone(), namespace);
            if let Err(error) = api.create(&PostParams::default(), &event).await {
                tracing::debug!(reason = event.reason.as_deref(), %error, "event not written");
            }
        }
    }
}
