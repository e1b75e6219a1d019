//! Resource requests and limits as kernel settings, with upstream's arithmetic.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use cri_api::v1::{HugepageLimit, LinuxContainerResources};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;

pub const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
pub const CPU_PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1000;

/// A pod's quality of service, computed as the API server does for `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

type List<'a> = Option<&'a BTreeMap<String, Wire>>;

fn amount(list: List, name: &str) -> Option<Quantity> {
    list?
        .get(name)
        .map(Quantity::of)
        .filter(|quantity| !quantity.is_zero())
}

fn requests(container: &Container) -> List<'_> {
    container.resources.as_ref()?.requests.as_ref()
}

fn limits(container: &Container) -> List<'_> {
    container.resources.as_ref()?.limits.as_ref()
}

pub fn qos_class(pod: &Pod) -> QosClass {
    let Some(spec) = &pod.spec else {
        return QosClass::BestEffort;
    };
    let mut guaranteed = true;
    let mut any = false;
    // Resources of the pod itself outrank its containers'.
    let whole = spec.resources.clone().map(|resources| Container {
        resources: Some(resources),
        ..Default::default()
    });
    let containers: Vec<&Container> = match &whole {
        Some(whole) => vec![whole],
        None => spec
            .containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
            .collect(),
    };
    for container in containers {
        for name in ["cpu", "memory"] {
            let (request, limit) = (amount(requests(container), name), amount(limits(container), name));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

pub fn shares(milli_cpu: i64) -> i64 {
    (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

pub fn quota(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 {
        0
    } else {
        (milli_cpu * CPU_PERIOD / 1000).max(MIN_QUOTA)
    }
}

/// cgroup v1 shares on the scale of v2's `cpu.weight`.
pub fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - 2) * 9999 / 262_142
}

/// Who the kernel kills first when memory runs out (upstream's `GetContainerOOMScoreAdjust`).
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0) >= 2_000_000_000 {
        return -997;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = amount(requests(container), "memory").map_or(0, |quantity| quantity.value());
            let share = i128::from(request) * 1000 / i128::from(memory_capacity.max(1));
            (1000 - i64::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

pub fn container_resources(
    pod: &Pod,
    container: &Container,
    memory_capacity: i64,
) -> LinuxContainerResources {
    let cpu_limit = amount(limits(container), "cpu");
    let cpu_request = amount(requests(container), "cpu").or(cpu_limit);
    let memory_limit = amount(limits(container), "memory");
    let mut unified = std::collections::HashMap::new();
    if memory_limit.is_some() {
        unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: cpu_limit.map_or(0, |quantity| quota(quantity.milli_value())),
        cpu_shares: cpu_request.map_or(MIN_SHARES, |quantity| shares(quantity.milli_value())),
        memory_limit_in_bytes: memory_limit.map_or(0, |quantity| quantity.value()),
        memory_swap_limit_in_bytes: memory_limit.map_or(0, |quantity| quantity.value()),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        unified,
        hugepage_limits: hugepage_limits(container),
        ..Default::default()
    }
}

/// Pages by size as the kernel writes it (`2MB`).
fn hugepage_limits(container: &Container) -> Vec<HugepageLimit> {
    let limits = limits(container).into_iter().flatten();
    let pages = limits.filter_map(|(name, wire)| {
        let size: Quantity = name.strip_prefix("hugepages-")?.parse().ok()?;
        let (mut size, mut unit) = (size.value(), 0);
        while size >= 1024 && size % 1024 == 0 {
            (size, unit) = (size / 1024, unit + 1);
        }
        Some(HugepageLimit {
            page_size: format!("{size}{}", ["B", "KB", "MB", "GB"].get(unit)?),
            limit: u64::try_from(Quantity::of(wire).value()).ok()?,
        })
    });
    pages.collect()
}

/// What `resourceFieldRef` yields; limits that are not set fall back to what the node can give.
pub fn resource_field(
    container: &Container,
    resource: &str,
    divisor: Option<&Wire>,
    allocatable: &BTreeMap<String, Wire>,
) -> Option<String> {
    let (kind, name) = resource.split_once('.')?;
    let quantity = match kind {
        "limits" => amount(limits(container), name).or_else(|| allocatable.get(name).map(Quantity::of)),
        "requests" => amount(requests(container), name).or_else(|| amount(limits(container), name)),
        _ => return None,
    }
    .unwrap_or(Quantity::ZERO);
    let divisor = divisor.map(Quantity::of).filter(|divisor| !divisor.is_zero());
    let (value, unit) = if name == "cpu" {
        (
            quantity.milli_value(),
            divisor.map_or(1000, |divisor| divisor.milli_value()),
        )
    } else {
        (quantity.value(), divisor.map_or(1, |divisor| divisor.value()))
    };
    let unit = unit.max(1);
    Some((value / unit + i64::from(value % unit > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};

    fn map(entries: &[(&str, &str)]) -> Option<BTreeMap<String, Wire>> {
        Some(
            entries
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Wire((*value).to_owned())))
                .collect(),
        )
    }

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        let resources = ResourceRequirements {
            requests: map(requests),
            limits: map(limits),
            ..Default::default()
        };
        Container {
            resources: Some(resources),
            ..Default::default()
        }
    }

    fn pod(container: Container) -> Pod {
        Pod {
            spec: Some(PodSpec {
                containers: vec![container],
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn classes_and_scores() {
        let both = [("cpu", "1"), ("memory", "1Gi")];
        for (requests, limits, class, score) in [
            (&[][..], &[][..], QosClass::BestEffort, 1000),
            (&both, &both, QosClass::Guaranteed, -997),
            (&[], &both, QosClass::Guaranteed, -997),
            (&[("memory", "1Gi")], &[], QosClass::Burstable, 750),
            (&[("cpu", "1")], &[], QosClass::Burstable, 999),
        ] {
            let container = container(requests, limits);
            let pod = pod(container.clone());
            assert_eq!(qos_class(&pod), class);
            assert_eq!(oom_score_adj(&pod, &container, 4 << 30), score, "{requests:?}");
        }
    }

    #[test]
    fn kernel_units() {
        assert_eq!([0, 1, 500, 1000].map(shares), [2, 2, 512, 1024]);
        assert_eq!([0, 1, 500, 1500].map(quota), [0, 1000, 50_000, 150_000]);
        assert_eq!([2, 1024, 262_144].map(weight), [1, 39, 10_000]);
        let limited = container(&[], &[("cpu", "500m"), ("memory", "64Mi")]);
        let resources = container_resources(&pod(limited.clone()), &limited, 1 << 30);
        assert_eq!((resources.cpu_quota, resources.cpu_shares), (50_000, 512));
        assert_eq!(resources.memory_limit_in_bytes, 64 << 20);
        let pages = hugepage_limits(&container(
            &[],
            &[("hugepages-2Mi", "4Mi"), ("hugepages-1Gi", "1Gi")],
        ));
        let pages: Vec<_> = pages
            .iter()
            .map(|page| (page.page_size.as_str(), page.limit))
            .collect();
        assert_eq!(pages, [("1GB", 1 << 30), ("2MB", 4 << 20)]);
    }

    #[test]
    fn resource_fields_round_up() {
        let container = container(&[("cpu", "250m"), ("memory", "32Mi")], &[]);
        let allocatable = map(&[("cpu", "2"), ("memory", "1Gi")]).unwrap();
        for (resource, divisor, expected) in [
            ("requests.cpu", None, "1"),
            ("requests.cpu", Some("1m"), "250"),
            ("requests.memory", Some("1Mi"), "32"),
            ("limits.cpu", None, "2"),
            ("limits.memory", None, "1073741824"),
        ] {
            let divisor = divisor.map(|text: &str| Wire(text.to_owned()));
            let value = resource_field(&container, resource, divisor.as_ref(), &allocatable);
            assert_eq!(value.as_deref(), Some(expected), "{resource}");
        }
    }
}
