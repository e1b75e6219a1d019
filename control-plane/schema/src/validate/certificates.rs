//! Certificate signing requests: what is asked for, and who may say what about it.

use std::cmp::Ordering;
use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::cause::Cause;
use super::cluster::{items, text};
use super::names;

const SHORTEST_CERTIFICATE: i64 = 600;

pub(super) fn signing_request(csr: &Value) -> Vec<Cause> {
    let spec = &csr["spec"];
    let mut causes = Vec::new();
    let decoded = STANDARD.decode(text(spec, "request")).unwrap_or_default();
    let is_pem = String::from_utf8_lossy(&decoded).contains("-----BEGIN CERTIFICATE REQUEST-----");
    if !text(spec, "request").is_empty() && !is_pem {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        causes.push(Cause::invalid("spec.request", &spec["request"], detail));
    }
    let signer = text(spec, "signerName");
    if !signer.is_empty() {
        let field = "spec.signerName";
        match signer.split_once('/') {
            Some((domain, path)) if !domain.is_empty() && !path.is_empty() && !path.contains('/') => {
                if !domain.contains('.') {
                    let detail = "should be a domain with at least two segments separated by dots";
                    causes.push(Cause::invalid(field, &json!(domain), detail));
                }
                causes.extend(
                    names::dns_subdomain_problem(domain)
                        .map(|problem| Cause::invalid(field, &json!(domain), &problem)),
                );
                causes.extend(
                    names::dns_subdomain_problem(path)
                        .map(|problem| Cause::invalid(field, &json!(path), &problem)),
                );
            }
            _ => {
                let detail =
                    "must be a fully qualified domain and path of the form \"example.com/signer-name\"";
                causes.push(Cause::invalid(field, &spec["signerName"], detail));
            }
        }
    }
    if spec["expirationSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds < SHORTEST_CERTIFICATE)
    {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid(
            "spec.expirationSeconds",
            &spec["expirationSeconds"],
            detail,
        ));
    }
    let mut usages = HashSet::new();
    for (index, usage) in items(spec, "usages").iter().enumerate() {
        if !usages.insert(usage.to_string()) {
            causes.push(Cause::duplicate(&format!("spec.usages[{index}]"), usage));
        }
    }
    causes
}

fn conditions_of<'a>(csr: &'a Value, name: &str) -> Vec<&'a Value> {
    items(&csr["status"], "conditions")
        .iter()
        .filter(|c| c["type"] == name)
        .collect()
}

/// A signing request's conditions and certificate, by the sub-resource that writes them (none: metadata alone).
pub(super) fn signing_request_update(csr: &Value, old: &Value, subresource: &str) -> Vec<Cause> {
    const CONDITIONS: &str = "status.conditions";
    let mut causes = Vec::new();
    let conditions = items(&csr["status"], "conditions");
    let mut seen = HashSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let at = |field: &str| format!("{CONDITIONS}[{index}].{field}");
        let (name, status) = (text(condition, "type"), text(condition, "status"));
        if name.is_empty() {
            causes.push(Cause::required(&at("type"), ""));
        }
        let allowed: &[&str] = match name {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        if status.is_empty() {
            causes.push(Cause::required(&at("status"), ""));
        } else if !allowed.contains(&status) {
            causes.push(Cause::not_supported(&at("status"), &condition["status"], allowed));
        }
        if (name == "Approved" && seen.contains("Denied")) || (name == "Denied" && seen.contains("Approved"))
        {
            let detail = "Approved and Denied conditions are mutually exclusive";
            causes.push(Cause::invalid(&at("type"), &condition["type"], detail));
        }
        if !seen.insert(name) {
            causes.push(Cause::duplicate(&at("type"), &condition["type"]));
        }
    }
    for name in ["Approved", "Denied", "Failed"] {
        let (new, before) = (conditions_of(csr, name), conditions_of(old, name));
        let what = match new.len().cmp(&before.len()) {
            Ordering::Less => "remove",
            _ if name == "Failed" || subresource == "approval" => continue,
            Ordering::Greater => "add",
            Ordering::Equal if new != before => "modify",
            Ordering::Equal => continue,
        };
        let detail = format!("updates may not {what} a condition of type {name:?}");
        causes.push(Cause::forbidden(CONDITIONS, &detail));
    }
    let (new, before) = (&csr["status"]["certificate"], &old["status"]["certificate"]);
    if new != before {
        let detail = match (subresource, before) {
            ("status", Value::Null) => None,
            ("status", _) => Some("updates may not modify existing certificate content"),
            _ => Some("updates may not set certificate content"),
        };
        causes.extend(detail.map(|detail| Cause::forbidden("status.certificate", detail)));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals(subresource: &str, old: &Value, new: &Value) -> Vec<String> {
        signing_request_update(&json!({"status": new}), &json!({"status": old}), subresource)
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn approval_and_status_are_separate_powers() {
        let with = |types: &[&str]| {
            let list: Vec<Value> = types
                .iter()
                .map(|t| json!({"type": t, "status": "True"}))
                .collect();
            json!({"conditions": list})
        };
        for (subresource, old, new, expected) in [
            ("approval", with(&[]), with(&["Approved", "Mine"]), None),
            (
                "approval",
                with(&["Approved"]),
                with(&["Approved", "Denied"]),
                Some(
                    r#"status.conditions[1].type: Invalid value: "Denied": Approved and Denied conditions are mutually exclusive"#,
                ),
            ),
            (
                "approval",
                with(&["Approved"]),
                with(&[]),
                Some(
                    r#"status.conditions: Forbidden: updates may not remove a condition of type "Approved""#,
                ),
            ),
            (
                "status",
                with(&[]),
                with(&["Approved"]),
                Some(r#"status.conditions: Forbidden: updates may not add a condition of type "Approved""#),
            ),
            ("status", with(&["Approved"]), with(&["Approved", "Failed"]), None),
            (
                "status",
                with(&[]),
                with(&["Mine", "Mine"]),
                Some(r#"status.conditions[1].type: Duplicate value: "Mine""#),
            ),
            (
                "approval",
                json!({}),
                json!({"conditions": [{"type": "Approved", "status": "False"}]}),
                Some(r#"status.conditions[0].status: Unsupported value: "False": supported values: "True""#),
            ),
            ("status", json!({}), json!({"certificate": "YQ=="}), None),
            (
                "status",
                json!({"certificate": "YQ=="}),
                json!({"certificate": "Yg=="}),
                Some("status.certificate: Forbidden: updates may not modify existing certificate content"),
            ),
        ] {
            assert_eq!(
                refusals(subresource, &old, &new),
                Vec::from_iter(expected),
                "{subresource} {new}"
            );
        }
    }
}
