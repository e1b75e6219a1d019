//! PodSecurity: namespaces say by labels how careful their pods must be; pods are refused, or their makers warned.
//! Upstream: `k8s.io/pod-security-admission`.

mod checks;
mod policy;

use std::collections::BTreeMap;

use async_trait::async_trait;
use checks::{Violation, violations};
use policy::{Level, Policy, Standard};
use serde_json::Value;

use super::{forbidden, is, items, text};
use crate::audit;
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;
use crate::warnings;

/// So many pods of a namespace are looked at when its labels change.
const MOST_PODS: usize = 3000;
const IGNORED_SUBRESOURCES: &[&str] = &[
    "attach",
    "binding",
    "eviction",
    "exec",
    "log",
    "portforward",
    "proxy",
    "status",
];

pub struct PodSecurity;

#[async_trait]
impl Admission for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        let writes = matches!(context.operation, Operation::Create | Operation::Update);
        let Some(object) = object.filter(|_| writes) else {
            return Ok(());
        };
        let info = context.info;
        if is(context, "", "namespaces") {
            return check_namespace(context, object).await;
        }
        if info.group.is_empty() && info.resource == "pods" {
            let significant = context.old.is_none_or(|old| is_significant(object, old));
            if IGNORED_SUBRESOURCES.contains(&info.subresource.as_str()) || !significant {
                return Ok(());
            }
            return check_pod(context, object, &object["metadata"], &object["spec"], true).await;
        }
        match template(context, object) {
            Some(template) if info.subresource.is_empty() => {
                check_pod(context, object, &template["metadata"], &template["spec"], false).await
            }
            _ => Ok(()),
        }
    }
}

/// The pod template of a workload.
fn template<'a>(context: &AdmissionContext<'_>, object: &'a Value) -> Option<&'a Value> {
    let template = match (context.info.group.as_str(), context.info.resource.as_str()) {
        ("", "podtemplates") => &object["template"],
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    template.is_object().then_some(template)
}

async fn check_pod(
    context: &AdmissionContext<'_>,
    object: &Value,
    metadata: &Value,
    spec: &Value,
    enforce: bool,
) -> Result<(), ApiError> {
    let namespace = &context.info.namespace;
    let found = context.reader.get("", "namespaces", "", namespace).await?;
    let found =
        found.ok_or_else(|| ApiError::internal(format!("failed to lookup namespace {namespace:?}")))?;
    let (policy, causes) = Policy::of(&found);
    if !causes.is_empty() {
        let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        let why = format!("Failed to parse policy: {}", fields.join(", "));
        audit::annotate("pod-security.kubernetes.io/error", why);
    }
    let against = |standard: Standard| {
        let violations = violations(standard, metadata, spec);
        let list: Vec<String> = violations.iter().map(ToString::to_string).collect();
        (!list.is_empty()).then(|| format!("violate PodSecurity \"{standard}\": {}", list.join(", ")))
    };
    if enforce {
        audit::annotate(
            "pod-security.kubernetes.io/enforce-policy",
            policy.enforce.to_string(),
        );
    }
    if let Some(why) = against(policy.audit) {
        audit::annotate(
            "pod-security.kubernetes.io/audit-violations",
            format!("would {why}"),
        );
    }
    if let Some(why) = against(policy.enforce).filter(|_| enforce) {
        let why = why.replacen("violate", "violates", 1);
        return Err(forbidden(context, Some(object), why));
    }
    if let Some(why) = against(policy.warn) {
        warnings::add(format!("would {why}"));
    }
    Ok(())
}

/// Of a running pod, only images and seccomp annotations can change; and debug containers are added.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let annotation = |pod: &Value, key: &str| text(&pod["metadata"]["annotations"][key]).to_owned();
    let changed = |key: &str| annotation(pod, key) != annotation(old, key);
    let differs = |list: &str| {
        let before = items(&old["spec"][list]);
        items(&pod["spec"][list]).iter().any(|container| {
            let name = text(&container["name"]);
            let twin = before.iter().find(|twin| twin["name"] == container["name"]);
            twin.is_none_or(|twin| twin["image"] != container["image"])
                || changed(&format!("container.seccomp.security.alpha.kubernetes.io/{name}"))
        })
    };
    changed("seccomp.security.alpha.kubernetes.io/pod")
        || ["containers", "initContainers", "ephemeralContainers"]
            .into_iter()
            .any(differs)
}

/// Labels must mean something, and pods that would not be let in again are told of.
async fn check_namespace(context: &AdmissionContext<'_>, namespace: &Value) -> Result<(), ApiError> {
    let (policy, causes) = Policy::of(namespace);
    let before = context.old.map(Policy::of);
    let name = text(&namespace["metadata"]["name"]);
    if !causes.is_empty() && before.as_ref().is_none_or(|(_, before)| *before != causes) {
        return Err(ApiError::invalid("", "Namespace", name, causes));
    }
    let Some((before, _)) = before else {
        return Ok(());
    };
    let (now, then) = (policy.enforce, before.enforce);
    let relaxed = now.minor == then.minor && now.level <= then.level;
    if now.level == Level::Privileged || relaxed {
        return Ok(());
    }
    let pods = context.reader.list("", "pods", name).await?;
    for warning in about_existing_pods(name, now, &pods) {
        warnings::add(warning);
    }
    Ok(())
}

