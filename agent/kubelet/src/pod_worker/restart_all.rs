//! `RestartAllContainers`: one container's end can take all others with it (KEP-5532).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tracing::warn;

use super::{PodWorker, RETRY};
use crate::context::{name, uid};
use crate::events::pod_reference;
use crate::pod_executor::{self, Kill};
use crate::runtime_pod::RuntimePod;

impl PodWorker {
    /// Ends and forgets all containers, so that the pod begins anew in its sandbox.
    pub(super) async fn restart_all(&mut self, pod: &Pod, observed: &RuntimePod, cause: &str) -> Duration {
        let context = self.context.clone();
        let now = Timestamp::now();
        let ended = observed.container(cause).map_or(now, |ended| ended.finished_at);
        if let Some(left) = self.back_off.remaining("", ended, now) {
            return left;
        }
        self.back_off.advance("", ended, now);
        let message = format!("Container {cause} ended, restarting all containers");
        context
            .events
            .normal(pod_reference(pod), "RestartAllContainers", message.clone());
        let grace = Duration::from_secs(pod_executor::grace_seconds(pod, None));
        let ip = self.addresses(pod, observed).pod.first().copied();
        let kills = observed.running_containers().map(|running| {
            let order = Kill {
                message: &message,
                grace,
            };
            pod_executor::kill_container(&context, pod, running, ip, order)
        });
        futures::future::join_all(kills).await;
        // How they ended must be told before the runtime forgets them.
        match context.runtime.pod(uid(pod)).await {
            Ok(ended) => {
                self.report(pod, &ended).await;
            }
            Err(error) => {
                warn!(pod = name(pod), %error, "pod not readable from CRI");
                return RETRY;
            }
        }
        for container in &observed.containers {
            if let Err(error) = context.runtime.remove_container(&container.id).await {
                warn!(pod = name(pod), container = container.name, %error, "container not removed");
                return RETRY;
            }
        }
        Duration::ZERO
    }
}
