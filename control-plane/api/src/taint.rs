//! Taints and tolerations.

use k8s_openapi::api::core::v1::{Taint, Toleration};

pub const NO_SCHEDULE: &str = "NoSchedule";
pub const PREFER_NO_SCHEDULE: &str = "PreferNoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";

/// An empty effect tolerates every effect; an empty key with `Exists` tolerates every taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or_default();
    if toleration
        .effect
        .as_deref()
        .is_some_and(|e| !e.is_empty() && e != taint.effect)
    {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    let (wanted, have) = (
        toleration.value.as_deref().unwrap_or_default(),
        taint.value.as_deref().unwrap_or_default(),
    );
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => wanted == have && !key.is_empty(),
        "Exists" => true,
        "Gt" | "Lt" => match (have.parse::<i64>(), wanted.parse::<i64>()) {
            (Ok(have), Ok(wanted)) if toleration.operator.as_deref() == Some("Gt") => have > wanted,
            (Ok(have), Ok(wanted)) => have < wanted,
            _ => false,
        },
        _ => false,
    }
}

/// The first taint among those with one of `effects` that nothing tolerates.
pub fn first_untolerated<'a>(
    taints: &'a [Taint],
    tolerations: &[Toleration],
    effects: &[&str],
) -> Option<&'a Taint> {
    taints
        .iter()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

/// Same taint in the sense of the API: key and effect. Value and time may differ.
pub fn same(a: &Taint, b: &Taint) -> bool {
    a.key == b.key && a.effect == b.effect
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn tolerations() {
        let taint: Taint = from_value(json!({"key": "k", "value": "v", "effect": "NoExecute"})).unwrap();
        for (toleration, expected) in [
            (
                json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute"}),
                true,
            ),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"key": "k", "operator": "Exists"}), true),
            (
                json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}),
                false,
            ),
            (json!({"operator": "Exists"}), true),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({}), false),
        ] {
            assert_eq!(
                tolerates(&from_value(toleration.clone()).unwrap(), &taint),
                expected,
                "{toleration}"
            );
        }
        let found = first_untolerated(std::slice::from_ref(&taint), &[], &[NO_SCHEDULE]);
        assert_eq!(found, None);
        assert_eq!(
            first_untolerated(std::slice::from_ref(&taint), &[], &[NO_EXECUTE]),
            Some(&taint)
        );
    }
}
