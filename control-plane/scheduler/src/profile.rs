//! A profile: which plugins decide for the pods of one `schedulerName`, and how much each weighs.

use crate::framework::{EventKind, Plugin};
use crate::plugins::{self, Arguments};

pub struct Entry {
    pub plugin: Box<dyn Plugin>,
    /// The same in every profile, so that rejections of all profiles can share indices.
    pub bit: u64,
    pub weight: i64,
}

pub struct Profile {
    pub scheduler_name: String,
    pub plugins: Vec<Entry>,
    /// 0: by the size of the cluster.
    pub percentage_of_nodes_to_score: usize,
    /// DefaultPreemption is enabled.
    pub preempts: bool,
}

pub const PREEMPTION: &str = "DefaultPreemption";
/// Plugins of upstream's that are no filters or scores here: built into the queue, the feed and the executor.
pub const BUILT_IN: [&str; 4] = ["SchedulingGates", "PrioritySort", "DefaultBinder", PREEMPTION];

impl Default for Profile {
    fn default() -> Self {
        Self::new("default-scheduler", &Arguments::default(), |_| true, |_| None)
    }
}

impl Profile {
    pub fn new(
        scheduler_name: &str,
        arguments: &Arguments,
        enabled: impl Fn(&str) -> bool,
        weight: impl Fn(&str) -> Option<i64>,
    ) -> Self {
        let all = plugins::all(arguments).into_iter().enumerate();
        let entries = all.filter(|(_, p)| enabled(p.name())).map(|(at, plugin)| Entry {
            bit: 1 << at,
            weight: weight(plugin.name()).unwrap_or_else(|| plugin.weight()),
            plugin,
        });
        Self {
            scheduler_name: scheduler_name.into(),
            plugins: entries.collect(),
            percentage_of_nodes_to_score: 0,
            preempts: enabled(PREEMPTION),
        }
    }

    /// The plugins that this kind of event may persuade.
    pub fn woken_by(&self, kind: EventKind) -> u64 {
        let woken = self.plugins.iter().filter(|e| e.plugin.wakes_on(kind));
        woken.fold(0, |bits, e| bits | e.bit)
    }

    #[cfg(test)]
    pub fn bits(&self, names: &[&str]) -> u64 {
        let named = self.plugins.iter().filter(|e| names.contains(&e.plugin.name()));
        named.fold(0, |bits, e| bits | e.bit)
    }
}
