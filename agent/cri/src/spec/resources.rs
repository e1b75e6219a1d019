//! CRI resources as the OCI runtime spec and cgroup v2 files say them.

use cri_api::v1;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The controllers a cgroup v2 tree offers.
pub type Controllers = BTreeSet<String>;

/// `linux.resources`, without what the kernel offers no controller for, and what had to be left out.
pub fn to_oci(
    resources: &v1::LinuxContainerResources,
    controllers: &Controllers,
) -> (Value, Vec<&'static str>) {
    let mut out = Map::new();
    let mut missing = Vec::new();
    let mut put = |name: &'static str, controller: &'static str, value: Value| {
        let empty =
            value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty);
        if empty {
            return;
        }
        if controllers.contains(controller) {
            out.insert(name.into(), value);
        } else {
            missing.push(controller);
        }
    };
    let mut cpu = Map::new();
    for (name, value) in [
        ("period", resources.cpu_period),
        ("quota", resources.cpu_quota),
        ("shares", resources.cpu_shares),
    ] {
        if value != 0 {
            cpu.insert(name.into(), json!(value));
        }
    }
    put("cpu", "cpu", Value::Object(cpu));
    let mut memory = Map::new();
    if resources.memory_limit_in_bytes != 0 {
        memory.insert("limit".into(), json!(resources.memory_limit_in_bytes));
    }
    if resources.memory_swap_limit_in_bytes != 0 && resources.memory_limit_in_bytes != 0 {
        memory.insert("swap".into(), json!(resources.memory_swap_limit_in_bytes));
    }
    put("memory", "memory", Value::Object(memory));
    let huge: Vec<Value> = resources
        .hugepage_limits
        .iter()
        .map(|h| json!({"pageSize": h.page_size, "limit": h.limit}))
        .collect();
    put("hugepageLimits", "hugetlb", Value::Array(huge));
    let (unified, unavailable): (Vec<_>, Vec<_>) = resources
        .unified
        .iter()
        .map(|(file, value)| (file.clone(), value.clone()))
        .chain(cpusets(resources))
        .partition(|(file, _)| {
            file.split('.')
                .next()
                .is_some_and(|c| c == "cgroup" || controllers.contains(c))
        });
    if !unified.is_empty() {
        out.insert(
            "unified".into(),
            Value::Object(unified.into_iter().map(|(k, v)| (k, Value::String(v))).collect()),
        );
    }
    if !unavailable.is_empty() {
        missing.push("unified");
    }
    (Value::Object(out), missing)
}

fn cpusets(resources: &v1::LinuxContainerResources) -> Vec<(String, String)> {
    [
        ("cpuset.cpus", &resources.cpuset_cpus),
        ("cpuset.mems", &resources.cpuset_mems),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(file, value)| (file.to_owned(), value.clone()))
    .collect()
}

/// The cgroup v2 files to write for changed resources, in a safe order.
pub fn to_files(resources: &v1::LinuxContainerResources) -> Vec<(String, String)> {
    let mut files = Vec::new();
    if resources.cpu_shares > 0 {
        files.push(("cpu.weight".into(), weight(resources.cpu_shares).to_string()));
    }
    if resources.cpu_quota != 0 || resources.cpu_period != 0 {
        let quota = if resources.cpu_quota > 0 {
            resources.cpu_quota.to_string()
        } else {
            "max".into()
        };
        let period = if resources.cpu_period > 0 {
            resources.cpu_period
        } else {
            100_000
        };
        files.push(("cpu.max".into(), format!("{quota} {period}")));
    }
    let limit = resources.memory_limit_in_bytes;
    if limit != 0 {
        if resources.memory_swap_limit_in_bytes > 0 && limit > 0 {
            files.push((
                "memory.swap.max".into(),
                (resources.memory_swap_limit_in_bytes - limit).max(0).to_string(),
            ));
        }
        files.push((
            "memory.max".into(),
            if limit > 0 {
                limit.to_string()
            } else {
                "max".into()
            },
        ));
    }
    files.extend(cpusets(resources));
    files.extend(
        resources
            .unified
            .iter()
            .map(|(file, value)| (file.clone(), value.clone())),
    );
    files
}

/// CPU shares (2…262144, 1024 by default) as a cgroup v2 weight (1…10000, 100 by
/// default): the quadratic fit that runc 1.3.2 and the kubelet use.
pub fn weight(shares: i64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// Overlays a change on what a container has: zero and empty mean "as it was".
pub fn merge(current: &mut v1::LinuxContainerResources, change: &v1::LinuxContainerResources) {
    let numbers = [
        (&mut current.cpu_period, change.cpu_period),
        (&mut current.cpu_quota, change.cpu_quota),
        (&mut current.cpu_shares, change.cpu_shares),
        (&mut current.memory_limit_in_bytes, change.memory_limit_in_bytes),
        (&mut current.oom_score_adj, change.oom_score_adj),
        (
            &mut current.memory_swap_limit_in_bytes,
            change.memory_swap_limit_in_bytes,
        ),
    ];
    for (old, new) in numbers {
        if new != 0 {
            *old = new;
        }
    }
    for (old, new) in [
        (&mut current.cpuset_cpus, &change.cpuset_cpus),
        (&mut current.cpuset_mems, &change.cpuset_mems),
    ] {
        if !new.is_empty() {
            old.clone_from(new);
        }
    }
    current.unified.extend(change.unified.clone());
    if !change.hugepage_limits.is_empty() {
        current.hugepage_limits.clone_from(&change.hugepage_limits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        for (shares, expected) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1 << 40, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn limits_without_a_controller_are_left_out_and_named() {
        let resources = v1::LinuxContainerResources {
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let all: Controllers = ["cpu", "memory", "pids"].map(String::from).into();
        let (oci, missing) = to_oci(&resources, &all);
        assert_eq!(
            oci,
            json!({"cpu": {"shares": 512}, "memory": {"limit": 67_108_864}, "unified": {"memory.oom.group": "1"}})
        );
        assert_eq!(missing, Vec::<&str>::new());
        let (oci, missing) = to_oci(&resources, &Controllers::new());
        assert_eq!((oci, missing), (json!({}), vec!["cpu", "memory", "unified"]));
    }

    #[test]
    fn changed_resources_name_their_files() {
        let resources = v1::LinuxContainerResources {
            cpu_quota: 50_000,
            cpu_period: 100_000,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        };
        let file = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            to_files(&resources),
            [file("cpu.max", "50000 100000"), file("memory.max", "1048576")]
        );
        let unlimited = v1::LinuxContainerResources {
            cpu_quota: -1,
            memory_limit_in_bytes: -1,
            ..Default::default()
        };
        assert_eq!(
            to_files(&unlimited),
            [file("cpu.max", "max 100000"), file("memory.max", "max")]
        );
    }
}
