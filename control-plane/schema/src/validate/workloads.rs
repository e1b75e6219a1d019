//! Controllers of pods: selectors, templates, strategies.

use serde_json::{Map, Value, json};

use super::cause::Cause;
use super::pods;

/// Does the selector choose the labels? Unknown operators choose nothing.
fn selects(selector: &Value, labels: &Value) -> bool {
    let by_label = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let by_expression = selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
        .all(|requirement| {
            let label = labels.get(requirement["key"].as_str().unwrap_or_default());
            let listed = label.is_some_and(|label| {
                requirement["values"]
                    .as_array()
                    .is_some_and(|values| values.contains(label))
            });
            match requirement["operator"].as_str().unwrap_or_default() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        });
    by_label && by_expression
}

fn is_blank(selector: &Value) -> bool {
    selector.as_object().is_none_or(Map::is_empty)
}

pub(super) fn template(template: &Value, path: &str) -> Vec<Cause> {
    let mut causes = pods::spec(&template["spec"], &format!("{path}.spec"));
    if template["spec"].get("ephemeralContainers").is_some() {
        causes.push(Cause::forbidden(
            &format!("{path}.spec.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
    causes
}

pub(super) fn controller(plural: &str, object: &Value) -> Vec<Cause> {
    let spec = &object["spec"];
    let mut causes = Vec::new();
    let name = plural.trim_end_matches('s');
    if spec.get("selector").is_some() {
        if is_blank(&spec["selector"]) {
            causes.push(Cause::invalid(
                "spec.selector",
                &spec["selector"],
                &format!("empty selector is invalid for {name}"),
            ));
        } else if !selects(&spec["selector"], &spec["template"]["metadata"]["labels"]) {
            let labels = spec
                .pointer("/template/metadata/labels")
                .cloned()
                .unwrap_or_else(|| json!({}));
            causes.push(Cause::invalid(
                "spec.template.metadata.labels",
                &labels,
                "`selector` does not match template `labels`",
            ));
        }
    }
    if plural == "statefulsets" {
        causes.extend(template(&with_claims(spec), "spec.template"));
    } else {
        causes.extend(template(&spec["template"], "spec.template"));
    }
    causes.extend(always_restarts(spec));
    match plural {
        "deployments" => causes.extend(deployment(spec)),
        "daemonsets" => causes.extend(rolling_update(&spec["updateStrategy"], "spec.updateStrategy")),
        _ => {}
    }
    causes
}

/// A StatefulSet's template with the volumes that its claims will become: containers may mount them.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let claims = spec["volumeClaimTemplates"].as_array().into_iter().flatten();
    let mut volumes = template["spec"]["volumes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    for claim in claims {
        let name = &claim["metadata"]["name"];
        if !volumes.iter().any(|volume| volume["name"] == *name) {
            volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
        }
    }
    if !volumes.is_empty() && template["spec"].is_object() {
        template["spec"]["volumes"] = volumes.into();
    }
    template
}

fn always_restarts(spec: &Value) -> Option<Cause> {
    let policy = spec.pointer("/template/spec/restartPolicy")?;
    // A policy that does not exist at all has been refused already.
    matches!(policy.as_str(), Some("OnFailure" | "Never"))
        .then(|| Cause::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]))
}

fn deployment(spec: &Value) -> Vec<Cause> {
    let strategy = &spec["strategy"];
    let mut causes = Vec::new();
    if strategy["type"] == "Recreate" && strategy.get("rollingUpdate").is_some() {
        causes.push(Cause::forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ));
    } else {
        causes.extend(rolling_update(strategy, "spec.strategy"));
    }
    if let (Some(deadline), minimum) = (
        spec["progressDeadlineSeconds"].as_i64(),
        spec["minReadySeconds"].as_i64().unwrap_or(0),
    ) && deadline >= 0
        && deadline <= minimum
    {
        causes.push(Cause::invalid(
            "spec.progressDeadlineSeconds",
            &json!(deadline),
            "must be greater than minReadySeconds",
        ));
    }
    causes
}

