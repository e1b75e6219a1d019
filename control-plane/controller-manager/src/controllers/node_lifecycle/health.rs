//! When a node was last heard of, by this process's own clock: clocks of different machines are never compared.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    heartbeat: Option<Time>,
    renewed: Option<MicroTime>,
    heard: Timestamp,
}

impl Health {
    /// A changed heartbeat or a renewed lease is a sign of life.
    pub fn observe(before: Option<&Self>, node: &Node, lease: Option<&Lease>, now: Timestamp) -> Self {
        let heartbeat = api::node::condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
        let renewed = lease
            .and_then(|l| l.spec.as_ref())
            .and_then(|s| s.renew_time.clone());
        let heard = match before {
            Some(old) if old.heartbeat == heartbeat && old.renewed >= renewed => old.heard,
            _ => now,
        };
        Self {
            heartbeat,
            renewed,
            heard,
        }
    }

    /// As if it had been heard of now.
    pub fn begin_anew(&mut self, now: Timestamp) {
        self.heard = now;
    }

    pub fn silent_for(&self, now: Timestamp) -> Duration {
        Duration::try_from(now.duration_since(self.heard)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn signs_of_life() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let node = |beat: &str| -> Node {
            from_value(json!({"status": {"conditions": [
                {"type": "Ready", "status": "True", "lastHeartbeatTime": beat}]}}))
            .unwrap()
        };
        let lease = |renewed: &str| -> Lease { from_value(json!({"spec": {"renewTime": renewed}})).unwrap() };
        let (early, late) = ("2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:10.000000Z");
        let first = Health::observe(None, &node(early), Some(&lease(early)), at(100));
        let same = Health::observe(Some(&first), &node(early), Some(&lease(early)), at(110));
        assert_eq!(same.silent_for(at(110)), Duration::from_secs(10));
        let renewed = Health::observe(Some(&same), &node(early), Some(&lease(late)), at(120));
        assert_eq!(renewed.silent_for(at(120)), Duration::ZERO);
        let beaten = Health::observe(Some(&same), &node(late), Some(&lease(early)), at(130));
        assert_eq!(beaten.silent_for(at(130)), Duration::ZERO);
        let mut anew = same;
        anew.begin_anew(at(140));
        let silent = Health::observe(Some(&anew), &node(early), Some(&lease(early)), at(145));
        assert_eq!(silent.silent_for(at(145)), Duration::from_secs(5));
    }
}
