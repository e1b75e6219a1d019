//! Fields that never change: `facts/immutable.facts`.

use serde_json::Value;

use super::cause::Cause;
use crate::catalog::Resource;
use crate::facts;

pub(super) fn check(resource: &Resource, object: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for line in facts::IMMUTABLE.lines().filter(|line| !line.starts_with('#')) {
        let [group, plural, path] = line.split(' ').collect::<Vec<_>>()[..] else {
            continue;
        };
        if (group.trim_start_matches('-'), plural) != (resource.group.as_str(), resource.plural.as_str()) {
            continue;
        }
        let pointer = format!("/{}", path.replace('.', "/"));
        let (new, old) = (object.pointer(&pointer), old.pointer(&pointer));
        if new != old {
            causes.push(Cause::invalid(
                path,
                new.unwrap_or(&Value::Null),
                "field is immutable",
            ));
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::update_refusals;
    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn every_line_names_a_field_that_exists() {
        let catalog = Catalog::builtin();
        for line in facts::IMMUTABLE.lines().filter(|line| !line.starts_with('#')) {
            let [group, plural, path] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let resource = catalog
                .resource(group.trim_start_matches('-'), "v1", plural)
                .unwrap_or_else(|| panic!("{line}"));
            assert!(
                catalog.types().descend(resource.kind.root, path).is_some(),
                "{line}"
            );
        }
    }

    #[test]
    fn selectors_stay() {
        let deployment = |label: &str| json!({"spec": {"selector": {"matchLabels": {"a": label}}, "template": {"metadata": {"labels": {"a": label}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        assert_eq!(
            update_refusals("apps", "v1", "deployments", deployment("b"), deployment("c")),
            [r#"spec.selector: Invalid value: {"matchLabels":{"a":"c"}}: field is immutable"#]
        );
        assert!(update_refusals("apps", "v1", "deployments", deployment("b"), deployment("b")).is_empty());
    }
}
