//! LimitRanges: requests and limits for containers that name none, and bounds on those they name.

use std::collections::BTreeSet;

use async_trait::async_trait;
use quota::resources::{ResourceList, parse, pod_limits, pod_requests};
use schema::quantity::Quantity;
use serde_json::{Value, json};

use super::{forbidden, is, items, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger;

#[async_trait]
impl Admission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, pod: &mut Value) -> Result<(), ApiError> {
        if context.operation != Operation::Create || !is(context, "", "pods") {
            return Ok(());
        }
        for range in ranges(context).await? {
            fill_in(pod, &range);
        }
        Ok(())
    }

    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        let pods = context.operation == Operation::Create && is(context, "", "pods");
        let claims = matches!(context.operation, Operation::Create | Operation::Update)
            && is(context, "", "persistentvolumeclaims");
        let Some(object) = object.filter(|_| pods || claims) else {
            return Ok(());
        };
        for range in ranges(context).await? {
            let problems: BTreeSet<String> = items(&range["spec"]["limits"])
                .iter()
                .flat_map(|limit| problems(limit, object, pods))
                .collect();
            let problems: Vec<String> = problems.into_iter().collect();
            match problems.as_slice() {
                [] => {}
                [one] => return Err(forbidden(context, Some(object), one.as_str())),
                many => return Err(forbidden(context, Some(object), format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

async fn ranges(context: &AdmissionContext<'_>) -> Result<Vec<Value>, ApiError> {
    context
        .reader
        .list("", "limitranges", &context.info.namespace)
        .await
}

fn fill_in(pod: &mut Value, range: &Value) {
    let mut done = Vec::new();
    for (list, title) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            for (field, default, word) in [
                ("requests", "defaultRequest", "request"),
                ("limits", "default", "limit"),
            ] {
                let mut set = Vec::new();
                for limit in items(&range["spec"]["limits"]) {
                    let defaults = limit[default]
                        .as_object()
                        .filter(|_| limit["type"] == "Container");
                    for (name, amount) in defaults.into_iter().flatten() {
                        if container["resources"][field][name].is_null() {
                            container["resources"][field][name] = amount.clone();
                            set.push(name.as_str());
                        }
                    }
                }
                if !set.is_empty() {
                    set.sort_unstable();
                    let name = text(&container["name"]);
                    done.push(format!("{} {word} for {title} {name}", set.join(", ")));
                }
            }
        }
    }
    if !done.is_empty() {
        pod["metadata"]["annotations"][ANNOTATION] =
            json!(format!("LimitRanger plugin set: {}", done.join("; ")));
    }
}

/// What one item of a LimitRange holds against a pod or a claim.
fn problems(limit: &Value, object: &Value, is_pod: bool) -> Vec<String> {
    let asked = |holder: &Value| {
        let resources = &holder["resources"];
        (parse(&resources["requests"]), parse(&resources["limits"]))
    };
    let spec = &object["spec"];
    match (text(&limit["type"]), is_pod) {
        ("Container", true) => ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| items(&spec[list]))
            .flat_map(|container| {
                let (requests, limits) = asked(container);
                bounds(limit, &requests, &limits)
            })
            .collect(),
        ("Pod", true) => bounds(limit, &pod_requests(object), &pod_limits(object)),
        ("PersistentVolumeClaim", false) => {
            let (requests, _) = asked(spec);
            claim_bounds(limit, &requests)
        }
        _ => Vec::new(),
    }
}

fn bounds(limit: &Value, requests: &ResourceList, limits: &ResourceList) -> Vec<String> {
    let kind = text(&limit["type"]);
    let min = parse(&limit["min"])
        .into_iter()
        .filter_map(|(name, bound)| minimum(kind, &name, bound, requests.get(&name), limits.get(&name)))
        .collect::<Vec<_>>();
    let max = parse(&limit["max"])
        .into_iter()
        .filter_map(|(name, bound)| maximum(kind, &name, bound, requests.get(&name), limits.get(&name)));
    let ratio = parse(&limit["maxLimitRequestRatio"])
        .into_iter()
        .filter_map(|(name, bound)| ratio(kind, &name, bound, requests.get(&name), limits.get(&name)));
    min.into_iter().chain(max).chain(ratio).collect()
}

fn claim_bounds(limit: &Value, requests: &ResourceList) -> Vec<String> {
    let kind = text(&limit["type"]);
    let min = parse(&limit["min"])
        .into_iter()
        .filter_map(|(name, bound)| minimum(kind, &name, bound, requests.get(&name), None));
    let max = parse(&limit["max"]).into_iter().filter_map(|(name, bound)| {
        let usage = format!("maximum {name} usage per {kind} is {}", bound.canonical());
        match requests.get(&name) {
            None => Some(format!("{usage}.  No request is specified")),
            Some(request) if *request > bound => {
                Some(format!("{usage}, but request is {}", request.canonical()))
            }
            Some(_) => None,
        }
    });
    min.chain(max).collect()
}

fn minimum(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let usage = format!("minimum {name} usage per {kind} is {}", bound.canonical());
    match (request, limit) {
        (None, _) => Some(format!("{usage}.  No request is specified")),
        (Some(request), _) if *request < bound => {
            Some(format!("{usage}, but request is {}", request.canonical()))
        }
        (_, Some(limit)) if *limit < bound => Some(format!("{usage}, but limit is {}", limit.canonical())),
        _ => None,
    }
}

fn maximum(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let usage = format!("maximum {name} usage per {kind} is {}", bound.canonical());
    match (request, limit) {
        (_, None) => Some(format!("{usage}.  No limit is specified")),
        (_, Some(limit)) if *limit > bound => Some(format!("{usage}, but limit is {}", limit.canonical())),
        (Some(request), _) if *request > bound => {
            Some(format!("{usage}, but request is {}", request.canonical()))
        }
        _ => None,
    }
}

fn ratio(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let allowed = format!(
        "{name} max limit to request ratio per {kind} is {}",
        bound.canonical()
    );
    let given = |amount: Option<&Quantity>| amount.map(|amount| amount.nano()).filter(|nano| *nano != 0);
    let Some(request) = given(request) else {
        return Some(format!("{allowed}, but no request is specified or request is 0"));
    };
    let Some(limit) = given(limit) else {
        return Some(format!("{allowed}, but no limit is specified or limit is 0"));
    };
    let ratio = limit as f64 / request as f64;
    (ratio * 1e9 > bound.nano() as f64).then(|| format!("{allowed}, but provided ratio is {ratio:.6}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Objects, Request};
    use super::*;

    fn admit(limit: Value, pod: Value) -> Result<Value, String> {
        let range = json!({"metadata": {"name": "r", "namespace": "ns"}, "spec": {"limits": [limit]}});
        Request::create("/api/v1/namespaces/ns/pods", "Pod")
            .run(&LimitRanger, &Objects::new(&[("limitranges", range)]), Some(pod))
            .map(Option::unwrap)
    }

    fn pod(requests: Value, limits: Value) -> Value {
        let container = json!({"name": "c", "resources": {"requests": requests, "limits": limits}});
        json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}})
    }

    #[test]
    fn defaults_are_filled_in_and_told() {
        let limit = json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "500m"}});
        let mut wanted = pod(json!({}), json!({"memory": "2Gi"}));
        wanted["spec"]["initContainers"] = json!([{"name": "i"}]);
        let admitted = admit(limit, wanted).unwrap();
        assert_eq!(
            admitted["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "2Gi"}})
        );
        assert_eq!(
            admitted["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c; \
             cpu request for init container i; cpu, memory limit for init container i"
        );
    }

    #[test]
    fn bounds_are_kept_with_upstreams_words() {
        let container = |field: &str, bound: Value| json!({"type": "Container", field: bound});
        let cpu = |amount: &str| json!({"cpu": amount});
        for (limit, requests, limits, complaint) in [
            (container("max", cpu("1")), cpu("500m"), cpu("1"), ""),
            (
                container("max", cpu("1")),
                cpu("1"),
                cpu("1500m"),
                "maximum cpu usage per Container is 1, but limit is 1500m",
            ),
            (
                container("max", cpu("1")),
                cpu("1"),
                json!({}),
                "maximum cpu usage per Container is 1.  No limit is specified",
            ),
            (
                container("min", cpu("1")),
                cpu("100m"),
                cpu("1"),
                "minimum cpu usage per Container is 1, but request is 100m",
            ),
            (
                container("min", json!({"cpu": "1", "memory": "1Gi"})),
                json!({}),
                json!({}),
                "[minimum cpu usage per Container is 1.  No request is specified, minimum memory usage per Container is 1Gi.  No request is specified]",
            ),
            (
                container("maxLimitRequestRatio", cpu("2")),
                cpu("1"),
                cpu("3"),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                json!({"type": "Pod", "max": {"memory": "1Gi"}}),
                json!({}),
                json!({"memory": "2Gi"}),
                "maximum memory usage per Pod is 1Gi, but limit is 2Gi",
            ),
        ] {
            let found = admit(limit.clone(), pod(requests, limits))
                .err()
                .unwrap_or_default();
            let expected = if complaint.is_empty() {
                String::new()
            } else {
                format!(r#"pods "p" is forbidden: {complaint}"#)
            };
            assert_eq!(found, expected, "{limit}");
        }
    }

    #[test]
    fn claims_have_their_own_bounds() {
        let range = json!({"metadata": {"name": "r", "namespace": "ns"}, "spec": {"limits": [
            {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}, "min": {"storage": "1Mi"}},
        ]}});
        let objects = Objects::new(&[("limitranges", range)]);
        let request = Request::create(
            "/api/v1/namespaces/ns/persistentvolumeclaims",
            "PersistentVolumeClaim",
        );
        let admit = |storage: &str| {
            let claim =
                json!({"metadata": {"name": "c"}, "spec": {"resources": {"requests": {"storage": storage}}}});
            request.run(&LimitRanger, &objects, Some(claim))
        };
        assert!(admit("1Gi").is_ok());
        assert_eq!(
            admit("2Gi").unwrap_err(),
            r#"persistentvolumeclaims "c" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"#
        );
    }
}
