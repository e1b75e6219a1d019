//! Room for important pods: which less important ones have to leave which node.

use crate::algorithm::{Attempt, Reasons, message};
use crate::cluster::NodeInfo;
use crate::pod_info::PodInfo;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;
use std::sync::Arc;

pub const UNHELPFUL: &str = "Preemption is not helpful for scheduling";
const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
/// DefaultPreemptionArgs: of how many nodes the best is chosen, at least.
const MIN_CANDIDATES: usize = 100;
const MIN_CANDIDATES_PERCENTAGE: usize = 10;
/// Reason of the condition that victims get.
pub const REASON: &str = "PreemptionByScheduler";

/// What becomes of the pod's nomination.
#[derive(Clone, Debug, PartialEq)]
pub enum Preemption {
    /// Stays as it is.
    Keep,
    /// No node can be made free.
    Clear,
    /// These leave, and the pod gets their room.
    Evict {
        node: String,
        victims: Vec<Arc<PodInfo>>,
    },
}

struct Candidate<'a> {
    node: &'a NodeInfo,
    /// The most important first.
    victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

/// Tries the `hopeful` nodes without their less important pods. The words are for people.
pub fn preempt(
    attempt: &mut Attempt,
    hopeful: &[&NodeInfo],
    pick: &mut impl FnMut(usize) -> usize,
) -> (Preemption, String) {
    let (pod, cluster) = (attempt.pod, attempt.cluster);
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return (
            Preemption::Keep,
            "not eligible due to preemptionPolicy=Never.".into(),
        );
    }
    let nominated = cluster.nomination(pod.uid());
    let waiting_at = nominated.and_then(|name| hopeful.iter().find(|n| n.name() == name));
    let leaving = |p: &Arc<PodInfo>| p.priority() < pod.priority() && is_leaving_for_another(p);
    if waiting_at.is_some_and(|node| node.pods.values().any(leaving)) {
        return (
            Preemption::Keep,
            "not eligible due to terminating pod on the nominated node.".into(),
        );
    }
    let total = cluster.nodes().len();
    let mut reasons = Reasons::from([(UNHELPFUL.into(), total - hopeful.len())]);
    reasons.retain(|_, count| *count > 0);
    let enough = (hopeful.len() * MIN_CANDIDATES_PERCENTAGE / 100).max(MIN_CANDIDATES);
    let budgets: Vec<_> = cluster.budgets.values().cloned().collect();
    let mut candidates: Vec<Candidate> = Vec::new();
    let first = if hopeful.is_empty() {
        0
    } else {
        pick(hopeful.len())
    };
    for node in hopeful[first..].iter().chain(&hopeful[..first]) {
        match victims_on(attempt, node, &budgets) {
            Ok(candidate) => candidates.push(candidate),
            Err(why) => why.into_iter().for_each(|r| *reasons.entry(r).or_default() += 1),
        }
        if candidates.len() >= enough && candidates.iter().any(|c| c.violations == 0) {
            break;
        }
    }
    match candidates.into_iter().min_by_key(rank) {
        Some(best) => {
            let node = best.node.name().to_owned();
            let victims = best.victims;
            (Preemption::Evict { node, victims }, String::new())
        }
        None => (Preemption::Clear, message(total, &reasons)),
    }
}

/// Fewest broken budgets, least important victims, fewest of them, youngest.
fn rank(candidate: &Candidate) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let victims = &candidate.victims;
    let highest = victims.first().map_or(i32::MIN, |v| v.priority());
    // Shifted, so that more victims of negative priority never count as less.
    let sum = victims
        .iter()
        .map(|v| i64::from(v.priority()) + i64::from(i32::MAX) + 1)
        .sum();
    let oldest = victims
        .iter()
        .filter(|v| v.priority() == highest)
        .map(|v| started(v))
        .min();
    (
        candidate.violations,
        highest,
        sum,
        victims.len(),
        Reverse(oldest.unwrap_or(Timestamp::MAX)),
    )
}

fn started(pod: &PodInfo) -> Timestamp {
    let time = pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    time.map_or(Timestamp::MAX, |t| t.0)
}

fn is_leaving_for_another(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    let target = api::condition::find(conditions, "DisruptionTarget");
    api::pod::is_terminating(&pod.pod)
        && target.is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some(REASON))
}

/// The fewest pods that have to leave this node, or why that doesn't help.
fn victims_on<'a>(
    attempt: &mut Attempt,
    node: &'a NodeInfo,
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Candidate<'a>, Vec<std::borrow::Cow<'static, str>>> {
    let lower = node
        .pods
        .values()
        .filter(|p| p.priority() < attempt.pod.priority());
    let mut potential: Vec<Arc<PodInfo>> = lower.cloned().collect();
    if potential.is_empty() {
        return Err(vec![NO_VICTIMS.into()]);
    }
    potential.sort_by_key(|p| (Reverse(p.priority()), started(p)));
    let mut emptied = node.clone();
    for victim in &potential {
        emptied.remove(victim.uid());
        attempt.imagine(victim, &emptied, -1);
    }
    let mut victims: Vec<Arc<PodInfo>> = Vec::new();
    let mut violations = 0;
    let result = attempt.fits(&emptied).map_err(|(_, why)| why.reasons);
    if result.is_ok() {
        // Those whose leaving would break a budget are spared first.
        let (breaking, harmless) = split(&potential, budgets);
        for (victim, breaks) in breaking
            .iter()
            .map(|v| (v, true))
            .chain(harmless.iter().map(|v| (v, false)))
        {
            emptied.add((*victim).clone());
            attempt.imagine(victim, &emptied, 1);
            if attempt.fits(&emptied).is_err() {
                emptied.remove(victim.uid());
                attempt.imagine(victim, &emptied, -1);
                victims.push((*victim).clone());
                violations += usize::from(breaks);
            }
        }
        for victim in &victims {
            attempt.imagine(victim, &emptied, 1);
        }
    } else {
        for victim in &potential {
            attempt.imagine(victim, &emptied, 1);
        }
    }
    result?;
    victims.sort_by_key(|p| (Reverse(p.priority()), started(p)));
    Ok(Candidate {
        node,
        victims,
        violations,
    })
}

