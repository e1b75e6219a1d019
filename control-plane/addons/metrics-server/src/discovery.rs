//! What the server says about itself: discovery, OpenAPI, its version.

use serde_json::{Value, json};

use crate::objects::{GROUP, GROUP_VERSION};

/// Plural, kind, whether in namespaces.
const RESOURCES: [(&str, &str, bool); 2] = [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)];

fn version() -> Value {
    json!({"groupVersion": GROUP_VERSION, "version": "v1beta1"})
}

pub fn group() -> Value {
    json!({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP,
        "versions": [version()], "preferredVersion": version()})
}

pub fn groups() -> Value {
    let group = json!({"name": GROUP, "versions": [version()], "preferredVersion": version()});
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]})
}

pub fn resources() -> Value {
    let resources = RESOURCES.map(|(name, kind, namespaced)| {
        json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind, "verbs": ["get", "list"]})
    });
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION, "resources": resources})
}

pub fn product() -> Value {
    json!({"major": "0", "minor": "8", "gitVersion": concat!("v", env!("CARGO_PKG_VERSION")),
        "platform": "linux/amd64"})
}

const DOCUMENT: &str = "apis/metrics.k8s.io/v1beta1";

pub fn openapi_v3_index() -> Value {
    json!({"paths": {DOCUMENT: {"serverRelativeURL": format!("/openapi/v3/{DOCUMENT}")}}})
}

pub fn is_openapi_v3(path: &str) -> bool {
    path.strip_prefix("/openapi/v3/") == Some(DOCUMENT)
}

pub fn openapi_v3() -> Value {
    let schemas = schemas("#/components/schemas/");
    let response = |kind: &str| {
        let schema = json!({"$ref": format!("#/components/schemas/{}", schema_name(kind))});
        json!({"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}})
    };
    let parameter = |name: &str| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}});
    json!({"openapi": "3.0.0", "info": info(), "paths": paths(&response, &parameter),
        "components": {"schemas": schemas}})
}

pub fn openapi_v2() -> Value {
    let response = |kind: &str| {
        let schema = json!({"$ref": format!("#/definitions/{}", schema_name(kind))});
        json!({"200": {"description": "OK", "schema": schema}})
    };
    let parameter = |name: &str| json!({"name": name, "in": "path", "required": true, "type": "string", "uniqueItems": true});
    json!({"swagger": "2.0", "info": info(), "paths": paths(&response, &parameter),
        "definitions": schemas("#/definitions/")})
}

fn info() -> Value {
    json!({"title": "Kubernetes metrics-server", "version": concat!("v", env!("CARGO_PKG_VERSION"))})
}

fn schema_name(kind: &str) -> String {
    format!("io.k8s.metrics.pkg.apis.metrics.v1beta1.{kind}")
}

fn paths(response: &dyn Fn(&str) -> Value, parameter: &dyn Fn(&str) -> Value) -> Value {
    let root = format!("/apis/{GROUP_VERSION}");
    let mut paths = json!({});
    for (plural, kind, namespaced) in RESOURCES {
        let list = format!("{kind}List");
        let within = if namespaced { "/namespaces/{namespace}" } else { "" };
        let places = [
            (format!("{root}/{plural}"), list.as_str(), "list", &[][..]),
            (
                format!("{root}{within}/{plural}"),
                list.as_str(),
                "list",
                &["namespace"][..],
            ),
            (
                format!("{root}{within}/{plural}/{{name}}"),
                kind,
                "get",
                &["namespace", "name"][..],
            ),
        ];
        for (path, answer, action, parameters) in places {
            let named = |name: &&&str| namespaced || **name != "namespace";
            let parameters: Vec<Value> = parameters
                .iter()
                .filter(named)
                .map(|name| parameter(name))
                .collect();
            let mut get = json!({"tags": ["metrics_v1beta1"], "responses": response(answer),
                "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk(kind)});
            if !parameters.is_empty() {
                get["parameters"] = parameters.into();
            }
            paths[path] = json!({"get": get});
        }
    }
    paths
}

fn gvk(kind: &str) -> Value {
    json!({"group": GROUP, "version": "v1beta1", "kind": kind})
}

fn schemas(prefix: &str) -> Value {
    let described = |text: &str, mut schema: Value| {
        schema["description"] = text.into();
        schema
    };
    let usage = || {
        let quantities = json!({"type": "object", "additionalProperties": {"type": "string"}});
        described("Usage of cpu, memory and swap.", quantities)
    };
    let head = |own: (&str, Value)| {
        json!({
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "timestamp": described("End of the window.", json!({"type": "string", "format": "date-time"})),
            "window": described("Time over which usage was measured.", json!({"type": "string"})),
            own.0: own.1,
        })
    };
    let container = schema_name("ContainerMetrics");
    let containers = json!({"type": "array", "items": {"$ref": format!("{prefix}{container}")}});
    let mut schemas = json!({
        container: {"type": "object", "required": ["name", "usage"], "description": "Usage of one container.",
            "properties": {"name": {"type": "string"}, "usage": usage()}},
    });
    for (_, kind, namespaced) in RESOURCES {
        let (own, about) = match namespaced {
            true => (("containers", containers.clone()), "Usage of a pod's containers."),
            false => (("usage", usage()), "Usage of a node."),
        };
        let required = ["timestamp", "window", own.0];
        schemas[schema_name(kind)] = json!({"type": "object", "description": about, "required": required,
            "properties": head(own), "x-kubernetes-group-version-kind": [gvk(kind)]});
        let list = format!("{kind}List");
        let items = json!({"type": "array", "items": {"$ref": format!("{prefix}{}", schema_name(kind))}});
        schemas[schema_name(&list)] = json!({"type": "object", "required": ["items"],
            "description": format!("A list of {kind}."),
            "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"},
                "metadata": {"type": "object"}, "items": items},
            "x-kubernetes-group-version-kind": [gvk(&list)]});
    }
    schemas
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` below `value`.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn documents_define_what_they_refer_to() {
        for document in [openapi_v2(), openapi_v3()] {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(found.len() >= 7, "{found:?}");
            for reference in found {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            let paths: Vec<_> = document["paths"].as_object().unwrap().keys().collect();
            let root = "/apis/metrics.k8s.io/v1beta1";
            let want = [
                "/namespaces/{namespace}/pods",
                "/namespaces/{namespace}/pods/{name}",
                "/nodes",
                "/nodes/{name}",
                "/pods",
            ];
            assert_eq!(
                paths,
                want.map(|path| format!("{root}{path}"))
                    .iter()
                    .collect::<Vec<_>>()
            );
        }
        assert!(is_openapi_v3("/openapi/v3/apis/metrics.k8s.io/v1beta1"));
    }
}
