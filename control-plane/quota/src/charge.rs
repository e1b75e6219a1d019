//! Whether the quotas of a namespace can pay for a write, and what they have paid then.

use jiff::Timestamp;
use serde_json::Value;

use crate::resources::{ResourceList, add, describe, mask, parse};
use crate::{scope, usage};

/// A write that may cost something.
pub struct Charge<'a> {
    pub group: &'a str,
    pub resource: &'a str,
    pub object: &'a Value,
    /// The stored object, on update.
    pub old: Option<&'a Value>,
    pub now: Timestamp,
}

/// The new `status.used` of each quota that pays, by its place in `quotas`; or upstream's reason to refuse.
pub fn charge(quotas: &[Value], write: &Charge<'_>) -> Result<Vec<(usize, ResourceList)>, String> {
    let Charge { group, resource, .. } = *write;
    let cost = |object: &Value| usage::of(group, resource, object, write.now);
    let total = cost(write.object);
    let mut paid = Vec::new();
    let mut payers = Vec::new();
    for (place, quota) in quotas.iter().enumerate() {
        let hard = parse(&quota["status"]["hard"]);
        let counted: Vec<&str> = hard
            .keys()
            .map(String::as_str)
            .filter(|name| usage::is_about(name, group, resource))
            .collect();
        if counted.is_empty() || !scope::fits(quota, resource, write.object) {
            continue;
        }
        let name = name_of(quota);
        if let Some(complaint) = usage::unspecified(resource, write.object, &counted) {
            return Err(format!("failed quota: {name}: {complaint}"));
        }
        let used = parse(&quota["status"]["used"]);
        if counted.iter().any(|name| !used.contains_key(*name)) {
            let counted = counted.join(",");
            return Err(format!("status unknown for quota: {name}, resources: {counted}"));
        }
        payers.push((place, quota, hard, used));
    }
    for (place, quota, hard, used) in payers {
        let before = write
            .old
            .filter(|old| scope::fits(quota, resource, old))
            .map(cost);
        let due: ResourceList = total
            .iter()
            .filter(|(name, _)| hard.contains_key(*name))
            .filter_map(|(name, amount)| {
                let had = before.as_ref().and_then(|before| before.get(name));
                let more = had.map_or(*amount, |had| amount.minus(*had));
                (more.nano() > 0).then(|| (name.clone(), more))
            })
            .collect();
        if due.is_empty() {
            continue;
        }
        let mut after = used.clone();
        add(&mut after, &due);
        let exceeded = |name: &str| due.contains_key(name) && after[name] > hard[name];
        if due.keys().any(|name| exceeded(name)) {
            return Err(format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                name_of(quota),
                describe(&mask(&due, exceeded)),
                describe(&mask(&used, exceeded)),
                describe(&mask(&hard, exceeded))
            ));
        }
        paid.push((place, after));
    }
    Ok(paid)
}

fn name_of(quota: &Value) -> &str {
    quota["metadata"]["name"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::to_value;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    fn pay(quotas: &[Value], resource: &str, object: Value, old: Option<Value>) -> Result<Value, String> {
        let write = Charge {
            group: "",
            resource,
            object: &object,
            old: old.as_ref(),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        let paid = charge(quotas, &write)?;
        Ok(paid
            .iter()
            .map(|(place, used)| (place.to_string(), to_value(used)))
            .collect())
    }

    fn pod(cpu: &str) -> Value {
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    #[test]
    fn quotas_pay_or_refuse_with_upstreams_words() {
        let both = quota(
            json!({"pods": "2", "cpu": "1"}),
            json!({"pods": "1", "cpu": "500m"}),
        );
        let others = quota(json!({"services": "1"}), json!({"services": "0"}));
        let quotas = [others, both];
        assert_eq!(
            pay(&quotas, "pods", pod("500m"), None).unwrap(),
            json!({"1": {"pods": "2", "cpu": "1"}})
        );
        assert_eq!(
            pay(&quotas, "pods", pod("501m"), None).unwrap_err(),
            "exceeded quota: q, requested: cpu=501m, used: cpu=500m, limited: cpu=1"
        );
        let silent = json!({"spec": {"containers": [{"name": "b"}, {"name": "a"}]}});
        assert_eq!(
            pay(&quotas, "pods", silent, None).unwrap_err(),
            "failed quota: q: must specify cpu for: a,b"
        );
        let uncounted = quota(json!({"pods": "2"}), json!({}));
        assert_eq!(
            pay(&[uncounted], "pods", pod("1"), None).unwrap_err(),
            "status unknown for quota: q, resources: pods"
        );
        assert_eq!(pay(&quotas, "secrets", json!({}), None).unwrap(), json!({}));
    }

    #[test]
    fn updates_pay_the_difference() {
        let quotas = [quota(
            json!({"services.nodeports": "2"}),
            json!({"services.nodeports": "1"}),
        )];
        let service = |ports: Value| json!({"spec": {"type": "NodePort", "ports": ports}});
        let one = || Some(service(json!([{}])));
        assert_eq!(
            pay(&quotas, "services", service(json!([{}, {}])), one()).unwrap(),
            json!({"0": {"services.nodeports": "2"}})
        );
        assert!(pay(&quotas, "services", service(json!([{}, {}, {}])), one()).is_err());
        assert_eq!(
            pay(&quotas, "services", service(json!([])), one()).unwrap(),
            json!({})
        );
    }
}
