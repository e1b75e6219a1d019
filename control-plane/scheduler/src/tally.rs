//! Standing counts of pods that a selector means, by node and by topology domain, so that affinity and spreading look
//! numbers up where they would count the whole cluster for every pod.

use crate::node_info::NodeInfo;
use crate::pod_info::PodInfo;
use api::selector::Labels;
use k8s_openapi::api::core::v1::PodAffinityTerm;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::{BTreeMap, HashMap};

/// Selections that are remembered; the one unused for longest goes first.
const REMEMBERED: usize = 128;

/// Which pods are counted: those that all parts mean.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    pub parts: Vec<Part>,
    /// Pods on their way out count, too.
    pub terminating: bool,
}

/// Pods by label, in some namespaces.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub namespaces: Vec<String>,
    /// Namespaces by label, beside the listed ones.
    pub namespace_selector: Option<LabelSelector>,
    /// Absent: no pod.
    pub selector: Option<LabelSelector>,
}

impl Part {
    /// What an affinity term of a pod in `namespace` is about.
    pub fn of(term: &PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        Self {
            namespaces,
            namespace_selector: term.namespace_selector.clone(),
            selector: term.label_selector.clone(),
        }
    }

    pub fn means(&self, pod: &PodInfo, namespaces: &HashMap<String, Labels>) -> bool {
        let by_label = |s: &LabelSelector| api::selector::matches(s, namespaces.get(pod.namespace()));
        api::selector::matches_some(self.selector.as_ref(), pod.labels())
            && (self.namespaces.iter().any(|n| n == pod.namespace())
                || self.namespace_selector.as_ref().is_some_and(by_label))
    }
}

impl Selection {
    pub fn means(&self, pod: &PodInfo, namespaces: &HashMap<String, Labels>) -> bool {
        (self.terminating || !api::pod::is_terminating(&pod.pod))
            && self.parts.iter().all(|p| p.means(pod, namespaces))
    }
}

#[derive(Debug)]
pub struct Tally {
    selection: Selection,
    used: u64,
    pub total: i32,
    by_node: HashMap<String, i32>,
    by_key: HashMap<String, Domains>,
}

/// Counts by the value of one topology label.
#[derive(Debug, Default)]
struct Domains {
    counts: HashMap<String, i32>,
    /// Count to the number of domains that have it.
    levels: BTreeMap<i32, usize>,
}

impl Domains {
    fn add(&mut self, value: &str, amount: i32) {
        let old = self.counts.get(value).copied().unwrap_or_default();
        let new = old + amount;
        if let Some(domains) = self.levels.get_mut(&old) {
            *domains -= 1;
            if *domains == 0 {
                self.levels.remove(&old);
            }
        }
        if new == 0 {
            self.counts.remove(value);
        } else {
            self.counts.insert(value.to_owned(), new);
            *self.levels.entry(new).or_default() += 1;
        }
    }
}

impl Tally {
    pub fn on_node(&self, name: &str) -> i32 {
        self.by_node.get(name).copied().unwrap_or_default()
    }

    /// Pods in the domain `value` of the topology `key`.
    pub fn in_domain(&self, key: &str, value: &str) -> i32 {
        self.by_key
            .get(key)
            .and_then(|d| d.counts.get(value))
            .copied()
            .unwrap_or_default()
    }

    /// The emptiest of `domains` domains of this topology.
    pub fn minimum(&self, key: &str, domains: usize) -> i32 {
        match self.by_key.get(key) {
            Some(known) if known.counts.len() >= domains => {
                known.levels.keys().next().copied().unwrap_or_default()
            }
            _ => 0,
        }
    }

    fn count(&mut self, node: &NodeInfo, amount: i32) {
        self.total += amount;
        let here = self.by_node.entry(node.name().to_owned()).or_default();
        *here += amount;
        if *here == 0 {
            self.by_node.remove(node.name());
        }
        for (key, domains) in &mut self.by_key {
            if let Some(value) = node.label(key) {
                domains.add(value, amount);
            }
        }
    }
}

#[derive(Debug, Default)]
pub struct Tallies {
    tallies: Vec<Tally>,
    /// Topology label to value to the number of nodes that have it.
    topologies: HashMap<String, HashMap<String, usize>>,
    clock: u64,
}

impl Tallies {
    /// The standing count of `selection`; [`Self::ensure`] made it.
    pub fn get(&self, selection: &Selection) -> Option<&Tally> {
        self.tallies.iter().find(|t| t.selection == *selection)
    }

    /// Domains of a topology.
    pub fn domains(&self, key: &str) -> usize {
        self.topologies.get(key).map_or(0, HashMap::len)
    }

    /// Nodes that have the label.
    pub fn nodes_with(&self, key: &str) -> usize {
        self.topologies.get(key).map_or(0, |t| t.values().sum())
    }

    pub fn ensure(
        &mut self,
        selection: &Selection,
        key: &str,
        nodes: &[NodeInfo],
        namespaces: &HashMap<String, Labels>,
    ) {
        self.clock += 1;
        if !self.topologies.contains_key(key) {
            let values = self.topologies.entry(key.to_owned()).or_default();
            for value in nodes.iter().filter_map(|n| n.label(key)) {
                *values.entry(value.to_owned()).or_default() += 1;
            }
        }
        let at = match self.tallies.iter().position(|t| t.selection == *selection) {
            Some(at) => at,
            None => {
                self.make_room();
                let mut tally = Tally {
                    selection: selection.clone(),
                    used: 0,
                    total: 0,
                    by_node: HashMap::new(),
                    by_key: HashMap::new(),
                };
                for node in nodes {
                    let here = node
                        .pods
                        .values()
                        .filter(|p| selection.means(p, namespaces))
                        .count();
                    if here > 0 {
                        tally.count(node, i32::try_from(here).unwrap_or(i32::MAX));
                    }
                }
                self.tallies.push(tally);
                self.tallies.len() - 1
            }
        };
        let tally = &mut self.tallies[at];
        tally.used = self.clock;
        if !tally.by_key.contains_key(key) {
            let mut domains = Domains::default();
            for node in nodes {
                if let Some(value) = node.label(key)
                    && let Some(count) = tally.by_node.get(node.name())
                {
                    domains.add(value, *count);
                }
            }
            tally.by_key.insert(key.to_owned(), domains);
        }
    }

    fn make_room(&mut self) {
        if self.tallies.len() >= REMEMBERED
            && let Some((at, _)) = self.tallies.iter().enumerate().min_by_key(|(_, t)| t.used)
        {
            self.tallies.swap_remove(at);
        }
    }

    /// A pod came (1) or went (-1).
    pub fn moved(&mut self, pod: &PodInfo, node: &NodeInfo, sign: i32, namespaces: &HashMap<String, Labels>) {
        for tally in &mut self.tallies {
            if tally.selection.means(pod, namespaces) {
                tally.count(node, sign);
            }
        }
    }

    /// Nodes or namespaces changed in a way that moves whole groups of pods: count anew when asked.
    pub fn forget(&mut self) {
        self.tallies.clear();
        self.topologies.clear();
    }
}
