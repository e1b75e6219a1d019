//! The finalizer and the Ready condition of one ServiceCIDR.

use crate::action::Action;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Allocators hear of a deletion within this time.
const GRACE: i64 = 10;

pub struct Observed {
    pub cidr: Arc<ServiceCIDR>,
    /// All of them.
    pub others: Vec<Arc<ServiceCIDR>>,
    pub addresses: Vec<IpAddr>,
}

pub fn reconcile(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let cidr = &*observed.cidr;
    let finalizers = cidr.metadata.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|f| f == FINALIZER);
    let Some(deleted) = &cidr.metadata.deletion_timestamp else {
        let mut plan = Vec::new();
        if !held {
            let all: Vec<&str> = finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
            plan.push(Action::patch_as_seen(
                cidr,
                json!({"metadata": {"finalizers": all}}),
            ));
        }
        plan.extend(condition(
            cidr,
            "True",
            "",
            "Kubernetes Service CIDR is ready",
            now,
        ));
        return plan;
    };
    if !held {
        return Vec::new();
    }
    if observed.addresses.iter().any(|ip| needs(observed, *ip)) {
        let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new \
                       ServiceCIDR";
        return condition(cidr, "False", "Terminating", message, now)
            .into_iter()
            .collect();
    }
    let left = deleted.0.as_second() + GRACE - now.as_second();
    if left > 0 {
        return vec![Action::Requeue(Duration::from_secs(left.unsigned_abs()))];
    }
    let rest: Vec<&String> = finalizers.iter().filter(|f| *f != FINALIZER).collect();
    vec![Action::patch_as_seen(
        cidr,
        json!({"metadata": {"finalizers": rest}}),
    )]
}

/// The address is of this range, and of no other that stays.
fn needs(observed: &Observed, ip: IpAddr) -> bool {
    let stays = |other: &&Arc<ServiceCIDR>| {
        other.metadata.uid != observed.cidr.metadata.uid && other.metadata.deletion_timestamp.is_none()
    };
    holds(&observed.cidr, ip) && !observed.others.iter().filter(stays).any(|other| holds(other, ip))
}

fn holds(cidr: &ServiceCIDR, ip: IpAddr) -> bool {
    let ranges = cidr
        .spec
        .as_ref()
        .and_then(|s| s.cidrs.as_deref())
        .unwrap_or_default();
    ranges.iter().any(|range| contains(range, ip) == Some(true))
}

fn contains(range: &str, ip: IpAddr) -> Option<bool> {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)) << 96, 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    };
    let (base, prefix) = range.split_once('/')?;
    let ((base, width), (ip, same)) = (bits(base.parse().ok()?), bits(ip));
    let prefix: u32 = prefix.parse().ok().filter(|p| *p <= width)?;
    let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or_default();
    Some(width == same && (base ^ ip) & mask == 0)
}

fn condition(
    cidr: &ServiceCIDR,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Option<Action> {
    let conditions = cidr
        .status
        .as_ref()
        .and_then(|s| s.conditions.as_deref())
        .unwrap_or_default();
    let known = conditions.iter().find(|c| c.type_ == "Ready");
    if known.is_some_and(|c| c.status == status && c.message == message) {
        return None;
    }
    let condition: Value = json!({"type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
    Some(Action::strategic_status(cidr, json!({"conditions": [condition]})))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    fn cidr(name: &str, range: &str, deleted: bool) -> Arc<ServiceCIDR> {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let condition = json!([{"type": "Ready", "status": "True", "reason": "",
            "message": "Kubernetes Service CIDR is ready", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        Arc::new(
            from_value(json!({
                "metadata": {"name": name, "uid": name, "finalizers": [FINALIZER], "deletionTimestamp": deleted},
                "spec": {"cidrs": [range]}, "status": {"conditions": condition}}))
            .unwrap(),
        )
    }

    fn run(cidr: Arc<ServiceCIDR>, others: Vec<Arc<ServiceCIDR>>, ip: &str, now: &str) -> Vec<Action> {
        let observed = Observed {
            cidr,
            others,
            addresses: vec![ip.parse().unwrap()],
        };
        reconcile(&observed, now.parse().unwrap())
    }

    #[test]
    fn a_range_goes_when_its_addresses_have() {
        let (soon, late) = ("2026-01-01T00:00:04Z", "2026-01-01T00:00:10Z");
        let wide = || cidr("wide", "10.0.0.0/8", false);
        assert_eq!(run(wide(), vec![], "10.1.0.1", late), []);
        let gone = || cidr("gone", "10.1.0.0/16", true);
        let used = run(gone(), vec![gone()], "10.1.0.1", late);
        let [Action::StrategicPatch { patch, .. }] = &used[..] else {
            panic!("{used:?}")
        };
        assert_eq!(patch["status"]["conditions"][0]["reason"], "Terminating");
        for (others, ip) in [
            (vec![gone(), wide()], "10.1.0.1"),
            (vec![gone()], "10.2.0.1"),
            (vec![gone()], "fd00::1"),
        ] {
            let wait = run(gone(), others.clone(), ip, soon);
            assert_eq!(wait, [Action::Requeue(Duration::from_secs(6))], "{ip}");
            let release = run(gone(), others, ip, late);
            let [Action::Patch { patch, .. }] = &release[..] else {
                panic!("{release:?}")
            };
            assert_eq!(patch["metadata"]["finalizers"], json!([]));
        }
    }
}
