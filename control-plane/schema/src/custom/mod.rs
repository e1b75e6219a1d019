//! Custom resources: how a CustomResourceDefinition becomes entries of the catalog, and what the
//! engine asks about their objects.
//!
//! | module | question it answers |
//! |---|---|
//! | `definition` | is the CustomResourceDefinition itself sound |
//! | `structural` | is its schema structural |
//! | [`naming`] | does it get the names it wants |
//! | `prune` | which fields stay, which defaults come |
//! | `values` | what is wrong with an object |
//! | `rules` | what its CEL rules say |
//! | `table` | what `kubectl get` shows |
//! | `types` | how server-side apply sees the schema |
//! | `openapi` | how clients learn the schema |

pub(crate) mod definition;
mod format;
pub mod naming;
pub(crate) mod openapi;
mod path;
mod prune;
mod rules;
mod structural;
pub(crate) mod table;
mod types;
mod values;

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::catalog::{Catalog, GroupVersionKind, Kind, Resource, Scope, Subresource, group_version};
use crate::fields;
use crate::validate::Cause;
use path::JsonPath;

/// What a custom kind has beyond a built-in one.
#[derive(Clone, Debug)]
pub struct Custom {
    /// The structural schema of the kind's version.
    pub schema: Value,
    /// `group/version` in which objects are stored.
    pub stored_as: String,
    /// Stored bytes may differ from what is served.
    pub converts: bool,
    /// Who makes one version of another; without, only their names differ.
    pub converter: Option<Arc<dyn Converter>>,
    /// What users of the version are told.
    pub deprecation: Option<String>,
    pub has_status: bool,
    pub scale: Option<ScalePaths>,
    /// `.spec.color`: what field selectors may ask about.
    pub selectable: Vec<String>,
    columns: Vec<(JsonPath, String)>,
    patterns: values::Patterns,
    rules: Option<rules::Rules>,
    /// Checks metadata, which every kind has alike.
    envelope: Arc<Kind>,
}

/// The conversion strategy `Webhook`.
pub trait Converter: Send + Sync + std::fmt::Debug {
    /// All objects in the wanted version, in their order.
    fn convert(&self, objects: Vec<Value>, api_version: &str) -> Result<Vec<Value>, String>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: String,
    pub status_replicas: String,
    pub selector: Option<String>,
}

impl Custom {
    /// Metadata in canonical form, that of embedded resources too; unknown fields gone. `Ok` lists strict problems.
    pub(crate) fn check(&self, object: &mut Value) -> Result<Vec<String>, String> {
        let Value::Object(fields) = object else {
            return Err("json: cannot unmarshal array into Go value of type map[string]interface {}".into());
        };
        let mut problems = self.check_envelope(fields)?;
        prune::embedded(object, &self.schema, "", &mut |path, resource| {
            let found = self.check_envelope(resource)?;
            problems.extend(
                found
                    .iter()
                    .map(|problem| problem.replacen('"', &format!("\"{path}."), 1)),
            );
            Ok::<_, String>(())
        })?;
        let gone = prune::prune(object, &self.schema, true);
        problems.extend(gone.iter().map(|path| format!("unknown field \"{path}\"")));
        Ok(problems)
    }

    fn check_envelope(&self, fields: &mut Map<String, Value>) -> Result<Vec<String>, String> {
        let names = ["apiVersion", "kind", "metadata"];
        let taken = names.iter().filter_map(|name| fields.remove_entry(*name));
        let mut envelope = Value::Object(taken.collect());
        let problems = fields::check(&self.envelope, &mut envelope)?;
        if let Value::Object(envelope) = envelope {
            fields.extend(envelope);
        }
        Ok(problems)
    }

    pub(crate) fn default(&self, object: &mut Value) {
        prune::default(object, &self.schema);
    }

