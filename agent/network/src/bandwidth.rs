//! How fast a pod may receive and send: the annotations `kubernetes.io/ingress-bandwidth` and
//! `kubernetes.io/egress-bandwidth`, in bits a second. Upstream: `pkg/util/bandwidth`, and CNI's plugin `bandwidth`.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
const LEAST: u64 = 1_000;
const MOST: u64 = 1_000_000_000_000_000;
/// How long a packet may wait, as CNI's plugin has it.
const LATENCY_MS: u64 = 25;
/// A full burst of the largest packet that the kernel makes of many.
const LEAST_BURST: u64 = 64 << 10;
const BURST_MS: u64 = 50;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("annotation {annotation}: {value:?}: {problem}")]
pub struct BandwidthError {
    annotation: &'static str,
    value: String,
    problem: String,
}

/// Bits a second, from the pod's point of view.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<u64>,
}

impl Bandwidth {
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self, BandwidthError> {
        let limit = |annotation| {
            let value = annotations.get(annotation);
            value.map(|value| bits(annotation, value)).transpose()
        };
        Ok(Self {
            ingress: limit(INGRESS)?,
            egress: limit(EGRESS)?,
        })
    }

    /// What plugins with the capability `bandwidth` are told.
    pub fn runtime_config(&self) -> Value {
        let mut config = json!({});
        for (direction, rate) in [("ingress", self.ingress), ("egress", self.egress)] {
            if let Some(rate) = rate {
                config[format!("{direction}Rate")] = json!(rate);
                config[format!("{direction}Burst")] = json!(u64::from(Bucket::of(rate).burst) * 8);
            }
        }
        config
    }
}

fn bits(annotation: &'static str, value: &str) -> Result<u64, BandwidthError> {
    let failed = |problem: String| BandwidthError {
        annotation,
        value: value.to_owned(),
        problem,
    };
    let quantity: Quantity = value
        .parse()
        .map_err(|error: api::quantity::ParseError| failed(error.to_string()))?;
    match u64::try_from(quantity.value()).unwrap_or_default() {
        ..LEAST => Err(failed("resource is unreasonably small (< 1kbit)".into())),
        bits if bits > MOST => Err(failed("resource is unreasonably large (> 1Pbit)".into())),
        bits => Ok(bits),
    }
}

/// A token bucket filter's measures, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// A second.
    pub rate: u64,
    pub burst: u32,
    /// What may wait for tokens.
    pub limit: u32,
}

impl Bucket {
    pub fn of(bits: u64) -> Self {
        let rate = bits / 8;
        let burst = (rate * BURST_MS / 1000).max(LEAST_BURST);
        let limit = burst + rate * LATENCY_MS / 1000;
        Self {
            rate,
            burst: u32::try_from(burst).unwrap_or(u32::MAX),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Bandwidth, String> {
        let annotations = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Bandwidth::of(&annotations.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn annotations_are_quantities_of_bits() {
        assert_eq!(read(&[("a", "b")]), Ok(Bandwidth::default()));
        assert_eq!(
            read(&[(INGRESS, "10M"), (EGRESS, "1Gi")]),
            Ok(Bandwidth {
                ingress: Some(10_000_000),
                egress: Some(1 << 30)
            })
        );
        for (value, problem) in [
            ("999", "\"999\": resource is unreasonably small (< 1kbit)"),
            ("-1M", "\"-1M\": resource is unreasonably small (< 1kbit)"),
            ("2P", "\"2P\": resource is unreasonably large (> 1Pbit)"),
        ] {
            assert_eq!(
                read(&[(EGRESS, value)]),
                Err(format!("annotation {EGRESS}: {problem}"))
            );
        }
        assert!(
            read(&[(INGRESS, "fast")])
                .unwrap_err()
                .starts_with("annotation kubernetes.io/ingress-bandwidth: \"fast\": ")
        );
    }

    #[test]
    fn buckets_hold_a_burst_of_packets_however_slow() {
        assert_eq!(
            Bucket::of(1_000_000),
            Bucket {
                rate: 125_000,
                burst: 65_536,
                limit: 65_536 + 3_125
            }
        );
        assert_eq!(
            Bucket::of(1_000_000_000),
            Bucket {
                rate: 125_000_000,
                burst: 6_250_000,
                limit: 6_250_000 + 3_125_000
            }
        );
        assert_eq!(Bucket::of(MOST).limit, u32::MAX);
    }
}
