//! On services (upstream: `pkg/api/service/warnings.go`).

use serde_json::Value;

use super::text;

pub fn of(service: &Value) -> Vec<String> {
    let spec = &service["spec"];
    let kind = text(spec, "/type");
    let is_headless = kind == "ClusterIP" && text(spec, "/clusterIP") == "None";
    let is_name = kind == "ExternalName";
    let has_address = !text(spec, "/loadBalancerIP").is_empty();
    let has_external = spec["externalIPs"]
        .as_array()
        .is_some_and(|list| !list.is_empty());
    let is_sticky = !matches!(text(spec, "/sessionAffinity"), "None" | "");
    let has_hints = service["metadata"]["annotations"]
        .get("service.kubernetes.io/topology-aware-hints")
        .is_some();
    let advice = [
        (
            has_hints,
            "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use service.kubernetes.io/topology-mode instead",
        ),
        (
            is_headless && has_address,
            "spec.loadBalancerIP is ignored for headless services",
        ),
        (
            is_headless && has_external,
            "spec.externalIPs is ignored for headless services",
        ),
        (
            is_headless && is_sticky,
            "spec.SessionAffinity is ignored for headless services",
        ),
        (
            has_external && !is_headless && !is_name,
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
        ),
        (
            is_name && has_external,
            "spec.externalIPs is ignored when spec.type is \"ExternalName\"",
        ),
        (
            !is_name && !text(spec, "/externalName").is_empty(),
            "spec.externalName is ignored when spec.type is not \"ExternalName\"",
        ),
        (
            text(spec, "/trafficDistribution") == "PreferClose",
            "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
        ),
    ];
    let applies = advice.into_iter().filter(|(applies, _)| *applies);
    applies.map(|(_, advice)| advice.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_that_do_nothing_are_named() {
        let cases = [
            (
                json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "sessionAffinity": "None"}),
                vec![],
            ),
            (
                json!({"type": "ClusterIP", "clusterIP": "None", "sessionAffinity": "ClientIP", "externalIPs": ["198.51.100.1"]}),
                vec![
                    "spec.externalIPs is ignored for headless services",
                    "spec.SessionAffinity is ignored for headless services",
                ],
            ),
            (
                json!({"type": "LoadBalancer", "externalIPs": ["198.51.100.1"], "externalName": "a.b"}),
                vec![
                    "spec.externalIPs is deprecated and may no longer be implemented in some clusters",
                    "spec.externalName is ignored when spec.type is not \"ExternalName\"",
                ],
            ),
            (
                json!({"type": "ExternalName", "externalName": "a.b", "trafficDistribution": "PreferClose"}),
                vec!["spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\""],
            ),
        ];
        for (spec, expected) in cases {
            assert_eq!(of(&json!({"metadata": {}, "spec": spec})), expected);
        }
    }
}
