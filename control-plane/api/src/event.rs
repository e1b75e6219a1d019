//! Events: building them, and folding repetitions into counts (client-go's `EventCorrelator`, the parts users see).

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use std::collections::HashMap;

pub const NORMAL: &str = "Normal";
pub const WARNING: &str = "Warning";

/// Beyond this many remembered events the oldest half is forgotten; a forgotten one starts a new count.
const REMEMBERED: usize = 1024;

/// What a component says about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    pub about: ObjectReference,
    /// [`NORMAL`] or [`WARNING`].
    pub kind: &'static str,
    pub reason: String,
    pub message: String,
    /// Who says it, as `kubectl describe` shows it.
    pub source: &'static str,
}

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    Create(Box<Event>),
    /// The same thing happened again: raise the count of the event `name`.
    Repeat {
        namespace: String,
        name: String,
        count: i32,
        last: Time,
    },
}

/// Remembers what was said, so that saying it again costs a count.
#[derive(Debug)]
pub struct Correlator {
    host: String,
    seen: HashMap<(String, String, String), (String, i32, Timestamp)>,
}

impl Correlator {
    pub fn new(host: &str) -> Self {
        Self {
            host: host.into(),
            seen: HashMap::new(),
        }
    }

    pub fn record(&mut self, notice: Notice, now: Timestamp) -> Record {
        let about = &notice.about;
        // Cluster-scoped objects' events live in "default", as upstream's.
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
        let object = about
            .uid
            .clone()
            .unwrap_or_else(|| format!("{:?}/{:?}", about.kind, about.name));
        let key = (object, notice.reason.clone(), notice.message.clone());
        if let Some((name, count, last)) = self.seen.get_mut(&key) {
            *count += 1;
            *last = now;
            return Record::Repeat {
                namespace,
                name: name.clone(),
                count: *count,
                last: Time(now),
            };
        }
        if self.seen.len() >= REMEMBERED {
            let mut times: Vec<Timestamp> = self.seen.values().map(|v| v.2).collect();
            times.sort_unstable();
            let middle = times[times.len() / 2];
            self.seen.retain(|_, v| v.2 > middle);
        }
        let name = format!(
            "{}.{:x}",
            about.name.as_deref().unwrap_or_default(),
            now.as_nanosecond()
        );
        self.seen.insert(key, (name.clone(), 1, now));
        Record::Create(Box::new(Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: notice.about,
            type_: Some(notice.kind.into()),
            reason: Some(notice.reason),
            message: Some(notice.message),
            count: Some(1),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            source: Some(EventSource {
                component: Some(notice.source.into()),
                host: (!self.host.is_empty()).then(|| self.host.clone()),
            }),
            reporting_component: Some(notice.source.into()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        }))
    }

    /// The server no longer has the event (its time to live ended): the next one is new.
    pub fn forget(&mut self, name: &str) {
        self.seen.retain(|_, v| v.0 != name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_become_counts() {
        let mut correlator = Correlator::new("");
        let about = ObjectReference {
            name: Some("p".into()),
            uid: Some("1".into()),
            ..ObjectReference::default()
        };
        let notice = |m: &str| Notice {
            about: about.clone(),
            kind: NORMAL,
            reason: "R".into(),
            message: m.into(),
            source: "test",
        };
        let at = |s| Timestamp::from_second(s).unwrap();
        let Record::Create(event) = correlator.record(notice("a"), at(1)) else {
            panic!("first: create")
        };
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        let name = event.metadata.name.unwrap();
        let Record::Repeat {
            name: again, count, ..
        } = correlator.record(notice("a"), at(2))
        else {
            panic!("repeat")
        };
        assert_eq!((again.as_str(), count), (name.as_str(), 2));
        assert!(matches!(correlator.record(notice("b"), at(3)), Record::Create(_)));
        correlator.forget(&name);
        assert!(matches!(correlator.record(notice("a"), at(4)), Record::Create(_)));
        for i in 0..3 * REMEMBERED {
            correlator.record(notice(&i.to_string()), at(10 + i as i64));
        }
        assert!(correlator.seen.len() <= REMEMBERED);
    }
}
