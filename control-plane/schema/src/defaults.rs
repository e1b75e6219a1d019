//! What upstream fills in when a field is absent: `facts/defaults.facts`, and functions for what a table cannot say.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::catalog::Kind;
use crate::facts;
use crate::quantity::Quantity;
use crate::types::{FieldType, TypeId, Types};

type Object = Map<String, Value>;

struct Rule {
    field: &'static str,
    fill: Fill,
    condition: Condition,
}

enum Fill {
    Constant(Value),
    Sibling(&'static str),
}

enum Condition {
    Always,
    /// The sibling has one of these values.
    When(&'static str, Vec<&'static str>),
    /// The sibling is absent.
    Unless(&'static str),
}

/// Fills in defaults. Run it on canonical objects (`fields::check`), where a zero value of an `omitempty` field is absent.
pub fn apply(kind: &Kind, object: &mut Value) {
    if let Some(custom) = &kind.custom {
        custom.default(object);
    } else if let Value::Object(fields) = object {
        apply_object(&kind.types, kind.root, fields);
    }
}

fn apply_object(types: &Types, id: TypeId, object: &mut Object) {
    let ty = types.get(id);
    apply_rules(types, id, object);
    for inline in &ty.inlines {
        apply_rules(types, inline.ty, object);
    }
    for field in types.fields(id) {
        if let Some(default) = field
            .default
            .as_ref()
            .filter(|_| !field.omit_zero && !object.contains_key(&field.name))
        {
            object.insert(field.name.clone(), default.clone());
        }
        if let Some(value) = object.get_mut(&field.name) {
            apply_value(types, &field.ty, value);
        }
    }
    if let Some(special) = special(&ty.name) {
        special(object);
    }
}

fn apply_value(types: &Types, ty: &FieldType, value: &mut Value) {
    match (ty, value) {
        (FieldType::Object(id), Value::Object(fields)) => apply_object(types, *id, fields),
        (FieldType::List(item), Value::Array(items)) => {
            items.iter_mut().for_each(|value| apply_value(types, item, value))
        }
        (FieldType::Map(item), Value::Object(entries)) => entries
            .values_mut()
            .for_each(|value| apply_value(types, item, value)),
        _ => {}
    }
}

fn apply_rules(types: &Types, id: TypeId, object: &mut Object) {
    for rule in rules().get(&types.get(id).name).into_iter().flatten() {
        // A zero value that Go holds by value is as good as absent.
        let pointer = types.field(id, rule.field).is_some_and(|field| field.pointer);
        let given = object
            .get(rule.field)
            .is_some_and(|value| pointer || (*value != json!("") && *value != json!(0)));
        let holds = match &rule.condition {
            Condition::Always => true,
            Condition::When(sibling, values) => object
                .get(*sibling)
                .and_then(Value::as_str)
                .is_some_and(|value| values.contains(&value)),
            Condition::Unless(sibling) => !object.contains_key(*sibling),
        };
        if !holds || given {
            continue;
        }
        let value = match &rule.fill {
            Fill::Constant(value) => Some(value.clone()),
            Fill::Sibling(sibling) => object.get(*sibling).cloned(),
        };
        if let Some(value) = value {
            object.insert(rule.field.to_owned(), value);
        }
    }
}

fn rules() -> &'static HashMap<String, Vec<Rule>> {
    static RULES: OnceLock<HashMap<String, Vec<Rule>>> = OnceLock::new();
    RULES.get_or_init(|| {
        let mut rules: HashMap<String, Vec<Rule>> = HashMap::new();
        for (type_name, rule) in facts::DEFAULTS.lines().filter_map(parse_rule) {
            rules.entry(facts::full_name(type_name)).or_default().push(rule);
        }
        rules
    })
}

fn parse_rule(line: &'static str) -> Option<(&'static str, Rule)> {
    let mut words = line.splitn(3, ' ');
    let (type_name, field, rest) = (words.next()?, words.next()?, words.next()?);
    if type_name.starts_with('#') {
        return None;
    }
    let (value, condition) = if let Some((value, when)) = rest.split_once(" when ") {
        let (sibling, values) = when.split_once('=')?;
        (value, Condition::When(sibling, values.split(',').collect()))
    } else if let Some((value, sibling)) = rest.split_once(" unless ") {
        (value, Condition::Unless(sibling))
    } else {
        (rest, Condition::Always)
    };
    let fill = match value.strip_prefix('=') {
        Some(sibling) => Fill::Sibling(sibling),
        None => Fill::Constant(serde_json::from_str(value).ok()?),
    };
    Some((
        type_name,
        Rule {
            field,
            fill,
            condition,
        },
    ))
}

fn special(type_name: &str) -> Option<fn(&mut Object)> {
    if type_name.ends_with(".apiextensions.v1.CustomResourceDefinitionSpec") {
        return Some(crate::custom::definition::defaults);
    }
    Some(match type_name.strip_prefix("io.k8s.api.")? {
        "core.v1.Pod" => pod,
        "core.v1.Container" | "core.v1.EphemeralContainer" => container,
        "core.v1.ResourceRequirements" | "core.v1.VolumeResourceRequirements" => resource_requirements,
        "core.v1.NodeStatus" => |status| round_lists(status, &["capacity", "allocatable"]),
        "core.v1.PodSpec" => service_account,
        "core.v1.PodStatus" => |status| {
            first_and_all(status, "podIP", "podIPs", Some("ip"));
            first_and_all(status, "hostIP", "hostIPs", Some("ip"));
        },
        "core.v1.NodeSpec" => |spec| first_and_all(spec, "podCIDR", "podCIDRs", None),
        "core.v1.Secret" => secret,
        "core.v1.Volume" => volume,
        "core.v1.ServiceSpec" => service_spec,
        "core.v1.ServicePort" => service_port,
        "core.v1.Namespace" => namespace,
        "core.v1.LimitRangeItem" => limit_range_item,
        "core.v1.ReplicationController" => replication_controller,
        "batch.v1.Job" => |job| {
            labels_from_template(job);
        },
        "networking.v1.NetworkPolicySpec" => network_policy_spec,
        "rbac.v1.Subject" => rbac_subject,
        "autoscaling.v2.HorizontalPodAutoscalerBehavior" => scaling_behavior,
        _ => return None,
    })
}

fn pod(pod: &mut Object) {
    let Some(Value::Object(spec)) = pod.get_mut("spec") else {
        return;
    };
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(Value::Object(resources)) = container.get_mut("resources") {
                requests_from_limits(resources);
            }
            for port in container
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                if host_network && !port.contains_key("hostPort") {
                    let number = port.get("containerPort").cloned().unwrap_or_default();
                    port.insert("hostPort".into(), number);
                }
            }
        }
    }
    spec.entry("enableServiceLinks").or_insert(Value::Bool(true));
}

