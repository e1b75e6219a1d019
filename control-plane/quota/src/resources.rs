//! Resource lists, and what a pod asks for (upstream's `resourcehelper.PodRequests` and `PodLimits`).

use std::collections::BTreeMap;

use schema::quantity::Quantity;
use serde_json::Value;

/// Resource name to amount.
pub type ResourceList = BTreeMap<String, Quantity>;

/// Amounts the API server has accepted before; others count as nothing.
pub fn parse(list: &Value) -> ResourceList {
    let entries = list.as_object().into_iter().flatten();
    entries
        .filter_map(|(name, amount)| Some((name.clone(), quantity(amount)?)))
        .collect()
}

pub fn quantity(amount: &Value) -> Option<Quantity> {
    match amount {
        Value::String(text) => Quantity::parse(text),
        Value::Number(number) => Quantity::parse(&number.to_string()),
        _ => None,
    }
}

pub fn to_value(list: &ResourceList) -> Value {
    list.iter()
        .map(|(name, amount)| (name.clone(), Value::String(amount.canonical())))
        .collect()
}

pub fn add(total: &mut ResourceList, more: &ResourceList) {
    for (name, amount) in more {
        let sum = total.get(name).map_or(*amount, |have| have.plus(*amount));
        total.insert(name.clone(), sum);
    }
}

/// Those of `list` that `names` has.
pub fn mask(list: &ResourceList, names: impl Fn(&str) -> bool) -> ResourceList {
    list.iter()
        .filter(|(name, _)| names(name))
        .map(|(name, amount)| (name.clone(), *amount))
        .collect()
}

/// `cpu=1,memory=1Gi`
pub fn describe(list: &ResourceList) -> String {
    let parts: Vec<String> = list
        .iter()
        .map(|(name, amount)| format!("{name}={}", amount.canonical()))
        .collect();
    parts.join(",")
}

pub fn pod_requests(pod: &Value) -> ResourceList {
    let mut total = sum(&pod["spec"], "requests");
    add(&mut total, &parse(&pod["spec"]["overhead"]));
    total
}

pub fn pod_limits(pod: &Value) -> ResourceList {
    let mut total = sum(&pod["spec"], "limits");
    // Overhead raises a limit, it does not make one.
    let overhead = mask(&parse(&pod["spec"]["overhead"]), |name| total.contains_key(name));
    add(&mut total, &overhead);
    total
}

pub(crate) fn containers<'a>(spec: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    spec[list].as_array().into_iter().flatten()
}

/// Containers and sidecars together, or the hungriest moment of initialisation if that is more; what the pod as a
/// whole asks for replaces both.
fn sum(spec: &Value, which: &str) -> ResourceList {
    let of = |holder: &Value| parse(&holder["resources"][which]);
    let mut total = ResourceList::new();
    for container in containers(spec, "containers") {
        add(&mut total, &of(container));
    }
    let (mut peak, mut sidecars) = (ResourceList::new(), ResourceList::new());
    for container in containers(spec, "initContainers") {
        let wants = of(container);
        let mut moment = sidecars.clone();
        add(&mut moment, &wants);
        if container["restartPolicy"] == "Always" {
            add(&mut sidecars, &wants);
            add(&mut total, &wants);
        }
        raise(&mut peak, moment);
    }
    raise(&mut total, peak);
    total.extend(of(spec));
    total
}

fn raise(total: &mut ResourceList, floor: ResourceList) {
    for (name, amount) in floor {
        if total.get(&name).is_none_or(|have| *have < amount) {
            total.insert(name, amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_ask_for_their_hungriest_moment() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}});
        let mut sidecar = container("100m");
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({
            "initContainers": [sidecar, container("2")],
            "containers": [container("500m"), container("1")],
            "overhead": {"cpu": "10m", "memory": "1Mi"},
        });
        let mut pod = json!({"spec": spec});
        assert_eq!(
            to_value(&pod_requests(&pod)),
            json!({"cpu": "2110m", "memory": "1Mi"})
        );
        assert_eq!(to_value(&pod_limits(&pod)), json!({"cpu": "2110m"}));
        pod["spec"]["resources"] = json!({"requests": {"cpu": "3"}});
        assert_eq!(
            to_value(&pod_requests(&pod)),
            json!({"cpu": "3010m", "memory": "1Mi"})
        );
    }
}
