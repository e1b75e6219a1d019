//! Pods stay five minutes on a node that is not ready or not reachable, unless they say otherwise.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{is, items, list_mut, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct DefaultTolerationSeconds;

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

#[async_trait]
impl Admission for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, pod: &mut Value) -> Result<(), ApiError> {
        let writes = matches!(context.operation, Operation::Create | Operation::Update);
        if !writes || !is(context, "", "pods") {
            return Ok(());
        }
        for taint in TAINTS {
            if !items(&pod["spec"]["tolerations"])
                .iter()
                .any(|toleration| covers(toleration, taint))
            {
                list_mut(&mut pod["spec"], "tolerations").push(json!({
                    "key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS,
                }));
            }
        }
        Ok(())
    }
}

fn covers(toleration: &Value, taint: &str) -> bool {
    matches!(text(&toleration["effect"]), "" | "NoExecute")
        && (text(&toleration["key"]).is_empty() || toleration["key"] == taint)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Objects, Request};
    use super::*;

    #[test]
    fn missing_tolerations_are_added_once() {
        let request = Request::create("/api/v1/namespaces/ns/pods", "Pod");
        let admit = |spec: Value| {
            let pod = request.run(
                &DefaultTolerationSeconds,
                &Objects::default(),
                Some(json!({"spec": spec})),
            );
            pod.unwrap().unwrap()["spec"]["tolerations"].take()
        };
        let both = admit(json!({}));
        assert_eq!(
            both[0],
            json!({"key": TAINTS[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
        );
        assert_eq!(both.as_array().unwrap().len(), 2);
        assert_eq!(admit(json!({"tolerations": both})), both);
        let everything = json!([{"operator": "Exists"}]);
        assert_eq!(admit(json!({"tolerations": everything})), everything);
        let other_effect = json!([{"key": TAINTS[0], "operator": "Exists", "effect": "NoSchedule"}]);
        assert_eq!(
            admit(json!({"tolerations": other_effect}))
                .as_array()
                .unwrap()
                .len(),
            3
        );
    }
}