/// The deprecated name follows the real one, and stands in for it.
fn service_account(spec: &mut Object) {
    let given = |key: &str| spec.get(key).cloned().filter(|name| name != "");
    if let Some(name) = given("serviceAccountName").or_else(|| given("serviceAccount")) {
        spec.insert("serviceAccountName".into(), name.clone());
        spec.insert("serviceAccount".into(), name);
    }
}

/// A single value that is the first of a list: whichever is absent follows the other.
fn first_and_all(object: &mut Object, single: &str, list: &str, key: Option<&str>) {
    let first = object
        .get(list)
        .and_then(|list| list.get(0))
        .and_then(|item| key.map_or(Some(item), |key| item.get(key)))
        .cloned();
    match (object.get(single).cloned(), first) {
        (None, Some(first)) => object.insert(single.to_owned(), first),
        (Some(value), None) => object.insert(
            list.to_owned(),
            json!([key.map_or_else(|| value.clone(), |key| json!({key: value}))]),
        ),
        _ => None,
    };
}

/// `stringData` is written, never read: it goes into `data`.
fn secret(secret: &mut Object) {
    let Some(Value::Object(texts)) = secret.remove("stringData") else {
        return;
    };
    if let Value::Object(data) = secret.entry("data").or_insert_with(|| json!({})) {
        data.extend(
            texts
                .into_iter()
                .map(|(key, text)| (key, STANDARD.encode(text.as_str().unwrap_or_default()).into())),
        );
    }
}