    pub(crate) fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = values::validate(&self.schema, &self.patterns, object, old);
        if let Some(rules) = &self.rules {
            causes.extend(rules.check(object, old, &causes));
        }
        causes
    }

    /// Stored objects as this version serves them.
    pub fn to_served(&self, gvk: &GroupVersionKind, stored: Vec<Value>) -> Result<Vec<Value>, String> {
        let mut served = self.in_version(stored, &gvk.api_version())?;
        for object in &mut served {
            prune::prune(object, &self.schema, true);
            prune::default(object, &self.schema);
        }
        Ok(served)
    }

    /// Objects of any version in the one that is stored now.
    pub fn to_stored(&self, objects: Vec<Value>) -> Result<Vec<Value>, String> {
        self.in_version(objects, &self.stored_as)
    }

    fn in_version(&self, mut objects: Vec<Value>, api_version: &str) -> Result<Vec<Value>, String> {
        let others: Vec<usize> = (0..objects.len())
            .filter(|index| objects[*index]["apiVersion"] != api_version)
            .collect();
        if others.is_empty() {
            return Ok(objects);
        }
        if let Some(converter) = &self.converter {
            let taken = others.iter().map(|index| objects[*index].take()).collect();
            for (index, converted) in others.iter().zip(converter.convert(taken, api_version)?) {
                objects[*index] = converted;
            }
        } else {
            for index in others {
                objects[index]["apiVersion"] = api_version.into();
            }
        }
        Ok(objects)
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The served resources of a definition, under the names it was granted, preferred version first.
pub fn resources(
    catalog: &Catalog,
    definition: &Value,
    accepted: &Value,
    converter: Option<&Arc<dyn Converter>>,
) -> Vec<Resource> {
    let spec = &definition["spec"];
    let mut versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    versions.sort_by_key(|version| Reverse(priority(text(version, "name"))));
    versions
        .iter()
        .filter(|version| version["served"] == true)
        .filter_map(|version| resource(catalog, definition, accepted, version, converter.cloned()))
        .collect()
}

/// By group, preferred versions first, as discovery shows them.
pub fn sort(resources: &mut [Resource]) {
    resources.sort_by_cached_key(|resource| {
        (
            resource.group.clone(),
            Reverse(priority(&resource.version)),
            resource.plural.clone(),
        )
    });
}

/// `v2` before `v1` before `v2beta1` before `v1alpha3` before anything else.
fn priority(version: &str) -> (u8, u64, u64, Reverse<String>) {
    let parsed = version.strip_prefix('v').and_then(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major: u64 = rest[..digits].parse().ok()?;
        let (stability, minor) = match &rest[digits..] {
            "" => (3, "0"),
            tail if tail.starts_with("beta") => (2, &tail[4..]),
            tail if tail.starts_with("alpha") => (1, &tail[5..]),
            _ => return None,
        };
        Some((stability, major, minor.parse().ok()?))
    });
    let (stability, major, minor) = parsed.unwrap_or((0, 0, 0));
    (stability, major, minor, Reverse(version.to_owned()))
}

fn resource(
    catalog: &Catalog,
    definition: &Value,
    accepted: &Value,
    version: &Value,
    converter: Option<Arc<dyn Converter>>,
) -> Option<Resource> {
    let spec = &definition["spec"];
    let (group, name) = (text(spec, "group"), text(version, "name"));
    let versions = spec["versions"].as_array()?;
    let storage = versions.iter().find(|version| version["storage"] == true)?;
    let schema = version.pointer("/schema/openAPIV3Schema")?.clone();
    let envelope = catalog.kind(&GroupVersionKind::new(
        "meta.k8s.io",
        "v1",
        "PartialObjectMetadata",
    ))?;
    let mut patterns = values::Patterns::new();
    values::collect_patterns(&schema, &mut patterns);
    let subresources = &version["subresources"];
    let scale = subresources["scale"].is_object().then(|| ScalePaths {
        spec_replicas: text(&subresources["scale"], "specReplicasPath").to_owned(),
        status_replicas: text(&subresources["scale"], "statusReplicasPath").to_owned(),
        selector: subresources["scale"]["labelSelectorPath"]
            .as_str()
            .map(str::to_owned),
    });
    let (columns, paths) = table::columns(version);
    let changed = definition["metadata"]["generation"].as_i64().unwrap_or(0) > 1;
    let custom = Custom {
        stored_as: group_version(group, text(storage, "name")),
        converts: changed || versions.len() > 1 || schema.to_string().contains("\"default\":"),
        converter,
        deprecation: deprecation(version, &format!("{group}/{name} {}", text(accepted, "kind"))),
        has_status: subresources["status"].is_object(),
        scale,
        selectable: version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|field| text(field, "jsonPath").to_owned())
            .collect(),
        columns: paths,
        patterns,
        rules: rules::Rules::of(&schema),
        envelope: envelope.clone(),
        schema,
    };
    let (has_status, has_scale) = (custom.has_status, custom.scale.is_some());
    let gvk = GroupVersionKind::new(group, name, text(accepted, "kind"));
    let (types, root) = types::of_schema(catalog.types(), &custom.schema, &openapi::definition_name(&gvk));
    let kind = Arc::new(Kind {
        gvk,
        types,
        root,
        custom: Some(Arc::new(custom)),
    });
    let verbs = |verbs: &[&str]| verbs.iter().map(|verb| (*verb).to_owned()).collect::<Vec<_>>();
    let mut served = vec![
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "create",
        "update",
        "watch",
    ];
    if definition["metadata"]["deletionTimestamp"].is_string() {
        served.retain(|verb| *verb != "create");
    }
    let mut subresources = Vec::new();
    if has_status {
        subresources.push(Subresource {
            name: "status".into(),
            kind: kind.clone(),
            verbs: verbs(&["get", "patch", "update"]),
        });
    }
    if has_scale {
        subresources.push(Subresource {
            name: "scale".into(),
            kind: catalog
                .kind(&GroupVersionKind::new("autoscaling", "v1", "Scale"))?
                .clone(),
            verbs: verbs(&["get", "patch", "update"]),
        });
    }
    Some(Resource {
        group: group.into(),
        version: name.into(),
        plural: text(accepted, "plural").into(),
        singular: text(accepted, "singular").into(),
        kind,
        list_kind: text(accepted, "listKind").into(),
        scope: if text(spec, "scope") == "Cluster" {
            Scope::Cluster
        } else {
            Scope::Namespaced
        },
        verbs: verbs(&served),
        short_names: texts(&accepted["shortNames"]),
        categories: texts(&accepted["categories"]),
        subresources,
        columns,
    })
}

