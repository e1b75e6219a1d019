//! How much of each zone is unwell, and so how fast its nodes may lose their pods: many silent nodes are likelier the
//! network's fault, or ours, than theirs (upstream's `handleDisruption` and `RateLimitedTimedQueue`).

use crate::config::NodeEviction;
use api::node;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use std::time::Duration;

const EXCLUDE: &str = "node.kubernetes.io/exclude-disruption";
const REGION: [&str; 2] = [
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/region",
];
const ZONE: [&str; 2] = [api::well_known::ZONE, "failure-domain.beta.kubernetes.io/zone"];
/// Of fewer nodes than these no zone is partially disrupted.
const FEW: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Normal,
    Partial,
    Full,
}

/// A token bucket for one token.
struct Zone {
    rate: f64,
    /// When the token is there.
    next: Timestamp,
}

#[derive(Default)]
pub struct Zones {
    limits: NodeEviction,
    zones: BTreeMap<String, Zone>,
    looked: Option<Timestamp>,
    /// No zone has a node that is ready.
    disrupted: bool,
    /// When that last ended.
    resumed: Option<Timestamp>,
}

/// Region and zone of a node.
pub fn zone_of(node: &Node) -> String {
    let label = |keys: [&str; 2]| keys.into_iter().find_map(|key| node::label(node, key));
    let (region, zone) = (label(REGION), label(ZONE));
    match (region, zone) {
        (None, None) => String::new(),
        _ => format!("{}/{}", region.unwrap_or_default(), zone.unwrap_or_default()),
    }
}

/// Its state says something about its zone.
pub fn counts(node: &Node) -> bool {
    node::label(node, EXCLUDE).is_none()
}

fn state(ready: usize, unready: usize, threshold: f64) -> State {
    let share = unready as f64 / (ready + unready) as f64;
    match (ready, unready) {
        (0, 1..) => State::Full,
        _ if unready > FEW && share >= threshold => State::Partial,
        _ => State::Normal,
    }
}

/// Nodes a second. A zone that is gone as a whole, while others live, is evicted as ever.
fn rate(state: State, size: usize, limits: &NodeEviction) -> f64 {
    match state {
        State::Normal | State::Full => limits.rate,
        State::Partial if size > limits.large_cluster_size_threshold => limits.secondary_rate,
        State::Partial => 0.0,
    }
}

fn after(now: Timestamp, rate: f64) -> Timestamp {
    let wait = SignedDuration::try_from_secs_f64(rate.recip()).unwrap_or(SignedDuration::MAX);
    now.checked_add(wait).unwrap_or(Timestamp::MAX)
}

impl Zone {
    fn has_token(&self, now: Timestamp) -> bool {
        self.rate > 0.0 && self.next <= now
    }

    /// Who waited before waits anew.
    fn set_rate(&mut self, rate: f64, now: Timestamp) {
        if rate != self.rate && !self.has_token(now) {
            self.next = after(now, rate);
        }
        self.rate = rate;
    }
}

