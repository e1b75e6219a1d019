//! What the scheduler is told when it starts: flags, and KubeSchedulerConfiguration v1.

use crate::plugins::Arguments;
use crate::profile::{BUILT_IN, PREEMPTION, Profile};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// Upstream's flag names, where they exist.
#[derive(Clone, Debug)]
pub struct Config {
    /// Wait for the `kube-system/kube-scheduler` Lease before scheduling. `false` in a process that is alone by
    /// construction (`control-plane all` on the embedded store).
    pub leader_elect: bool,
    /// This instance's name in the Lease; must differ between masters.
    pub identity: String,
    pub first_backoff: Duration,
    pub longest_backoff: Duration,
    /// Where `/metrics`, `/healthz`, `/livez` and `/readyz` are served, as plain HTTP; `None` for nowhere.
    pub metrics_address: Option<SocketAddr>,
    pub profiles: Vec<ProfileConfig>,
}

/// One entry of `profiles`, understood: [`Config::apply`] makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileConfig {
    scheduler_name: String,
    disabled: BTreeSet<String>,
    weights: Vec<(String, i64)>,
    arguments: Arguments,
    percentage: usize,
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            scheduler_name: "default-scheduler".into(),
            disabled: BTreeSet::new(),
            weights: Vec::new(),
            arguments: Arguments::default(),
            percentage: 0,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            leader_elect: true,
            identity: "scheduler".into(),
            first_backoff: Duration::from_secs(1),
            longest_backoff: Duration::from_secs(10),
            metrics_address: None,
            profiles: vec![ProfileConfig::default()],
        }
    }
}

