//! The paths of a resource, with the extensions by which clients find kinds and capabilities.

use serde_json::{Map, Value, json};

use super::schemas::{Dialect, is_connect};
use crate::catalog::{GroupVersionKind, Kind, Resource};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const MEDIA_TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];
const PATCH_TYPES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Query parameters: name, type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const PRETTY: Parameter = (
    "pretty",
    "string",
    "If 'true', then the output is pretty printed.",
);
const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "'All' runs every step of the request but keeps nothing.",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "The name of the actor that makes these changes.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore, Warn or Strict.",
);
const FORCE: Parameter = (
    "force",
    "boolean",
    "Take over fields that other managers own (apply patches only).",
);
const DELETE: &[Parameter] = &[
    PRETTY,
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "Seconds before the object is deleted; zero means at once.",
    ),
    (
        "ignoreStoreReadErrorWithClusterBreakingPotential",
        "boolean",
        "Delete even an object that cannot be read.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Deprecated: use propagationPolicy.",
    ),
    (
        "propagationPolicy",
        "string",
        "How dependents are deleted: Orphan, Background or Foreground.",
    ),
];
const LIST: &[Parameter] = &[
    PRETTY,
    (
        "allowWatchBookmarks",
        "boolean",
        "Ask for BOOKMARK events in a watch.",
    ),
    ("continue", "string", "The token of the previous page."),
    ("fieldSelector", "string", "Restrict the objects by their fields."),
    ("labelSelector", "string", "Restrict the objects by their labels."),
    ("limit", "integer", "The most objects on a page."),
    (
        "resourceVersion",
        "string",
        "How fresh the answer has to be, or where a watch starts.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "How resourceVersion is applied to lists.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "Begin a watch with the present state.",
    ),
    ("timeoutSeconds", "integer", "The longest that the call may last."),
    ("watch", "boolean", "Stream changes instead of listing."),
];

struct Operation<'a> {
    method: &'static str,
    action: &'static str,
    /// The first word of the operation's name.
    verb: &'static str,
    parameters: Vec<Parameter>,
    body: Option<&'a str>,
    response: String,
}

