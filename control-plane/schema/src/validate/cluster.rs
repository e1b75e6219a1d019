//! Kinds that configure the cluster: classes, webhooks, quotas, certificates, networks, schedules.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::cause::Cause;
use super::{admission, names, net};
use crate::quantity::Quantity;

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

pub(super) fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

pub(super) fn priority_class(class: &Value) -> Vec<Cause> {
    let (name, value) = (
        text(&class["metadata"], "name"),
        class["value"].as_i64().unwrap_or(0),
    );
    if name.starts_with("system-") {
        let known = SYSTEM_CLASSES.contains(&(name, value)) && class["globalDefault"] != true;
        let detail = "priority class names with 'system-' prefix are reserved for system use only. error: ";
        let why = format!("{detail}{name} is not a known system priority class");
        return (!known)
            .then(|| Cause::forbidden("metadata.name", &why))
            .into_iter()
            .collect();
    }
    let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
    (value > HIGHEST_USER_PRIORITY)
        .then(|| Cause::forbidden("value", &detail))
        .into_iter()
        .collect()
}

pub(super) fn priority_class_update(class: &Value, old: &Value) -> Vec<Cause> {
    (class["value"] != old["value"])
        .then(|| Cause::forbidden("value", "may not be changed in an update."))
        .into_iter()
        .collect()
}

pub(super) fn webhooks(configuration: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut seen = HashSet::new();
    for (index, webhook) in items(configuration, "webhooks").iter().enumerate() {
        let field = |key: &str| format!("webhooks[{index}].{key}");
        let name = text(webhook, "name");
        if name.is_empty() {
            causes.push(Cause::required(&field("name"), ""));
        } else {
            let problem = names::dns_subdomain_problem(name).or_else(|| {
                (name.split('.').count() < 3)
                    .then(|| "should be a domain with at least three segments separated by dots".to_owned())
            });
            causes.extend(problem.map(|problem| Cause::invalid(&field("name"), &webhook["name"], &problem)));
            if !seen.insert(name) {
                causes.push(Cause::duplicate(&field("name"), &webhook["name"]));
            }
        }
        let versions = items(webhook, "admissionReviewVersions");
        if versions.is_empty() {
            let detail = "must specify one of v1, v1beta1";
            causes.push(Cause::required(&field("admissionReviewVersions"), detail));
        } else if !versions
            .iter()
            .any(|version| version == "v1" || version == "v1beta1")
        {
            let shown = &webhook["admissionReviewVersions"];
            let detail = "must include at least one of v1, v1beta1";
            causes.push(Cause::invalid(&field("admissionReviewVersions"), shown, detail));
        }
        match text(webhook, "sideEffects") {
            "" => causes.push(Cause::required(
                &field("sideEffects"),
                "must specify one of None, NoneOnDryRun",
            )),
            "Some" | "Unknown" => {
                let known = ["None", "NoneOnDryRun"];
                causes.push(Cause::not_supported(
                    &field("sideEffects"),
                    &webhook["sideEffects"],
                    &known,
                ));
            }
            _ => {}
        }
        if webhook["timeoutSeconds"]
            .as_i64()
            .is_some_and(|seconds| !(1..=30).contains(&seconds))
        {
            let detail = "the timeout value must be between 1 and 30 seconds";
            causes.push(Cause::invalid(
                &field("timeoutSeconds"),
                &webhook["timeoutSeconds"],
                detail,
            ));
        }
        for (place, rule) in items(webhook, "rules").iter().enumerate() {
            causes.extend(admission_rule(rule, &field(&format!("rules[{place}]"))));
        }
        let variables = ["object", "oldObject", "request", "authorizer"];
        let conditions = &webhook["matchConditions"];
        causes.extend(admission::match_conditions(
            conditions,
            &field("matchConditions"),
            &variables,
        ));
    }
    causes
}

/// Upstream's `validateRuleWithOperations`.
pub(super) fn admission_rule(rule: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, wildcard) in [
        ("operations", true),
        ("apiGroups", true),
        ("apiVersions", true),
        ("resources", false),
    ] {
        let (given, field) = (items(rule, key), format!("{path}.{key}"));
        if given.is_empty() {
            causes.push(Cause::required(&field, ""));
        }
        if wildcard && given.len() > 1 && given.contains(&json!("*")) {
            let what = if key == "operations" {
                "must not specify other operations if '*' is present"
            } else if key == "apiGroups" {
                "if '*' is present, must not specify other API groups"
            } else {
                "if '*' is present, must not specify other API versions"
            };
            causes.push(Cause::invalid(&field, &rule[key], what));
        }
        for (place, _) in given
            .iter()
            .enumerate()
            .filter(|(_, one)| *one == "" && key != "apiGroups")
        {
            causes.push(Cause::required(&format!("{field}[{place}]"), ""));
        }
    }
    causes
}

