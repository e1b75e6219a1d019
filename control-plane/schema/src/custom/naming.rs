//! Which names a CustomResourceDefinition gets: the first to ask in its group has them.

use serde_json::{Value, json};

pub(super) const APPROVED: &str = "api-approved.kubernetes.io";

/// `spec.names` as they can be granted, and the conditions that tell so, without times.
#[derive(Clone, Debug, PartialEq)]
pub struct Naming {
    pub accepted: Value,
    /// type, status, reason, message
    pub conditions: Vec<[String; 4]>,
    pub established: bool,
}

/// `others` are the accepted names (`status.acceptedNames`) of the other definitions in the group.
pub fn decide(definition: &Value, others: &[&Value]) -> Naming {
    let wanted = &definition["spec"]["names"];
    let mut accepted = definition["status"]["acceptedNames"].clone();
    if !accepted.is_object() {
        accepted = json!({});
    }
    let text = |names: &Value, field: &str| names[field].as_str().unwrap_or_default().to_owned();
    let texts = |names: &Value, field: &str| -> Vec<String> {
        let list = names[field].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let is_resource = |name: &str| {
        others.iter().any(|names| {
            text(names, "plural") == name
                || text(names, "singular") == name
                || texts(names, "shortNames").iter().any(|short| short == name)
        })
    };
    let is_kind = |name: &str| {
        others
            .iter()
            .any(|names| text(names, "kind") == name || text(names, "listKind") == name)
    };
    let mut conflict = None;
    for (field, reason, taken) in [
        ("plural", "PluralConflict", &is_resource as &dyn Fn(&str) -> bool),
        ("singular", "SingularConflict", &is_resource),
        ("kind", "KindConflict", &is_kind),
        ("listKind", "ListKindConflict", &is_kind),
    ] {
        let name = text(wanted, field);
        if !name.is_empty() && name != text(&accepted, field) && taken(&name) {
            conflict = Some((reason, format!("\"{name}\" is already in use")));
        } else {
            accepted[field] = wanted[field].clone();
        }
    }
    let known = texts(&accepted, "shortNames");
    let shorts = texts(wanted, "shortNames");
    let clashing: Vec<String> = shorts
        .iter()
        .filter(|name| !known.contains(name) && is_resource(name))
        .map(|name| format!("\"{name}\" is already in use"))
        .collect();
    match clashing.as_slice() {
        [] => accepted["shortNames"] = wanted["shortNames"].clone(),
        [only] => conflict = Some(("ShortNamesConflict", only.clone())),
        many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
    }
    accepted["categories"] = wanted["categories"].clone();
    if let Some(fields) = accepted.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    let was_established = condition(definition, "Established").is_some_and(|known| known["status"] == "True");
    let row = |parts: [&str; 4]| parts.map(str::to_owned);
    let mut conditions: Vec<[String; 4]> = approval(definition).into_iter().collect();
    conditions.push(match &conflict {
        None => row(["NamesAccepted", "True", "NoConflicts", "no conflicts found"]),
        Some((reason, message)) => row(["NamesAccepted", "False", reason, message]),
    });
    let established = was_established || conflict.is_none();
    if established {
        let message = "the initial names have been accepted";
        conditions.push(row(["Established", "True", "InitialNamesAccepted", message]));
    } else {
        conditions.push(row([
            "Established",
            "False",
            "NotAccepted",
            "not all names are accepted",
        ]));
    }
    Naming {
        accepted,
        conditions,
        established,
    }
}

/// Groups of the community need its approval (upstream's `GetAPIApprovalState`).
pub(super) fn approval(definition: &Value) -> Option<[String; 4]> {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let protected = ["k8s.io", "kubernetes.io"];
    let is_of = |of: &&str| {
        group
            .strip_suffix(*of)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    protected.iter().find(|of| is_of(of))?;
    let annotation = definition["metadata"]["annotations"][APPROVED]
        .as_str()
        .unwrap_or_default();
    let (status, reason, message) = if annotation.is_empty() {
        ("False", "MissingAnnotation", approval_message(""))
    } else if annotation.starts_with("unapproved") {
        (
            "False",
            "UnapprovedAnnotation",
            format!("not approved: {annotation:?}"),
        )
    } else if annotation.contains("://") {
        ("True", "ApprovedAnnotation", format!("approved in {annotation}"))
    } else {
        let either = " with either a URL or a reason starting with \"unapproved\"";
        ("False", "InvalidAnnotation", approval_message(either))
    };
    let name = "KubernetesAPIApprovalPolicyConformant";
    Some([name, status, reason, &message].map(str::to_owned))
}

fn approval_message(more: &str) -> String {
    format!(
        "protected groups must have approval annotation \"{APPROVED}\"{more}, see https://github.com/kubernetes/enhancements/pull/1111"
    )
}

pub fn condition<'a>(definition: &'a Value, name: &str) -> Option<&'a Value> {
    definition["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == name)
}

/// Sets a condition of an object; its time changes only with its status.
pub fn set_condition(object: &mut Value, [name, status, reason, message]: [&str; 4], now: &str) {
    let time = match condition(object, name) {
        Some(known) if known["status"] == status => known["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    let next = json!({"type": name, "status": status, "reason": reason, "message": message, "lastTransitionTime": time});
    let list = &mut object["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        match list.iter_mut().find(|condition| condition["type"] == name) {
            Some(known) => *known = next,
            None => list.push(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanting(plural: &str, kind: &str, shorts: &[&str]) -> Value {
        json!({"spec": {"names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": shorts}}})
    }

    #[test]
    fn the_first_has_the_name() {
        let free = decide(&wanting("widgets", "Widget", &["w"]), &[]);
        assert!(free.established);
        assert_eq!(free.accepted["shortNames"], json!(["w"]));
        assert_eq!(
            free.conditions[0],
            ["NamesAccepted", "True", "NoConflicts", "no conflicts found"]
        );

        let late = decide(&wanting("gadgets", "Widget", &["g"]), &[&free.accepted]);
        assert!(!late.established);
        assert_eq!(late.accepted["plural"], "gadgets");
        assert!(late.accepted.get("kind").is_none());
        assert_eq!(
            late.conditions[0][2..],
            ["ListKindConflict", "\"WidgetList\" is already in use"]
        );
        assert_eq!(
            late.conditions[1][2..],
            ["NotAccepted", "not all names are accepted"]
        );

        let short = decide(&wanting("gadgets", "Gadget", &["w"]), &[&free.accepted]);
        assert_eq!(
            short.conditions[0][2..],
            ["ShortNamesConflict", "\"w\" is already in use"]
        );
        assert!(short.accepted.get("shortNames").is_none());
    }

    #[test]
    fn an_established_definition_stays_so() {
        let mut established = wanting("widgets", "Widget", &[]);
        set_condition(
            &mut established,
            ["Established", "True", "InitialNamesAccepted", ""],
            "t1",
        );
        established["spec"]["names"]["shortNames"] = json!(["x"]);
        let other = json!({"plural": "x"});
        let naming = decide(&established, &[&other]);
        assert!(naming.established);
        assert_eq!(naming.conditions[0][1], "False");
        set_condition(&mut established, ["Established", "True", "Again", ""], "t2");
        assert_eq!(
            condition(&established, "Established").expect("set")["lastTransitionTime"],
            "t1"
        );
    }
}