pub(super) fn of_resource(resource: &Resource, dialect: Dialect, paths: &mut Map<String, Value>) {
    let base = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    let scope = if resource.namespaced() {
        "/namespaces/{namespace}"
    } else {
        ""
    };
    let collection = format!("{base}{scope}/{}", resource.plural);
    let item = format!("{collection}/{{name}}");
    let kind_name = type_name(&resource.kind);
    let list_name = format!("{}List", kind_name);
    let namer = Namer {
        resource,
        scoped: if resource.namespaced() { "Namespaced" } else { "" },
    };
    let mut writer = Writer {
        dialect,
        is_custom: resource.kind.custom.is_some(),
        paths,
    };

    for (verb, operation) in [
        (
            "list",
            Operation {
                method: "get",
                action: "list",
                verb: "list",
                parameters: LIST.to_vec(),
                body: None,
                response: list_name.clone(),
            },
        ),
        (
            "create",
            Operation {
                method: "post",
                action: "post",
                verb: "create",
                parameters: vec![PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION],
                body: Some(&kind_name),
                response: kind_name.clone(),
            },
        ),
        (
            "deletecollection",
            Operation {
                method: "delete",
                action: "deletecollection",
                verb: "delete",
                parameters: [DELETE, &LIST[1..]].concat(),
                body: Some("DeleteOptions"),
                response: "Status".into(),
            },
        ),
    ] {
        if resource.supports(verb) {
            let middle = if verb == "deletecollection" {
                "Collection"
            } else {
                ""
            };
            let id = namer.name(operation.verb, middle, "");
            writer.add(&collection, &operation, &id, &resource.kind.gvk, None);
        }
    }
    if resource.namespaced() && resource.supports("list") {
        let operation = Operation {
            method: "get",
            action: "list",
            verb: "list",
            parameters: LIST.to_vec(),
            body: None,
            response: list_name,
        };
        let id = format!(
            "list{}{}ForAllNamespaces",
            namer.group_version(),
            resource.kind.gvk.kind
        );
        writer.add(
            &format!("{base}/{}", resource.plural),
            &operation,
            &id,
            &resource.kind.gvk,
            None,
        );
    }
    for (verb, operation) in item_operations(&kind_name) {
        if resource.supports(verb) {
            let id = namer.name(operation.verb, "", "");
            writer.add(
                &item,
                &operation,
                &id,
                &resource.kind.gvk,
                Some(resource.namespaced()),
            );
        }
    }
    for subresource in &resource.subresources {
        let path = format!("{item}/{}", subresource.name);
        let gvk = &subresource.kind.gvk;
        let suffix = camel(&subresource.name);
        if is_connect(&subresource.kind) {
            for (verb, method) in [
                ("get", "get"),
                ("create", "post"),
                ("update", "put"),
                ("delete", "delete"),
                ("patch", "patch"),
            ] {
                if subresource.verbs.iter().any(|known| known == verb) {
                    let operation = Operation {
                        method,
                        action: "connect",
                        verb: "connect",
                        parameters: Vec::new(),
                        body: None,
                        response: String::new(),
                    };
                    let id = namer.name("connect", &camel(method), &suffix);
                    writer.add(&path, &operation, &id, gvk, Some(resource.namespaced()));
                }
            }
            continue;
        }
        let name = type_name(&subresource.kind);
        for (verb, operation) in item_operations(&name) {
            if subresource.verbs.iter().any(|known| known == verb) {
                let id = namer.name(operation.verb, "", &suffix);
                writer.add(&path, &operation, &id, gvk, Some(resource.namespaced()));
            }
        }
        if subresource.verbs.iter().any(|verb| verb == "create") {
            let parameters = vec![PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
            let operation = Operation {
                method: "post",
                action: "post",
                verb: "create",
                parameters,
                body: Some(&name),
                response: name.clone(),
            };
            let id = namer.name("create", "", &suffix);
            writer.add(&path, &operation, &id, gvk, Some(resource.namespaced()));
        }
    }
}

fn item_operations(kind: &str) -> [(&'static str, Operation<'_>); 4] {
    let write = vec![PRETTY, DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
    let patch = [write.as_slice(), &[FORCE]].concat();
    [
        (
            "get",
            Operation {
                method: "get",
                action: "get",
                verb: "read",
                parameters: vec![PRETTY],
                body: None,
                response: kind.to_owned(),
            },
        ),
        (
            "update",
            Operation {
                method: "put",
                action: "put",
                verb: "replace",
                parameters: write,
                body: Some(kind),
                response: kind.to_owned(),
            },
        ),
        (
            "patch",
            Operation {
                method: "patch",
                action: "patch",
                verb: "patch",
                parameters: patch,
                body: Some("Patch"),
                response: kind.to_owned(),
            },
        ),
        (
            "delete",
            Operation {
                method: "delete",
                action: "delete",
                verb: "delete",
                parameters: DELETE.to_vec(),
                body: Some("DeleteOptions"),
                response: "Status".into(),
            },
        ),
    ]
}

struct Namer<'a> {
    resource: &'a Resource,
    scoped: &'static str,
}

impl Namer<'_> {
    /// `AppsV1`, `RbacAuthorizationV1`
    fn group_version(&self) -> String {
        let group = match self.resource.group.as_str() {
            "" => "core",
            group => group.strip_suffix(".k8s.io").unwrap_or(group),
        };
        format!(
            "{}{}",
            group.split('.').map(camel).collect::<String>(),
            camel(&self.resource.version)
        )
    }

    fn name(&self, verb: &str, middle: &str, suffix: &str) -> String {
        format!(
            "{verb}{}{middle}{}{}{suffix}",
            self.group_version(),
            self.scoped,
            self.resource.kind.gvk.kind
        )
    }
}

fn camel(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn type_name(kind: &Kind) -> String {
    if kind.custom.is_some() {
        return crate::custom::openapi::definition_name(&kind.gvk);
    }
    kind.types.get(kind.root).name.clone()
}

struct Writer<'a> {
    dialect: Dialect,
    /// Custom resources have neither protobuf nor strategic merge patches; clients look here to know.
    is_custom: bool,
    paths: &'a mut Map<String, Value>,
}