fn about_existing_pods(namespace: &str, standard: Standard, pods: &[Value]) -> Vec<String> {
    let mut by_reason: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in pods.iter().take(MOST_PODS) {
        let found: Vec<Violation> = violations(standard, &pod["metadata"], &pod["spec"]);
        if !found.is_empty() {
            let reasons: Vec<&str> = found.iter().map(|violation| violation.reason.as_str()).collect();
            let names = by_reason.entry(reasons.join(", ")).or_default();
            names.push(text(&pod["metadata"]["name"]));
        }
    }
    let mut warnings = Vec::new();
    if pods.len() > MOST_PODS {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {MOST_PODS} of {} existing pods",
            pods.len()
        ));
    }
    if !by_reason.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{standard}\""
        ));
    }
    let mut of_pods: Vec<String> = by_reason
        .into_iter()
        .filter_map(|(reasons, names)| {
            let first = names.iter().min()?;
            Some(match names.len() {
                1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                many => format!("{first} (and {} other pods): {reasons}", many - 1),
            })
        })
        .collect();
    of_pods.sort();
    warnings.extend(of_pods);
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::{Objects, Request};
    use super::*;

    fn namespace(labels: &[(&str, &str)]) -> Value {
        let labels: Value = labels
            .iter()
            .map(|(mode, level)| (format!("pod-security.kubernetes.io/{mode}"), json!(level)))
            .collect();
        json!({"metadata": {"name": "ns", "labels": labels}})
    }

    fn privileged_pod() -> Value {
        let container = json!({"name": "c", "image": "i", "securityContext": {"privileged": true}});
        json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [container]}})
    }

    /// The outcome, and the warnings on the way.
    fn run(request: &Request, objects: &Objects, object: Value) -> (Result<(), String>, Vec<String>) {
        let run = async { request.run(&PodSecurity, objects, Some(object)).map(drop) };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(warnings::collecting(run))
    }

    const WHY: &str = r#"PodSecurity "baseline:latest": privileged (container "c" must not set securityContext.privileged=true)"#;

    #[test]
    fn pods_are_refused_or_warned_about() {
        let create = Request::create("/api/v1/namespaces/ns/pods", "Pod");
        let with = |labels| Objects::new(&[("namespaces", namespace(labels))]);
        let (refused, _) = run(&create, &with(&[("enforce", "baseline")]), privileged_pod());
        assert_eq!(
            refused.unwrap_err(),
            format!(r#"pods "p" is forbidden: violates {WHY}"#)
        );
        let (allowed, warned) = run(&create, &with(&[("warn", "baseline")]), privileged_pod());
        assert_eq!((allowed, warned), (Ok(()), vec![format!("would violate {WHY}")]));
        assert_eq!(run(&create, &with(&[]), privileged_pod()), (Ok(()), vec![]));
    }

    #[test]
    fn workloads_are_only_warned_about() {
        let labels = [("enforce", "baseline"), ("warn", "baseline")];
        let objects = Objects::new(&[("namespaces", namespace(&labels))]);
        let create = Request::create("/apis/batch/v1/namespaces/ns/cronjobs", "CronJob");
        let template = json!({"spec": privileged_pod()["spec"]});
        let object =
            json!({"metadata": {"name": "j"}, "spec": {"jobTemplate": {"spec": {"template": template}}}});
        assert_eq!(
            run(&create, &objects, object),
            (Ok(()), vec![format!("would violate {WHY}")])
        );
    }

    #[test]
    fn running_pods_are_left_alone_until_they_change() {
        let objects = Objects::new(&[("namespaces", namespace(&[("enforce", "baseline")]))]);
        let update = Request::update("/api/v1/namespaces/ns/pods/p", "Pod", privileged_pod());
        let mut labelled = privileged_pod();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(run(&update, &objects, labelled).0, Ok(()));
        let mut changed = privileged_pod();
        changed["spec"]["containers"][0]["image"] = json!("other");
        assert!(run(&update, &objects, changed).0.is_err());
        let debug = Request::update(
            "/api/v1/namespaces/ns/pods/p/ephemeralcontainers",
            "Pod",
            privileged_pod(),
        );
        let mut debugged = privileged_pod();
        debugged["spec"]["ephemeralContainers"] = json!([{"name": "d", "image": "i"}]);
        assert!(run(&debug, &objects, debugged.clone()).0.is_err());
        let status = Request::update("/api/v1/namespaces/ns/pods/p/status", "Pod", privileged_pod());
        assert_eq!(run(&status, &objects, debugged).0, Ok(()));
    }

    #[test]
    fn new_levels_tell_of_the_pods_there_are() {
        let mut other = privileged_pod();
        other["metadata"]["name"] = json!("o");
        let objects = Objects::new(&[("pods", privileged_pod()), ("pods", other)]);
        let update = Request::update("/api/v1/namespaces/ns", "Namespace", namespace(&[]));
        let (allowed, warned) = run(&update, &objects, namespace(&[("enforce", "baseline")]));
        assert_eq!(allowed, Ok(()));
        assert_eq!(
            warned,
            [
                r#"existing pods in namespace "ns" violate the new PodSecurity enforce level "baseline:latest""#,
                "o (and 1 other pod): privileged",
            ]
        );
        let relaxed = Request::update(
            "/api/v1/namespaces/ns",
            "Namespace",
            namespace(&[("enforce", "restricted")]),
        );
        assert_eq!(
            run(&relaxed, &objects, namespace(&[("enforce", "baseline")])).1,
            [""; 0]
        );
    }

    #[test]
    fn new_labels_must_mean_something() {
        let bad = || namespace(&[("enforce", "strict")]);
        let create = Request::create("/api/v1/namespaces", "Namespace");
        let (refused, _) = run(&create, &Objects::default(), bad());
        assert_eq!(
            refused.unwrap_err(),
            r#"Namespace "ns" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strict": must be one of privileged, baseline, restricted"#
        );
        let update = Request::update("/api/v1/namespaces/ns", "Namespace", bad());
        assert_eq!(run(&update, &Objects::default(), bad()).0, Ok(()));
    }
}
