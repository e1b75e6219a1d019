//! Pods waiting for a node: ready now, backing off, or waiting for the cluster to change.

use crate::pod_info::PodInfo;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A pod that no event woke is tried again all the same.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Highest priority first, then first come.
type Order = (Reverse<i32>, u64, String);

pub struct Queue {
    pods: HashMap<String, Waiting>,
    active: BTreeSet<Order>,
    backoff: BTreeSet<(Instant, String)>,
    /// When an unschedulable pod is tried again without an event.
    overdue: BTreeSet<(Instant, String)>,
    /// Unschedulable pods by the plugins that rejected them.
    rejected: HashMap<u64, HashSet<String>>,
    arrivals: u64,
    first_backoff: Duration,
    longest_backoff: Duration,
}

struct Waiting {
    pod: Arc<PodInfo>,
    arrival: u64,
    attempts: u32,
    last_attempt: Option<Instant>,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Active,
    Backoff(Instant),
    Unschedulable {
        again: Instant,
        rejected_by: u64,
    },
    /// Somebody works on it.
    Taken,
}

impl Waiting {
    fn order(&self) -> Order {
        (
            Reverse(self.pod.priority()),
            self.arrival,
            self.pod.uid().to_owned(),
        )
    }
}

/// How many pods are where, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
}

impl Queue {
    pub fn new(first_backoff: Duration, longest_backoff: Duration) -> Self {
        Self {
            pods: HashMap::new(),
            active: BTreeSet::new(),
            backoff: BTreeSet::new(),
            overdue: BTreeSet::new(),
            rejected: HashMap::new(),
            arrivals: 0,
            first_backoff,
            longest_backoff,
        }
    }

    pub fn depth(&self) -> Depth {
        Depth {
            active: self.active.len(),
            backoff: self.backoff.len(),
            unschedulable: self.overdue.len(),
        }
    }

    /// A pod without a node appeared or changed. What it asks for may have changed, so it is tried at once.
    pub fn set(&mut self, pod: Arc<PodInfo>) {
        let uid = pod.uid().to_owned();
        if let Some(waiting) = self.pods.get_mut(&uid) {
            let same = same_wishes(&waiting.pod, &pod);
            waiting.pod = pod;
            if !same && !matches!(waiting.place, Place::Taken | Place::Active) {
                self.place(&uid, Place::Active);
            }
            return;
        }
        self.insert(pod, 0, None);
        self.place(&uid, Place::Active);
    }

    fn insert(&mut self, pod: Arc<PodInfo>, attempts: u32, last_attempt: Option<Instant>) {
        self.arrivals += 1;
        let uid = pod.uid().to_owned();
        let waiting = Waiting {
            pod,
            arrival: self.arrivals,
            attempts,
            last_attempt,
            place: Place::Taken,
        };
        self.pods.insert(uid, waiting);
    }

    pub fn remove(&mut self, uid: &str) {
        if self.pods.contains_key(uid) {
            self.place(uid, Place::Taken);
            self.pods.remove(uid);
        }
    }

