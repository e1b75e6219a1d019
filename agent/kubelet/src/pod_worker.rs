//! One task a pod: compares specification and runtime, acts, reports, until the pod is gone.

mod resize;
mod restart_all;
mod termination;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::duration::go_duration;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use crate::back_off::BackOff;
use crate::context::{Context, format_pod, is_static, name, namespace, uid};
use crate::events::{container_reference, pod_reference};
use crate::eviction::{Eviction, IMMEDIATE_GRACE};
use crate::field_path::Addresses;
use crate::objects::REFRESH;
use crate::pod_actions::{PodActions, Verdicts, compute_pod_actions};
use crate::pod_executor::{self, ContainerStart, Kill};
use crate::pod_status::{EVICTED, Inputs, OWN_CONDITIONS, Resize, Waiting, pod_status};
use crate::probes::Target;
use crate::retries::{self, Retries};
use crate::runtime::RuntimeError;
use crate::runtime_pod::{ContainerState, RuntimePod};
use crate::{ephemeral, static_pods, status_writer, termination_message, volumes};
use resize::Settled;
use volumes::Volumes;

/// What the manager tells a worker.
#[derive(Clone)]
pub struct Assignment {
    pub pod: Pod,
    /// The API server does not have the pod any more.
    pub removed: bool,
    /// Why the pod was evicted.
    pub evicted: Option<Eviction>,
}

impl Assignment {
    fn grace_seconds(&self) -> u64 {
        match &self.evicted {
            Some(eviction) => eviction.grace_seconds,
            // The file of a static pod tells how long it has.
            None if self.removed && !is_static(&self.pod) => IMMEDIATE_GRACE,
            None => pod_executor::grace_seconds(&self.pod, None),
        }
    }
}

const IDLE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);
const UNSETTLED: Duration = Duration::from_secs(5);

enum Step {
    Wait(Duration),
    Done,
}

type Metadata = (Option<BTreeMap<String, String>>, Option<BTreeMap<String, String>>);

pub struct PodWorker {
    context: Arc<Context>,
    assignments: watch::Receiver<Assignment>,
    wake: Arc<Notify>,
    /// The status as last written.
    written: Option<PodStatus>,
    waiting: HashMap<String, Waiting>,
    back_off: BackOff,
    retries: Retries,
    volumes: Volumes,
    volumes_at: Option<Instant>,
    /// Labels and annotations that downward API volumes show.
    shown: Metadata,
    failed: Option<Waiting>,
    resize: Resize,
    /// All containers have ended for good.
    finished: bool,
    stopped: bool,
}

/// How long a pod may still be active, while it is.
fn deadline(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let started = status.start_time.as_ref()?.0;
    let left = seconds - now.duration_since(started).as_secs();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0).max(1)))
}

impl PodWorker {
    pub fn new(context: Arc<Context>, assignments: watch::Receiver<Assignment>, wake: Arc<Notify>) -> Self {
        let maximum = context
            .config
            .settings
            .crash_loop_back_off
            .max_container_restart_period;
        let back_off = maximum.map_or_else(BackOff::default, BackOff::up_to);
        Self {
            context,
            assignments,
            wake,
            written: None,
            waiting: HashMap::new(),
            back_off,
            retries: Retries::default(),
            volumes: Volumes::new(),
            volumes_at: None,
            shown: Metadata::default(),
            failed: None,
            resize: Resize::default(),
            finished: false,
            stopped: false,
        }
    }

