//! Reads Go API packages just far enough: struct fields with their json and protobuf tags, and named types.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One field of a Go struct, with the text of its type.
#[derive(Clone, Debug)]
pub struct GoField {
    pub json: String,
    pub inline: bool,
    pub omit_empty: bool,
    pub omit_zero: bool,
    pub number: u32,
    pub ty: String,
}

#[derive(Clone, Debug)]
pub enum GoType {
    Struct(Vec<GoField>),
    /// `type X string`
    Named(String),
}

/// Types by qualified name (`core.v1.Container`).
#[derive(Default)]
pub struct GoTypes(pub BTreeMap<String, GoType>);

impl GoTypes {
    /// `package` is the short name under which the directory's types are filed (`core.v1`).
    pub fn read_package(&mut self, directory: &Path, package: &str) -> Result<()> {
        for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let relevant = name.ends_with(".go")
                && !name.ends_with("_test.go")
                && !name.starts_with("zz_")
                && !name.contains("generated");
            if relevant {
                self.read_file(&fs::read_to_string(&path)?, package);
            }
        }
        Ok(())
    }

    fn read_file(&mut self, text: &str, package: &str) {
        let imports = imports(text);
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some(rest) = line.strip_prefix("type ") else {
                continue;
            };
            let Some((name, definition)) = rest.split_once(' ') else {
                continue;
            };
            let key = format!("{package}.{name}");
            if definition.trim() == "struct {" {
                let fields = lines
                    .by_ref()
                    .take_while(|line| !line.starts_with('}'))
                    .filter_map(|line| field(line, package, &imports))
                    .collect();
                self.0.insert(key, GoType::Struct(fields));
            } else if definition.starts_with("struct")
                || definition.starts_with("interface")
                || definition.starts_with("func")
            {
                self.0.entry(key).or_insert(GoType::Struct(Vec::new()));
            } else {
                self.0
                    .insert(key, GoType::Named(qualify(definition, package, &imports)));
            }
        }
    }
}

fn imports(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        let line = line.strip_prefix("import ").unwrap_or(line);
        let Some((alias, path)) = line.split_once('"') else {
            continue;
        };
        let Some(path) = path.strip_suffix('"') else {
            continue;
        };
        if !path.starts_with("k8s.io/") {
            continue;
        }
        let parts: Vec<&str> = path.split('/').collect();
        let last = parts[parts.len() - 1];
        let versioned = last.starts_with('v') && last[1..].starts_with(|digit: char| digit.is_ascii_digit());
        let package = if versioned {
            format!("{}.{last}", parts[parts.len() - 2])
        } else {
            last.to_owned()
        };
        let alias = alias.trim();
        found.insert(
            if alias.is_empty() {
                last.to_owned()
            } else {
                alias.to_owned()
            },
            package,
        );
    }
    found
}

fn field(line: &str, package: &str, imports: &BTreeMap<String, String>) -> Option<GoField> {
    let line = line.trim();
    if line.starts_with("//") {
        return None;
    }
    let (declaration, tag) = line.split_once('`')?;
    let json = tag_value(tag, "json")?;
    let mut options = json.split(',');
    let name = options.next().unwrap_or_default().to_owned();
    let options: Vec<&str> = options.collect();
    let number = tag_value(tag, "protobuf")
        .and_then(|tag| tag.split(',').nth(1)?.parse().ok())
        .unwrap_or(0);
    let ty = declaration.split_whitespace().last()?;
    Some(GoField {
        inline: options.contains(&"inline"),
        omit_empty: options.contains(&"omitempty"),
        omit_zero: options.contains(&"omitzero"),
        number,
        ty: qualify(ty, package, imports),
        json: name,
    })
}

fn tag_value<'a>(tag: &'a str, key: &str) -> Option<&'a str> {
    let start = tag.find(&format!("{key}:\""))? + key.len() + 2;
    tag[start..].split('"').next()
}

/// `*metav1.Time` in package core.v1 → `*meta.v1.Time`; builtin types stay as they are.
fn qualify(ty: &str, package: &str, imports: &BTreeMap<String, String>) -> String {
    let ty = ty.split("//").next().unwrap_or_default().trim();
    if let Some(rest) = ty.strip_prefix('*') {
        return format!("*{}", qualify(rest, package, imports));
    }
    if let Some(rest) = ty.strip_prefix("[]") {
        return format!("[]{}", qualify(rest, package, imports));
    }
    if let Some(rest) = ty.strip_prefix("map[") {
        let value = rest.split_once(']').map_or("", |(_, value)| value);
        return format!("map[]{}", qualify(value, package, imports));
    }
    match ty {
        "string" | "bool" | "int32" | "int64" | "int" | "uint8" | "byte" | "float64" | "float32"
        | "interface{}" => ty.to_owned(),
        _ => match ty.split_once('.') {
            Some((alias, name)) => format!("{}.{name}", imports.get(alias).map_or(alias, String::as_str)),
            None => format!("{package}.{ty}"),
        },
    }
}
