//! Rules that belong to a type, wherever it occurs: selectors, affinity, network policies, ingress paths, webhooks' clients.

use serde_json::{Value, json};

use super::cause::Cause;
use super::{names, net};

type Rule = fn(&Value, &str) -> Vec<Cause>;

/// By the type's short name in the table of facts.
const RULES: &[(&str, Rule)] = &[
    ("meta.v1.LabelSelectorRequirement", label_requirement),
    ("core.v1.NodeSelectorRequirement", node_requirement),
    ("core.v1.PodSpec", pod_spec),
    ("core.v1.PodSecurityContext", sysctls),
    ("core.v1.TopologySpreadConstraint", spread),
    ("core.v1.HostAlias", host_alias),
    ("core.v1.SeccompProfile", localhost_profile),
    ("core.v1.AppArmorProfile", localhost_profile),
    ("core.v1.VolumeMount", volume_mount),
    ("core.v1.EmptyDirVolumeSource", empty_dir),
    ("core.v1.HostPathVolumeSource", host_path),
    ("networking.v1.IPBlock", ip_block),
    ("networking.v1.NetworkPolicyPeer", policy_peer),
    ("networking.v1.NetworkPolicyPort", policy_port),
    ("networking.v1.IngressBackend", ingress_backend),
    ("networking.v1.HTTPIngressPath", ingress_path),
    ("networking.v1.IngressRule", ingress_rule),
    ("admissionregistration.v1.WebhookClientConfig", client_config),
    ("autoscaling.v2.HPAScalingRules", scaling_rules),
    ("autoscaling.v2.HPAScalingPolicy", scaling_policy),
    ("autoscaling.v2.MetricSpec", metric),
];

pub(super) fn of_type(name: &str) -> Option<Rule> {
    let short = RULES.iter().find(|(short, _)| {
        name.strip_suffix(short)
            .is_some_and(|before| before.is_empty() || before.ends_with('.'))
    });
    short.map(|(_, rule)| *rule)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn count(value: &Value, key: &str) -> usize {
    value[key].as_array().map_or(0, Vec::len)
}

fn invalid_if(problem: Option<String>, field: &str, value: &Value) -> Vec<Cause> {
    problem
        .into_iter()
        .map(|problem| Cause::invalid(field, value, &problem))
        .collect()
}

fn label_requirement(requirement: &Value, path: &str) -> Vec<Cause> {
    let values = format!("{path}.values");
    match text(requirement, "operator") {
        "In" | "NotIn" if count(requirement, "values") == 0 => {
            vec![Cause::required(
                &values,
                "must be specified when `operator` is 'In' or 'NotIn'",
            )]
        }
        "Exists" | "DoesNotExist" if count(requirement, "values") > 0 => vec![Cause::forbidden(
            &values,
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )],
        "In" | "NotIn" | "Exists" | "DoesNotExist" => Vec::new(),
        _ => vec![Cause::invalid(
            &format!("{path}.operator"),
            &requirement["operator"],
            "not a valid selector operator",
        )],
    }
}

fn node_requirement(requirement: &Value, path: &str) -> Vec<Cause> {
    match text(requirement, "operator") {
        "Gt" | "Lt" if count(requirement, "values") != 1 => vec![Cause::required(
            &format!("{path}.values"),
            "must be specified single value when `operator` is 'Lt' or 'Gt'",
        )],
        "Gt" | "Lt" => Vec::new(),
        _ => label_requirement(requirement, path),
    }
}

fn pod_spec(spec: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        causes.push(Cause::invalid(
            &format!("{path}.shareProcessNamespace"),
            &json!(true),
            detail,
        ));
    }
    if spec["dnsPolicy"] == "None" && count(&spec["dnsConfig"], "nameservers") == 0 {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        causes.push(Cause::required(&format!("{path}.dnsConfig.nameservers"), detail));
    }
    let constraints = spec["topologySpreadConstraints"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let pair = |constraint: &Value| {
        (
            constraint["topologyKey"].clone(),
            constraint["whenUnsatisfiable"].clone(),
        )
    };
    for (index, constraint) in constraints.iter().enumerate() {
        if constraints[..index]
            .iter()
            .any(|earlier| pair(earlier) == pair(constraint))
        {
            let shown = format!(
                "{{{}, {}}}",
                text(constraint, "topologyKey"),
                text(constraint, "whenUnsatisfiable")
            );
            let field =
                format!("{path}.topologySpreadConstraints[{index}].{{topologyKey, whenUnsatisfiable}}");
            causes.push(Cause::duplicate(&field, &json!(shown)));
        }
    }
    let mut gates: Vec<&str> = Vec::new();
    for (index, gate) in spec["schedulingGates"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let field = format!("{path}.schedulingGates[{index}].name");
        let name = text(gate, "name");
        causes.extend(invalid_if(
            names::qualified_name_problem(name),
            &field,
            &gate["name"],
        ));
        if gates.contains(&name) {
            causes.push(Cause::duplicate(&field, &gate["name"]));
        }
        gates.push(name);
    }
    if !gates.is_empty() && !text(spec, "nodeName").is_empty() && path == "spec" {
        let detail = "cannot be set until all schedulingGates have been cleared";
        causes.push(Cause::forbidden(&format!("{path}.nodeName"), detail));
    }
    causes
}

fn spread(constraint: &Value, path: &str) -> Vec<Cause> {
    let field = format!("{path}.minDomains");
    match constraint["minDomains"].as_i64() {
        Some(domains) if domains <= 0 => {
            vec![Cause::invalid(&field, &json!(domains), "must be greater than 0")]
        }
        Some(domains) if constraint["whenUnsatisfiable"] != "DoNotSchedule" => {
            let action = text(constraint, "whenUnsatisfiable");
            let detail = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}");
            vec![Cause::invalid(&field, &json!(domains), &detail)]
        }
        _ => Vec::new(),
    }
}

