//! The end of a pod: its containers stopped with grace, its last status told, everything it left taken away.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use tracing::{info, warn};

use super::{Assignment, IDLE, PodWorker, RETRY, Step};
use crate::context::{name, namespace, uid};
use crate::events::pod_reference;
use crate::runtime::RuntimeError;
use crate::runtime_pod::RuntimePod;
use crate::{pod_executor, volumes};

impl PodWorker {
    pub(super) async fn terminate(
        &mut self,
        pod: &Pod,
        assignment: &Assignment,
    ) -> Result<Step, RuntimeError> {
        let removed = assignment.removed;
        let context = self.context.clone();
        let mut observed = context.runtime.pod(uid(pod)).await?;
        if !observed.is_stopped() {
            context.probes.stop_killing(uid(pod));
            if !removed {
                self.report(pod, &observed).await;
            }
            self.kill(pod, &observed, assignment.grace_seconds()).await;
            observed = context.runtime.pod(uid(pod)).await?;
            if !observed.is_stopped() {
                return Ok(Step::Wait(RETRY));
            }
        }
        context.probes.forget_pod(uid(pod));
        // The scheduler counts on the room as soon as it sees the final phase.
        context.allocations.release(uid(pod));
        context.devices.release(uid(pod));
        if !removed && let Some(step) = self.report_as(pod, &observed, true).await {
            return Ok(step);
        }
        if !self.stopped && !self.clean_up(pod).await {
            return Ok(Step::Wait(RETRY));
        }
        if !removed && pod.metadata.deletion_timestamp.is_none() {
            return Ok(Step::Wait(IDLE));
        }
        if !removed && !self.delete(pod).await {
            return Ok(Step::Wait(RETRY));
        }
        self.remove_from_runtime(pod, &observed).await?;
        Ok(Step::Done)
    }

    /// Kills the pod; a deletion that shortens the grace period takes effect at once.
    async fn kill(&mut self, pod: &Pod, observed: &RuntimePod, mut grace: u64) {
        let context = self.context.clone();
        info!(pod = name(pod), namespace = namespace(pod), grace, "pod stopping");
        loop {
            let killing = pod_executor::kill_pod(&context, pod, observed, Duration::from_secs(grace));
            tokio::pin!(killing);
            loop {
                tokio::select! {
                    () = &mut killing => return,
                    changed = self.assignments.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        let new = self.assignments.borrow_and_update().grace_seconds();
                        if new < grace {
                            grace = new;
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Takes away what only a living pod needs; false when something of it would not go.
    async fn clean_up(&mut self, pod: &Pod) -> bool {
        let context = self.context.clone();
        if let Err(error) = volumes::tear_down(&context, &context.pod_dir(uid(pod))).await {
            warn!(
                pod = name(pod),
                namespace = namespace(pod),
                error,
                "volumes not taken back"
            );
            context.events.warning(pod_reference(pod), "FailedUnmount", error);
            return false;
        }
        context.cgroups.remove(uid(pod));
        context.objects.forget_pod(uid(pod));
        context.images.forget_pod(uid(pod));
        self.stopped = true;
        true
    }

    /// Tells the API server that nothing of the pod is left.
    async fn delete(&self, pod: &Pod) -> bool {
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), namespace(pod));
        let parameters = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            });
        match pods.delete(name(pod), &parameters).await {
            Ok(_) => true,
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => true,
            Err(error) => {
                warn!(pod = name(pod), namespace = namespace(pod), %error, "pod not deleted from the API server");
                false
            }
        }
    }

    async fn remove_from_runtime(&self, pod: &Pod, observed: &RuntimePod) -> Result<(), RuntimeError> {
        for container in &observed.containers {
            self.context.runtime.remove_container(&container.id).await?;
        }
        for sandbox in &observed.sandboxes {
            self.context.runtime.stop_sandbox(&sandbox.id).await?;
            self.context.runtime.remove_sandbox(&sandbox.id).await?;
        }
        let logs = self.context.pod_log_dir(pod);
        if let Err(error) = std::fs::remove_dir_all(&logs)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(directory = %logs.display(), %error, "logs not removed");
        }
        info!(pod = name(pod), namespace = namespace(pod), "pod removed");
        Ok(())
    }
}