    pub fn get(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|w| &w.pod)
    }

    /// Moves a known pod.
    fn place(&mut self, uid: &str, to: Place) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        let from = std::mem::replace(&mut waiting.place, to);
        let order = waiting.order();
        match from {
            Place::Active => {
                self.active.remove(&order);
            }
            Place::Backoff(due) => {
                self.backoff.remove(&(due, uid.to_owned()));
            }
            Place::Unschedulable { again, rejected_by } => {
                self.overdue.remove(&(again, uid.to_owned()));
                if let Some(group) = self.rejected.get_mut(&rejected_by) {
                    group.remove(uid);
                    if group.is_empty() {
                        self.rejected.remove(&rejected_by);
                    }
                }
            }
            Place::Taken => {}
        }
        match to {
            Place::Active => {
                self.active.insert(order);
            }
            Place::Backoff(due) => {
                self.backoff.insert((due, uid.to_owned()));
            }
            Place::Unschedulable { again, rejected_by } => {
                self.overdue.insert((again, uid.to_owned()));
                self.rejected
                    .entry(rejected_by)
                    .or_default()
                    .insert(uid.to_owned());
            }
            Place::Taken => {}
        }
    }

    /// The next pod to try, or how long to wait when there is none. The pod stays known, as taken, until it is removed
    /// or comes back by [`Self::unschedulable`] or [`Self::failed`].
    pub fn next(&mut self, now: Instant) -> Result<Arc<PodInfo>, Option<Instant>> {
        loop {
            let due = [self.backoff.first(), self.overdue.first()];
            let Some((_, uid)) = due.into_iter().flatten().find(|(due, _)| *due <= now).cloned() else {
                break;
            };
            self.place(&uid, Place::Active);
        }
        let Some((_, _, uid)) = self.active.first().cloned() else {
            let next = [self.backoff.first(), self.overdue.first()].into_iter().flatten();
            return Err(next.map(|(due, _)| *due).min());
        };
        self.place(&uid, Place::Taken);
        let waiting = self.pods.get_mut(&uid).ok_or(Some(now))?;
        waiting.attempts += 1;
        waiting.last_attempt = Some(now);
        Ok(waiting.pod.clone())
    }

    /// No node fits now: wait for an event that one of these plugins cares for.
    pub fn unschedulable(&mut self, uid: &str, rejected_by: u64, now: Instant) {
        let again = now + LONGEST_WAIT;
        self.place(uid, Place::Unschedulable { again, rejected_by });
    }

    /// Binding failed: try again after the backoff.
    pub fn failed(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = pod.uid().to_owned();
        self.remove(&uid);
        self.insert(pod, 1, Some(now));
        self.place(&uid, Place::Backoff(now + self.first_backoff));
    }

    /// Tries again as soon as the backoff allows.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get(uid) else { return };
        let factor = 1u32 << waiting.attempts.saturating_sub(1).min(10);
        let pause = (self.first_backoff * factor).min(self.longest_backoff);
        match waiting.last_attempt.map(|at| at + pause).filter(|due| *due > now) {
            Some(due) => self.place(uid, Place::Backoff(due)),
            None => self.place(uid, Place::Active),
        }
    }

    /// The cluster changed: pods that one of the plugins in `bits` rejected get another chance if `helps`, given the pod
    /// and its rejecting plugins.
    pub fn wake(&mut self, bits: u64, helps: impl Fn(&PodInfo, u64) -> bool, now: Instant) {
        let groups = self
            .rejected
            .iter()
            .filter(|(by, _)| **by == 0 || **by & bits != 0);
        let woken: Vec<String> = groups
            .flat_map(|(by, uids)| uids.iter().map(move |uid| (*by, uid)))
            .filter(|(by, uid)| *by == 0 || self.pods.get(*uid).is_some_and(|w| helps(&w.pod, *by)))
            .map(|(_, uid)| uid.clone())
            .collect();
        for uid in woken {
            self.retry(&uid, now);
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

    const FIRST: Duration = Duration::from_secs(1);

    fn queue() -> (Queue, Instant) {
        (Queue::new(FIRST, Duration::from_secs(10)), Instant::now())
    }

    fn name(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.next(now).ok().map(|p| p.name().to_owned())
    }

    #[test]
    fn priority_then_arrival() {
        let (mut queue, now) = queue();
        queue.set(pod("a", json!({})));
        queue.set(pod("b", json!({})));
        queue.set(pod("vip", json!({"spec": {"priority": 10}})));
        let order: Vec<_> = std::iter::from_fn(|| name(&mut queue, now)).collect();
        assert_eq!(order, ["vip", "a", "b"]);
    }

    #[test]
    fn rejected_pods_wait_for_the_right_event_and_their_backoff() {
        let (mut queue, now) = queue();
        queue.set(pod("a", json!({})));
        name(&mut queue, now);
        queue.unschedulable("a", 0b10, now);
        queue.wake(0b01, |_, _| true, now);
        queue.wake(0b10, |_, _| false, now);
        assert_eq!(queue.next(now).err(), Some(Some(now + LONGEST_WAIT)));
        queue.wake(0b11, |_, by| by == 0b10, now);
        assert_eq!(queue.next(now).err(), Some(Some(now + FIRST)));
        assert_eq!(name(&mut queue, now + FIRST).as_deref(), Some("a"));
        queue.unschedulable("a", 0b10, now);
        assert_eq!(
            name(&mut queue, now + LONGEST_WAIT).as_deref(),
            Some("a"),
            "in the end without event"
        );
    }

    #[test]
    fn a_status_change_is_no_news_but_a_changed_wish_is() {
        let (mut queue, now) = queue();
        queue.set(pod("a", json!({})));
        name(&mut queue, now);
        queue.unschedulable("a", 1, now);
        queue.set(pod("a", json!({"status": {"phase": "Pending"}})));
        assert_eq!(name(&mut queue, now), None);
        queue.set(pod("a", json!({"metadata": {"labels": {"x": "y"}}})));
        assert_eq!(name(&mut queue, now).as_deref(), Some("a"));
        queue.remove("a");
        assert_eq!(queue.next(now).err(), Some(None));
        assert_eq!(queue.depth(), Depth::default());
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let (mut queue, mut now) = queue();
        queue.set(pod("a", json!({})));
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert!(queue.next(now).is_ok());
            queue.unschedulable("a", 1, now);
            queue.wake(1, |_, _| true, now);
            assert_eq!(
                queue.next(now).err(),
                Some(Some(now + Duration::from_secs(seconds)))
            );
            now += Duration::from_secs(seconds);
        }
    }
}
