//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1): the settings this kubelet acts on, with upstream's names
//! and defaults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::quantity::Quantity;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum SettingsError {
    #[error("read {path}: {source}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}", path = path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{path}: {field}: {message}", path = path.display())]
    Value {
        path: PathBuf,
        field: &'static str,
        message: String,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Settings {
    pub kind: String,
    pub api_version: String,
    pub static_pod_path: Option<PathBuf>,
    #[serde(with = "go_duration")]
    pub file_check_frequency: Duration,
    #[serde(with = "go_duration")]
    pub sync_frequency: Duration,
    #[serde(with = "go_duration")]
    pub node_status_update_frequency: Duration,
    #[serde(with = "go_duration")]
    pub node_status_report_frequency: Duration,
    pub node_lease_duration_seconds: i32,
    #[serde(with = "go_duration", rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: Duration,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: u64,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: u64,
    pub max_pods: i64,
    /// Of processes in one pod; −1 is as many as the node has.
    pub pod_pids_limit: i64,
    pub eviction_hard: BTreeMap<String, String>,
    pub eviction_soft: BTreeMap<String, String>,
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    #[serde(with = "go_duration")]
    pub eviction_pressure_transition_period: Duration,
    pub eviction_max_pod_grace_period: u64,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub enforce_node_allocatable: Vec<String>,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub container_log_max_size: String,
    pub container_log_max_files: usize,
    pub max_parallel_image_pulls: Option<usize>,
    pub seccomp_default: bool,
    pub crash_loop_back_off: CrashLoopBackOff,
    #[serde(with = "go_duration")]
    pub shutdown_grace_period: Duration,
    #[serde(with = "go_duration")]
    pub shutdown_grace_period_critical_pods: Duration,
    pub resolv_conf: PathBuf,
    pub volume_plugin_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CrashLoopBackOff {
    #[serde(with = "optional_go_duration", skip_serializing_if = "Option::is_none")]
    pub max_container_restart_period: Option<Duration>,
}

fn table(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            kind: "KubeletConfiguration".into(),
            api_version: "kubelet.config.k8s.io/v1beta1".into(),
            static_pod_path: None,
            file_check_frequency: seconds(20),
            sync_frequency: seconds(60),
            node_status_update_frequency: seconds(10),
            node_status_report_frequency: seconds(300),
            node_lease_duration_seconds: 40,
            image_minimum_gc_age: seconds(120),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            max_pods: 110,
            pod_pids_limit: -1,
            eviction_hard: table(&[
                ("memory.available", "100Mi"),
                ("nodefs.available", "10%"),
                ("nodefs.inodesFree", "5%"),
                ("imagefs.available", "15%"),
                ("imagefs.inodesFree", "5%"),
                ("pid.available", "10%"),
            ]),
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_pressure_transition_period: seconds(300),
            eviction_max_pod_grace_period: 0,
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            enforce_node_allocatable: vec!["pods".into()],
            allowed_unsafe_sysctls: Vec::new(),
            container_log_max_size: "10Mi".into(),
            container_log_max_files: 5,
            max_parallel_image_pulls: None,
            // Upstream's is false; a node of ours is hardened unless it is told otherwise.
            seccomp_default: true,
            crash_loop_back_off: CrashLoopBackOff::default(),
            shutdown_grace_period: Duration::ZERO,
            shutdown_grace_period_critical_pods: Duration::ZERO,
            resolv_conf: "/etc/resolv.conf".into(),
            volume_plugin_dir: None,
        }
    }
}

impl Settings {
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        let parsed: Self = serde_saphyr::from_str(&text).map_err(|error| SettingsError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        match parsed.complaint() {
            Some((field, message)) => Err(SettingsError::Value {
                path: path.to_owned(),
                field,
                message,
            }),
            None => Ok(parsed),
        }
    }

