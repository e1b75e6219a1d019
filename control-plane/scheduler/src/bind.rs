//! Carries out decisions: bindings, conditions and events.

use crate::pod_info::PodInfo;
use crate::preemption;
use crate::state::{Claims, Decision, Shared};
use crate::volumes::{Step, claim_key};
use api::condition;
use api::event::{NORMAL, Notice, WARNING};
use api_client::Recorder;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Decisions that are carried out together. Most take one request; those with claims wait long.
const CONCURRENT: usize = 256;
/// VolumeBindingArgs.bindTimeoutSeconds.
const BIND_TIMEOUT: Duration = Duration::from_secs(600);

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
        let writer = Writer {
            client: client.clone(),
            shared: shared.clone(),
            recorder: recorder.clone(),
        };
        tasks.spawn(async move {
            let _permit = permit;
            writer.carry_out(decision).await;
        });
    }
}

struct Writer {
    client: Client,
    shared: Arc<Shared>,
    recorder: Recorder,
}

/// What the pod's `status.nominatedNodeName` becomes.
#[derive(Clone, Copy)]
enum Nomination<'a> {
    Keep,
    Clear,
    Set(&'a str),
}

impl Writer {
    async fn carry_out(&self, decision: Decision) {
        match decision {
            Decision::Bind { pod, node, steps } => match self.serve_claims(&pod, &node, &steps).await {
                Ok(()) => self.bind(&pod, &node).await,
                Err(reason) => self.bind_failed(&pod, &reason).await,
            },
            Decision::Unschedulable { pod, message, clear } => {
                let nomination = if clear {
                    Nomination::Clear
                } else {
                    Nomination::Keep
                };
                self.report(&pod, "Unschedulable", &message, nomination).await;
            }
            Decision::Preempt {
                pod,
                message,
                node,
                victims,
                displaced,
            } => {
                self.report(&pod, "Unschedulable", &message, Nomination::Set(&node))
                    .await;
                let told =
                    futures::future::join_all(victims.iter().map(|v| self.evict(&pod, v, &node))).await;
                for other in &displaced {
                    self.clear_nomination(other).await;
                }
                self.shared
                    .preempted(&pod, &victims, told.into_iter().all(|ok| ok), Instant::now());
            }
        }
    }

    fn pods(&self, pod: &PodInfo) -> Api<Pod> {
        Api::namespaced(self.client.clone(), pod.namespace())
    }