/// What may not exceed what, the field that tells so and the value it shows, in upstream's words.
const LIMIT_ORDER: [[&str; 5]; 6] = [
    ["min", "max", "min", "min", "min>max"],
    [
        "min",
        "defaultRequest",
        "defaultRequest",
        "defaultRequest",
        "min>default request",
    ],
    [
        "defaultRequest",
        "max",
        "defaultRequest",
        "defaultRequest",
        "default request>max",
    ],
    [
        "defaultRequest",
        "default",
        "defaultRequest",
        "defaultRequest",
        "default request>default limit",
    ],
    ["min", "default", "default", "min", "min>default"],
    ["default", "max", "default", "max", "default>max"],
];

pub(super) fn limit_range(range: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut types = HashSet::new();
    for (index, limit) in items(&range["spec"], "limits").iter().enumerate() {
        let path = format!("spec.limits[{index}]");
        let kind = text(limit, "type");
        if !types.insert(kind) {
            causes.push(Cause::duplicate(&format!("{path}.type"), &limit["type"]));
        }
        if kind == "Pod" {
            for key in ["default", "defaultRequest"] {
                if limit[key].as_object().is_some_and(|amounts| !amounts.is_empty()) {
                    let detail = "may not be specified when `type` is 'Pod'";
                    causes.push(Cause::forbidden(&format!("{path}.{key}"), detail));
                }
            }
        }
        if kind == "PersistentVolumeClaim"
            && limit["min"]["storage"].is_null()
            && limit["max"]["storage"].is_null()
        {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            causes.push(Cause::required(&format!("{path}.limits"), detail));
        }
        for [less, more, field, shown, words] in LIMIT_ORDER {
            for (name, low) in limit[less].as_object().into_iter().flatten() {
                let high = &limit[more][name];
                let nano = |value: &Value| {
                    value
                        .as_str()
                        .and_then(Quantity::parse)
                        .map(|quantity| quantity.nano())
                };
                if nano(high).is_some_and(|high| nano(low).is_some_and(|low| low > high)) {
                    let (low, high) = (text(&limit[less], name), text(&limit[more], name));
                    let (first, second) = words.split_once('>').unwrap_or_default();
                    let detail = format!("{first} value {low} is greater than {second} value {high}");
                    let field = format!("{path}.{field}[{name}]");
                    causes.push(Cause::invalid(&field, &limit[shown][name], &detail));
                }
            }
        }
    }
    causes
}

pub(super) fn quota(quota: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (name, amount) in quota["spec"]["hard"].as_object().into_iter().flatten() {
        let field = format!("spec.hard[{name}]");
        causes.extend(
            names::qualified_name_problem(name).map(|problem| Cause::invalid(&field, &json!(name), &problem)),
        );
        if amount
            .as_str()
            .and_then(Quantity::parse)
            .is_some_and(|quantity| quantity.is_negative())
        {
            causes.push(Cause::invalid(
                &field,
                amount,
                "must be greater than or equal to 0",
            ));
        }
    }
    let scopes: HashSet<&str> = items(&quota["spec"], "scopes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if scopes.contains(one) && scopes.contains(other) {
            causes.push(Cause::invalid(
                "spec.scopes",
                &quota["spec"]["scopes"],
                "conflicting scopes",
            ));
        }
    }
    causes
}

pub(super) fn quota_update(quota: &Value, old: &Value) -> Vec<Cause> {
    let scopes = |quota: &Value| -> HashSet<String> {
        items(&quota["spec"], "scopes")
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let now = &quota["spec"]["scopes"];
    (scopes(quota) != scopes(old))
        .then(|| Cause::invalid("spec.scopes", now, "field is immutable"))
        .into_iter()
        .collect()
}

pub(super) fn service_cidr(cidr: &Value) -> Vec<Cause> {
    let cidrs = items(&cidr["spec"], "cidrs");
    let mut causes = Vec::new();
    match cidrs {
        [] => causes.push(Cause::required("spec.cidrs", "at least one CIDR required")),
        [_] => {}
        [one, other] => {
            let family = |cidr: &Value| cidr.as_str().and_then(net::family);
            if family(one) == family(other) {
                let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
                causes.push(Cause::invalid("spec.cidrs", &cidr["spec"]["cidrs"], detail));
            }
        }
        many => {
            let detail = "may only hold up to 2 values";
            causes.push(Cause::invalid("spec", &json!(many), detail));
        }
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        let problem = net::cidr_problem(cidr.as_str().unwrap_or_default());
        causes.extend(problem.map(|problem| Cause::invalid(&format!("spec.cidrs[{index}]"), cidr, &problem)));
    }
    causes
}

pub(super) fn ip_address(address: &Value) -> Vec<Cause> {
    let parent = &address["spec"]["parentRef"];
    if parent.is_null() {
        return vec![Cause::required("spec.parentRef", "")];
    }
    let missing = ["resource", "name"]
        .into_iter()
        .filter(|key| text(parent, key).is_empty());
    missing
        .map(|key| Cause::required(&format!("spec.parentRef.{key}"), ""))
        .collect()
}

pub(super) fn ingress(ingress: &Value) -> Vec<Cause> {
    let spec = &ingress["spec"];
    let mut causes = Vec::new();
    if items(spec, "rules").is_empty() && spec["defaultBackend"].is_null() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        causes.push(Cause::invalid("spec", &json!(items(spec, "rules")), detail));
    }
    for (index, tls) in items(spec, "tls").iter().enumerate() {
        for (place, host) in items(tls, "hosts").iter().enumerate() {
            let name = host.as_str().unwrap_or_default();
            let problem = names::dns_subdomain_problem(name.strip_prefix("*.").unwrap_or(name));
            let field = format!("spec.tls[{index}].hosts[{place}]");
            causes.extend(problem.map(|problem| Cause::invalid(&field, host, &problem)));
        }
    }
    causes
}

