//! Leader election by Lease: the decision, given what the Lease says now (client-go's `leaderelection`).

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// client-go's defaults for control-plane components.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// What to do about the Lease.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// There is none: create it with this spec.
    Create(LeaseSpec),
    /// Ours, or expired: replace the spec (on the same resourceVersion).
    Update(LeaseSpec),
    /// Somebody else's.
    Wait { holder: String },
}

/// `unchanged_since` is when this process first saw the Lease as it is now: clocks of different machines are never
/// compared.
pub fn decide(lease: Option<&Lease>, identity: &str, unchanged_since: Timestamp, now: Timestamp) -> Step {
    let fresh = LeaseSpec {
        holder_identity: Some(identity.into()),
        lease_duration_seconds: Some(LEASE_DURATION.as_secs() as i32),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(0),
        ..LeaseSpec::default()
    };
    let Some(lease) = lease else {
        return Step::Create(fresh);
    };
    let old = lease.spec.clone().unwrap_or_default();
    let holder = old.holder_identity.unwrap_or_default();
    if holder == identity {
        return Step::Update(LeaseSpec {
            acquire_time: old.acquire_time.or(fresh.acquire_time.clone()),
            lease_transitions: old.lease_transitions,
            ..fresh
        });
    }
    let duration = i64::from(
        old.lease_duration_seconds
            .unwrap_or(LEASE_DURATION.as_secs() as i32),
    );
    if !holder.is_empty() && now.duration_since(unchanged_since).as_secs() < duration {
        return Step::Wait { holder };
    }
    Step::Update(LeaseSpec {
        lease_transitions: Some(old.lease_transitions.unwrap_or_default() + 1),
        ..fresh
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_changes_hands_only_when_it_stood_still_for_its_duration() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let Step::Create(spec) = decide(None, "a", at(0), at(0)) else {
            panic!("no lease: create")
        };
        let lease = Lease {
            spec: Some(spec),
            ..Lease::default()
        };
        let Step::Update(renewed) = decide(Some(&lease), "a", at(0), at(5)) else {
            panic!("ours: renew")
        };
        assert_eq!(
            (renewed.acquire_time, renewed.lease_transitions),
            (Some(MicroTime(at(0))), Some(0))
        );
        assert_eq!(
            decide(Some(&lease), "b", at(0), at(14)),
            Step::Wait { holder: "a".into() }
        );
        let Step::Update(taken) = decide(Some(&lease), "b", at(0), at(15)) else {
            panic!("expired: take")
        };
        assert_eq!(
            (taken.holder_identity.as_deref(), taken.lease_transitions),
            (Some("b"), Some(1))
        );
    }

    #[test]
    fn a_released_lease_is_free_at_once() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            ..LeaseSpec::default()
        };
        let lease = Lease {
            spec: Some(spec),
            ..Lease::default()
        };
        assert!(matches!(decide(Some(&lease), "b", at(0), at(0)), Step::Update(_)));
    }
}