fn host_alias(alias: &Value, path: &str) -> Vec<Cause> {
    let mut causes = invalid_if(
        net::address_problem(text(alias, "ip")),
        &format!("{path}.ip"),
        &alias["ip"],
    );
    for (index, name) in alias["hostnames"].as_array().into_iter().flatten().enumerate() {
        let problem = names::dns_subdomain_problem(name.as_str().unwrap_or_default());
        causes.extend(invalid_if(problem, &format!("{path}.hostnames[{index}]"), name));
    }
    causes
}

/// Upstream's `SysctlContainSlashFmt`, letter by letter: segments between single dots or slashes.
fn sysctl_name(name: &str) -> bool {
    let outer = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let segment = |segment: &str| {
        let bytes = segment.as_bytes();
        let inner = bytes.iter().all(|byte| outer(*byte) || b"-_".contains(byte));
        let edges = [bytes.first(), bytes.last()];
        inner && edges.iter().all(|edge| edge.is_some_and(|byte| outer(*byte)))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn sysctls(context: &Value, path: &str) -> Vec<Cause> {
    const SHAPE: &str = "must have at most 253 characters and match regex \
        ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let mut causes = Vec::new();
    let mut seen = Vec::new();
    for (index, sysctl) in context["sysctls"].as_array().into_iter().flatten().enumerate() {
        let (name, field) = (text(sysctl, "name"), format!("{path}.sysctls[{index}].name"));
        if name.is_empty() {
            causes.push(Cause::required(&field, ""));
        } else if !sysctl_name(name) {
            causes.push(Cause::invalid(&field, &sysctl["name"], SHAPE));
        } else if seen.contains(&name) {
            causes.push(Cause::duplicate(&field, &sysctl["name"]));
        }
        seen.push(name);
    }
    causes
}

fn localhost_profile(profile: &Value, path: &str) -> Vec<Cause> {
    let field = format!("{path}.localhostProfile");
    match (text(profile, "type"), profile["localhostProfile"].is_null()) {
        ("Localhost", true) => vec![Cause::required(&field, "must be set when type is Localhost")],
        ("Localhost", false) | (_, true) => Vec::new(),
        _ => {
            let detail = "can only be set when type is Localhost";
            vec![Cause::invalid(&field, &profile["localhostProfile"], detail)]
        }
    }
}

fn volume_mount(mount: &Value, path: &str) -> Vec<Cause> {
    let both = !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty();
    let problem = both.then(|| "subPathExpr and subPath are mutually exclusive".to_owned());
    invalid_if(problem, &format!("{path}.subPathExpr"), &mount["subPathExpr"])
}

fn empty_dir(source: &Value, path: &str) -> Vec<Cause> {
    if text(source, "sizeLimit").starts_with('-') {
        let detail = "SizeLimit field must be a valid resource quantity";
        return vec![Cause::forbidden(&format!("{path}.sizeLimit"), detail)];
    }
    Vec::new()
}

fn host_path(source: &Value, path: &str) -> Vec<Cause> {
    let climbs = text(source, "path").split('/').any(|part| part == "..");
    let problem = climbs.then(|| "must not contain '..'".to_owned());
    invalid_if(problem, &format!("{path}.path"), &source["path"])
}

fn ip_block(block: &Value, path: &str) -> Vec<Cause> {
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        return vec![Cause::required(&format!("{path}.cidr"), "")];
    }
    let mut causes = invalid_if(net::cidr_problem(cidr), &format!("{path}.cidr"), &block["cidr"]);
    for (index, except) in block["except"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{path}.except[{index}]");
        let inner = except.as_str().unwrap_or_default();
        let problem = net::cidr_problem(inner).or_else(|| {
            (!net::strictly_within(inner, cidr)).then(|| "must be a strict subset of `cidr`".to_owned())
        });
        causes.extend(invalid_if(problem, &field, except));
    }
    causes
}

fn policy_peer(peer: &Value, path: &str) -> Vec<Cause> {
    let given = |key: &str| !peer[key].is_null();
    match (
        given("ipBlock"),
        given("podSelector") || given("namespaceSelector"),
    ) {
        (false, false) => vec![Cause::required(path, "must specify a peer")],
        (true, true) => vec![Cause::forbidden(
            path,
            "may not specify both ipBlock and another peer",
        )],
        _ => Vec::new(),
    }
}

fn policy_port(port: &Value, path: &str) -> Vec<Cause> {
    let (from, to) = (&port["port"], port["endPort"].as_i64());
    let mut causes = match from {
        Value::String(name) => invalid_if(names::port_name_problem(name), &format!("{path}.port"), from),
        number => {
            let bad = number
                .as_i64()
                .is_some_and(|number| !(1..=65_535).contains(&number));
            let problem = bad.then(|| "must be between 1 and 65535, inclusive".to_owned());
            invalid_if(problem, &format!("{path}.port"), from)
        }
    };
    if let Some(to) = to {
        let problem = match from {
            Value::Null => Some("may not be specified when `port` is not specified"),
            Value::String(_) => Some("may not be specified when `port` is non-numeric"),
            _ if from.as_i64().is_some_and(|from| to < from) => {
                Some("must be greater than or equal to `port`")
            }
            _ => None,
        };
        causes.extend(invalid_if(
            problem.map(str::to_owned),
            &format!("{path}.endPort"),
            &json!(to),
        ));
    }
    causes
}

fn ingress_backend(backend: &Value, path: &str) -> Vec<Cause> {
    let nothing = json!("");
    let service = &backend["service"];
    match (backend["resource"].is_null(), service.is_null()) {
        (false, false) => {
            vec![Cause::invalid(
                path,
                &nothing,
                "cannot set both resource and service backends",
            )]
        }
        (true, true) => vec![Cause::invalid(
            path,
            &nothing,
            "resource or service backend is required",
        )],
        (false, true) => Vec::new(),
        (true, false) => {
            let port = &service["port"];
            let number = port["number"].as_i64().unwrap_or(0);
            match (text(port, "name"), number) {
                ("", 0) => vec![Cause::required(path, "port name or number is required")],
                ("", number) => {
                    let bad = !(1..=65_535).contains(&number);
                    let problem = bad.then(|| "must be between 1 and 65535, inclusive".to_owned());
                    invalid_if(problem, &format!("{path}.service.port.number"), &port["number"])
                }
                (name, 0) => {
                    let problem = names::port_name_problem(name);
                    invalid_if(problem, &format!("{path}.service.port.name"), &port["name"])
                }
                _ => vec![Cause::invalid(
                    path,
                    &nothing,
                    "cannot set both port name & port number",
                )],
            }
        }
    }
}

fn ingress_path(rule: &Value, path: &str) -> Vec<Cause> {
    let (route, field) = (text(rule, "path"), format!("{path}.path"));
    let mut problems: Vec<String> = Vec::new();
    let absolute = || "must be an absolute path".to_owned();
    match text(rule, "pathType") {
        "Exact" | "Prefix" => {
            if !route.starts_with('/') {
                problems.push(absolute());
            }
            let within = ["//", "/./", "/../", "%2f", "%2F"].iter();
            problems.extend(
                within
                    .filter(|part| route.contains(**part))
                    .map(|part| format!("must not contain '{part}'")),
            );
            let at_end = ["/..", "/."].iter();
            problems.extend(
                at_end
                    .filter(|end| route.ends_with(**end))
                    .map(|end| format!("cannot end with '{end}'")),
            );
        }
        "ImplementationSpecific" if !route.is_empty() && !route.starts_with('/') => problems.push(absolute()),
        _ => {}
    }
    problems
        .iter()
        .map(|problem| Cause::invalid(&field, &json!(route), problem))
        .collect()
}

fn ingress_rule(rule: &Value, path: &str) -> Vec<Cause> {
    let (host, field) = (text(rule, "host"), format!("{path}.host"));
    let problem = match host {
        "" => None,
        host if host.parse::<std::net::IpAddr>().is_ok() => {
            Some("must be a DNS name, not an IP address".to_owned())
        }
        host => names::dns_subdomain_problem(host.strip_prefix("*.").unwrap_or(host)),
    };
    invalid_if(problem, &field, &rule["host"])
}

fn client_config(config: &Value, path: &str) -> Vec<Cause> {
    if config["url"].is_null() == config["service"].is_null() {
        return vec![Cause::required(path, "exactly one of url or service is required")];
    }
    let field = format!("{path}.url");
    let url = &config["url"];
    if let Some(address) = url.as_str() {
        let problem = match address.split_once("://") {
            Some(("https", rest)) if rest.starts_with('/') || rest.is_empty() => {
                Some("host must be specified; desired format: https://host[/path]".to_owned())
            }
            Some(("https", _)) => None,
            found => {
                let scheme = found.map_or("", |(scheme, _)| scheme);
                let detail = format!(
                    "'https' is the only allowed URL scheme; desired format: https://host[/path], but got {scheme:?}"
                );
                Some(detail.replace(", but got \"\"", ""))
            }
        };
        return invalid_if(problem, &field, url);
    }
    Vec::new()
}

fn scaling_rules(rules: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(window) = rules["stabilizationWindowSeconds"].as_i64() {
        let field = format!("{path}.stabilizationWindowSeconds");
        let problem = match window {
            ..0 => Some("must be greater than or equal to zero"),
            0..=3600 => None,
            _ => Some("must be less than or equal to 3600"),
        };
        causes.extend(invalid_if(problem.map(str::to_owned), &field, &json!(window)));
    }
    if count(rules, "policies") == 0 {
        causes.push(Cause::required(
            &format!("{path}.policies"),
            "must specify at least one Policy",
        ));
    }
    causes
}

fn scaling_policy(policy: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, most) in [("value", i64::MAX), ("periodSeconds", 1800)] {
        let number = policy[key].as_i64().unwrap_or(0);
        let problem = if number <= 0 {
            Some("must be greater than zero".to_owned())
        } else {
            (number > most).then(|| format!("must be less than or equal to {most}"))
        };
        causes.extend(invalid_if(problem, &format!("{path}.{key}"), &json!(number)));
    }
    causes
}

