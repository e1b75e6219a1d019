//! Pods waiting for a node: ready now, backing off, or waiting for the cluster to change.

use crate::framework::ClusterEvent;
use crate::pod_info::PodInfo;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A pod that no event woke is tried again all the same.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Highest priority first, then first come.
type Order = (Reverse<i32>, u64, String);

#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<Order>,
    backoff: BTreeSet<(Instant, String)>,
    unschedulable: BTreeMap<String, Instant>,
    arrivals: u64,
}

struct Waiting {
    pod: Arc<PodInfo>,
    arrival: u64,
    attempts: u32,
    last_attempt: Option<Instant>,
    rejected_by: BTreeSet<&'static str>,
}

impl Waiting {
    fn order(&self) -> Order {
        (
            Reverse(api::pod::priority(&self.pod.pod)),
            self.arrival,
            self.pod.uid().to_owned(),
        )
    }

    fn backoff_until(&self) -> Option<Instant> {
        let factor = 1u32 << self.attempts.saturating_sub(1).min(10);
        self.last_attempt
            .map(|at| at + (FIRST_BACKOFF * factor).min(LONGEST_BACKOFF))
    }
}

impl Queue {
    /// A pod without a node appeared or changed. What it asks for may have changed, so it is tried at once.
    pub fn set(&mut self, pod: Arc<PodInfo>) {
        let uid = pod.uid().to_owned();
        match self.pods.get(&uid) {
            Some(old) if same_wishes(&old.pod, &pod) => {
                if let Some(waiting) = self.pods.get_mut(&uid) {
                    waiting.pod = pod;
                }
            }
            old => {
                let (attempts, last_attempt) = old.map(|o| (o.attempts, o.last_attempt)).unwrap_or_default();
                self.remove(&uid);
                self.arrivals += 1;
                let arrival = self.arrivals;
                let waiting = Waiting {
                    pod,
                    arrival,
                    attempts,
                    last_attempt,
                    rejected_by: BTreeSet::new(),
                };
                self.active.insert(waiting.order());
                self.pods.insert(uid, waiting);
            }
        }
    }

    pub fn remove(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.remove(uid) {
            self.active.remove(&waiting.order());
            self.backoff.retain(|(_, u)| u != uid);
            self.unschedulable.remove(uid);
        }
    }

    /// The next pod to try, and how long to wait when there is none. The pod stays known until it is removed or
    /// comes back by [`Self::failed`].
    pub fn next(&mut self, now: Instant) -> Result<Arc<PodInfo>, Option<Instant>> {
        while let Some((due, uid)) = self.backoff.first().cloned() {
            if due > now {
                break;
            }
            self.backoff.pop_first();
            self.activate(&uid);
        }
        let overdue: Vec<String> = self
            .unschedulable
            .iter()
            .filter(|(_, since)| **since + LONGEST_WAIT <= now)
            .map(|(u, _)| u.clone())
            .collect();
        for uid in overdue {
            self.unschedulable.remove(&uid);
            self.activate(&uid);
        }
        match self.active.pop_first() {
            Some((_, _, uid)) => match self.pods.get_mut(&uid) {
                Some(waiting) => {
                    waiting.attempts += 1;
                    waiting.last_attempt = Some(now);
                    Ok(waiting.pod.clone())
                }
                None => Err(Some(now)),
            },
            None => {
                let backoff = self.backoff.first().map(|(due, _)| *due);
                let oldest = self
                    .unschedulable
                    .values()
                    .min()
                    .map(|since| *since + LONGEST_WAIT);
                Err(backoff.into_iter().chain(oldest).min())
            }
        }
    }

    /// No node fits now: wait for an event that one of these plugins cares for.
    pub fn unschedulable(&mut self, uid: &str, rejected_by: BTreeSet<&'static str>, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.rejected_by = rejected_by;
            self.unschedulable.insert(uid.to_owned(), now);
        }
    }

    /// Binding failed: try again after the backoff.
    pub fn failed(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid().to_owned();
        self.arrivals += 1;
        let waiting = Waiting {
            pod,
            arrival: self.arrivals,
            attempts: 1,
            last_attempt: Some(now),
            rejected_by: BTreeSet::new(),
        };
        self.remove(&uid);
        if let Some(due) = waiting.backoff_until() {
            self.backoff.insert((due, uid.clone()));
        }
        self.pods.insert(uid, waiting);
    }

    /// The cluster changed: pods that were rejected by a plugin that cares get another chance.
    pub fn wake(&mut self, event: ClusterEvent, cares: impl Fn(&str, ClusterEvent) -> bool, now: Instant) {
        let woken: Vec<String> = self
            .unschedulable
            .keys()
            .filter(|uid| {
                self.pods.get(*uid).is_some_and(|w| {
                    w.rejected_by.is_empty() || w.rejected_by.iter().any(|plugin| cares(plugin, event))
                })
            })
            .cloned()
            .collect();
        for uid in woken {
            self.unschedulable.remove(&uid);
            match self
                .pods
                .get(&uid)
                .and_then(Waiting::backoff_until)
                .filter(|due| *due > now)
            {
                Some(due) => {
                    self.backoff.insert((due, uid));
                }
                None => self.activate(&uid),
            }
        }
    }

    fn activate(&mut self, uid: &str) {
        if let Some(waiting) = self.pods.get(uid) {
            self.active.insert(waiting.order());
        }
    }
}

/// Status and annotations don't matter to scheduling.
fn same_wishes(a: &PodInfo, b: &PodInfo) -> bool {
    a.pod.spec == b.pod.spec && a.labels() == b.labels()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing::pod;
    use serde_json::json;

    fn name(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.next(now).ok().map(|p| p.name().to_owned())
    }

    #[test]
    fn priority_then_arrival() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(pod("a", json!({})));
        queue.set(pod("b", json!({})));
        queue.set(pod("vip", json!({"spec": {"priority": 10}})));
        let order: Vec<_> = std::iter::from_fn(|| name(&mut queue, now)).collect();
        assert_eq!(order, ["vip", "a", "b"]);
    }

    #[test]
    fn rejected_pods_wait_for_the_right_event_and_their_backoff() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(pod("a", json!({})));
        name(&mut queue, now);
        queue.unschedulable("a", BTreeSet::from(["Fit"]), now);
        let cares = |plugin: &str, event| plugin == "Fit" && event == ClusterEvent::PodRemoved;
        queue.wake(ClusterEvent::NodeLabels, cares, now);
        assert_eq!(queue.next(now).err(), Some(Some(now + LONGEST_WAIT)));
        queue.wake(ClusterEvent::PodRemoved, cares, now);
        assert_eq!(queue.next(now).err(), Some(Some(now + FIRST_BACKOFF)));
        assert_eq!(name(&mut queue, now + FIRST_BACKOFF).as_deref(), Some("a"));
        queue.unschedulable("a", BTreeSet::from(["Fit"]), now);
        assert_eq!(
            name(&mut queue, now + LONGEST_WAIT).as_deref(),
            Some("a"),
            "in the end without event"
        );
    }

    #[test]
    fn a_status_change_is_no_news_but_a_changed_wish_is() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(pod("a", json!({})));
        name(&mut queue, now);
        queue.unschedulable("a", BTreeSet::from(["Fit"]), now);
        queue.set(pod("a", json!({"status": {"phase": "Pending"}})));
        assert_eq!(name(&mut queue, now), None);
        queue.set(pod("a", json!({"metadata": {"labels": {"x": "y"}}})));
        assert_eq!(name(&mut queue, now).as_deref(), Some("a"));
        queue.remove("a");
        assert_eq!(queue.next(now).err(), Some(None));
    }
}