    /// Works until the pod and everything it left on this node are gone.
    pub async fn run(mut self) {
        loop {
            let assignment = self.assignments.borrow_and_update().clone();
            let pause = match self.sync(&assignment).await {
                Ok(Step::Done) => return,
                Ok(Step::Wait(pause)) => pause,
                Err(error) => {
                    warn!(pod = name(&assignment.pod), namespace = namespace(&assignment.pod), %error, "pod sync failed");
                    RETRY
                }
            };
            let pause = deadline(&assignment.pod, Timestamp::now()).map_or(pause, |left| pause.min(left));
            tokio::select! {
                changed = self.assignments.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn sync(&mut self, assignment: &Assignment) -> Result<Step, RuntimeError> {
        let pod = self.with_current_status(&assignment.pod);
        self.enforce_deadline(&pod);
        if let (Some(eviction), None) = (&assignment.evicted, &self.failed) {
            self.failed = Some(Waiting {
                reason: EVICTED.into(),
                message: eviction.message.clone(),
            });
        }
        let final_phase = matches!(
            pod.status.as_ref().and_then(|status| status.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        let over = self.finished || final_phase || self.failed.is_some();
        if assignment.removed || pod.metadata.deletion_timestamp.is_some() || over {
            return self.terminate(&pod, assignment).await;
        }
        self.keep_running(&pod).await
    }

    /// The pod with the newest status: the one written last, with what others have since put into the API's.
    fn with_current_status(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        let Some(mut status) = self.written.clone() else {
            return pod;
        };
        let theirs = pod.status.take().unwrap_or_default();
        let own = status.conditions.get_or_insert_default();
        for condition in theirs.conditions.into_iter().flatten() {
            if !OWN_CONDITIONS.contains(&condition.type_.as_str()) {
                own.retain(|known| known.type_ != condition.type_);
                own.push(condition);
            }
        }
        // Only the API server computes it.
        status.qos_class = theirs.qos_class.or(status.qos_class);
        // A final phase set from outside counts.
        if matches!(theirs.phase.as_deref(), Some("Failed" | "Succeeded")) {
            status.phase = theirs.phase;
            status.reason = theirs.reason.or(status.reason);
            status.message = theirs.message.or(status.message);
        }
        pod.status = Some(status);
        pod
    }

    fn enforce_deadline(&mut self, pod: &Pod) {
        let deadline = pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
        let started = pod.status.as_ref().and_then(|status| status.start_time.clone());
        let (Some(deadline), Some(started)) = (deadline, started) else {
            return;
        };
        if Timestamp::now().duration_since(started.0).as_secs() >= deadline && self.failed.is_none() {
            let message = "Pod was active on the node longer than the specified deadline";
            self.context
                .events
                .normal(pod_reference(pod), "DeadlineExceeded", message);
            self.failed = Some(Waiting {
                reason: "DeadlineExceeded".into(),
                message: message.into(),
            });
        }
    }

    async fn keep_running(&mut self, pod: &Pod) -> Result<Step, RuntimeError> {
        let context = self.context.clone();
        let settled = match self.settle(pod).await {
            Settled::Here(settled) => settled,
            Settled::Refused => return Ok(Step::Wait(Duration::ZERO)),
            Settled::Later => return Ok(Step::Wait(RETRY)),
        };
        let pod = settled.as_ref();
        let observed = context.runtime.pod(uid(pod)).await?;
        self.observe(pod, &observed);
        self.retries.note(pod);
        let plan = self.resize_plan(pod, &observed);
        self.resize.under_way |= !plan.is_empty();
        if !plan.in_place.is_empty() || plan.pod {
            self.resize_in_place(pod, &plan).await;
        }
        let verdicts = Verdicts {
            resized: plan.restart,
            ..context.probes.verdicts(uid(pod))
        };
        let actions = compute_pod_actions(pod, &observed, &verdicts);
        if actions.is_empty() {
            let pause = self.refresh_volumes(pod, &observed).await;
            return Ok(self.report(pod, &observed).await.unwrap_or(pause));
        }
        debug!(
            pod = name(pod),
            namespace = namespace(pod),
            ?actions,
            "pod actions"
        );
        // Users see that the node has taken the pod before its image is there.
        if self.written.is_none() {
            self.report(pod, &observed).await;
        }
        let pause = self.execute(pod, &observed, actions).await;
        let observed = context.runtime.pod(uid(pod)).await?;
        self.observe(pod, &observed);
        Ok(self.report(pod, &observed).await.unwrap_or(Step::Wait(pause)))
    }

    /// Starts and ends the watching of containers by probes.
    fn observe(&mut self, pod: &Pod, observed: &RuntimePod) {
        self.context.probes.retain_running(uid(pod), observed);
        let ip = self.addresses(pod, observed).pod.first().copied();
        for running in observed.running_containers() {
            self.waiting.remove(&running.name);
            let Some((list, container)) = pod_executor::find_container(pod, &running.name) else {
                continue;
            };
            let target = Target {
                pod: pod.clone(),
                container: container.into_owned(),
                list,
                container_id: running.id.clone(),
                started_at: running.started_at,
                ip,
                wake: self.wake.clone(),
            };
            self.context.probes.watch(&self.context, &target);
        }
    }

    fn addresses(&self, pod: &Pod, observed: &RuntimePod) -> Addresses {
        let host = vec![self.context.config.node_ip];
        let host_network = pod
            .spec
            .as_ref()
            .is_some_and(|spec| spec.host_network == Some(true));
        let pod = if host_network {
            host.clone()
        } else {
            observed.sandbox().map(|s| s.ips.clone()).unwrap_or_default()
        };
        Addresses { pod, host }
    }

    async fn set_up_volumes(&mut self, pod: &Pod, observed: &RuntimePod) -> Result<(), volumes::VolumeError> {
        let pod_dir = self.context.pod_dir(uid(pod));
        let volume_context = volumes::VolumeContext {
            objects: &self.context.objects,
            addresses: self.addresses(pod, observed),
            allocatable: &self.context.allocatable,
            pod_dir: &pod_dir,
            client: &self.context.client,
            node_name: &self.context.config.node_name,
            drivers: &self.context.drivers,
            plugins_dir: self.context.config.root_dir.join("plugins/kubernetes.io/csi"),
        };
        self.volumes = volumes::set_up(pod, &volume_context).await?;
        self.volumes_at = Some(Instant::now());
        Ok(())
    }

    async fn refresh_volumes(&mut self, pod: &Pod, observed: &RuntimePod) -> Step {
        let metadata = (pod.metadata.labels.clone(), pod.metadata.annotations.clone());
        let relabelled = metadata != self.shown;
        self.shown = metadata;
        let due = relabelled || self.volumes_at.is_none_or(|at| at.elapsed() >= REFRESH);
        if due && let Err(error) = self.set_up_volumes(pod, observed).await {
            self.volumes_at = Some(Instant::now());
            self.context
                .events
                .warning(pod_reference(pod), "FailedMount", error.to_string());
        }
        // A size that cannot be had or set now is tried again.
        let unsettled = self.resize.pending.is_some() || self.resize.under_way;
        Step::Wait(if unsettled { UNSETTLED } else { IDLE })
    }

    /// Does what was decided, in order; the time until it should be tried again.
    async fn execute(&mut self, pod: &Pod, observed: &RuntimePod, actions: PodActions) -> Duration {
        let context = self.context.clone();
        if actions.kill_pod {
            let grace = Duration::from_secs(pod_executor::grace_seconds(pod, None));
            pod_executor::kill_pod(&context, pod, observed, grace).await;
        }
        if let Some(cause) = &actions.restart_all {
            return self.restart_all(pod, observed, cause).await;
        }
        let ip = self.addresses(pod, observed).pod.first().copied();
        for kill in &actions.kill {
            let Some(running) = observed
                .containers
                .iter()
                .find(|container| container.id == kill.id)
            else {
                continue;
            };
            let own = kill.probe.zip(pod_executor::find_container(pod, &kill.name));
            let own = own.map(|(probe, (_, container))| pod_executor::probe_grace(&container, probe));
            let grace = Duration::from_secs(pod_executor::grace_seconds(pod, own));
            let order = Kill {
                message: &kill.message,
                grace,
            };
            pod_executor::kill_container(&context, pod, running, ip, order).await;
        }
        if !actions.starts_something() {
            return Duration::ZERO;
        }
        let waits = self.retries.left(retries::SANDBOX, Instant::now());
        if let (Some(left), Some(_)) = (waits, actions.create_sandbox) {
            return left;
        }
        if let Err(error) = context.cgroups.create(pod) {
            let message = format!("error determining status: failed to create pod cgroup: {error}");
            context
                .events
                .warning(pod_reference(pod), "FailedCreatePodContainer", message);
            return RETRY;
        }
        if let Err(error) = self.set_up_volumes(pod, observed).await {
            context
                .events
                .warning(pod_reference(pod), "FailedMount", error.to_string());
            return RETRY;
        }
        if let Some(attempt) = actions.create_sandbox {
            let host_network = pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.host_network == Some(true));
            if !host_network && let Err(why) = context.runtime.network_ready().await {
                context.events.warning(
                    pod_reference(pod),
                    "NetworkNotReady",
                    format!("network is not ready: {why}"),
                );
                return RETRY;
            }
            if pod_executor::create_sandbox(&context, pod, attempt)
                .await
                .is_err()
            {
                return self
                    .retries
                    .failed(retries::SANDBOX, Instant::now(), rand::random());
            }
        }
        let observed = match context.runtime.pod(uid(pod)).await {
            Ok(observed) => observed,
            Err(error) => {
                warn!(pod = name(pod), %error, "pod not readable from CRI");
                return RETRY;
            }
        };
        let spec = pod.spec.clone().unwrap_or_default();
        let init = spec.init_containers.unwrap_or_default();
        let debuggers: Vec<Container> = ephemeral::of(pod).map(ephemeral::container).collect();
        let starts = actions
            .start_ephemeral
            .iter()
            .filter_map(|index| debuggers.get(*index).map(|c| (ephemeral::LIST, c)));
        let starts = starts.chain(
            actions
                .start_init
                .iter()
                .filter_map(|index| init.get(*index).map(|c| ("initContainers", c))),
        );
        let starts = starts.chain(
            actions
                .start
                .iter()
                .filter_map(|index| spec.containers.get(*index).map(|c| ("containers", c))),
        );
        let mut pause = IDLE;
        for (list, container) in starts {
            pause = pause.min(self.start(pod, &observed, list, container).await);
        }
        pause
    }

    async fn start(
        &mut self,
        pod: &Pod,
        observed: &RuntimePod,
        list: &'static str,
        container: &Container,
    ) -> Duration {
        let context = self.context.clone();
        if let Some(left) = self.retries.left(&container.name, Instant::now()) {
            return left;
        }
        let now = Timestamp::now();
        let previous = observed.container(&container.name);
        if let Some(ended) = previous.filter(|previous| previous.state == ContainerState::Exited) {
            if let Some(left) = self.back_off.remaining(&container.name, ended.finished_at, now) {
                let about = container_reference(pod, list, &container.name);
                let message = format!(
                    "Back-off restarting failed container {} in pod {}",
                    container.name,
                    format_pod(pod)
                );
                context.events.warning(about, "BackOff", message);
                let message = format!(
                    "back-off {} restarting failed container={} pod={}",
                    go_duration(self.back_off.delay(&container.name)),
                    container.name,
                    format_pod(pod)
                );
                self.waiting.insert(
                    container.name.clone(),
                    Waiting {
                        reason: "CrashLoopBackOff".into(),
                        message,
                    },
                );
                return left;
            }
            self.back_off.advance(&container.name, ended.finished_at, now);
        }
        let Some(sandbox) = observed.ready_sandbox() else {
            return RETRY;
        };
        let known = pod.status.iter().flat_map(|status| {
            status
                .container_statuses
                .iter()
                .chain(status.init_container_statuses.iter())
                .flatten()
        });
        let reported = known.into_iter().find(|status| status.name == container.name);
        // The runtime knows how often it ran; the API remembers what the runtime has forgotten.
        let attempt = match (previous, reported) {
            (Some(previous), _) => u32::try_from(previous.restart_count + 1).unwrap_or(0),
            (None, Some(status)) if status.container_id.is_some() => {
                u32::try_from(status.restart_count + 1).unwrap_or(0)
            }
            _ => 0,
        };
        let target = ephemeral::target(pod, &container.name);
        let target =
            target.and_then(|name| observed.running_containers().find(|running| running.name == name));
        let start = ContainerStart {
            container,
            list,
            sandbox_id: &sandbox.id,
            sandbox_attempt: sandbox.attempt,
            attempt,
            addresses: self.addresses(pod, observed),
            volumes: &self.volumes,
            target_id: target.map(|running| running.id.clone()),
        };
        match pod_executor::start_container(&context, pod, start).await {
            Ok(()) => {
                self.waiting.remove(&container.name);
                let resources = container.resources.clone().unwrap_or_default();
                context.allocations.actuate(uid(pod), &container.name, resources);
                IDLE
            }
            Err(waiting) => {
                let timed = retries::applies(&waiting.reason);
                self.waiting.insert(container.name.clone(), waiting);
                if timed {
                    return self
                        .retries
                        .failed(&container.name, Instant::now(), rand::random());
                }
                context.images.retry_in(pod, container).unwrap_or(RETRY * 2)
            }
        }
    }

    fn inputs<'a>(
        &self,
        pod: &Pod,
        observed: &RuntimePod,
        host_ips: &'a [std::net::IpAddr],
        runtime_name: &'a str,
    ) -> Inputs<'a> {
        let mut inputs = Inputs {
            runtime_name,
            waiting: self.waiting.clone(),
            host_ips,
            failed: self.failed.clone(),
            resize: self.resize.clone(),
            allocation: self.context.allocations.get(uid(pod)).unwrap_or_default(),
            ..Default::default()
        };
        for running in observed.running_containers() {
            let Some((_, container)) = pod_executor::find_container(pod, &running.name) else {
                continue;
            };
            if self.context.probes.is_started(&container, &running.id) {
                inputs.started.insert(running.id.clone());
            }
            if self.context.probes.is_ready(&container, &running.id) {
                inputs.ready.insert(running.id.clone());
            }
        }
        for container in &observed.containers {
            let message = termination_message::read(container);
            // The file goes with the pod's directory; what was reported of it stays.
            if let Some(message) = message.or_else(|| termination_message::reported(pod, &container.id)) {
                inputs.messages.insert(container.id.clone(), message);
            }
        }
        inputs
    }

    /// Writes the status that follows from what was observed. A final phase is acted upon at once, a failed write
    /// soon.
    async fn report(&mut self, pod: &Pod, observed: &RuntimePod) -> Option<Step> {
        self.report_as(pod, observed, false).await
    }

    async fn report_as(&mut self, pod: &Pod, observed: &RuntimePod, terminal: bool) -> Option<Step> {
        let context = self.context.clone();
        let host_ips = [context.config.node_ip];
        if !terminal {
            self.note_resize(pod, observed);
        }
        let pod = self.with_current_status(pod);
        let inputs = Inputs {
            terminal,
            ..self.inputs(&pod, observed, &host_ips, &context.runtime_name)
        };
        let mut status = pod_status(&pod, observed, &inputs, Timestamp::now());
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        // The final phase is reported only when nothing runs any more: a Job may replace the pod on seeing it.
        if finished && !terminal {
            self.finished = true;
            status.phase = pod
                .status
                .as_ref()
                .and_then(|status| status.phase.clone())
                .or(Some("Pending".into()));
        }
        let (shown, old) = if is_static(&pod) {
            match static_pods::mirror(&context, &pod).await {
                Ok(mirror) => (mirror.clone(), mirror.status.unwrap_or_default()),
                Err(error) => {
                    debug!(pod = name(&pod), %error, "mirror pod not there");
                    self.written = Some(status);
                    return (finished && !terminal).then_some(Step::Wait(Duration::ZERO));
                }
            }
        } else {
            (pod.clone(), pod.status.clone().unwrap_or_default())
        };
        match status_writer::write(&context.client, &shown, &old, &status).await {
            Ok(Some(written)) => self.written = Some(written),
            Ok(None) => {}
            Err(error) => {
                warn!(pod = name(&pod), namespace = namespace(&pod), %error, "status not written");
                return Some(Step::Wait(RETRY));
            }
        }
        (finished && !terminal).then_some(Step::Wait(Duration::ZERO))
    }
}