fn metric(metric: &Value, path: &str) -> Vec<Cause> {
    let source = match text(metric, "type") {
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "External" => "external",
        "" => {
            return vec![Cause::required(
                &format!("{path}.type"),
                "must specify a metric source type",
            )];
        }
        _ => return Vec::new(),
    };
    if metric[source].is_null() {
        let detail = "must populate information for the given metric source";
        return vec![Cause::required(&format!("{path}.{source}"), detail)];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::super::tests::refusals;
    use super::*;
    use crate::types::Types;

    #[test]
    fn every_rule_names_a_type() {
        let types = Types::builtin();
        for (name, _) in RULES {
            assert!(types.by_name(&crate::facts::full_name(name)).is_some(), "{name}");
        }
    }

    #[test]
    fn pods_are_placed_by_sound_rules() {
        let told = refusals(
            "",
            "v1",
            "pods",
            json!({"spec": {"dnsPolicy": "None", "containers": [{"name": "c", "image": "i"}],
                "hostAliases": [{"ip": "x", "hostnames": ["ok"]}],
                "securityContext": {"sysctls": [
                    {"name": "foo-"}, {"name": "kernel.shmmax"}, {"name": "net/ipv4.a_b"}, {"name": "bar.."},
                    {"name": "kernel.shmmax"}]},
                "affinity": {
                    "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "a", "operator": "Gt"}, {"key": "a", "operator": "Exists", "values": ["b"]}]}]}},
                    "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                        {"topologyKey": "zone", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}},
                "topologySpreadConstraints": [
                    {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2},
                    {"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}]}}),
        );
        for expected in [
            "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
            "spec.hostAliases[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            r#"spec.securityContext.sysctls[0].name: Invalid value: "foo-": must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?"#,
            r#"spec.securityContext.sysctls[3].name: Invalid value: "bar..": must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?"#,
            "spec.securityContext.sysctls[4].name: Duplicate value: \"kernel.shmmax\"",
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'",
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            "spec.topologySpreadConstraints[0].minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
            "spec.topologySpreadConstraints[1].maxSkew: Invalid value: 0: must be greater than 0",
            "spec.topologySpreadConstraints[1].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, ScheduleAnyway}\"",
        ] {
            assert!(told.iter().any(|line| line == expected), "{expected}\n{told:#?}");
        }
        assert_eq!(told.len(), 11, "{told:#?}");
    }

    #[test]
    fn network_policies_and_ingresses() {
        let told = refusals(
            "networking.k8s.io",
            "v1",
            "networkpolicies",
            json!({"spec": {"podSelector": {}, "ingress": [
                {"from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16", "10.1.0.0/16"]}, "podSelector": {}}],
                 "ports": [{"port": "web", "endPort": 90}, {"port": 80, "endPort": 79}]}]}}),
        );
        assert_eq!(
            told,
            [
                "spec.ingress[0].from[0]: Required value: must specify a peer",
                "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                "spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer",
                "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric",
                "spec.ingress[0].ports[1].endPort: Invalid value: 79: must be greater than or equal to `port`",
            ]
        );
        let told = refusals(
            "networking.k8s.io",
            "v1",
            "ingresses",
            json!({"spec": {"rules": [{"host": "1.2.3.4", "http": {"paths": [
                {"path": "a//b", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"name": "p", "number": 1}}}},
                {"path": "/", "pathType": "Exact", "backend": {}}]}}]}}),
        );
        assert_eq!(
            told,
            [
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": cannot set both port name & port number",
                "spec.rules[0].http.paths[0].path: Invalid value: \"a//b\": must be an absolute path",
                "spec.rules[0].http.paths[0].path: Invalid value: \"a//b\": must not contain '//'",
                "spec.rules[0].http.paths[1].backend: Invalid value: \"\": resource or service backend is required",
            ]
        );
    }
}