    /// The first field that makes no sense, and why.
    fn complaint(&self) -> Option<(&'static str, String)> {
        if self.kind != "KubeletConfiguration" {
            return Some(("kind", format!("{:?} is not KubeletConfiguration", self.kind)));
        }
        if self.api_version != "kubelet.config.k8s.io/v1beta1" {
            return Some((
                "apiVersion",
                format!("{:?} is not kubelet.config.k8s.io/v1beta1", self.api_version),
            ));
        }
        if self.image_gc_low_threshold_percent >= self.image_gc_high_threshold_percent {
            let message = "must be less than imageGCHighThresholdPercent".to_owned();
            return Some(("imageGCLowThresholdPercent", message));
        }
        if self.shutdown_grace_period_critical_pods > self.shutdown_grace_period {
            let message = "must not exceed shutdownGracePeriod".to_owned();
            return Some(("shutdownGracePeriodCriticalPods", message));
        }
        for (field, amounts) in [
            ("systemReserved", &self.system_reserved),
            ("kubeReserved", &self.kube_reserved),
        ] {
            let bad = amounts
                .iter()
                .find(|(_, amount)| amount.parse::<Quantity>().is_err());
            if let Some((name, amount)) = bad {
                return Some((field, format!("{name}: {amount:?} is not a quantity")));
            }
        }
        let without = self
            .eviction_soft
            .keys()
            .find(|signal| !self.eviction_soft_grace_period.contains_key(*signal));
        without.map(|signal| {
            (
                "evictionSoftGracePeriod",
                format!("{signal} has a soft threshold and no grace period"),
            )
        })
    }

    /// What the node keeps for itself, by resource.
    pub fn reserved(&self, resource: &str) -> Quantity {
        let of =
            |amounts: &BTreeMap<String, String>| amounts.get(resource).and_then(|amount| amount.parse().ok());
        of(&self.system_reserved).unwrap_or(Quantity::ZERO)
            + of(&self.kube_reserved).unwrap_or(Quantity::ZERO)
    }
}

/// A Go duration such as `1h30m` or `100ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units = [
            ("ms", 0.001),
            ("us", 1e-6),
            ("µs", 1e-6),
            ("ns", 1e-9),
            ("h", 3600.0),
            ("m", 60.0),
            ("s", 1.0),
        ];
        let (unit, seconds) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &rest[unit.len()..];
    }
    (!text.is_empty()).then_some(total)
}

mod go_duration {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&api::duration::go_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a duration")))
    }
}

mod optional_go_duration {
    use super::*;

    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => go_duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        go_duration::deserialize(deserializer).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;

    fn read(text: &str) -> Result<Settings, String> {
        let dir = TempDir::new("settings");
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        Settings::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [
            ("1h30m", Some(5400.0)),
            ("100ms", Some(0.1)),
            ("1.5s", Some(1.5)),
            ("0", Some(0.0)),
            ("5", None),
            ("", None),
            ("1x", None),
        ] {
            assert_eq!(parse_duration(text).map(|d| d.as_secs_f64()), expected, "{text}");
        }
    }

    #[test]
    fn files_override_defaults_and_errors_name_the_field() {
        const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        let read = |more: &str| read(&format!("{HEAD}{more}"));
        let settings =
            read("maxPods: 7\nsyncFrequency: 1m30s\nevictionHard: {memory.available: 5%}\n").unwrap();
        assert_eq!((settings.max_pods, settings.sync_frequency.as_secs()), (7, 90));
        assert_eq!(
            settings.eviction_hard.len(),
            1,
            "a given table replaces the default one"
        );
        assert_eq!(settings.container_log_max_files, 5);
        for (text, named) in [
            ("maxPodz: 7", "maxPodz"),
            ("syncFrequency: soon", "soon"),
            ("imageGCLowThresholdPercent: 90", "imageGCLowThresholdPercent"),
            ("systemReserved: {cpu: lots}", "systemReserved: cpu"),
            (
                "evictionSoft: {memory.available: 1Gi}",
                "evictionSoftGracePeriod: memory.available",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