impl Writer<'_> {
    /// `item` is set for paths with a name, true when the object lives in a namespace.
    fn add(
        &mut self,
        path: &str,
        operation: &Operation<'_>,
        id: &str,
        gvk: &GroupVersionKind,
        item: Option<bool>,
    ) {
        let mut parameters: Vec<Value> = operation
            .parameters
            .iter()
            .map(|parameter| self.parameter(parameter))
            .collect();
        let namespaced = path.contains("{namespace}");
        for (name, present, text) in [
            ("name", item.is_some(), "name of the object"),
            (
                "namespace",
                namespaced,
                "object name and auth scope, such as for teams and projects",
            ),
        ] {
            if present {
                parameters.push(self.path_parameter(name, text));
            }
        }
        let mut entry = json!({
            "operationId": id,
            "x-kubernetes-action": operation.action,
            "x-kubernetes-group-version-kind": {"group": gvk.group, "version": gvk.version, "kind": gvk.kind},
            "responses": {"200": self.response(&operation.response), "401": {"description": "Unauthorized"}},
        });
        if let Some(body) = operation.body {
            let schema = self.dialect.reference(&full(body));
            let media: &[&str] = match (body, self.is_custom) {
                ("Patch", false) => PATCH_TYPES,
                ("Patch", true) => &PATCH_TYPES[..PATCH_TYPES.len() - 1],
                _ => &["*/*"],
            };
            match self.dialect {
                Dialect::V2 => {
                    parameters.push(json!({"in": "body", "name": "body", "required": operation.method != "delete", "schema": schema}));
                    entry["consumes"] = json!(media);
                }
                Dialect::V3 => entry["requestBody"] = json!({"content": content(media, &schema)}),
            }
        }
        if self.dialect == Dialect::V2 {
            entry["produces"] = json!(self.media_types());
        }
        if !parameters.is_empty() {
            entry["parameters"] = Value::Array(parameters);
        }
        let methods = self.paths.entry(path).or_insert_with(|| json!({}));
        methods[operation.method] = entry;
    }

    fn parameter(&self, (name, ty, text): &Parameter) -> Value {
        match self.dialect {
            Dialect::V2 => {
                json!({"in": "query", "name": name, "type": ty, "description": text, "uniqueItems": true})
            }
            Dialect::V3 => {
                json!({"in": "query", "name": name, "description": text, "schema": {"type": ty, "uniqueItems": true}})
            }
        }
    }

    fn path_parameter(&self, name: &str, text: &str) -> Value {
        let mut parameter = json!({"in": "path", "name": name, "required": true, "description": text});
        match self.dialect {
            Dialect::V2 => {
                parameter["type"] = "string".into();
                parameter["uniqueItems"] = true.into();
            }
            Dialect::V3 => parameter["schema"] = json!({"type": "string", "uniqueItems": true}),
        }
        parameter
    }

    fn media_types(&self) -> &'static [&'static str] {
        if self.is_custom {
            &MEDIA_TYPES[..2]
        } else {
            MEDIA_TYPES
        }
    }

    fn response(&self, kind: &str) -> Value {
        if kind.is_empty() {
            return match self.dialect {
                Dialect::V2 => json!({"description": "OK", "schema": {"type": "string"}}),
                Dialect::V3 => {
                    json!({"description": "OK", "content": content(&["*/*"], &json!({"type": "string"}))})
                }
            };
        }
        let schema = self.dialect.reference(&full(kind));
        match self.dialect {
            Dialect::V2 => json!({"description": "OK", "schema": schema}),
            Dialect::V3 => json!({"description": "OK", "content": content(self.media_types(), &schema)}),
        }
    }
}

fn content(media: &[&str], schema: &Value) -> Map<String, Value> {
    media
        .iter()
        .map(|media| ((*media).to_owned(), json!({"schema": schema})))
        .collect()
}

fn full(name: &str) -> String {
    if name.contains('.') {
        name.to_owned()
    } else {
        format!("{META}.{name}")
    }
}
