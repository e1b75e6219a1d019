//! Priority classes resolved to numbers, once, when a pod is created.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{forbidden, is, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct Priority;

const GROUP: &str = "scheduling.k8s.io";
const PREEMPT: &str = "PreemptLowerPriority";

/// The classes every cluster has (upstream: `SystemPriorityClasses`).
pub fn system_priority_classes() -> [Value; 2] {
    [
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
    .map(|(name, value, description)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": description,
            "preemptionPolicy": PREEMPT,
        })
    })
}

#[async_trait]
impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, pod: &mut Value) -> Result<(), ApiError> {
        if !is(context, "", "pods") {
            return Ok(());
        }
        if context.operation == Operation::Update {
            // Both were set on create and cannot change; an update that leaves them out means no change.
            for field in ["priority", "preemptionPolicy"] {
                let old = context
                    .old
                    .map(|old| old["spec"][field].clone())
                    .unwrap_or_default();
                if pod["spec"][field].is_null() && !old.is_null() {
                    pod["spec"][field] = old;
                }
            }
            return Ok(());
        }
        if context.operation != Operation::Create {
            return Ok(());
        }
        let name = text(&pod["spec"]["priorityClassName"]).to_owned();
        let class = if name.is_empty() {
            default_class(context).await?
        } else {
            let class = context.reader.get(GROUP, "priorityclasses", "", &name).await?;
            let missing = || {
                forbidden(
                    context,
                    Some(pod),
                    format!("no PriorityClass with name {name} was found"),
                )
            };
            Some(class.ok_or_else(missing)?)
        };
        let (value, policy) = match &class {
            Some(class) => {
                pod["spec"]["priorityClassName"] = class["metadata"]["name"].clone();
                let policy = text(&class["preemptionPolicy"]);
                (
                    class["value"].as_i64().unwrap_or(0),
                    if policy.is_empty() { PREEMPT } else { policy },
                )
            }
            None => (0, PREEMPT),
        };
        if let Some(given) = pod["spec"]["priority"].as_i64().filter(|given| *given != value) {
            let why = format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            );
            return Err(forbidden(context, Some(pod), why));
        }
        if let Some(given) = pod["spec"]["preemptionPolicy"]
            .as_str()
            .filter(|given| *given != policy)
        {
            let why = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            );
            return Err(forbidden(context, Some(pod), why));
        }
        pod["spec"]["priority"] = json!(value);
        pod["spec"]["preemptionPolicy"] = json!(policy);
        Ok(())
    }

    async fn validate(&self, context: &AdmissionContext<'_>, class: Option<&Value>) -> Result<(), ApiError> {
        let Some(class) = class.filter(|_| is(context, GROUP, "priorityclasses")) else {
            return Ok(());
        };
        if class["globalDefault"] != true {
            return Ok(());
        }
        let name = &class["metadata"]["name"];
        match default_class(context).await? {
            Some(other) if other["metadata"]["name"] != *name => {
                let why = format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    text(&other["metadata"]["name"])
                );
                Err(forbidden(context, Some(class), why))
            }
            _ => Ok(()),
        }
    }
}

/// Should there be several, the lowest wins.
async fn default_class(context: &AdmissionContext<'_>) -> Result<Option<Value>, ApiError> {
    let classes = context.reader.list(GROUP, "priorityclasses", "").await?;
    Ok(classes
        .into_iter()
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Objects, Request};
    use super::*;

    fn class(name: &str, value: i64, default: bool) -> (&'static str, Value) {
        (
            "priorityclasses",
            json!({"metadata": {"name": name}, "value": value, "globalDefault": default}),
        )
    }

    fn admit(objects: &Objects, spec: Value) -> Result<Value, String> {
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        let request = Request::create("/api/v1/namespaces/ns/pods", "Pod");
        request
            .run(&Priority, objects, Some(pod))
            .map(|pod| pod.unwrap()["spec"].take())
    }

    #[test]
    fn classes_become_numbers() {
        let none = Objects::default();
        assert_eq!(
            admit(&none, json!({})).unwrap(),
            json!({"priority": 0, "preemptionPolicy": PREEMPT})
        );
        let some = Objects::new(&[class("high", 1000, false), class("usual", 7, true)]);
        let usual = json!({"priorityClassName": "usual", "priority": 7, "preemptionPolicy": PREEMPT});
        assert_eq!(admit(&some, json!({})).unwrap(), usual);
        assert_eq!(
            admit(&some, json!({"priorityClassName": "high"})).unwrap()["priority"],
            1000
        );
        assert_eq!(
            admit(&some, json!({"priorityClassName": "high", "priority": 1000})).unwrap()["priority"],
            1000
        );
        for (spec, words) in [
            (
                json!({"priorityClassName": "gone"}),
                "no PriorityClass with name gone was found",
            ),
            (
                json!({"priority": 5}),
                "the integer value of priority (5) must not be provided",
            ),
            (
                json!({"preemptionPolicy": "Never"}),
                "the string value of PreemptionPolicy (Never)",
            ),
        ] {
            let error = admit(&some, spec).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn one_default_class_at_most() {
        let objects = Objects::new(&[class("usual", 7, true)]);
        let request = Request::create("/apis/scheduling.k8s.io/v1/priorityclasses", "PriorityClass");
        let error = request
            .run(&Priority, &objects, Some(class("other", 1, true).1))
            .unwrap_err();
        assert!(
            error.ends_with("PriorityClass usual is already marked as default. Only one default can exist"),
            "{error}"
        );
        assert!(
            request
                .run(&Priority, &objects, Some(class("usual", 9, true).1))
                .is_ok()
        );
        assert!(
            request
                .run(&Priority, &objects, Some(class("other", 1, false).1))
                .is_ok()
        );
    }
}