fn deprecation(version: &Value, what: &str) -> Option<String> {
    (version["deprecated"] == true).then(|| match text(version, "deprecationWarning") {
        "" => format!("{what} is deprecated"),
        warning => warning.to_owned(),
    })
}

/// What the definition's status says when its storage version is written.
pub fn note_stored_version(definition: &mut Value) {
    let storage = definition["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|version| version["storage"] == true)
        .map(|version| version["name"].clone());
    let Some(storage) = storage else { return };
    if !definition["status"].is_object() {
        definition["status"] = json!({});
    }
    let stored = &mut definition["status"]["storedVersions"];
    if !stored.is_array() {
        *stored = json!([]);
    }
    if let Some(stored) = stored.as_array_mut()
        && !stored.contains(&storage)
    {
        stored.push(storage);
    }
}

/// The pointer (`/spec/color`) of a simple path (`.spec.color`).
pub fn pointer(path: &str) -> String {
    let names = JsonPath::parse(path).ok();
    let names = names.as_ref().and_then(JsonPath::fields).unwrap_or_default();
    names
        .iter()
        .map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{self, MediaType};
    use crate::{defaults, validate};

    pub(super) fn definition() -> Value {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
                "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
                        {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                        "spec": {"type": "object", "required": ["color"], "properties": {
                            "color": {"type": "string", "enum": ["red", "blue"]}, "size": {"type": "integer", "default": 3, "minimum": 1}}},
                        "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}}}]}})
    }

    pub(super) fn with_widgets() -> Catalog {
        let builtin = Catalog::builtin();
        let mut definition = definition();
        super::definition::defaults(definition["spec"].as_object_mut().expect("spec"));
        let naming = naming::decide(&definition, &[]);
        let resources = resources(&builtin, &definition, &naming.accepted, None);
        builtin.with_all(resources)
    }

    #[test]
    fn a_definition_becomes_a_resource_of_the_engine() {
        let catalog = with_widgets();
        let widgets = catalog.resource("example.com", "v1", "widgets").expect("served");
        assert_eq!(
            (
                widgets.singular.as_str(),
                widgets.list_kind.as_str(),
                widgets.short_names.as_slice()
            ),
            ("widget", "WidgetList", &["wd".to_owned()][..])
        );
        let body = br#"{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"a","labels":{}},"spec":{"color":"red","shape":"round"}}"#;
        let decoded =
            codec::decode(&catalog, MediaType::Json, body, Some(&widgets.kind.gvk)).expect("decodes");
        assert_eq!(decoded.strict, ["unknown field \"spec.shape\""]);
        let mut object = decoded.object;
        defaults::apply(&widgets.kind, &mut object);
        assert_eq!(object["spec"], json!({"color": "red", "size": 3}));
        assert!(
            codec::encode_protobuf(&catalog, &object).is_err(),
            "custom objects have no protobuf form"
        );
        object["metadata"]["namespace"] = json!("default");
        assert!(validate::create(widgets, &object).is_empty());
        object["spec"] = json!({"color": "green", "size": 0});
        let causes = validate::aggregate(&validate::create(widgets, &object));
        assert_eq!(
            causes,
            r#"[spec.color: Unsupported value: "green": supported values: "blue", "red", spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1]"#
        );
    }

    #[test]
    fn versions_come_in_their_order() {
        let mut versions = vec!["v1alpha2", "foo", "v10", "v1", "v2beta1", "v3", "v1beta2"];
        versions.sort_by_key(|version| Reverse(priority(version)));
        assert_eq!(
            versions,
            ["v10", "v3", "v1", "v2beta1", "v1beta2", "v1alpha2", "foo"]
        );
    }

    #[test]
    fn stored_versions_are_noted_once() {
        let mut object = definition();
        note_stored_version(&mut object);
        note_stored_version(&mut object);
        assert_eq!(object["status"]["storedVersions"], json!(["v1"]));
        assert_eq!(pointer(".spec.a"), "/spec/a");
    }
}
