//! Reads the table of facts (`facts/*.facts`), which `examples/import_facts` writes.

use serde_json::Value;

use crate::types::{Field, FieldType, Inline, JsonShape, ListType, ObjectType, TypeId};

pub(crate) const TYPES: &str = include_str!("../facts/types.facts");
pub(crate) const DEFAULTS: &str = include_str!("../facts/defaults.facts");
pub(crate) const CHECKS: &str = include_str!("../facts/checks.facts");
pub(crate) const IMMUTABLE: &str = include_str!("../facts/immutable.facts");
pub(crate) const RESOURCES: &str = include_str!("../facts/resources.facts");

/// `core.v1.Pod` and its block of lines, for every type.
pub(crate) fn type_sources() -> impl Iterator<Item = (&'static str, &'static str)> {
    TYPES.split("\n@").skip(1).map(|block| {
        let head = block.lines().next().unwrap_or_default();
        (head.split(' ').next().unwrap_or_default(), block)
    })
}

/// `core.v1.Pod` → `io.k8s.api.core.v1.Pod`
pub(crate) fn full_name(short: &str) -> String {
    let prefix = match short.split('.').next().unwrap_or_default() {
        "meta" => "io.k8s.apimachinery.pkg.apis.",
        "version" => "io.k8s.apimachinery.pkg.",
        "apiextensions" => "io.k8s.apiextensions-apiserver.pkg.apis.",
        "apiregistration" => "io.k8s.kube-aggregator.pkg.apis.",
        _ => "io.k8s.api.",
    };
    format!("{prefix}{short}")
}

pub(crate) fn parse_type(source: &str, resolve: &dyn Fn(&str) -> Option<TypeId>) -> ObjectType {
    let mut lines = source.lines();
    let mut head = lines.next().unwrap_or_default().split(' ');
    let mut object = ObjectType {
        name: full_name(head.next().unwrap_or_default()),
        ..ObjectType::default()
    };
    for word in head {
        match word.split_once('=') {
            None => object.map_atomic = word == "a",
            Some(("g", gvk)) => object.gvk = gvk.to_owned(),
            Some(("u", unions)) => object.unions = serde_json::from_str(unions).ok(),
            Some(_) => {}
        }
    }
    for line in lines {
        let mut words = line.trim_start().split(' ');
        let (Some(name), Some(number), Some(flags), Some(ty)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let number = number.parse().unwrap_or(0);
        let Some(ty) = field_type(ty, resolve) else {
            continue;
        };
        if let (true, FieldType::Object(ty)) = (flags.contains('~'), &ty) {
            object.inlines.push(Inline { number, ty: *ty });
            continue;
        }
        object.fields.push(field(name, number, flags, ty, words));
    }
    object.fields.sort_by(|left, right| left.name.cmp(&right.name));
    object
}

fn field<'a>(
    name: &str,
    number: u32,
    flags: &str,
    ty: FieldType,
    details: impl Iterator<Item = &'a str>,
) -> Field {
    let mut field = Field {
        name: name.to_owned(),
        number,
        ty,
        pointer: flags.contains('*'),
        omit_empty: flags.contains('?'),
        omit_zero: flags.contains('0'),
        required: flags.contains('!'),
        default: None,
        enumeration: Vec::new(),
        item_enumeration: Vec::new(),
        list_type: None,
        list_map_keys: Vec::new(),
        map_type: String::new(),
        patch_strategy: String::new(),
        patch_merge_key: None,
    };
    for (key, value) in details.filter_map(|word| word.split_once('=')) {
        let list = || value.split(',').map(str::to_owned).collect();
        let texts = || value.split(',').map(|text| text.replace('_', " ")).collect();
        match key {
            "l" => {
                field.list_type = match value {
                    "set" => Some(ListType::Set),
                    "map" => Some(ListType::Map),
                    _ => Some(ListType::Atomic),
                }
            }
            "k" => field.list_map_keys = list(),
            "s" => field.patch_strategy = value.to_owned(),
            "m" => field.patch_merge_key = Some(value.to_owned()),
            "a" => field.map_type = value.to_owned(),
            "e" => field.enumeration = texts(),
            "ei" => field.item_enumeration = texts(),
            "d" => field.default = serde_json::from_str::<Value>(value).ok(),
            _ => {}
        }
    }
    field
}

fn field_type(text: &str, resolve: &dyn Fn(&str) -> Option<TypeId>) -> Option<FieldType> {
    let boxed = |text| field_type(text, resolve).map(Box::new);
    if let Some(item) = text.strip_prefix("<[]") {
        return boxed(item).map(FieldType::WrappedList);
    }
    if let Some(item) = text.strip_prefix("[]") {
        return boxed(item).map(FieldType::List);
    }
    if let Some(value) = text.strip_prefix("{}") {
        return boxed(value).map(FieldType::Map);
    }
    if let Some(name) = text.strip_prefix('@') {
        return resolve(&full_name(name)).map(FieldType::Object);
    }
    Some(match text {
        "string" => FieldType::String,
        "bytes" => FieldType::Bytes,
        "bool" => FieldType::Bool,
        "int32" => FieldType::Int32,
        "int64" => FieldType::Int64,
        "double" => FieldType::Double,
        "intorstring" => FieldType::IntOrString,
        "quantity" => FieldType::Quantity,
        "time" => FieldType::Time,
        "microtime" => FieldType::MicroTime,
        "duration" => FieldType::Duration,
        "raw" => FieldType::RawExtension,
        "fieldsv1" => FieldType::FieldsV1,
        "json" => FieldType::Json(JsonShape::Raw),
        "schema-or-array" => FieldType::Json(JsonShape::SchemaOrArray),
        "schema-or-bool" => FieldType::Json(JsonShape::SchemaOrBool),
        "schema-or-strings" => FieldType::Json(JsonShape::SchemaOrStringArray),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Types;

    /// Every line of the table is understood: no field is lost to a word the reader does not know.
    #[test]
    fn every_field_line_is_read() {
        let types = Types::builtin();
        let mut lines = 0;
        for (name, source) in type_sources() {
            let id = types.by_name(&full_name(name)).expect("indexed");
            let object = types.get(id);
            let expected = source.lines().skip(1).filter(|line| !line.is_empty()).count();
            assert_eq!(object.fields.len() + object.inlines.len(), expected, "{name}");
            lines += expected;
        }
        assert!(lines > 2000, "only {lines} fields");
    }
}
