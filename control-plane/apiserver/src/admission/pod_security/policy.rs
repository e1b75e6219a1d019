//! What a namespace's labels demand of its pods. Labels and texts: upstream's `pod-security-admission/api`.

use std::fmt;

use serde_json::Value;

use crate::status::Cause;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level as of a minor version; none is the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub minor: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

impl Policy {
    /// Always a policy; labels that mean nothing are told. Enforcement fails closed, the others open.
    pub fn of(namespace: &Value) -> (Self, Vec<Cause>) {
        let mut causes = Vec::new();
        let mut mode = |name: &str, fallback: Level| {
            let mut label = |suffix: &str, problem: &dyn Fn(&str) -> Option<&'static str>| {
                let key = format!("pod-security.kubernetes.io/{name}{suffix}");
                let value = namespace["metadata"]["labels"][&key].as_str()?;
                if let Some(problem) = problem(value) {
                    causes.push(Cause {
                        reason: "FieldValueInvalid",
                        message: format!("Invalid value: {value:?}: {problem}"),
                        field: format!("metadata.labels[{key}]"),
                    });
                }
                Some(value.to_owned())
            };
            let level = label("", &|value| {
                level(value)
                    .is_none()
                    .then_some("must be one of privileged, baseline, restricted")
            });
            let version = label("-version", &|value| {
                (value != "latest" && minor(value).is_none()).then_some(r#"must be "latest" or "v1.x""#)
            });
            Standard {
                level: level.map_or(Level::Privileged, |name| self::level(&name).unwrap_or(fallback)),
                minor: version.and_then(|version| minor(&version)),
            }
        };
        let policy = Self {
            enforce: mode("enforce", Level::Restricted),
            audit: mode("audit", Level::Privileged),
            warn: mode("warn", Level::Privileged),
        };
        (policy, causes)
    }
}

fn level(name: &str) -> Option<Level> {
    match name {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn minor(version: &str) -> Option<u32> {
    let minor = version.strip_prefix("v1.")?;
    let canonical = minor == "0" || !minor.starts_with(['0', '+']);
    minor.parse().ok().filter(|_| canonical)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn namespace(labels: &[(&str, &str)]) -> Value {
        let labels: Value = labels
            .iter()
            .map(|(name, value)| (format!("pod-security.kubernetes.io/{name}"), json!(value)))
            .collect();
        json!({"metadata": {"labels": labels}})
    }

    #[test]
    fn labels_say_what_is_demanded() {
        let (policy, causes) = Policy::of(&json!({}));
        assert_eq!(
            (policy.enforce.to_string().as_str(), causes.len()),
            ("privileged:latest", 0)
        );
        let (policy, causes) = Policy::of(&namespace(&[
            ("enforce", "baseline"),
            ("enforce-version", "v1.30"),
            ("warn", "restricted"),
            ("warn-version", "latest"),
        ]));
        assert_eq!(causes, []);
        assert_eq!(policy.enforce.to_string(), "baseline:v1.30");
        assert_eq!(policy.warn.to_string(), "restricted:latest");
        assert_eq!(policy.audit.level, Level::Privileged);
    }

    #[test]
    fn labels_that_mean_nothing_are_told() {
        let (policy, causes) = Policy::of(&namespace(&[
            ("enforce", "strict"),
            ("warn", "x"),
            ("audit-version", "1.2"),
        ]));
        assert_eq!(
            (policy.enforce.level, policy.warn.level),
            (Level::Restricted, Level::Privileged)
        );
        let told: Vec<String> = causes
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect();
        assert_eq!(
            told,
            [
                r#"metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strict": must be one of privileged, baseline, restricted"#,
                r#"metadata.labels[pod-security.kubernetes.io/audit-version]: Invalid value: "1.2": must be "latest" or "v1.x""#,
                r#"metadata.labels[pod-security.kubernetes.io/warn]: Invalid value: "x": must be one of privileged, baseline, restricted"#,
            ]
        );
    }
}
