//! Volumes and claims: pending at birth; a volume's status says since when it has its phase.

use auth::UserInfo;
use serde_json::{Value, json};

use super::Strategy;
use crate::object;

pub struct Claim;

impl Strategy for Claim {
    fn prepare_for_create(&self, object: &mut Value, _user: &UserInfo) {
        object["status"] = json!({"phase": "Pending"});
    }
}

pub struct Volume;

impl Strategy for Volume {
    fn prepare_for_create(&self, object: &mut Value, _user: &UserInfo) {
        object["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": now()});
    }

    fn prepare_for_subresource(&self, subresource: &str, object: &mut Value, _wanted: &Value, old: &Value) {
        let (is, was) = (&object["status"], &old["status"]);
        let (phase, since) = ("phase", "lastPhaseTransitionTime");
        if subresource == "status"
            && is[phase] != was[phase]
            && (is[since].is_null() || is[since] == was[since])
        {
            object::field(object, "status").insert(since.into(), json!(now()));
        }
    }
}

fn now() -> String {
    object::time(jiff::Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_phase_has_its_time() {
        let old = json!({"status": {"phase": "Pending", "lastPhaseTransitionTime": "2020-01-01T00:00:00Z"}});
        for (status, kept) in [
            (old["status"].clone(), true),
            (
                json!({"phase": "Bound", "lastPhaseTransitionTime": "2020-01-01T00:00:00Z"}),
                false,
            ),
            (json!({"phase": "Bound"}), false),
            (
                json!({"phase": "Bound", "lastPhaseTransitionTime": "2021-01-01T00:00:00Z"}),
                true,
            ),
        ] {
            let mut object = json!({"status": status});
            Volume.prepare_for_subresource("status", &mut object, &Value::Null, &old);
            let since = &object["status"]["lastPhaseTransitionTime"];
            assert!(since.is_string(), "{status}");
            assert_eq!(*since == status["lastPhaseTransitionTime"], kept, "{status}");
        }
    }
}
