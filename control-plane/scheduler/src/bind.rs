//! Carries out decisions: bindings, conditions and events.

use crate::pod_info::PodInfo;
use crate::state::{Decision, Shared};
use api::condition;
use api::event::{NORMAL, Notice, WARNING};
use api_client::Recorder;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Requests in flight together.
const CONCURRENT: usize = 64;

/// Takes decision after decision; bindings run beside.
pub async fn schedule_forever(client: Client, shared: Arc<Shared>, recorder: Recorder) {
    let permits = Arc::new(Semaphore::new(CONCURRENT));
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let decision = loop {
            let woken = shared.wake.notified();
            match shared.decide(Instant::now(), |n| rand::random_range(0..n)) {
                Ok(decision) => break decision,
                Err(Some(due)) => {
                    let _ = tokio::time::timeout_at(due.into(), woken).await;
                }
                Err(None) => woken.await,
            }
        };
        while tasks.try_join_next().is_some() {}
        let (client, shared, recorder) = (client.clone(), shared.clone(), recorder.clone());
        tasks.spawn(async move {
            let _permit = permit;
            match decision {
                Decision::Bind { pod, node } => bind(&client, &shared, &recorder, &pod, &node).await,
                Decision::Unschedulable { pod, why } => {
                    report(&client, &recorder, &pod, "Unschedulable", &why.message).await;
                }
            }
        });
    }
}

async fn bind(client: &Client, shared: &Shared, recorder: &Recorder, pod: &Arc<PodInfo>, node: &str) {
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let params = PostParams::default();
    match api
        .create_subresource::<_, Value>("binding", pod.name(), &params, &body)
        .await
    {
        Ok(_) => {
            tracing::info!(pod = %format!("{}/{}", pod.namespace(), pod.name()), node, "pod bound");
            let message = format!(
                "Successfully assigned {}/{} to {node}",
                pod.namespace(),
                pod.name()
            );
            recorder.record(notice(pod, NORMAL, "Scheduled", message));
        }
        Err(kube::Error::Api(status)) if status.code == 404 => shared.unbind(pod, false, Instant::now()),
        Err(error) => {
            tracing::warn!(pod = %format!("{}/{}", pod.namespace(), pod.name()), node, %error, "binding refused");
            shared.unbind(pod, true, Instant::now());
            report(
                client,
                recorder,
                pod,
                "SchedulerError",
                &format!("binding rejected: {error}"),
            )
            .await;
        }
    }
}

/// Tells the user why the pod is still pending.
async fn report(client: &Client, recorder: &Recorder, pod: &PodInfo, reason: &str, message: &str) {
    recorder.record(notice(pod, WARNING, "FailedScheduling", message.to_owned()));
    let old = condition::find(
        pod.pod.status.as_ref().and_then(|s| s.conditions.as_ref()),
        "PodScheduled",
    );
    if old.is_some_and(|c| {
        c.status == "False" && c.reason.as_deref() == Some(reason) && c.message.as_deref() == Some(message)
    }) {
        return;
    }
    let since = old
        .filter(|c| c.status == "False")
        .and_then(|c| c.last_transition_time.clone());
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "observedGeneration": pod.pod.metadata.generation,
        "lastProbeTime": null, "lastTransitionTime": since.unwrap_or(Time(Timestamp::now())),
    }]}});
    let api: Api<Pod> = Api::namespaced(client.clone(), pod.namespace());
    match api
        .patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
        Err(error) => {
            tracing::warn!(pod = %format!("{}/{}", pod.namespace(), pod.name()), %error, "condition not written");
        }
    }
}

fn notice(pod: &PodInfo, kind: &'static str, reason: &str, message: String) -> Notice {
    let meta = &pod.pod.metadata;
    let about = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    };
    Notice {
        about,
        kind,
        reason: reason.into(),
        message,
        source: "default-scheduler",
    }
}
