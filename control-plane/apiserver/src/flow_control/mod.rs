//! API priority and fairness: every request belongs to a flow of a FlowSchema, and waits for a seat of its priority
//! level.

mod level;
mod matching;
pub mod objects;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use auth::UserInfo;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::object;
use crate::request_info::RequestInfo;
use level::{Level, Limit};
use matching::Schema;

pub use level::{Permit, Refusal};

/// Upstream's `--max-requests-inflight` plus `--max-mutating-requests-inflight`.
const SEATS: u64 = 600;

#[derive(Default)]
struct Plan {
    /// In the order they are tried.
    schemas: Vec<Schema>,
    levels: BTreeMap<String, Arc<Level>>,
}

/// See the module documentation.
#[derive(Default)]
pub struct FlowControl {
    plan: RwLock<Arc<Plan>>,
    /// By schema, level and reason.
    refused: Mutex<BTreeMap<(String, String, Refusal), u64>>,
}

/// Where a request was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    pub schema_uid: String,
    pub level_uid: String,
}

impl FlowControl {
    /// Follows the objects; requests that wait go on waiting.
    pub fn configure(&self, schemas: &[Value], levels: &[Value]) {
        let shares = levels.iter().map(level::nominal_shares).sum();
        let before = self.plan();
        let levels = levels.iter().map(|object| {
            let (name, uid) = (object::name(object).to_owned(), object::uid(object).to_owned());
            let limit = Limit::of(object, shares, SEATS);
            let known = before.levels.get(&name).filter(|level| level.uid == uid);
            let level = match known {
                Some(level) => {
                    level.set_limit(limit);
                    level.clone()
                }
                None => Level::new(name.clone(), uid, limit),
            };
            (name, level)
        });
        let levels: BTreeMap<_, _> = levels.collect();
        let mut schemas: Vec<Schema> = schemas.iter().map(Schema::of).collect();
        schemas.retain(|schema| levels.contains_key(&schema.level));
        schemas.sort_by(|left, right| left.order().cmp(&right.order()));
        *self.plan.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Plan { schemas, levels });
    }

    fn plan(&self) -> Arc<Plan> {
        self.plan.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where the request belongs and its seat. A request that belongs nowhere, as before there are any schemas,
    /// needs none.
    pub async fn enter(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
    ) -> Option<(Classified, Result<Permit, Refusal>)> {
        let plan = self.plan();
        let schema = plan.schemas.iter().find(|schema| schema.matches(user, info))?;
        let level = plan.levels.get(&schema.level)?;
        let flow = flow_hash(&schema.name, schema.distinguisher(user, info));
        let classified = Classified {
            schema_uid: schema.uid.clone(),
            level_uid: level.uid.clone(),
        };
        let seat = level.seat(flow).await;
        if let Err(refusal) = &seat {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            *refused
                .entry((schema.name.clone(), level.name.clone(), *refusal))
                .or_default() += 1;
        }
        Some((classified, seat))
    }

    /// For `/metrics`.
    pub fn render(&self, out: &mut String) {
        // Writing to a String cannot fail.
        for (name, pick) in [
            ("apiserver_flowcontrol_current_executing_requests", 0),
            ("apiserver_flowcontrol_current_inqueue_requests", 1),
        ] {
            let _ = writeln!(out, "# TYPE {name} gauge");
            for level in self.plan().levels.values() {
                let (executing, waiting) = level.load();
                let value = if pick == 0 { executing } else { waiting };
                let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {value}", level.name);
            }
        }
        out.push_str("# TYPE apiserver_flowcontrol_rejected_requests_total counter\n");
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for ((schema, level, refusal), count) in refused.iter() {
            let _ = writeln!(
                out,
                "apiserver_flowcontrol_rejected_requests_total{{flow_schema=\"{schema}\",priority_level=\"{level}\",reason=\"{}\"}} {count}",
                refusal.reason()
            );
        }
    }
}

fn flow_hash(schema: &str, distinguisher: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(schema);
    hash.update([0]);
    hash.update(distinguisher);
    let digest = hash.finalize();
    digest
        .iter()
        .take(8)
        .fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