impl Zones {
    pub fn new(limits: NodeEviction) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }

    pub fn is_disrupted(&self) -> bool {
        self.disrupted
    }

    pub fn is_due(&self, now: Timestamp, period: Duration) -> bool {
        let period = SignedDuration::try_from(period).unwrap_or(SignedDuration::MAX);
        self.looked
            .is_none_or(|looked| now.duration_since(looked) >= period)
    }

    /// Takes in the zone of every node that counts and whether it is ready. True: a full disruption ended.
    pub fn look(&mut self, nodes: impl IntoIterator<Item = (String, bool)>, now: Timestamp) -> bool {
        let mut counted: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        for (zone, ready) in nodes {
            let (well, unwell) = counted.entry(zone).or_default();
            *(if ready { well } else { unwell }) += 1;
        }
        let states: BTreeMap<&String, State> = counted
            .iter()
            .map(|(zone, (ready, unready))| {
                let state = state(*ready, *unready, self.limits.unhealthy_zone_threshold);
                (zone, state)
            })
            .collect();
        let disrupted = !states.is_empty() && states.values().all(|state| *state == State::Full);
        self.zones.retain(|zone, _| counted.contains_key(zone));
        for (zone, state) in states {
            let (ready, unready) = counted[zone];
            let rate = if disrupted {
                0.0
            } else {
                rate(state, ready + unready, &self.limits)
            };
            let fresh = || Zone { rate, next: now };
            let zone = self.zones.entry(zone.clone()).or_insert_with(fresh);
            zone.set_rate(rate, now);
        }
        let ended = self.disrupted && !disrupted;
        if ended {
            self.resumed = Some(now);
        }
        self.disrupted = disrupted;
        self.looked = Some(now);
        ended
    }

    /// The zone's turn has come, as it looked last.
    pub fn has_turn(&self, zone: &str, now: Timestamp) -> bool {
        self.zones.get(zone).is_some_and(|zone| zone.has_token(now))
    }

    /// Uses the zone's turn, if it has come. A silent node has `grace` after a full disruption to be heard.
    pub fn take_turn(&mut self, zone: &str, is_silent: bool, grace: Duration, now: Timestamp) -> bool {
        let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
        let resumed = self.resumed.filter(|_| is_silent);
        if resumed.is_some_and(|resumed| now.duration_since(resumed) <= grace) {
            return false;
        }
        let Some(zone) = self.zones.get_mut(zone).filter(|zone| zone.has_token(now)) else {
            return false;
        };
        zone.next = after(now, zone.rate);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    const GRACE: Duration = Duration::from_secs(50);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn zones(looks: &[(&str, usize, usize)], now: i64) -> Zones {
        let mut zones = Zones::default();
        look(&mut zones, looks, now);
        zones
    }

    /// Zones with their numbers of ready and of other nodes.
    fn look(zones: &mut Zones, looks: &[(&str, usize, usize)], now: i64) -> bool {
        let nodes = looks.iter().flat_map(|(zone, ready, unready)| {
            let each = |count: usize, is_ready: bool| (0..count).map(move |_| ((*zone).to_owned(), is_ready));
            each(*ready, true).chain(each(*unready, false))
        });
        zones.look(nodes, at(now))
    }

    #[test]
    fn states_and_rates_are_upstreams() {
        let cases = [
            (10, 0, State::Normal, 0.1),
            (0, 1, State::Full, 0.1),
            (0, 100, State::Full, 0.1),
            // Two are too few to speak of a disruption, however large their share.
            (1, 2, State::Normal, 0.1),
            (2, 3, State::Partial, 0.0),
            (5, 6, State::Normal, 0.1),
            (9, 11, State::Partial, 0.0),
            (22, 28, State::Partial, 0.0),
            (22, 29, State::Partial, 0.01),
            (23, 28, State::Normal, 0.1),
        ];
        let limits = NodeEviction::default();
        for (ready, unready, expected, per_second) in cases {
            let state = state(ready, unready, limits.unhealthy_zone_threshold);
            assert_eq!(state, expected, "{ready} ready, {unready} not");
            let rate = rate(state, ready + unready, &limits);
            assert_eq!(rate, per_second, "{ready} ready, {unready} not");
        }
    }

    #[test]
    fn zones_take_turns_of_their_own() {
        let mut zones = zones(&[("a", 9, 1), ("b", 0, 3)], 0);
        let mut turn = |zone, now| zones.take_turn(zone, false, GRACE, at(now));
        assert!(turn("a", 0) && turn("b", 0));
        assert!(!turn("a", 9) && turn("a", 10) && !turn("a", 19));
        assert!(!turn("c", 100));
    }

    #[test]
    fn a_disrupted_zone_waits_until_it_is_well() {
        let mut zones = zones(&[("a", 2, 3), ("b", 1, 0)], 0);
        assert!(!zones.take_turn("a", false, GRACE, at(1000)));
        assert!(!look(&mut zones, &[("a", 4, 1), ("b", 1, 0)], 1000));
        assert!(!zones.has_turn("a", at(1009)) && zones.has_turn("a", at(1010)));
    }

    #[test]
    fn nobody_is_evicted_while_all_are_silent_and_the_silent_get_time_after() {
        let mut zones = zones(&[("a", 1, 1), ("b", 1, 0)], 0);
        assert!(!zones.is_disrupted());
        assert!(!look(&mut zones, &[("a", 0, 2), ("b", 0, 1)], 10));
        assert!(zones.is_disrupted() && !zones.take_turn("a", true, GRACE, at(500)));
        assert!(look(&mut zones, &[("a", 0, 2), ("b", 1, 0)], 500));
        assert!(!zones.is_disrupted() && !zones.take_turn("a", true, GRACE, at(550)));
        // One that says itself that it is not ready needs no such time.
        assert!(zones.take_turn("a", false, GRACE, at(550)));
        assert!(zones.take_turn("a", true, GRACE, at(561)));
        assert!(!look(&mut zones, &[("b", 1, 0)], 600));
        assert!(!zones.has_turn("a", at(1000)));
    }

    #[test]
    fn looks_are_due_once_a_period() {
        let period = Duration::from_secs(5);
        assert!(Zones::default().is_due(at(0), period));
        let zones = zones(&[], 0);
        assert!(!zones.is_disrupted() && !zones.is_due(at(4), period) && zones.is_due(at(5), period));
    }

    #[test]
    fn zones_are_named_by_region_and_zone() {
        let node = |labels| -> Node { from_value(json!({"metadata": {"labels": labels}})).unwrap() };
        let cases = [
            (json!({}), ""),
            (json!({"topology.kubernetes.io/zone": "z"}), "/z"),
            (
                json!({"topology.kubernetes.io/region": "r", "failure-domain.beta.kubernetes.io/zone": "z"}),
                "r/z",
            ),
        ];
        for (labels, zone) in cases {
            assert_eq!(zone_of(&node(labels)), zone);
        }
        assert!(counts(&node(json!({}))) && !counts(&node(json!({EXCLUDE: ""}))));
    }
}