fn rolling_update(strategy: &Value, path: &str) -> Vec<Cause> {
    let rolling = &strategy["rollingUpdate"];
    let zero = |value: &Value| *value == json!(0) || value == "0%";
    let mut causes = Vec::new();
    if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
        causes.push(Cause::invalid(
            &format!("{path}.rollingUpdate.maxUnavailable"),
            &rolling["maxUnavailable"],
            "may not be 0 when `maxSurge` is 0",
        ));
    }
    let percent = rolling["maxUnavailable"]
        .as_str()
        .and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok());
    if percent.is_some_and(|percent| percent > 100) {
        causes.push(Cause::invalid(
            &format!("{path}.rollingUpdate.maxUnavailable"),
            &rolling["maxUnavailable"],
            "must not be greater than 100%",
        ));
    }
    causes
}

pub(super) fn replication_controller(controller: &Value) -> Vec<Cause> {
    let spec = &controller["spec"];
    let mut causes = Vec::new();
    if is_blank(&spec["selector"]) {
        causes.push(Cause::required("spec.selector", ""));
    }
    if spec.get("template").is_none() {
        causes.push(Cause::required("spec.template", ""));
        return causes;
    }
    if !selects(
        &json!({"matchLabels": spec["selector"]}),
        &spec["template"]["metadata"]["labels"],
    ) {
        causes.push(Cause::invalid(
            "spec.template.metadata.labels",
            &spec["template"]["metadata"]["labels"],
            "`selector` does not match template `labels`",
        ));
    }
    causes.extend(template(&spec["template"], "spec.template"));
    causes.extend(always_restarts(spec));
    causes
}

pub(super) fn stateful_set_update(set: &Value, old: &Value) -> Vec<Cause> {
    const MUTABLE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |set: &Value| {
        let mut spec = set["spec"].clone();
        if let Value::Object(fields) = &mut spec {
            fields.retain(|key, _| !MUTABLE.contains(&key.as_str()));
        }
        spec
    };
    if rest(set) == rest(old) {
        return Vec::new();
    }
    let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
    vec![Cause::forbidden("spec", detail)]
}

