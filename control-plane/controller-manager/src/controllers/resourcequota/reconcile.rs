//! The status a quota should have (upstream's `syncResourceQuota`).

use super::as_value;
use crate::action::Action;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::jiff::Timestamp;
use quota::{Counted, status};
use serde_json::{from_value, json};

/// The write holds only while the quota is as we saw it: admission may be charging it.
pub fn reconcile(quota: &ResourceQuota, found: &[Counted], now: Timestamp) -> Vec<Action> {
    let wanted = status(&as_value(quota), found, now);
    if json!(quota.status) == wanted {
        return Vec::new();
    }
    let mut next = quota.clone();
    next.status = from_value(wanted).ok();
    vec![Action::replace_sub(&next, "status")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_written_when_it_is_wrong() {
        let quota = |status| -> ResourceQuota {
            from_value(json!({
                "metadata": {"name": "q", "namespace": "n", "resourceVersion": "7"},
                "spec": {"hard": {"secrets": "2"}},
                "status": status,
            }))
            .unwrap()
        };
        let found = [Counted {
            group: String::new(),
            resource: "secrets".into(),
            objects: vec![json!({})],
        }];
        let right = json!({"hard": {"secrets": "2"}, "used": {"secrets": "1"}});
        let plan = reconcile(&quota(json!({})), &found, Timestamp::UNIX_EPOCH);
        let [Action::Replace { at, body }] = &plan[..] else {
            panic!("{plan:?}")
        };
        assert_eq!(at.url, "/api/v1/namespaces/n/resourcequotas/q/status");
        assert_eq!(body["status"], right);
        assert_eq!(body["metadata"]["resourceVersion"], "7");
        assert_eq!(reconcile(&quota(right), &found, Timestamp::UNIX_EPOCH), []);
    }
}
