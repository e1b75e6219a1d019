//! Who is evicted first, and what the pod is told.

use std::cmp::Reverse;

use api::quantity::{Format, Quantity};

use super::signals::{Shortage, Signal};

#[derive(Clone, Debug, Default)]
pub struct Consumer {
    pub name: String,
    pub usage: u64,
    pub request: u64,
}

/// A pod that may be evicted.
#[derive(Clone, Debug, Default)]
pub struct Candidate {
    pub uid: String,
    pub priority: i32,
    pub usage: u64,
    pub request: u64,
    pub containers: Vec<Consumer>,
}

/// Upstream's order: above its request before below, low priority before high, much above the request before little.
pub fn first(signal: Signal, candidates: Vec<Candidate>) -> Option<Candidate> {
    candidates.into_iter().min_by_key(|pod| {
        let above = pod.usage > pod.request && signal != Signal::Pids;
        let excess = i128::from(pod.usage) - i128::from(pod.request);
        (Reverse(above), pod.priority, Reverse(excess), pod.uid.clone())
    })
}

fn quantity(signal: Signal, amount: u64) -> String {
    let format = match signal {
        Signal::Memory | Signal::Storage => Format::BinarySI,
        Signal::Inodes | Signal::Pids => Format::DecimalSI,
    };
    Quantity::from_units(i64::try_from(amount).unwrap_or(i64::MAX), format)
        .to_wire()
        .0
}

/// Upstream's words, spaces at the end included.
pub fn message(shortage: &Shortage, pod: &Candidate) -> String {
    let (reading, signal) = (&shortage.reading, shortage.reading.signal);
    let mut message = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        signal.resource(),
        quantity(signal, shortage.threshold),
        quantity(signal, reading.available)
    );
    for container in pod
        .containers
        .iter()
        .filter(|container| container.usage > container.request)
    {
        message += &format!(
            "Container {} was using {}, request is {}, has larger consumption of {}. ",
            container.name,
            quantity(signal, container.usage),
            quantity(signal, container.request),
            signal.resource()
        );
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::Reading;

    fn candidate(uid: &str, priority: i32, usage: u64, request: u64) -> Candidate {
        Candidate {
            uid: uid.into(),
            priority,
            usage,
            request,
            containers: Vec::new(),
        }
    }

    #[test]
    fn order() {
        let chosen = |signal, pods: &[(&str, i32, u64, u64)]| {
            let pods = pods
                .iter()
                .map(|(u, p, usage, request)| candidate(u, *p, *usage, *request));
            first(signal, pods.collect()).map(|pod| pod.uid)
        };
        for (signal, pods, expected) in [
            (
                Signal::Memory,
                vec![("modest", 0, 50, 100), ("greedy", 9, 101, 100)],
                "greedy",
            ),
            (Signal::Memory, vec![("high", 9, 900, 0), ("low", 0, 1, 0)], "low"),
            (
                Signal::Memory,
                vec![("little", 0, 110, 100), ("much", 0, 60, 10)],
                "much",
            ),
            (Signal::Pids, vec![("none", 0, 0, 0), ("many", 0, 9, 0)], "many"),
            (Signal::Pids, vec![("low", 0, 0, 0), ("many", 1, 9, 0)], "low"),
        ] {
            assert_eq!(chosen(signal, &pods).as_deref(), Some(expected), "{pods:?}");
        }
        assert_eq!(chosen(Signal::Memory, &[]), None);
    }

    #[test]
    fn the_pod_is_told_what_was_short() {
        let shortage = Shortage {
            reading: Reading {
                signal: Signal::Memory,
                available: 50 << 20,
                capacity: 8 << 30,
            },
            threshold: 100 << 20,
            soft: false,
        };
        let greedy = Consumer {
            name: "c".into(),
            usage: 20 << 20,
            request: 0,
        };
        let modest = Consumer {
            name: "d".into(),
            usage: 1,
            request: 2,
        };
        let pod = Candidate {
            containers: vec![greedy, modest],
            ..Default::default()
        };
        assert_eq!(
            message(&shortage, &pod),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container c was using 20Mi, request is 0, has larger consumption of memory. "
        );
    }
}
