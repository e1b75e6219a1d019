//! Startup, liveness and readiness probes: one task a probe of a running container, verdicts kept by container id.

pub mod check;
mod grpc;
mod http;
mod state;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::context::Context;
use crate::events::container_reference;
use crate::pod_actions::{ProbeFailure, Verdicts};
use crate::runtime_pod::RuntimePod;
use state::ProbeState;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

const KINDS: [Kind; 3] = [Kind::Startup, Kind::Liveness, Kind::Readiness];

/// What results of probes are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counted {
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub container: String,
    pub kind: &'static str,
    pub result: &'static str,
}

#[derive(Default)]
pub struct ProbeManager {
    probed: Arc<Mutex<HashMap<String, Probed>>>,
    counts: Mutex<BTreeMap<Counted, u64>>,
}

/// A container under observation.
#[derive(Default)]
struct Probed {
    pod_uid: String,
    verdicts: HashMap<Kind, bool>,
    tasks: Vec<(Kind, AbortHandle)>,
}

impl Drop for Probed {
    fn drop(&mut self) {
        self.tasks.iter().for_each(|(_, task)| task.abort());
    }
}

/// The pod and container that a probe watches.
#[derive(Clone)]
pub struct Target {
    pub pod: Pod,
    pub container: Container,
    pub list: &'static str,
    pub container_id: String,
    pub started_at: Timestamp,
    pub ip: Option<IpAddr>,
    pub wake: Arc<Notify>,
}

impl ProbeManager {
    /// Watches the container from now on; does nothing when it is watched already.
    pub fn watch(&self, context: &Arc<Context>, target: &Target) {
        let mut probed = self.lock();
        if probed.contains_key(&target.container_id) {
            return;
        }
        let mut entry = Probed::default();
        entry.pod_uid = target.pod.metadata.uid.clone().unwrap_or_default();
        for kind in KINDS
            .into_iter()
            .filter(|kind| kind.of(&target.container).is_some())
        {
            let task = run(context.clone(), self.probed.clone(), target.clone(), kind);
            entry.tasks.push((kind, tokio::spawn(task).abort_handle()));
        }
        probed.insert(target.container_id.clone(), entry);
    }

    /// Forgets containers of the pod that do not run any more.
    pub fn retain_running(&self, pod_uid: &str, observed: &RuntimePod) {
        let running: HashSet<&str> = observed
            .running_containers()
            .map(|container| container.id.as_str())
            .collect();
        self.lock()
            .retain(|id, probed| probed.pod_uid != pod_uid || running.contains(id.as_str()));
    }

    /// A terminating pod is only asked whether it is ready.
    pub fn stop_killing(&self, pod_uid: &str) {
        for probed in self
            .lock()
            .values_mut()
            .filter(|probed| probed.pod_uid == pod_uid)
        {
            for (_, task) in probed.tasks.iter().filter(|(kind, _)| *kind != Kind::Readiness) {
                task.abort();
            }
        }
    }

    pub fn counts(&self) -> BTreeMap<Counted, u64> {
        self.counts.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    fn count(&self, target: &Target, kind: Kind, success: bool) {
        let metadata = &target.pod.metadata;
        let counted = Counted {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            pod: metadata.name.clone().unwrap_or_default(),
            pod_uid: metadata.uid.clone().unwrap_or_default(),
            container: target.container.name.clone(),
            kind: kind.name(),
            result: if success { "successful" } else { "failed" },
        };
        *self
            .counts
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .entry(counted)
            .or_default() += 1;
    }

    /// Forgets everything about the pod.
    pub fn forget_pod(&self, pod_uid: &str) {
        let mut counts = self.counts.lock().unwrap_or_else(|e| e.into_inner());
        counts.retain(|counted, _| counted.pod_uid != pod_uid);
        drop(counts);
        self.lock().retain(|_, probed| probed.pod_uid != pod_uid);
    }

    pub fn verdicts(&self, pod_uid: &str) -> Verdicts {
        let mut verdicts = Verdicts::default();
        for (id, probed) in self.lock().iter().filter(|(_, probed)| probed.pod_uid == pod_uid) {
            if probed.verdicts.get(&Kind::Liveness) == Some(&false) {
                verdicts.failures.insert(id.clone(), ProbeFailure::Liveness);
            }
            match probed.verdicts.get(&Kind::Startup) {
                Some(true) => drop(verdicts.started.insert(id.clone())),
                Some(false) => drop(verdicts.failures.insert(id.clone(), ProbeFailure::Startup)),
                None => {}
            }
        }
        verdicts
    }

    pub fn is_started(&self, container: &Container, id: &str) -> bool {
        container.startup_probe.is_none() || self.verdict(id, Kind::Startup) == Some(true)
    }

    pub fn is_ready(&self, container: &Container, id: &str) -> bool {
        container.readiness_probe.is_none() || self.verdict(id, Kind::Readiness) == Some(true)
    }

    fn verdict(&self, id: &str, kind: Kind) -> Option<bool> {
        self.lock()
            .get(id)
            .and_then(|probed| probed.verdicts.get(&kind).copied())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Probed>> {
        self.probed.lock().unwrap_or_else(|e| e.into_inner())
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value
            .and_then(|value| u64::try_from(value).ok())
            .unwrap_or(default),
    )
}

/// Probes until a verdict ends the need to: a started container, or one to be killed.
async fn run(context: Arc<Context>, probed: Arc<Mutex<HashMap<String, Probed>>>, target: Target, kind: Kind) {
    let Some(probe) = kind.of(&target.container).cloned() else {
        return;
    };
    let age = Duration::try_from(Timestamp::now().duration_since(target.started_at)).unwrap_or_default();
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0).saturating_sub(age)).await;
    let mut ticks = tokio::time::interval(seconds(probe.period_seconds, 10).max(Duration::from_secs(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let mut state = ProbeState::new(
        probe.success_threshold.unwrap_or(1),
        probe.failure_threshold.unwrap_or(3),
    );
    loop {
        ticks.tick().await;
        if kind != Kind::Startup && !context.probes.is_started(&target.container, &target.container_id) {
            continue;
        }
        let outcome = check::probe(&context, &target, &probe, timeout).await;
        context.probes.count(&target, kind, outcome.is_ok());
        let told = match &outcome {
            Ok(None) => None,
            Ok(Some(message)) => Some(("ProbeWarning", "warning", message)),
            Err(message) => Some(("Unhealthy", "failed", message)),
        };
        if let Some((reason, verb, message)) = told {
            let about = container_reference(&target.pod, target.list, &target.container.name);
            let message = format!("{} probe {verb}: {message}", kind.name());
            context.events.warning(about, reason, message);
        }
        let Some(verdict) = state.observe(outcome.is_ok()) else {
            continue;
        };
        let changed = {
            let mut probed = probed.lock().unwrap_or_else(|e| e.into_inner());
            let Some(entry) = probed.get_mut(&target.container_id) else {
                return;
            };
            entry.verdicts.insert(kind, verdict) != Some(verdict)
        };
        if changed {
            target.wake.notify_one();
        }
        let over = kind == Kind::Startup || kind == Kind::Liveness && !verdict;
        if over {
            return;
        }
    }
}
