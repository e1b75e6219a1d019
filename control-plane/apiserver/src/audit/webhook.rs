//! Audit events to a webhook, in batches (upstream: `k8s.io/apiserver/plugin/pkg/audit`).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::webhook::WebhookClient;

const BUFFER: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;

#[derive(Debug, Clone)]
pub struct WebhookOptions {
    /// A kubeconfig.
    pub config_file: PathBuf,
    pub batch_max_size: usize,
    pub batch_max_wait: Duration,
    pub initial_backoff: Duration,
}

pub struct Sender(mpsc::Sender<Value>);

impl Sender {
    pub fn start(options: WebhookOptions, shutdown: CancellationToken) -> Result<Self, String> {
        let client = WebhookClient::from_kubeconfig(&options.config_file)?;
        let (sender, events) = mpsc::channel(BUFFER);
        tokio::spawn(run(client, options, events, shutdown));
        Ok(Self(sender))
    }

    /// When the webhook cannot follow, events are lost rather than requests held up.
    pub fn send(&self, event: Value) {
        if self.0.try_send(event).is_err() {
            tracing::error!("audit event is lost: the webhook does not keep up");
        }
    }
}

async fn run(
    client: WebhookClient,
    options: WebhookOptions,
    mut events: mpsc::Receiver<Value>,
    shutdown: CancellationToken,
) {
    let mut is_over = false;
    while !is_over {
        let mut batch = Vec::new();
        tokio::select! {
            first = events.recv() => match first {
                Some(first) => batch.push(first),
                None => return,
            },
            () = shutdown.cancelled() => is_over = true,
        }
        let until = Instant::now() + options.batch_max_wait;
        while batch.len() < options.batch_max_size {
            let next = tokio::select! {
                biased;
                next = events.recv(), if !is_over => next,
                () = tokio::time::sleep_until(until) => break,
                () = shutdown.cancelled() => {
                    is_over = true;
                    events.try_recv().ok()
                }
            };
            match next {
                Some(event) => batch.push(event),
                None => break,
            }
        }
        if !batch.is_empty() {
            post(&client, &options, batch).await;
        }
    }
}

async fn post(client: &WebhookClient, options: &WebhookOptions, batch: Vec<Value>) {
    let count = batch.len();
    let list = json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": batch});
    let mut pause = options.initial_backoff;
    for attempt in 1..=ATTEMPTS {
        match client.send(&list, PATIENCE).await {
            Ok(_) => return,
            Err(error) if attempt == ATTEMPTS => {
                tracing::error!(%error, count, "audit events are lost: the webhook does not take them");
            }
            Err(error) => {
                tracing::warn!(%error, count, "the audit webhook does not take events; trying again");
                tokio::time::sleep(pause).await;
                pause = pause.mul_f64(1.5);
            }
        }
    }
}
