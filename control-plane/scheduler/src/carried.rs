//! What placed pods' own affinity terms say about others. Pods of one template say the same, so equal terms are kept
//! once, with the domains in which they are said.

use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use crate::tally::Part;
use k8s_openapi::api::core::v1::{PodAffinityTerm, WeightedPodAffinityTerm};
use std::collections::HashMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Required anti-affinity.
    KeepAway,
    /// Required affinity: attracts, but doesn't bind the other.
    ComeHere,
    /// A preference; negative weights push away.
    Preferred(i32),
}

/// One distinct term.
#[derive(Debug)]
pub struct Term {
    pub part: Part,
    pub key: String,
    pub tone: Tone,
    /// How many pods say it, by domain.
    pub domains: HashMap<String, i32>,
}

#[derive(Debug)]
pub struct Carried {
    terms: Vec<Term>,
    stale: bool,
}

impl Default for Carried {
    fn default() -> Self {
        Self {
            terms: Vec::new(),
            stale: true,
        }
    }
}

/// Every term of a pod, with its tone.
pub fn terms_of(pod: &PodInfo) -> Vec<(Tone, &PodAffinityTerm)> {
    let mut all: Vec<(Tone, &PodAffinityTerm)> = Vec::new();
    all.extend(pod.required_affinity().iter().map(|t| (Tone::ComeHere, t)));
    all.extend(pod.required_anti_affinity().iter().map(|t| (Tone::KeepAway, t)));
    if let Some(near) = pod.affinity() {
        all.extend(weighted(
            &near.preferred_during_scheduling_ignored_during_execution,
            1,
        ));
    }
    if let Some(far) = pod.anti_affinity() {
        all.extend(weighted(
            &far.preferred_during_scheduling_ignored_during_execution,
            -1,
        ));
    }
    all
}

fn weighted(
    terms: &Option<Vec<WeightedPodAffinityTerm>>,
    sign: i32,
) -> impl Iterator<Item = (Tone, &PodAffinityTerm)> {
    let terms = terms.as_deref().unwrap_or_default().iter();
    terms.map(move |t| (Tone::Preferred(sign * t.weight), &t.pod_affinity_term))
}

impl Carried {
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Node labels changed: count anew when asked.
    pub fn forget(&mut self) {
        self.terms.clear();
        self.stale = true;
    }

    pub fn ensure(&mut self, nodes: &[NodeInfo]) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        for node in nodes {
            for pod in node.pods.values() {
                self.count(pod, node, 1);
            }
        }
    }

    /// A pod came (1) or went (-1).
    pub fn moved(&mut self, pod: &PodInfo, node: &NodeInfo, sign: i32) {
        if !self.stale {
            self.count(pod, node, sign);
        }
    }

    fn count(&mut self, pod: &PodInfo, node: &NodeInfo, sign: i32) {
        if !pod.has_affinity() {
            return;
        }
        for (tone, term) in terms_of(pod) {
            let Some(value) = node.label(&term.topology_key) else {
                continue;
            };
            let part = Part::of(term, pod.namespace());
            let same = |t: &Term| t.tone == tone && t.key == term.topology_key && t.part == part;
            let at = self.terms.iter().position(same).unwrap_or_else(|| {
                self.terms.push(Term {
                    part,
                    key: term.topology_key.clone(),
                    tone,
                    domains: HashMap::new(),
                });
                self.terms.len() - 1
            });
            let domains = &mut self.terms[at].domains;
            let here = domains.entry(value.to_owned()).or_default();
            *here += sign;
            if *here == 0 {
                domains.remove(value);
            }
            if domains.is_empty() {
                self.terms.swap_remove(at);
            }
        }
    }
}