fn requests_from_limits(resources: &mut Object) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    if let Value::Object(requests) = resources.entry("requests").or_insert_with(|| json!({})) {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn container(container: &mut Object) {
    if !container.contains_key("imagePullPolicy") {
        let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
        container.insert("imagePullPolicy".into(), pull_policy(image).into());
    }
}

/// `Always` for the tag `latest` or none, unless a digest pins the image.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(name, digest)| (name, Some(digest)));
    let tag = name
        .rsplit('/')
        .next()
        .and_then(|last| last.split_once(':'))
        .map(|(_, tag)| tag);
    match (tag, digest) {
        (Some("latest"), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

fn resource_requirements(resources: &mut Object) {
    round_lists(resources, &["limits", "requests"]);
}

fn round_lists(object: &mut Object, names: &[&str]) {
    for name in names {
        for amount in object
            .get_mut(*name)
            .and_then(Value::as_object_mut)
            .into_iter()
            .flat_map(Map::values_mut)
        {
            if let Some(quantity) = amount.as_str().and_then(Quantity::parse) {
                *amount = quantity.round_to_milli().canonical().into();
            }
        }
    }
}

fn volume(volume: &mut Object) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".into(), json!({}));
    }
    if let Some(Value::Object(image)) = volume.get_mut("image")
        && !image.contains_key("pullPolicy")
    {
        let policy = pull_policy(image.get("reference").and_then(Value::as_str).unwrap_or_default());
        image.insert("pullPolicy".into(), policy.into());
    }
}

fn service_spec(spec: &mut Object) {
    if spec.get("sessionAffinity").and_then(Value::as_str) == Some("None") {
        spec.remove("sessionAffinityConfig");
    }
    let external =
        spec.get("externalIPs").is_some() && spec.get("type").and_then(Value::as_str) == Some("ClusterIP");
    if external {
        spec.entry("externalTrafficPolicy")
            .or_insert_with(|| "Cluster".into());
    }
}

fn service_port(port: &mut Object) {
    if matches!(port.get("targetPort"), Some(target) if *target == json!(0) || *target == json!("")) {
        let number = port.get("port").cloned().unwrap_or_default();
        port.insert("targetPort".into(), number);
    }
}

fn namespace(namespace: &mut Object) {
    let Some(Value::Object(metadata)) = namespace.get_mut("metadata") else {
        return;
    };
    let Some(name) = metadata.get("name").cloned().filter(|name| name != "") else {
        return;
    };
    if let Value::Object(labels) = metadata.entry("labels").or_insert_with(|| json!({})) {
        labels.insert("kubernetes.io/metadata.name".into(), name);
    }
}

fn limit_range_item(item: &mut Object) {
    if item.get("type").and_then(Value::as_str) != Some("Container") {
        return;
    }
    for (target, source) in [
        ("default", "max"),
        ("defaultRequest", "default"),
        ("defaultRequest", "min"),
    ] {
        let amounts = item
            .get(source)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        if amounts.is_empty() {
            continue;
        }
        if let Value::Object(filled) = item.entry(target).or_insert_with(|| json!({})) {
            for (name, amount) in amounts {
                filled.entry(name).or_insert(amount);
            }
        }
    }
}

fn labels_from_template(object: &mut Object) -> Option<Value> {
    let labels = object.get("spec")?.pointer("/template/metadata/labels")?.clone();
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.entry("labels").or_insert_with(|| labels.clone());
    }
    Some(labels)
}

fn replication_controller(controller: &mut Object) {
    if let (Some(labels), Some(Value::Object(spec))) =
        (labels_from_template(controller), controller.get_mut("spec"))
    {
        spec.entry("selector").or_insert(labels);
    }
}

fn network_policy_spec(spec: &mut Object) {
    if !spec.contains_key("policyTypes") {
        let mut types = vec!["Ingress"];
        if spec.get("egress").is_some() {
            types.push("Egress");
        }
        spec.insert("policyTypes".into(), json!(types));
    }
}

fn rbac_subject(subject: &mut Object) {
    if subject.get("kind").and_then(Value::as_str) == Some("ServiceAccount")
        && subject.get("apiGroup").and_then(Value::as_str) == Some("")
    {
        subject.remove("apiGroup");
    }
}

