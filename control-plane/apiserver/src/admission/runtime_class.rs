//! A pod's runtime class, applied once: what a pod costs beyond its containers, and which nodes can run it.

use async_trait::async_trait;
use quota::resources::parse;
use serde_json::Value;

use super::{forbidden, is, items, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct RuntimeClass;

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const NO_OVERHEAD: &str =
    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

#[async_trait]
impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, pod: &mut Value) -> Result<(), ApiError> {
        if !is_new_pod(context) {
            return Ok(());
        }
        let Some(class) = class_of(context, pod).await? else {
            return Ok(());
        };
        apply(&class, pod).map_err(|why| forbidden(context, Some(pod), why))
    }

    async fn validate(&self, context: &AdmissionContext<'_>, pod: Option<&Value>) -> Result<(), ApiError> {
        let Some(pod) = pod.filter(|_| is_new_pod(context)) else {
            return Ok(());
        };
        let class = class_of(context, pod).await?.unwrap_or_default();
        let given = &pod["spec"]["overhead"];
        let why = if class["overhead"].is_null() {
            (!given.is_null()).then_some(NO_OVERHEAD)
        } else {
            (parse(given) != parse(&class["overhead"]["podFixed"])).then_some(MISMATCH)
        };
        why.map_or(Ok(()), |why| Err(forbidden(context, Some(pod), why)))
    }
}

fn is_new_pod(context: &AdmissionContext<'_>) -> bool {
    context.operation == Operation::Create && is(context, "", "pods")
}

async fn class_of(context: &AdmissionContext<'_>, pod: &Value) -> Result<Option<Value>, ApiError> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else {
        return Ok(None);
    };
    let class = context
        .reader
        .get("node.k8s.io", "runtimeclasses", "", name)
        .await?;
    let missing = || format!("pod rejected: RuntimeClass {name:?} not found");
    class
        .map(Some)
        .ok_or_else(|| forbidden(context, Some(pod), missing()))
}

fn apply(class: &Value, pod: &mut Value) -> Result<(), String> {
    let fixed = &class["overhead"]["podFixed"];
    if !class["overhead"].is_null() {
        let given = &pod["spec"]["overhead"];
        if !given.is_null() && parse(given) != parse(fixed) {
            return Err(MISMATCH.into());
        }
        if !fixed.is_null() {
            pod["spec"]["overhead"] = fixed.clone();
        }
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let given = &mut pod["spec"]["nodeSelector"][key];
        if !given.is_null() && given != value {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(given)
            ));
        }
        *given = value.clone();
    }
    let added = items(&scheduling["tolerations"]);
    if !added.is_empty() {
        pod["spec"]["tolerations"] = merge(&[items(&pod["spec"]["tolerations"]), added].concat()).into();
    }
    Ok(())
}

/// Without those that another one covers; of equals, the first stays.
fn merge(tolerations: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for (at, toleration) in tolerations.iter().enumerate() {
        let mut later = tolerations[at + 1..].iter().filter(|later| *later != toleration);
        if !merged.iter().any(|kept| covers(kept, toleration))
            && !later.any(|later| covers(later, toleration))
        {
            merged.push(toleration.clone());
        }
    }
    merged
}