/// Pods whose leaving would break a budget, and the others.
fn split<'a>(
    pods: &'a [Arc<PodInfo>],
    budgets: &[Arc<PodDisruptionBudget>],
) -> (Vec<&'a Arc<PodInfo>>, Vec<&'a Arc<PodInfo>>) {
    let status = |b: &PodDisruptionBudget| {
        b.status
            .as_ref()
            .and_then(|s| s.disruptions_allowed)
            .unwrap_or_default()
    };
    let mut allowed: Vec<i32> = budgets.iter().map(|b| status(b)).collect();
    pods.iter().partition(|pod| {
        let mut breaks = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let counted = budget.status.as_ref().and_then(|s| s.disrupted_pods.as_ref());
            let covers = budget.metadata.namespace.as_deref() == Some(pod.namespace())
                && pod.labels().is_some_and(|l| !l.is_empty())
                && selector
                    .is_some_and(|s| !api::selector::is_empty(s) && api::selector::matches(s, pod.labels()))
                && !counted.is_some_and(|d| d.contains_key(pod.name()));
            if covers {
                *allowed -= 1;
                breaks |= *allowed < 0;
            }
        }
        breaks
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Sampling, schedule};
    use crate::cluster::Cluster;
    use crate::cluster::testing::{cluster, pod};
    use crate::profile::Profile;
    use serde_json::{Value, from_value, json};

    fn asks(cpu: &str, priority: i32) -> Value {
        json!({"spec": {"priority": priority, "containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn world(pods: &[(&str, &str, Value)]) -> Cluster {
        cluster(&[("a", json!({})), ("b", json!({}))], pods)
    }

    fn evicted(cluster: &mut Cluster, body: Value) -> Result<(String, Vec<String>), String> {
        let pod = pod("p", body);
        let error = schedule(
            &Profile::default(),
            &pod,
            cluster,
            &mut Sampling::default(),
            |_| 0,
        )
        .unwrap_err();
        match error.preemption {
            Preemption::Evict { node, victims } => {
                Ok((node, victims.iter().map(|v| v.name().to_owned()).collect()))
            }
            _ => Err(error.message),
        }
    }

    #[test]
    fn the_least_important_leave() {
        let mut cluster = world(&[("low", "a", asks("3", 1)), ("mid", "b", asks("3", 100))]);
        assert_eq!(
            evicted(&mut cluster, asks("2", 1000)),
            Ok(("a".into(), vec!["low".into()]))
        );
        assert_eq!(
            evicted(&mut cluster, asks("2", 1)).unwrap_err(),
            "0/2 nodes are available: 2 Insufficient cpu. preemption: 0/2 nodes are available: \
             2 No preemption victims found for incoming pod."
        );
        let mut never = asks("2", 1000);
        never["spec"]["preemptionPolicy"] = json!("Never");
        assert_eq!(
            evicted(&mut cluster, never).unwrap_err(),
            "0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
        );
    }

    #[test]
    fn only_as_many_as_needed() {
        let mut cluster = world(&[
            ("small", "a", asks("1", 1)),
            ("large", "a", asks("2", 1)),
            ("dear", "a", asks("1", 9)),
            ("vip", "b", asks("4", 2000)),
        ]);
        assert_eq!(
            evicted(&mut cluster, asks("2", 10)),
            Ok(("a".into(), vec!["large".into()]))
        );
    }

    #[test]
    fn budgets_are_kept_where_possible() {
        let mut guarded = asks("3", 1);
        guarded["metadata"]["labels"] = json!({"app": "db"});
        let mut cluster = world(&[("guarded", "a", guarded), ("free", "b", asks("3", 50))]);
        let budget = json!({"metadata": {"name": "b", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "db"}}}, "status": {"disruptionsAllowed": 0,
                "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        let key = ("default".into(), "b".into());
        cluster.budgets.insert(key, Arc::new(from_value(budget).unwrap()));
        assert_eq!(
            evicted(&mut cluster, asks("2", 100)),
            Ok(("b".into(), vec!["free".into()]))
        );
    }

    #[test]
    fn hermits_and_spread_are_part_of_the_thought() {
        let mut hermit = asks("1", 1);
        hermit["spec"]["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
        let labels = json!({"metadata": {"labels": {"kubernetes.io/hostname": "a"}}});
        let mut cluster = cluster(&[("a", labels)], &[("h", "a", hermit), ("x", "a", asks("1", 1))]);
        let mut web = asks("1", 10);
        web["metadata"]["labels"] = json!({"app": "web"});
        assert_eq!(evicted(&mut cluster, web), Ok(("a".into(), vec!["h".into()])));
    }

    #[test]
    fn room_for_nominated_pods_is_taken() {
        let mut cluster = world(&[("x", "b", asks("4", 500))]);
        cluster.nominate(&pod("vip", asks("3", 100)), Some("a"));
        assert!(
            evicted(&mut cluster, asks("2", 10))
                .unwrap_err()
                .starts_with("0/2 nodes are available: 2 Insuff")
        );
        let mightier = pod("q", asks("2", 200));
        assert_eq!(
            schedule(
                &Profile::default(),
                &mightier,
                &mut cluster,
                &mut Sampling::default(),
                |_| 0
            ),
            Ok("a".into())
        );
    }
}