pub(super) fn ingress_class(class: &Value) -> Vec<Cause> {
    let controller = text(&class["spec"], "controller");
    let good = controller
        .split_once('/')
        .is_some_and(|(domain, path)| names::dns_subdomain_problem(domain).is_none() && !path.is_empty());
    if controller.is_empty() || good {
        return Vec::new();
    }
    let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
    vec![Cause::invalid(
        "spec.controller",
        &class["spec"]["controller"],
        detail,
    )]
}

/// What fits a network address type.
pub(super) fn endpoint_slice(slice: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (index, endpoint) in items(slice, "endpoints").iter().enumerate() {
        for (place, address) in items(endpoint, "addresses").iter().enumerate() {
            let field = format!("endpoints[{index}].addresses[{place}]");
            let given = address.as_str().unwrap_or_default();
            let problem = match text(slice, "addressType") {
                "IPv4" if given.parse::<std::net::Ipv4Addr>().is_err() => {
                    Some("must be an IPv4 address".to_owned())
                }
                "IPv6" if given.parse::<std::net::Ipv6Addr>().is_err() => {
                    Some("must be an IPv6 address".to_owned())
                }
                "FQDN" => names::dns_subdomain_problem(given.trim_end_matches('.')),
                _ => None,
            };
            causes.extend(problem.map(|problem| Cause::invalid(&field, address, &problem)));
        }
        if let Some(name) = endpoint["hostname"].as_str() {
            let field = format!("endpoints[{index}].hostname");
            causes.extend(
                names::dns_label_problem(name)
                    .map(|problem| Cause::invalid(&field, &endpoint["hostname"], &problem)),
            );
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusals, update_refusals};
    use super::*;

    #[test]
    fn bad_configuration_is_told_field_by_field() {
        for (group, plural, object, expected) in [
            (
                "scheduling.k8s.io",
                "priorityclasses",
                json!({"value": 1_000_000_001}),
                vec!["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
            ),
            (
                "admissionregistration.k8s.io",
                "validatingwebhookconfigurations",
                json!({"webhooks": [{"name": "a.b", "admissionReviewVersions": ["v2"], "sideEffects": "Some", "timeoutSeconds": 31,
                    "clientConfig": {"url": "http://x"}, "rules": [{"operations": ["*", "CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": []}]}]}),
                vec![
                    "webhooks[0].clientConfig.url: Invalid value: \"http://x\": 'https' is the only allowed URL scheme; desired format: https://host[/path], but got \"http\"",
                    "webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
                    "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
                    "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
                    "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
                    "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: must not specify other operations if '*' is present",
                    "webhooks[0].rules[0].resources: Required value",
                ],
            ),
            (
                "",
                "limitranges",
                json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}}]}}),
                vec![
                    "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                    "spec.limits[0].defaultRequest[cpu]: Invalid value: \"1\": min value 2 is greater than default request value 1",
                    "spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1",
                ],
            ),
            (
                "certificates.k8s.io",
                "certificatesigningrequests",
                json!({"spec": {"request": "eA==", "signerName": "x", "usages": ["client auth"], "expirationSeconds": 599}}),
                vec![
                    "spec.request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST",
                    "spec.signerName: Invalid value: \"x\": must be a fully qualified domain and path of the form \"example.com/signer-name\"",
                    "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
                ],
            ),
            (
                "networking.k8s.io",
                "servicecidrs",
                json!({"spec": {"cidrs": ["10.0.0.0/8", "x"]}}),
                vec![
                    "spec.cidrs[1]: Invalid value: \"x\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                ],
            ),
            (
                "networking.k8s.io",
                "ingresses",
                json!({"spec": {}}),
                vec!["spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"],
            ),
            (
                "networking.k8s.io",
                "ingressclasses",
                json!({"spec": {"controller": "x"}}),
                vec![
                    "spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
                ],
            ),
        ] {
            assert_eq!(refusals(group, "v1", plural, object), expected, "{plural}");
        }
    }

    #[test]
    fn values_and_scopes_stay() {
        let told = update_refusals(
            "scheduling.k8s.io",
            "v1",
            "priorityclasses",
            json!({"value": 1}),
            json!({"value": 2}),
        );
        assert_eq!(told, ["value: Forbidden: may not be changed in an update."]);
        let quota = |scopes: Value| json!({"spec": {"hard": {"pods": "1"}, "scopes": scopes}});
        let told = update_refusals(
            "",
            "v1",
            "resourcequotas",
            quota(json!(["BestEffort"])),
            quota(json!(["Terminating"])),
        );
        assert_eq!(
            told,
            ["spec.scopes: Invalid value: [\"Terminating\"]: field is immutable"]
        );
    }
}