fn covers(wide: &Value, narrow: &Value) -> bool {
    let same = |field: &str| text(&wide[field]) == text(&narrow[field]);
    let operator = text(&wide["operator"]);
    let every_key = text(&wide["key"]).is_empty() && operator == "Exists";
    let every_effect = text(&wide["effect"]).is_empty();
    let outlasts = match wide["tolerationSeconds"].as_i64() {
        Some(seconds) if wide["effect"] == "NoExecute" => narrow["tolerationSeconds"]
            .as_i64()
            .is_some_and(|shorter| shorter <= seconds),
        _ => true,
    };
    let matches = match operator {
        "Exists" => true,
        "" | "Equal" => narrow["operator"] == "Equal" && same("value"),
        _ => false,
    };
    wide == narrow || ((same("key") || every_key) && (same("effect") || every_effect) && outlasts && matches)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Objects, Request};
    use super::*;

    fn admit(spec: Value) -> Result<Value, String> {
        let toleration = json!({"key": "sandbox", "operator": "Exists"});
        let class = |name: &str, more: Value| {
            let mut class = more;
            class["metadata"]["name"] = json!(name);
            ("runtimeclasses", class)
        };
        let scheduling = json!({"nodeSelector": {"sandbox": "yes"}, "tolerations": [toleration]});
        let objects = Objects::new(&[
            class("plain", json!({"handler": "h"})),
            class("costly", json!({"overhead": {"podFixed": {"cpu": "100m"}}})),
            class("placed", json!({"scheduling": scheduling})),
        ]);
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        Request::create("/api/v1/namespaces/ns/pods", "Pod")
            .run(&RuntimeClass, &objects, Some(pod))
            .map(|pod| pod.unwrap()["spec"].take())
    }

    #[test]
    fn what_the_class_says_is_added_to_the_pod() {
        let own = json!({"key": "own", "operator": "Exists"});
        let narrower = json!({"key": "sandbox", "operator": "Equal", "value": "v", "effect": "NoSchedule"});
        let added = json!({"key": "sandbox", "operator": "Exists"});
        for (given, expected) in [
            (json!({}), json!({})),
            (json!({"runtimeClassName": "plain"}), json!({})),
            (
                json!({"runtimeClassName": "costly"}),
                json!({"overhead": {"cpu": "100m"}}),
            ),
            (
                json!({"runtimeClassName": "costly", "overhead": {"cpu": "0.1"}}),
                json!({"overhead": {"cpu": "100m"}}),
            ),
            (
                json!({"runtimeClassName": "placed"}),
                json!({"nodeSelector": {"sandbox": "yes"}, "tolerations": [added]}),
            ),
            (
                json!({"runtimeClassName": "placed", "nodeSelector": {"a": "b", "sandbox": "yes"},
                    "tolerations": [own, narrower]}),
                json!({"nodeSelector": {"a": "b", "sandbox": "yes"}, "tolerations": [own, added]}),
            ),
        ] {
            let mut admitted = admit(given.clone()).unwrap();
            admitted.as_object_mut().unwrap().remove("runtimeClassName");
            assert_eq!(admitted, expected, "{given}");
        }
    }

    #[test]
    fn what_contradicts_the_class_is_refused() {
        for (spec, why) in [
            (
                json!({"runtimeClassName": "gone"}),
                r#"pod rejected: RuntimeClass "gone" not found"#,
            ),
            (json!({"overhead": {"cpu": "1"}}), NO_OVERHEAD),
            (
                json!({"runtimeClassName": "plain", "overhead": {"cpu": "1"}}),
                NO_OVERHEAD,
            ),
            (
                json!({"runtimeClassName": "costly", "overhead": {"cpu": "1"}}),
                MISMATCH,
            ),
            (
                json!({"runtimeClassName": "placed", "nodeSelector": {"sandbox": "no"}}),
                "conflict: runtimeClass.scheduling.nodeSelector[sandbox] = yes; pod.spec.nodeSelector[sandbox] = no",
            ),
        ] {
            let refused = admit(spec.clone()).unwrap_err();
            assert_eq!(refused, format!(r#"pods "p" is forbidden: {why}"#), "{spec}");
        }
    }

    #[test]
    fn of_two_tolerations_the_wider_stays() {
        let forever = json!({"key": "k", "operator": "Exists", "effect": "NoExecute"});
        let briefly =
            json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5});
        let longer = json!({"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9});
        let equal = json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"});
        let other = json!({"key": "k", "operator": "Equal", "value": "w", "effect": "NoSchedule"});
        let everything = json!({"operator": "Exists"});
        for (all, expected) in [
            (vec![&equal, &equal], vec![&equal]),
            (vec![&equal, &other], vec![&equal, &other]),
            (vec![&briefly, &longer], vec![&longer]),
            (vec![&longer, &briefly], vec![&longer]),
            (vec![&briefly, &forever], vec![&forever]),
            (vec![&longer, &equal, &everything, &forever], vec![&everything]),
        ] {
            let all: Vec<Value> = all.into_iter().cloned().collect();
            assert_eq!(merge(&all).iter().collect::<Vec<_>>(), expected, "{all:?}");
        }
    }
}