    /// True when the victim is on its way out, or gone.
    async fn evict(&self, preemptor: &PodInfo, victim: &PodInfo, node: &str) -> bool {
        if api::pod::is_terminating(&victim.pod) {
            return true;
        }
        let scheduler = preemptor.spec().scheduler_name.as_deref().unwrap_or_default();
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": preemption::REASON,
            "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
            "observedGeneration": victim.pod.metadata.generation,
            "lastProbeTime": null, "lastTransitionTime": Time(Timestamp::now()),
        });
        let patch = json!({"metadata": {"uid": victim.uid()}, "status": {"conditions": [condition]}});
        let api = self.pods(victim);
        let params = PatchParams::default();
        let marked = api
            .patch_status(victim.name(), &params, &Patch::Strategic(patch))
            .await;
        let preconditions = Preconditions {
            uid: Some(victim.uid().to_owned()),
            resource_version: None,
        };
        let deletion = DeleteParams::default().preconditions(preconditions);
        let deleted = match marked {
            Ok(_) => api.delete(victim.name(), &deletion).await.map(|_| ()),
            Err(error) => Err(error),
        };
        match deleted {
            Ok(()) => {
                let message = format!("Preempted by pod {} on node {node}", preemptor.uid());
                self.recorder.record(notice(victim, NORMAL, "Preempted", message));
                true
            }
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => true,
            Err(error) => {
                tracing::warn!(victim = %path(victim), preemptor = %path(preemptor), %error, "preemption failed");
                false
            }
        }
    }

    async fn clear_nomination(&self, pod: &PodInfo) {
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"nominatedNodeName": null}});
        let params = PatchParams::default();
        if let Err(error) = self
            .pods(pod)
            .patch_status(pod.name(), &params, &Patch::Merge(patch))
            .await
        {
            tracing::debug!(pod = %path(pod), %error, "nomination not cleared");
        }
    }

    /// Gives volumes to the pod's claims, or has them made, and waits until the binder has finished.
    async fn serve_claims(&self, pod: &Arc<PodInfo>, node: &str, steps: &[Step]) -> Result<(), String> {
        if steps.is_empty() {
            return Ok(());
        }
        let mut changed = self.shared.claims_changed();
        for step in steps {
            self.start(step, node)
                .await
                .map_err(|error| format!("running PreBind plugin \"VolumeBinding\": {error}"))?;
        }
        let served = async {
            loop {
                match self.shared.claims_of(pod, steps) {
                    Claims::Bound => return Ok(()),
                    Claims::Refused(why) => return Err(why),
                    Claims::Waiting => {}
                }
                if changed.changed().await.is_err() {
                    return Err("the scheduler ends".into());
                }
            }
        };
        let outcome = tokio::time::timeout(BIND_TIMEOUT, served).await;
        self.shared.release(pod);
        outcome
            .unwrap_or_else(|_| Err("timed out waiting for the condition".into()))
            .map_err(|why| format!("running PreBind plugin \"VolumeBinding\": binding volumes: {why}"))
    }

    async fn start(&self, step: &Step, node: &str) -> Result<(), kube::Error> {
        let params = PatchParams::default();
        match step {
            Step::Bind { claim, volume } => {
                let meta = &claim.metadata;
                let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "namespace": meta.namespace, "name": meta.name, "uid": meta.uid,
                    "resourceVersion": meta.resource_version});
                let patch = json!({
                    "metadata": {
                        "resourceVersion": volume.metadata.resource_version,
                        "annotations": {api::volume::BOUND_BY_CONTROLLER: "yes"},
                    },
                    "spec": {"claimRef": reference},
                });
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                let name = volume.metadata.name.as_deref().unwrap_or_default();
                api.patch(name, &params, &Patch::Merge(patch)).await.map(|_| ())
            }
            Step::Provision { claim } => {
                let (namespace, name) = claim_key(claim);
                let patch = json!({"metadata": {
                    "uid": claim.metadata.uid, "annotations": {api::volume::SELECTED_NODE: node}}});
                let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
                api.patch(&name, &params, &Patch::Merge(patch)).await.map(|_| ())
            }
        }
    }

    async fn bind_failed(&self, pod: &Arc<PodInfo>, reason: &str) {
        tracing::warn!(pod = %path(pod), reason, "not bound");
        self.shared.unbind(pod, true, Instant::now());
        self.report(pod, "SchedulerError", reason, Nomination::Keep).await;
    }

    async fn bind(&self, pod: &Arc<PodInfo>, node: &str) {
        let body = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let params = PostParams::default();
        let api = self.pods(pod);
        match api
            .create_subresource::<_, Value>("binding", pod.name(), &params, &body)
            .await
        {
            Ok(_) => {
                tracing::debug!(pod = %path(pod), node, "pod bound");
                let message = format!("Successfully assigned {} to {node}", path(pod));
                self.recorder.record(notice(pod, NORMAL, "Scheduled", message));
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                self.shared.unbind(pod, false, Instant::now())
            }
            Err(error) => self.bind_failed(pod, &format!("binding rejected: {error}")).await,
        }
    }

    /// Tells the user why the pod is still pending.
    async fn report(&self, pod: &PodInfo, reason: &str, message: &str, nomination: Nomination<'_>) {
        let said = notice(pod, WARNING, "FailedScheduling", message.to_owned());
        self.recorder.record(said);
        let conditions = pod.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
        let old = condition::find(conditions, "PodScheduled");
        let same = old.is_some_and(|c| {
            c.status == "False"
                && c.reason.as_deref() == Some(reason)
                && c.message.as_deref() == Some(message)
        });
        if same && matches!(nomination, Nomination::Keep) {
            return;
        }
        let since = old
            .filter(|c| c.status == "False")
            .and_then(|c| c.last_transition_time.clone());
        let mut patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
            "observedGeneration": pod.pod.metadata.generation,
            "lastProbeTime": null, "lastTransitionTime": since.unwrap_or(Time(Timestamp::now())),
        }]}});
        match nomination {
            Nomination::Keep => {}
            Nomination::Clear => patch["status"]["nominatedNodeName"] = Value::Null,
            Nomination::Set(node) => patch["status"]["nominatedNodeName"] = json!(node),
        }
        let params = PatchParams::default();
        match self
            .pods(pod)
            .patch_status(pod.name(), &params, &Patch::Strategic(patch))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => {}
            Err(error) => tracing::warn!(pod = %path(pod), %error, "condition not written"),
        }
    }
}

fn path(pod: &PodInfo) -> String {
    format!("{}/{}", pod.namespace(), pod.name())
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
