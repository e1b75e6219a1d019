//! Configuration files of the server: YAML of one kind in which every field is known, as upstream decodes them. A field
//! that nobody reads would be a rule that nobody keeps.

use std::path::Path;

use serde_json::Value;

/// The fields of the objects at a path, whose list indices are left out: `jwt.issuer`. At other paths stands anything.
type Fields = &'static [(&'static str, &'static [&'static str])];

pub struct Format {
    pub group: &'static str,
    pub versions: &'static [&'static str],
    pub kind: &'static str,
    pub fields: Fields,
}

impl Format {
    pub fn read(&self, path: &Path) -> Result<Value, String> {
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        self.parse(&bytes)
    }

    fn parse(&self, yaml: &[u8]) -> Result<Value, String> {
        let (config, mut problems) =
            schema::codec::parse_patch(schema::MediaType::Yaml, yaml).map_err(|error| error.to_string())?;
        let text = |field: &str| config[field].as_str().unwrap_or_default();
        let (group, version) = text("apiVersion").split_once('/').unwrap_or_default();
        if group != self.group || !self.versions.contains(&version) || text("kind") != self.kind {
            return Err(format!(
                "no kind {:?} is registered for version {:?}: expected {} of {}/{}",
                text("kind"),
                text("apiVersion"),
                self.kind,
                self.group,
                self.versions[0]
            ));
        }
        self.unknown(&config, "", "", &mut problems);
        match problems.is_empty() {
            true => Ok(config),
            false => Err(format!("strict decoding error: {}", problems.join(", "))),
        }
    }

    /// `path` is how people write it, `place` without indices.
    fn unknown(&self, of: &Value, path: &str, place: &str, problems: &mut Vec<String>) {
        let join = |parent: &str, name: &str| match parent {
            "" => name.to_owned(),
            parent => format!("{parent}.{name}"),
        };
        match of {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.unknown(item, &format!("{path}[{index}]"), place, problems);
                }
            }
            Value::Object(fields) => {
                let known = self.fields.iter().find(|(at, _)| *at == place);
                for (name, value) in fields {
                    let path = join(path, name);
                    if known.is_some_and(|(_, known)| !known.contains(&name.as_str())) {
                        problems.push(format!("unknown field {path:?}"));
                    } else {
                        self.unknown(value, &path, &join(place, name), problems);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_taken() {
        let format = Format {
            group: "g.io",
            versions: &["v1", "v1beta1"],
            kind: "Thing",
            fields: &[
                ("", &["apiVersion", "kind", "rules"]),
                ("rules", &["users", "any"]),
            ],
        };
        let head = "apiVersion: g.io/v1beta1\nkind: Thing\n";
        let parse = |text: &str| format.parse(format!("{head}{text}").as_bytes());
        assert!(parse("rules: [{users: [a], any: {x: {y: 1}}}]").is_ok());
        for (text, expected) in [
            ("rule: []", "unknown field \"rule\""),
            ("rules: [{}, {user: [a]}]", "unknown field \"rules[1].user\""),
            ("rules: []\nrules: []", "key \"rules\" already set in map"),
        ] {
            let told = parse(text).unwrap_err();
            assert!(
                told.starts_with("strict decoding error: ") && told.contains(expected),
                "{told}"
            );
        }
        let told = format.parse(b"apiVersion: g.io/v2\nkind: Thing").unwrap_err();
        assert_eq!(
            told,
            "no kind \"Thing\" is registered for version \"g.io/v2\": expected Thing of g.io/v1"
        );
    }
}