/// A partly given scaling rule takes the rest of upstream's rule.
fn scaling_behavior(behavior: &mut Object) {
    let full = [
        (
            "scaleUp",
            json!({"policies": [{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}],
            "selectPolicy": "Max", "stabilizationWindowSeconds": 0}),
        ),
        (
            "scaleDown",
            json!({"policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}], "selectPolicy": "Max"}),
        ),
    ];
    for (name, defaults) in full {
        if let (Value::Object(rules), Value::Object(defaults)) =
            (behavior.entry(name).or_insert_with(|| json!({})), defaults)
        {
            for (key, value) in defaults {
                rules.entry(key).or_insert(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, GroupVersionKind};
    use crate::fields;

    fn defaulted(api_version: &str, kind: &str, mut object: Value) -> Value {
        let kind = Catalog::builtin()
            .kind(&GroupVersionKind::from_api_version(api_version, kind))
            .expect(kind)
            .clone();
        assert_eq!(fields::check(&kind, &mut object), Ok(vec![]));
        apply(&kind, &mut object);
        let once = object.clone();
        apply(&kind, &mut object);
        assert_eq!(object, once, "defaulting again changes nothing");
        object
    }

    /// A misspelt type or field would silently never apply.
    #[test]
    fn every_rule_names_a_type_and_fields_that_exist() {
        let types = Types::builtin();
        let lines = facts::DEFAULTS
            .lines()
            .filter(|line| !line.starts_with('#'))
            .count();
        assert_eq!(rules().values().map(Vec::len).sum::<usize>(), lines);
        for (name, rules) in rules() {
            let id = types.by_name(name).unwrap_or_else(|| panic!("{name}"));
            for rule in rules {
                let siblings = match (&rule.fill, &rule.condition) {
                    (Fill::Sibling(sibling), _)
                    | (_, Condition::When(sibling, _) | Condition::Unless(sibling)) => Some(*sibling),
                    _ => None,
                };
                for field in siblings.into_iter().chain([rule.field]) {
                    assert!(types.field(id, field).is_some(), "{name}.{field}");
                }
            }
        }
    }

    #[test]
    fn pod_gets_upstreams_defaults() {
        let pod = defaulted(
            "v1",
            "Pod",
            json!({"metadata": {"name": "x"}, "spec": {"hostNetwork": true, "volumes": [{"name": "v"}],
            "containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": 80}}}]}}),
        );
        assert_eq!(
            pod["spec"],
            json!({
            "containers": [{"name": "c", "image": "nginx", "imagePullPolicy": "Always", "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}, "failureThreshold": 3, "periodSeconds": 10,
                    "successThreshold": 1, "timeoutSeconds": 1}}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "hostNetwork": true, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
            "volumes": [{"name": "v", "emptyDir": {}}]})
        );
    }

    #[test]
    fn templates_do_not_get_what_only_pods_get() {
        let deployment = defaulted(
            "apps/v1",
            "Deployment",
            json!({"spec": {"template": {"spec": {"containers": [
            {"name": "c", "image": "a/b:1", "resources": {"limits": {"cpu": "1"}}}]}}}}),
        );
        let spec = &deployment["spec"];
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(
            (
                &spec["replicas"],
                &spec["revisionHistoryLimit"],
                &spec["progressDeadlineSeconds"]
            ),
            (&json!(1), &json!(10), &json!(600))
        );
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["containers"][0]["resources"], json!({"limits": {"cpu": "1"}}));
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert!(pod.get("enableServiceLinks").is_none());
    }

    #[test]
    fn other_kinds() {
        for (api_version, kind, object, pointer, expected) in [
            (
                "v1",
                "Service",
                json!({"spec": {"ports": [{"port": 80}]}}),
                "/spec",
                json!({"type": "ClusterIP", "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster", "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}]}),
            ),
            (
                "v1",
                "Service",
                json!({"spec": {"sessionAffinity": "ClientIP"}}),
                "/spec/sessionAffinityConfig",
                json!({"clientIP": {"timeoutSeconds": 10800}}),
            ),
            (
                "v1",
                "Namespace",
                json!({"metadata": {"name": "a"}}),
                "/metadata/labels",
                json!({"kubernetes.io/metadata.name": "a"}),
            ),
            ("v1", "Secret", json!({}), "/type", json!("Opaque")),
            (
                "v1",
                "Secret",
                json!({"data": {"b": "Yg=="}, "stringData": {"a": "a"}}),
                "/data",
                json!({"a": "YQ==", "b": "Yg=="}),
            ),
            (
                "v1",
                "Pod",
                json!({"spec": {"serviceAccount": "s", "containers": []}}),
                "/spec/serviceAccountName",
                json!("s"),
            ),
            (
                "v1",
                "Pod",
                json!({"status": {"podIP": "1.2.3.4"}}),
                "/status/podIPs",
                json!([{"ip": "1.2.3.4"}]),
            ),
            (
                "v1",
                "Node",
                json!({"spec": {"podCIDR": "10.0.0.0/24"}}),
                "/spec/podCIDRs",
                json!(["10.0.0.0/24"]),
            ),
            (
                "v1",
                "Node",
                json!({"spec": {"podCIDRs": ["10.0.0.0/24"]}}),
                "/spec/podCIDR",
                json!("10.0.0.0/24"),
            ),
            (
                "apps/v1",
                "Deployment",
                json!({"spec": {"strategy": {"type": "Recreate"}}}),
                "/spec/strategy",
                json!({"type": "Recreate"}),
            ),
            (
                "apps/v1",
                "StatefulSet",
                json!({}),
                "/spec/updateStrategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
            ),
            (
                "apps/v1",
                "StatefulSet",
                json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}),
                "/spec/updateStrategy",
                json!({"type": "OnDelete"}),
            ),
            ("batch/v1", "Job", json!({}), "/spec/completions", json!(1)),
            (
                "rbac.authorization.k8s.io/v1",
                "RoleBinding",
                json!({"subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
                "/subjects",
                json!([{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}, {"kind": "ServiceAccount", "name": "s"}]),
            ),
            (
                "networking.k8s.io/v1",
                "NetworkPolicy",
                json!({}),
                "/spec/policyTypes",
                json!(["Ingress"]),
            ),
        ] {
            let result = defaulted(api_version, kind, object);
            assert_eq!(result.pointer(pointer), Some(&expected), "{kind} {pointer}");
        }
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, expected) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("r:5000/a", "Always"),
            ("r:5000/a:1", "IfNotPresent"),
            ("a@sha256:0", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), expected, "{image}");
        }
    }
}