pub(super) fn job(spec: &Value, path: &str) -> Vec<Cause> {
    let mut causes = template(&spec["template"], &format!("{path}.template"));
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "Always" {
        causes.push(Cause::required(
            &format!("{path}.template.spec.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        ));
    }
    if spec["completionMode"] == "Indexed" && spec.get("completions").is_none() {
        causes.push(Cause::required(
            &format!("{path}.completions"),
            "when completion mode is Indexed",
        ));
    }
    causes
}

pub(super) fn job_update(job: &Value, old: &Value) -> Vec<Cause> {
    let (spec, before) = (&job["spec"], &old["spec"]);
    let mut causes = Vec::new();
    if spec["completions"] != before["completions"] && spec["completionMode"] != "Indexed" {
        causes.push(Cause::invalid(
            "spec.completions",
            &spec["completions"],
            "field is immutable",
        ));
    }
    if spec["template"] != before["template"] && before["suspend"] != true {
        causes.push(Cause::invalid(
            "spec.template",
            &spec["template"],
            "field is immutable",
        ));
    }
    causes
}

pub(super) fn autoscaler(autoscaler: &Value) -> Vec<Cause> {
    let spec = &autoscaler["spec"];
    let mut causes = Vec::new();
    let minimum = spec["minReplicas"].as_i64().unwrap_or(1);
    if minimum < 1 {
        causes.push(Cause::invalid(
            "spec.minReplicas",
            &spec["minReplicas"],
            "must be greater than or equal to 1",
        ));
    }
    if spec["maxReplicas"]
        .as_i64()
        .is_some_and(|maximum| maximum > 0 && maximum < minimum)
    {
        causes.push(Cause::invalid(
            "spec.maxReplicas",
            &spec["maxReplicas"],
            "must be greater than or equal to `minReplicas`",
        ));
    }
    causes
}

/// The job's name is the schedule's plus eleven characters.
const LONGEST_CRON_JOB: usize = 52;

pub(super) fn cron_job(cron: &Value) -> Vec<Cause> {
    let mut causes = job(&cron["spec"]["jobTemplate"]["spec"], "spec.jobTemplate.spec");
    let name = &cron["metadata"]["name"];
    if name.as_str().is_some_and(|name| name.len() > LONGEST_CRON_JOB) {
        let detail = format!("must be no more than {LONGEST_CRON_JOB} characters");
        causes.push(Cause::invalid("metadata.name", name, &detail));
    }
    causes
}

pub(super) fn disruption_budget(budget: &Value) -> Vec<Cause> {
    let spec = &budget["spec"];
    if spec.get("minAvailable").is_some() && spec.get("maxUnavailable").is_some() {
        return vec![Cause::invalid(
            "spec",
            spec,
            "minAvailable and maxUnavailable cannot be both set",
        )];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusals, update_refusals};
    use super::*;

    fn deployment(changes: Value) -> Value {
        let mut spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}});
        spec.as_object_mut()
            .expect("object")
            .extend(changes.as_object().expect("object").clone());
        json!({"spec": spec})
    }

    #[test]
    fn deployments() {
        for (changes, expected) in [
            (json!({}), vec![]),
            (json!({"selector": null}), vec!["spec.selector: Required value"]),
            (
                json!({"selector": {}}),
                vec!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
            ),
            (
                json!({"selector": {"matchLabels": {"a": "c"}}}),
                vec![
                    r#"spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`"#,
                ],
            ),
            (
                json!({"selector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}),
                vec![],
            ),
            (
                json!({"replicas": -1}),
                vec!["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                json!({"strategy": {"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}}),
                vec![
                    "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
                ],
            ),
            (
                json!({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}),
                vec![
                    "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
                ],
            ),
            (
                json!({"minReadySeconds": 600}),
                vec![
                    "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
                ],
            ),
        ] {
            assert_eq!(
                refusals("apps", "v1", "deployments", deployment(changes.clone())),
                expected,
                "{changes}"
            );
        }
        let mut never = deployment(json!({}));
        never["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
        assert_eq!(
            refusals("apps", "v1", "deployments", never),
            [r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#]
        );
    }

    #[test]
    fn jobs_end_and_stay() {
        let job = |policy: &str, image: &str| json!({"spec": {"template": {"spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": image}]}}}});
        assert_eq!(
            refusals("batch", "v1", "jobs", job("Always", "i")),
            [r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#]
        );
        let text = update_refusals("batch", "v1", "jobs", job("Never", "i"), job("Never", "j"));
        assert!(
            text.len() == 1
                && text[0].starts_with("spec.template: Invalid value: ")
                && text[0].ends_with("field is immutable"),
            "{text:?}"
        );
    }

    #[test]
    fn stateful_sets_scale_and_roll() {
        let set = |extra: Value| {
            let mut set = deployment(json!({"serviceName": "s"}));
            set["spec"]
                .as_object_mut()
                .expect("object")
                .extend(extra.as_object().expect("object").clone());
            set
        };
        let mut mounting = set(
            json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}),
        );
        mounting["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}]);
        assert_eq!(refusals("apps", "v1", "statefulsets", mounting), [] as [&str; 0]);
        assert!(
            update_refusals(
                "apps",
                "v1",
                "statefulsets",
                set(json!({})),
                set(json!({"replicas": 3}))
            )
            .is_empty()
        );
        assert_eq!(
            update_refusals(
                "apps",
                "v1",
                "statefulsets",
                set(json!({})),
                set(json!({"serviceName": "t"}))
            )
            .len(),
            1
        );
    }
}
