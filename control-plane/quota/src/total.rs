//! A quota's status counted anew from what is there.

use jiff::Timestamp;
use schema::quantity::Quantity;
use serde_json::{Value, json};

use crate::resources::{ResourceList, add, parse, to_value};
use crate::{scope, usage};

/// The objects of one kind in the quota's namespace.
pub struct Counted {
    pub group: String,
    pub resource: String,
    pub objects: Vec<Value>,
}

/// Does the quota count objects of this kind?
pub fn counted(quota: &Value, group: &str, resource: &str) -> bool {
    let mut names = quota["spec"]["hard"].as_object().into_iter().flatten();
    names.any(|(name, _)| usage::is_about(name, group, resource))
}

/// The status the quota should have; resources of kinds nobody knows stay uncounted.
pub fn status(quota: &Value, kinds: &[Counted], now: Timestamp) -> Value {
    let hard = parse(&quota["spec"]["hard"]);
    let mut used = ResourceList::new();
    for kind in kinds {
        let about = |name: &str| usage::is_about(name, &kind.group, &kind.resource);
        for name in hard.keys().filter(|name| about(name)) {
            used.entry(name.clone()).or_insert(Quantity::whole(0));
        }
        for object in &kind.objects {
            if scope::fits(quota, &kind.resource, object) {
                let mut cost = usage::of(&kind.group, &kind.resource, object, now);
                cost.retain(|name, _| hard.contains_key(name));
                add(&mut used, &cost);
            }
        }
    }
    json!({"hard": to_value(&hard), "used": to_value(&used)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_counts_what_is_there() {
        let hard = json!({"pods": "5", "requests.cpu": "2", "services": "1", "count/widgets.acme.com": "1"});
        let quota = json!({"spec": {"hard": hard}});
        let pod = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "250m"}}}]}});
        let kind = |resource: &str, objects: Vec<Value>| Counted {
            group: String::new(),
            resource: resource.into(),
            objects,
        };
        let mut done = pod.clone();
        done["status"] = json!({"phase": "Failed"});
        let kinds = [
            kind("pods", vec![pod.clone(), pod, done]),
            kind("services", vec![]),
        ];
        let status = status(&quota, &kinds, Timestamp::UNIX_EPOCH);
        assert_eq!(
            status,
            json!({"hard": hard, "used": {"pods": "2", "requests.cpu": "500m", "services": "0"}})
        );
        assert!(counted(&quota, "acme.com", "widgets"));
        assert!(!counted(&quota, "", "secrets"));
    }
}
