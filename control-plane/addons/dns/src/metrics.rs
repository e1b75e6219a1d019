//! Counters, in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;

#[derive(Debug, Default)]
pub struct Metrics {
    codes: [AtomicU64; 6],
    forwarded: AtomicU64,
    kept: AtomicU64,
    failed: AtomicU64,
}

const CODES: [(&str, Option<ResponseCode>); 6] = [
    ("NOERROR", Some(ResponseCode::NoError)),
    ("NXDOMAIN", Some(ResponseCode::NXDomain)),
    ("SERVFAIL", Some(ResponseCode::ServFail)),
    ("REFUSED", Some(ResponseCode::Refused)),
    ("FORMERR", Some(ResponseCode::FormErr)),
    ("other", None),
];

impl Metrics {
    pub fn response(&self, code: ResponseCode) {
        let index = CODES.iter().position(|(_, known)| *known == Some(code));
        self.codes[index.unwrap_or(CODES.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }

    pub fn forwarded(&self, kept: bool) {
        let counter = if kept { &self.kept } else { &self.forwarded };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn render(&self, names: usize) -> String {
        let mut text = String::from(
            "# HELP cluster_dns_responses_total Replies by response code.\n# TYPE cluster_dns_responses_total counter\n",
        );
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        for ((code, _), counter) in CODES.iter().zip(&self.codes) {
            _ = writeln!(
                text,
                "cluster_dns_responses_total{{rcode=\"{code}\"}} {}",
                load(counter)
            );
        }
        _ = write!(
            text,
            "# HELP cluster_dns_forwarded_total Questions the upstreams answered.\n\
             # TYPE cluster_dns_forwarded_total counter\n\
             cluster_dns_forwarded_total{{cached=\"false\"}} {}\n\
             cluster_dns_forwarded_total{{cached=\"true\"}} {}\n\
             # HELP cluster_dns_forward_failures_total Questions no upstream answered.\n\
             # TYPE cluster_dns_forward_failures_total counter\n\
             cluster_dns_forward_failures_total {}\n\
             # HELP cluster_dns_names Names of the cluster.\n\
             # TYPE cluster_dns_names gauge\n\
             cluster_dns_names {names}\n",
            load(&self.forwarded),
            load(&self.kept),
            load(&self.failed),
        );
        text
    }
}
