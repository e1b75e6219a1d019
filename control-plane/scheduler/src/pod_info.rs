//! A pod as the scheduler looks at it: everything filters and scores ask for, computed once.

use api::resources::{CPU, EPHEMERAL_STORAGE, MEMORY, PODS, ResourceList};
use api::volume::PodClaim;
use k8s_openapi::api::core::v1::{Pod, PodAffinity, PodAffinityTerm, PodAntiAffinity, PodSpec};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

static NO_SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);

/// Amounts of resources as integers: thousandths for CPU, units for all else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
    pub extended: BTreeMap<String, i64>,
}

impl Resources {
    pub fn of(list: &ResourceList) -> Self {
        let mut resources = Self::default();
        for (name, quantity) in list {
            match name.as_str() {
                CPU => resources.milli_cpu = quantity.milli_value(),
                MEMORY => resources.memory = quantity.value(),
                EPHEMERAL_STORAGE => resources.ephemeral_storage = quantity.value(),
                PODS => {}
                _ => {
                    resources.extended.insert(name.clone(), quantity.value());
                }
            }
        }
        resources
    }

    pub fn add(&mut self, other: &Self, sign: i64) {
        self.milli_cpu += sign * other.milli_cpu;
        self.memory += sign * other.memory;
        self.ephemeral_storage += sign * other.ephemeral_storage;
        for (name, amount) in &other.extended {
            *self.extended.entry(name.clone()).or_default() += sign * amount;
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub requests: Resources,
    /// CPU and memory with defaults for containers that ask for nothing.
    pub scoring: (i64, i64),
    pub host_ports: Vec<api::pod::HostPort>,
    pub claims: Vec<PodClaim>,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let scoring = Resources::of(&api::resources::pod_requests_for_scoring(&pod));
        Self {
            requests: Resources::of(&api::resources::pod_requests(&pod)),
            scoring: (scoring.milli_cpu, scoring.memory),
            host_ports: api::pod::host_ports(&pod),
            claims: api::volume::pod_claims(&pod),
            pod,
        }
    }

    /// Of the node it is on.
    pub fn takes_as_much_as(&self, other: &Self) -> bool {
        self.requests == other.requests
            && self.scoring == other.scoring
            && self.host_ports == other.host_ports
    }

    pub fn spec(&self) -> &PodSpec {
        self.pod.spec.as_ref().unwrap_or(&NO_SPEC)
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn priority(&self) -> i32 {
        api::pod::priority(&self.pod)
    }

    pub fn labels(&self) -> Option<&api::selector::Labels> {
        self.pod.metadata.labels.as_ref()
    }

    pub fn affinity(&self) -> Option<&PodAffinity> {
        self.spec().affinity.as_ref()?.pod_affinity.as_ref()
    }

    pub fn anti_affinity(&self) -> Option<&PodAntiAffinity> {
        self.spec().affinity.as_ref()?.pod_anti_affinity.as_ref()
    }

    pub fn required_affinity(&self) -> &[PodAffinityTerm] {
        self.affinity()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
            .unwrap_or_default()
    }

    pub fn required_anti_affinity(&self) -> &[PodAffinityTerm] {
        self.anti_affinity()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
            .unwrap_or_default()
    }

    pub fn has_affinity(&self) -> bool {
        self.affinity().is_some() || self.anti_affinity().is_some()
    }
}
