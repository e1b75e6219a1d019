//! The few numbers this server really counts, in the text format of `/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// verb, resource, code.
type RequestKey = (String, String, u16);

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<RequestKey, (u64, Duration)>>,
}

impl Metrics {
    pub fn request(&self, verb: &str, resource: &str, code: u16, took: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = requests
            .entry((verb.to_owned(), resource.to_owned(), code))
            .or_default();
        entry.0 += 1;
        entry.1 += took;
    }

    pub fn render(&self) -> String {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = String::from("# TYPE apiserver_request_total counter\n");
        for ((verb, resource, code), (count, _)) in requests.iter() {
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{code}\",resource=\"{resource}\",verb=\"{verb}\"}} {count}"
            );
        }
        out.push_str("# TYPE apiserver_request_duration_seconds summary\n");
        for ((verb, resource, code), (count, took)) in requests.iter() {
            let labels = format!("code=\"{code}\",resource=\"{resource}\",verb=\"{verb}\"");
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_sum{{{labels}}} {}",
                took.as_secs_f64()
            );
            let _ = writeln!(
                out,
                "apiserver_request_duration_seconds_count{{{labels}}} {count}"
            );
        }
        out
    }
}
