//! The worker's dealings with what the node has promised: admission at first sight, and resizing in place.

use api::resources;
use tracing::{info, warn};

use super::PodWorker;
use crate::admission::{self, House};
use crate::allocation::{self, Allocation, POD};
use crate::context::{Context, is_static, name, namespace, uid};
use crate::events::pod_reference;
use crate::eviction::Signal;
use crate::pod_status::{Resize, Waiting};
use crate::resize::{self, Plan};
use crate::resources::container_resources;
use crate::runtime_pod::RuntimePod;
use crate::{cgroups, pod_executor};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;

pub(super) enum Settled {
    Here(Box<Pod>),
    Refused,
    /// The node knows too little of itself to decide.
    Later,
}

impl PodWorker {
    /// The pod as the node has promised it.
    pub(super) async fn settle(&mut self, pod: &Pod) -> Settled {
        let context = self.context.clone();
        let known = context.allocations.get(uid(pod));
        let allocation = match known {
            None => match admit(&context, pod).await {
                Ok(allocation) => allocation,
                Err(None) => return Settled::Later,
                Err(Some(refusal)) => {
                    info!(
                        pod = name(pod),
                        namespace = namespace(pod),
                        reason = refusal.reason,
                        "pod refused"
                    );
                    let about = pod_reference(pod);
                    context
                        .events
                        .warning(about, &refusal.reason, refusal.message.clone());
                    self.failed = Some(Waiting {
                        message: format!("Pod was rejected: {}", refusal.message),
                        ..refusal
                    });
                    return Settled::Refused;
                }
            },
            Some(known) if resize::are_same(&known.allocated, &allocation::desired(pod)) => {
                self.resize.pending = None;
                known
            }
            Some(known) => self.try_resize(pod).unwrap_or(known),
        };
        let mut settled = pod.clone();
        allocation::apply(&mut settled, &allocation.allocated);
        Settled::Here(Box::new(settled))
    }

    fn try_resize(&mut self, pod: &Pod) -> Option<Allocation> {
        let context = self.context.clone();
        let allocatable = resources::parse(Some(&context.allocatable));
        let check = |others: &_| admission::resize(pod, is_static(pod), &allocatable, others);
        match context.allocations.grant(pod, check) {
            Ok(allocation) => {
                self.resize = Resize::default();
                let message = resize::message("Pod resize started", pod, None);
                context
                    .events
                    .normal(pod_reference(pod), "ResizeStarted", message);
                Some(allocation)
            }
            Err(refusal) => {
                let pending = Some((refusal.clone(), pod.metadata.generation));
                if self.resize.pending != pending {
                    let prefix = format!("Pod resize {}", refusal.reason);
                    let message = resize::message(&prefix, pod, Some(&refusal.message));
                    let reason = format!("Resize{}", refusal.reason);
                    context.events.warning(pod_reference(pod), &reason, message);
                    self.resize.pending = pending;
                }
                None
            }
        }
    }

    /// What running containers lack of what was promised; learns what nobody noted.
    pub(super) fn resize_plan(&self, pod: &Pod, observed: &RuntimePod) -> Plan {
        let allocations = &self.context.allocations;
        let actuated = allocations.get(uid(pod)).unwrap_or_default().actuated;
        let plan = resize::plan(pod, &actuated, observed);
        for unknown in &plan.unknown {
            if let Some((_, container)) = pod_executor::find_container(pod, unknown) {
                allocations.actuate(uid(pod), unknown, container.resources.clone().unwrap_or_default());
            }
        }
        let own = pod.spec.as_ref().and_then(|spec| spec.resources.clone());
        if let Some(own) = own.filter(|_| !actuated.contains_key(POD)) {
            allocations.actuate(uid(pod), POD, own);
        }
        plan
    }

    /// Puts new sizes into effect, the pod's room first when it grows and last when it shrinks.
    pub(super) async fn resize_in_place(&mut self, pod: &Pod, plan: &Plan) {
        match self.try_resize_in_place(pod, plan).await {
            Ok(()) => self.resize.error = None,
            Err(error) => {
                warn!(
                    pod = name(pod),
                    namespace = namespace(pod),
                    error,
                    "pod not resized"
                );
                let message = resize::message("Pod resize error", pod, Some(&error));
                if self.resize.error.as_ref() != Some(&error) {
                    self.context
                        .events
                        .warning(pod_reference(pod), "ResizeError", message);
                }
                self.resize.error = Some(error);
            }
        }
    }

