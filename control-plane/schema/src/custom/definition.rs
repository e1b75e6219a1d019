//! CustomResourceDefinitions as objects: what is filled in, and what upstream refuses.

use serde_json::{Map, Value, json};

use super::{naming, path::JsonPath, structural};
use crate::validate::{self, Cause};

/// Upstream's defaults of `spec`.
pub(crate) fn defaults(spec: &mut Map<String, Value>) {
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        for (field, value) in [
            ("singular", kind.to_lowercase()),
            ("listKind", format!("{kind}List")),
        ] {
            let absent = names.get(field).and_then(Value::as_str).is_none_or(str::is_empty);
            if absent && !kind.is_empty() {
                names.insert(field.into(), value.into());
            }
        }
    }
    let conversion = spec.entry("conversion").or_insert_with(|| json!({}));
    if let Some(conversion) = conversion.as_object_mut() {
        let strategy = conversion.entry("strategy").or_insert(Value::Null);
        if strategy.as_str().is_none_or(str::is_empty) {
            *strategy = "None".into();
        }
        if let Some(service) = conversion
            .get_mut("webhook")
            .and_then(|webhook| webhook.pointer_mut("/clientConfig/service"))
            .and_then(Value::as_object_mut)
        {
            service.entry("port").or_insert(json!(443));
        }
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

pub(crate) fn check(definition: &Value) -> Vec<Cause> {
    let spec = &definition["spec"];
    let mut causes = Vec::new();
    let name = text(&definition["metadata"], "name");
    let (plural, group) = (text(&spec["names"], "plural"), text(spec, "group"));
    if name != format!("{plural}.{group}") {
        let why = r#"must be spec.names.plural+"."+spec.group"#;
        causes.push(Cause::invalid("metadata.name", &json!(name), why));
    }
    causes.extend(approval(definition));
    if group.is_empty() {
        causes.push(Cause::required("spec.group", ""));
    } else if let Some(problem) = validate::dns_subdomain_problem(group) {
        causes.push(Cause::invalid("spec.group", &json!(group), &problem));
    } else if !group.contains('.') {
        let why = "should be a domain with at least one dot";
        causes.push(Cause::invalid("spec.group", &json!(group), why));
    }
    match text(spec, "scope") {
        "" => causes.push(Cause::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        _ => causes.push(Cause::not_supported(
            "spec.scope",
            &spec["scope"],
            &["Cluster", "Namespaced"],
        )),
    }
    if spec["preserveUnknownFields"] == true {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        causes.push(Cause::invalid("spec.preserveUnknownFields", &json!(true), why));
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(&spec["names"], field).is_empty() {
            causes.push(Cause::required(&format!("spec.names.{field}"), ""));
        }
    }
    causes.extend(names(&spec["names"], "spec.names"));
    versions(spec, &mut causes);
    conversion(&spec["conversion"], &mut causes);
    causes
}

/// Groups of Kubernetes itself need its approval.
fn approval(definition: &Value) -> Option<Cause> {
    let [_, _, reason, message] = naming::approval(definition)?;
    let field = format!("metadata.annotations[{}]", naming::APPROVED);
    match reason.as_str() {
        "MissingAnnotation" => Some(Cause::required(&field, &message)),
        "InvalidAnnotation" => {
            let given = &definition["metadata"]["annotations"][naming::APPROVED];
            Some(Cause::invalid(&field, given, &message))
        }
        _ => None,
    }
}

pub(super) fn names(names: &Value, path: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut judge = |field: String, text: &str, shown: &str, prefix: &str| {
        if let Some(problem) = validate::dns_1035_problem(text).filter(|_| !text.is_empty()) {
            causes.push(Cause::invalid(
                &field,
                &json!(shown),
                &format!("{prefix}{problem}"),
            ));
        }
    };
    for field in ["plural", "singular"] {
        let name = text(names, field);
        judge(format!("{path}.{field}"), name, name, "");
    }
    for field in ["kind", "listKind"] {
        let name = text(names, field);
        let prefix = "may have mixed case, but should otherwise match: ";
        judge(format!("{path}.{field}"), &name.to_lowercase(), name, prefix);
    }
    for field in ["shortNames", "categories"] {
        for (index, name) in list(names, field).enumerate() {
            let name = name.as_str().unwrap_or_default();
            judge(format!("{path}.{field}[{index}]"), name, name, "");
        }
    }
    if !text(names, "kind").is_empty() && names["kind"] == names["listKind"] {
        let why = "kind and listKind may not be the same";
        causes.push(Cause::invalid(
            &format!("{path}.listKind"),
            &names["listKind"],
            why,
        ));
    }
    causes
}

fn versions(spec: &Value, causes: &mut Vec<Cause>) {
    let versions = &spec["versions"];
    let mut seen = Vec::new();
    for (index, version) in list(spec, "versions").enumerate() {
        let path = format!("spec.versions[{index}]");
        let name = text(version, "name");
        if let Some(problem) = validate::dns_1035_problem(name) {
            causes.push(Cause::invalid(&format!("{path}.name"), &json!(name), &problem));
        }
        if seen.contains(&name) {
            causes.push(Cause::invalid(
                "spec.versions",
                versions,
                "must contain unique version names",
            ));
        }
        seen.push(name);
        match version.pointer("/schema/openAPIV3Schema") {
            Some(schema) => {
                causes.extend(structural::check(
                    schema,
                    &format!("{path}.schema.openAPIV3Schema"),
                ));
            }
            None => causes.push(Cause::required(
                &format!("{path}.schema.openAPIV3Schema"),
                "schemas are required",
            )),
        }
        if !text(version, "deprecationWarning").is_empty() && version["deprecated"] != true {
            let why = "can only be set for deprecated versions";
            let field = format!("{path}.deprecationWarning");
            causes.push(Cause::invalid(&field, &version["deprecationWarning"], why));
        }
        columns(version, &path, causes);
        scale(
            &version["subresources"]["scale"],
            &format!("{path}.subresources.scale"),
            causes,
        );
        selectable(version, &path, causes);
    }
    if list(spec, "versions")
        .filter(|version| version["storage"] == true)
        .count()
        != 1
    {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", versions, why));
    }
}

fn columns(version: &Value, path: &str, causes: &mut Vec<Cause>) {
    const TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
    const FORMATS: &[&str] = &[
        "binary",
        "byte",
        "date",
        "date-time",
        "double",
        "float",
        "int32",
        "int64",
        "name",
        "password",
    ];
    for (index, column) in list(version, "additionalPrinterColumns").enumerate() {
        let path = format!("{path}.additionalPrinterColumns[{index}]");
        if text(column, "name").is_empty() {
            causes.push(Cause::required(&format!("{path}.name"), ""));
        }
        match text(column, "type") {
            "" => {
                let why = format!("must be one of {}", TYPES.join(","));
                causes.push(Cause::required(&format!("{path}.type"), &why));
            }
            known if TYPES.contains(&known) => {}
            _ => causes.push(Cause::not_supported(
                &format!("{path}.type"),
                &column["type"],
                TYPES,
            )),
        }
        let format = text(column, "format");
        if !format.is_empty() && !FORMATS.contains(&format) {
            causes.push(Cause::not_supported(
                &format!("{path}.format"),
                &column["format"],
                FORMATS,
            ));
        }
        match text(column, "jsonPath") {
            "" => causes.push(Cause::required(&format!("{path}.JSONPath"), "")),
            json_path => causes.extend(
                JsonPath::parse(json_path)
                    .err()
                    .map(|why| Cause::invalid(&format!("{path}.JSONPath"), &json!(json_path), &why)),
            ),
        }
    }
}

fn scale(scale: &Value, path: &str, causes: &mut Vec<Cause>) {
    if scale.is_null() {
        return;
    }
    for (name, below, required) in [
        ("specReplicasPath", ".spec", true),
        ("statusReplicasPath", ".status", true),
        ("labelSelectorPath", "", false),
    ] {
        let field = format!("{path}.{name}");
        let given = text(scale, name);
        if given.is_empty() {
            if required {
                causes.push(Cause::required(&field, ""));
            }
            continue;
        }
        let problem = match JsonPath::parse(given) {
            Err(problem) => Some(problem),
            Ok(parsed) if parsed.fields().is_none() => {
                Some("must be a json path in the dot notation".to_owned())
            }
            Ok(_) if required && !given.starts_with(&format!("{below}.")) => {
                Some(format!("should be a json path under {below}"))
            }
            Ok(_) if !required && !given.starts_with(".spec.") && !given.starts_with(".status.") => {
                Some("should be a json path under either .spec or .status".to_owned())
            }
            Ok(_) => None,
        };
        causes.extend(problem.map(|why| Cause::invalid(&field, &json!(given), &why)));
    }
}

fn selectable(version: &Value, path: &str, causes: &mut Vec<Cause>) {
    const LIMIT: usize = 8;
    let count = list(version, "selectableFields").count();
    if count > LIMIT {
        causes.push(Cause::too_many(&format!("{path}.selectableFields"), count, LIMIT));
    }
    let mut seen = Vec::new();
    for (index, selectable) in list(version, "selectableFields").enumerate() {
        let field = format!("{path}.selectableFields[{index}].jsonPath");
        let given = text(selectable, "jsonPath");
        if given.is_empty() {
            causes.push(Cause::required(&field, ""));
            continue;
        }
        if seen.contains(&given) {
            causes.push(Cause::duplicate(&field, &json!(given)));
        }
        seen.push(given);
        let mut schema = &version["schema"]["openAPIV3Schema"];
        let parsed = JsonPath::parse(given);
        let names = parsed
            .as_ref()
            .ok()
            .and_then(JsonPath::fields)
            .unwrap_or_default();
        for name in &names {
            schema = &schema["properties"][*name];
        }
        let problem = if names.is_empty() {
            Some("must be a simple path without any array expressions")
        } else if names[0] == "metadata" {
            Some("must not point to fields in metadata")
        } else if schema.is_null() {
            Some("does not refer to a valid field in the schema")
        } else if !matches!(text(schema, "type"), "string" | "integer" | "boolean") {
            Some(
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            )
        } else {
            None
        };
        causes.extend(problem.map(|why| Cause::invalid(&field, &json!(given), why)));
    }
}

fn conversion(conversion: &Value, causes: &mut Vec<Cause>) {
    match text(conversion, "strategy") {
        "None" => {
            if !conversion["webhook"].is_null() {
                let why = "should not be set when strategy is not set to Webhook";
                causes.push(Cause::forbidden("spec.conversion.webhook", why));
            }
        }
        "Webhook" => {
            let webhook = &conversion["webhook"];
            if webhook["clientConfig"].is_null() {
                let why = "required when strategy is set to Webhook";
                causes.push(Cause::required("spec.conversion.webhookClientConfig", why));
            }
            if list(webhook, "conversionReviewVersions").next().is_none() {
                causes.push(Cause::required("spec.conversion.conversionReviewVersions", ""));
            }
        }
        _ => causes.push(Cause::not_supported(
            "spec.conversion.strategy",
            &conversion["strategy"],
            &["None", "Webhook"],
        )),
    }
}

/// A change of the definition or of its status.
pub(crate) fn check_update(definition: &Value) -> Vec<Cause> {
    let mut causes = names(&definition["status"]["acceptedNames"], "status.acceptedNames");
    let stored: Vec<&Value> = list(&definition["status"], "storedVersions").collect();
    if stored.is_empty() {
        let why = "must have at least one stored version";
        causes.push(Cause::invalid("status.storedVersions", &json!([]), why));
    }
    for (index, version) in stored.iter().enumerate() {
        let field = format!("status.storedVersions[{index}]");
        if !list(&definition["spec"], "versions").any(|known| known["name"] == **version) {
            let why = format!(
                "missing from spec.versions; {} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {0} and removes {0} from status.storedVersions",
                version.as_str().unwrap_or_default()
            );
            causes.push(Cause::invalid(&field, version, &why));
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::super::tests::definition;
    use super::*;

    fn refusals(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut object = definition();
        change(&mut object);
        defaults(object["spec"].as_object_mut().expect("spec"));
        check(&object)
            .iter()
            .map(|cause| format!("{}: {}", cause.field, cause.message))
            .collect()
    }

    #[test]
    fn defaults_name_the_list_and_the_singular() {
        let mut object = definition();
        defaults(object["spec"].as_object_mut().expect("spec"));
        assert_eq!(
            (
                &object["spec"]["names"]["singular"],
                &object["spec"]["names"]["listKind"],
                &object["spec"]["conversion"]
            ),
            (
                &json!("widget"),
                &json!("WidgetList"),
                &json!({"strategy": "None"})
            )
        );
    }

    #[test]
    fn definitions_are_refused_in_upstreams_words() {
        assert_eq!(refusals(|_| {}), Vec::<String>::new());
        type Change = fn(&mut Value);
        for (change, expected) in [
            (
                (|object| object["metadata"]["name"] = json!("x.example.com")) as Change,
                r#"metadata.name: Invalid value: "x.example.com": must be spec.names.plural+"."+spec.group"#,
            ),
            (
                |object| object["spec"]["scope"] = json!("Galaxy"),
                r#"spec.scope: Unsupported value: "Galaxy": supported values: "Cluster", "Namespaced""#,
            ),
            (
                |object| object["spec"]["versions"][0]["storage"] = json!(false),
                "spec.versions: Invalid value: ",
            ),
            (
                |object| object["spec"]["versions"][0]["schema"] = Value::Null,
                "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
            ),
            (
                |object| object["spec"]["names"]["kind"] = json!("Wid_get"),
                r#"spec.names.kind: Invalid value: "Wid_get": may have mixed case, but should otherwise match: a DNS-1035 label"#,
            ),
            (
                |object| object["spec"]["names"]["listKind"] = json!("Widget"),
                r#"spec.names.listKind: Invalid value: "Widget": kind and listKind may not be the same"#,
            ),
            (
                |object| {
                    object["spec"]["versions"][0]["subresources"] =
                        json!({"scale": {"specReplicasPath": ".status.n", "statusReplicasPath": ".status.n"}})
                },
                "spec.versions[0].subresources.scale.specReplicasPath: Invalid value: \".status.n\": should be a json path under .spec",
            ),
            (
                |object| {
                    object["spec"]["versions"][0]["additionalPrinterColumns"] =
                        json!([{"name": "a", "type": "time", "jsonPath": ".a"}])
                },
                r#"spec.versions[0].additionalPrinterColumns[0].type: Unsupported value: "time": supported values: "#,
            ),
            (
                |object| object["spec"]["preserveUnknownFields"] = json!(true),
                "spec.preserveUnknownFields: Invalid value: true: cannot set to true",
            ),
            (
                |object| object["spec"]["conversion"] = json!({"strategy": "Magic"}),
                r#"spec.conversion.strategy: Unsupported value: "Magic""#,
            ),
        ] {
            let found = refusals(change);
            assert!(
                found.iter().any(|found| found.starts_with(expected)),
                "{expected}: {found:?}"
            );
        }
        let protected = refusals(|object| {
            object["metadata"]["name"] = json!("widgets.x.k8s.io");
            object["spec"]["group"] = json!("x.k8s.io");
        });
        assert!(
            protected[0].starts_with(
                "metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups"
            ),
            "{protected:?}"
        );
    }
}