/// Why [`crate::run`] ended before it was told to, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    LeadershipLost(#[from] api_client::LeadershipLost),
    #[error("{field}: {reason}")]
    Configuration { field: String, reason: String },
    #[error("metrics address {address}: {source}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<DocumentProfile>,
    #[serde(default)]
    percentage_of_nodes_to_score: Option<usize>,
    #[serde(default)]
    pod_initial_backoff_seconds: Option<u64>,
    #[serde(default)]
    pod_max_backoff_seconds: Option<u64>,
    #[serde(default)]
    leader_election: Option<LeaderElection>,
    /// Here for files that work with upstream's; the flags say how to reach the API server.
    #[serde(default, rename = "clientConnection")]
    _client_connection: Value,
    #[serde(default, rename = "parallelism")]
    _parallelism: Value,
    #[serde(default, rename = "enableProfiling")]
    _enable_profiling: Value,
    #[serde(default, rename = "enableContentionProfiling")]
    _enable_contention_profiling: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaderElection {
    leader_elect: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DocumentProfile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<usize>,
    #[serde(default)]
    plugins: std::collections::BTreeMap<String, PluginSet>,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginSet {
    #[serde(default)]
    enabled: Vec<PluginName>,
    #[serde(default)]
    disabled: Vec<PluginName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PluginName {
    name: String,
    #[serde(default)]
    weight: i64,
}

#[derive(Deserialize)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

impl Config {
    /// Takes over what a KubeSchedulerConfiguration, as JSON, says.
    pub fn apply(&mut self, document: Value) -> Result<(), Error> {
        let wrong = |field: &str, reason: String| Error::Configuration {
            field: field.into(),
            reason,
        };
        let document: Document = serde_json::from_value(document)
            .map_err(|error| wrong("KubeSchedulerConfiguration", error.to_string()))?;
        if document.api_version != "kubescheduler.config.k8s.io/v1"
            || document.kind != "KubeSchedulerConfiguration"
        {
            let found = format!("{} {}", document.api_version, document.kind);
            let reason =
                format!("{found:?}: only kubescheduler.config.k8s.io/v1 KubeSchedulerConfiguration is known");
            return Err(wrong("apiVersion, kind", reason));
        }
        let seconds = |field: &str, value: Option<u64>, default: Duration| match value {
            Some(0) => Err(wrong(field, "must be greater than 0".into())),
            Some(value) => Ok(Duration::from_secs(value)),
            None => Ok(default),
        };
        self.first_backoff = seconds(
            "podInitialBackoffSeconds",
            document.pod_initial_backoff_seconds,
            self.first_backoff,
        )?;
        self.longest_backoff = seconds(
            "podMaxBackoffSeconds",
            document.pod_max_backoff_seconds,
            self.longest_backoff,
        )?;
        if self.longest_backoff < self.first_backoff {
            return Err(wrong(
                "podMaxBackoffSeconds",
                "must not be less than podInitialBackoffSeconds".into(),
            ));
        }
        if let Some(elect) = document.leader_election.and_then(|e| e.leader_elect) {
            self.leader_elect = elect;
        }
        if !document.profiles.is_empty() {
            let general = document.percentage_of_nodes_to_score.unwrap_or_default();
            let profiles = document.profiles.into_iter().enumerate();
            self.profiles = profiles
                .map(|(at, p)| profile(at, p, general))
                .collect::<Result<_, _>>()?;
        } else if let Some(percentage) = document.percentage_of_nodes_to_score {
            self.profiles.iter_mut().for_each(|p| p.percentage = percentage);
        }
        let names: BTreeSet<&str> = self.profiles.iter().map(|p| p.scheduler_name.as_str()).collect();
        if names.len() < self.profiles.len() {
            return Err(wrong(
                "profiles",
                "two profiles have the same schedulerName".into(),
            ));
        }
        if let Some(p) = self.profiles.iter().find(|p| p.percentage > 100) {
            let reason = format!("{} is not in the range 0 to 100", p.percentage);
            return Err(wrong("percentageOfNodesToScore", reason));
        }
        Ok(())
    }

    pub(crate) fn profiles(&self) -> Vec<Profile> {
        let build = |config: &ProfileConfig| {
            let weight = |name: &str| config.weights.iter().find(|(n, _)| n == name).map(|(_, w)| *w);
            let enabled = |name: &str| !config.disabled.contains(name);
            let mut profile = Profile::new(&config.scheduler_name, &config.arguments, enabled, weight);
            profile.percentage_of_nodes_to_score = config.percentage;
            profile
        };
        self.profiles.iter().map(build).collect()
    }
}

fn profile(at: usize, document: DocumentProfile, percentage: usize) -> Result<ProfileConfig, Error> {
    let wrong = |field: String, reason: String| Error::Configuration {
        field: format!("profiles[{at}].{field}"),
        reason,
    };
    let known: BTreeSet<&str> = crate::plugins::all(&Arguments::default())
        .iter()
        .map(|p| p.name())
        .chain(BUILT_IN)
        .collect();
    let mut config = ProfileConfig {
        percentage: document.percentage_of_nodes_to_score.unwrap_or(percentage),
        ..ProfileConfig::default()
    };
    if let Some(name) = document.scheduler_name {
        config.scheduler_name = name;
    }
    for (point, set) in document.plugins {
        for plugin in set.enabled.iter().chain(&set.disabled) {
            if plugin.name != "*" && !known.contains(plugin.name.as_str()) {
                return Err(wrong(
                    format!("plugins.{point}"),
                    format!("{:?} is not a plugin", plugin.name),
                ));
            }
        }
        // A plugin is one thing here: what is said of one of its extension points that matter is said of all.
        let whole = matches!(
            point.as_str(),
            "multiPoint" | "filter" | "preFilter" | "postFilter"
        );
        let scores = point == "score" || point == "multiPoint";
        for plugin in &set.disabled {
            let names = known.iter().filter(|k| plugin.name == "*" || plugin.name == **k);
            for name in names {
                if whole && (point != "postFilter" || *name == PREEMPTION) {
                    config.disabled.insert((*name).to_owned());
                } else if scores {
                    config.weights.push(((*name).to_owned(), 0));
                }
            }
        }
        for plugin in set.enabled {
            config.disabled.remove(&plugin.name);
            if scores && plugin.weight > 0 {
                config.weights.insert(0, (plugin.name, plugin.weight));
            } else if scores {
                config.weights.retain(|(name, _)| *name != plugin.name);
            }
        }
    }
    for plugin in document.plugin_config {
        let field = || format!("pluginConfig[{}]", plugin.name);
        match plugin.name.as_str() {
            "InterPodAffinity" => {
                if let Some(weight) = plugin.args["hardPodAffinityWeight"].as_i64() {
                    let weight = i32::try_from(weight).ok().filter(|w| (0..=100).contains(w));
                    config.arguments.hard_pod_affinity_weight = weight.ok_or_else(|| {
                        wrong(field(), "hardPodAffinityWeight: not in the range 0 to 100".into())
                    })?;
                }
            }
            "PodTopologySpread" => {
                let list = plugin.args["defaultConstraints"].clone();
                if plugin.args["defaultingType"] == "List" || !list.is_null() {
                    let list = if list.is_null() {
                        Value::Array(Vec::new())
                    } else {
                        list
                    };
                    let list: Vec<TopologySpreadConstraint> = serde_json::from_value(list)
                        .map_err(|error| wrong(field(), format!("defaultConstraints: {error}")))?;
                    config.arguments.default_constraints = Some(list);
                }
            }
            name if known.contains(name) => {}
            name => return Err(wrong("pluginConfig".into(), format!("{name:?} is not a plugin"))),
        }
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn applied(extra: Value) -> Result<Config, String> {
        let mut document =
            json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration"});
        for (key, value) in extra.as_object().into_iter().flatten() {
            document[key] = value.clone();
        }
        let mut config = Config::default();
        config.apply(document).map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn profiles_choose_and_weigh_plugins() {
        let config = applied(json!({"profiles": [{"schedulerName": "mine", "percentageOfNodesToScore": 30,
            "plugins": {"score": {"disabled": [{"name": "ImageLocality"}], "enabled": [{"name": "NodeAffinity", "weight": 7}]},
                "multiPoint": {"disabled": [{"name": "NodePorts"}]}, "postFilter": {"disabled": [{"name": "*"}]}},
            "pluginConfig": [{"name": "InterPodAffinity", "args": {"hardPodAffinityWeight": 5}}]}]}))
        .unwrap();
        let profiles = config.profiles();
        let profile = &profiles[0];
        let weight = |name: &str| {
            profile
                .plugins
                .iter()
                .find(|e| e.plugin.name() == name)
                .map(|e| e.weight)
        };
        assert_eq!(profile.scheduler_name, "mine");
        assert_eq!(profile.percentage_of_nodes_to_score, 30);
        assert_eq!(weight("ImageLocality"), Some(0));
        assert_eq!(weight("NodeAffinity"), Some(7));
        assert_eq!(weight("TaintToleration"), Some(3));
        assert_eq!(weight("NodePorts"), None);
        assert!(!profile.preempts);
    }

    #[test]
    fn mistakes_are_named() {
        for (document, words) in [
            (json!({"apiVersion": "v1"}), "apiVersion, kind: "),
            (
                json!({"nonsense": 1}),
                "KubeSchedulerConfiguration: unknown field `nonsense`",
            ),
            (
                json!({"podInitialBackoffSeconds": 20}),
                "podMaxBackoffSeconds: must not be less",
            ),
            (json!({"profiles": [{}, {}]}), "profiles: two profiles"),
            (
                json!({"percentageOfNodesToScore": 101}),
                "percentageOfNodesToScore: 101",
            ),
            (
                json!({"profiles": [{"plugins": {"filter": {"disabled": [{"name": "Nope"}]}}}]}),
                "profiles[0].plugins.filter: \"Nope\" is not a plugin",
            ),
        ] {
            let error = applied(document.clone()).unwrap_err();
            assert!(error.starts_with(words), "{document}: {error}");
        }
    }
}