    async fn try_resize_in_place(&self, pod: &Pod, plan: &Plan) -> Result<(), String> {
        let context = &self.context;
        let cgroup = |step| {
            let set = context.cgroups.resize(pod, step);
            set.map_err(|error| format!("failed to set pod cgroup values: {error}"))
        };
        cgroup(cgroups::Step::Grow)?;
        let actuated = context.allocations.get(uid(pod)).unwrap_or_default().actuated;
        for (id, container) in &plan.in_place {
            let Some((_, container)) = pod_executor::find_container(pod, container) else {
                continue;
            };
            let wanted = container.resources.clone().unwrap_or_default();
            let has = actuated.get(&container.name).cloned().unwrap_or_default();
            if let Some(limit) = resize::lowered_memory(&wanted, &has) {
                let stats = context
                    .runtime
                    .container_stats_of(id)
                    .await
                    .map_err(|error| error.message())?;
                let usage = stats
                    .and_then(|stats| stats.memory?.usage_bytes)
                    .map_or(0, |usage| usage.value);
                if usage > u64::try_from(limit).unwrap_or(0) {
                    return Err(format!(
                        "attempting to set container {:?} memory limit ({limit}) below current usage ({usage})",
                        container.name
                    ));
                }
            }
            let mut resources = container_resources(pod, &container, context.memory_capacity);
            if resources.cpu_quota == 0 {
                resources.cpu_quota = -1;
            }
            let updated = context.runtime.update_container_resources(id, resources).await;
            updated.map_err(|error| format!("failed to resize container {:?}: {error}", container.name))?;
            info!(
                pod = name(pod),
                namespace = namespace(pod),
                container = container.name,
                "container resized"
            );
            context.allocations.actuate(uid(pod), &container.name, wanted);
        }
        if let Some(own) = pod.spec.as_ref().and_then(|spec| spec.resources.clone()) {
            context.allocations.actuate(uid(pod), POD, own);
        }
        cgroup(cgroups::Step::Shrink)
    }

    /// Notes whether a resize is still under way, and tells when it is done.
    pub(super) fn note_resize(&mut self, pod: &Pod, observed: &RuntimePod) {
        let under_way = !self.resize_plan(pod, observed).is_empty();
        if self.resize.under_way && !under_way {
            let message = resize::message("Pod resize completed", pod, None);
            self.context
                .events
                .normal(pod_reference(pod), "ResizeCompleted", message);
        }
        self.resize.under_way = under_way;
    }
}

async fn admit(context: &Context, pod: &Pod) -> Result<Allocation, Option<Waiting>> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let node = match nodes.get(&context.config.node_name).await {
        Ok(node) => node,
        // Nothing sends static pods elsewhere, so they do not wait for the API server.
        Err(_) if is_static(pod) => Node::default(),
        Err(error) => {
            warn!(%error, "the node is not known to the API server");
            return Err(None);
        }
    };
    let under = |signals: &[Signal]| context.is_under(signals);
    let mut other_pressures = Vec::new();
    if under(&[Signal::Storage, Signal::Inodes]) {
        other_pressures.push("DiskPressure");
    }
    if under(&[Signal::Pids]) {
        other_pressures.push("PIDPressure");
    }
    // What others have added to the node counts as well.
    let mut allocatable = resources::parse(
        node.status
            .as_ref()
            .and_then(|status| status.allocatable.as_ref()),
    );
    allocatable.extend(resources::parse(Some(&context.allocatable)));
    let house = House {
        node: &node,
        allocatable: &allocatable,
        allowed_unsafe_sysctls: &context.config.settings.allowed_unsafe_sysctls,
        memory_pressure: under(&[Signal::Memory]),
        other_pressures,
    };
    let check = |others: &_| admission::admit(pod, &house, others, is_static(pod));
    context.allocations.grant(pod, check).map_err(Some)
}
