//! Query parameters of reads and writes, checked: ListOptions, and what writes share.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use store::Revision;

use crate::request_info::query_pairs;
use crate::selectors::{FieldSelector, LabelSelector};
use crate::status::{ApiError, Cause};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Exact,
    NotOlderThan,
}

/// Which state a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// resourceVersion unset: the newest.
    Consistent,
    /// 0: whatever is at hand.
    Any,
    NotOlderThan(Revision),
    Exact(Revision),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    pub resource_version: String,
    pub version_match: Option<Match>,
    pub limit: usize,
    pub continue_token: String,
    pub timeout: Option<Duration>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    pub fn parse(query: &str) -> Result<Self, ApiError> {
        let mut options = Self::default();
        for (key, value) in query_pairs(query) {
            match key.as_str() {
                "labelSelector" => {
                    options.labels = LabelSelector::parse(&value).map_err(ApiError::bad_request)?;
                }
                "fieldSelector" => {
                    options.fields = FieldSelector::parse(&value).map_err(ApiError::bad_request)?;
                }
                "resourceVersion" => options.resource_version = value,
                "resourceVersionMatch" => {
                    options.version_match = match value.as_str() {
                        "" => None,
                        "Exact" => Some(Match::Exact),
                        "NotOlderThan" => Some(Match::NotOlderThan),
                        _ => {
                            return Err(refuse(
                                "FieldValueNotSupported",
                                "resourceVersionMatch",
                                format!(
                                    "Unsupported value: \"{value}\": supported values: \"Exact\", \"NotOlderThan\""
                                ),
                            ));
                        }
                    };
                }
                "limit" => options.limit = number(&key, &value)?,
                "continue" => options.continue_token = value,
                "timeoutSeconds" => {
                    let seconds: usize = number(&key, &value)?;
                    options.timeout = (seconds > 0).then(|| Duration::from_secs(seconds as u64));
                }
                "allowWatchBookmarks" => options.bookmarks = flag(&value),
                "sendInitialEvents" => options.send_initial_events = Some(flag(&value)),
                _ => {}
            }
        }
        Ok(options)
    }

    /// Upstream's `ValidateListOptions`.
    pub fn validate(&self, watch: bool) -> Result<(), ApiError> {
        let forbidden =
            |field, why: &str| Err(refuse("FieldValueForbidden", field, format!("Forbidden: {why}")));
        if watch {
            match (self.send_initial_events, self.version_match) {
                (Some(_), None | Some(Match::Exact)) => {
                    return forbidden(
                        "resourceVersionMatch",
                        "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                    );
                }
                (None, Some(_)) => {
                    return forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                    );
                }
                _ => {}
            }
        } else if self.send_initial_events.is_some() {
            return forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
        } else if let Some(wanted) = self.version_match {
            if self.resource_version.is_empty() {
                return forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                );
            }
            if !self.continue_token.is_empty() {
                return forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                );
            }
            if wanted == Match::Exact && self.resource_version == "0" {
                return forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                );
            }
        }
        if !watch && !self.continue_token.is_empty() && !matches!(self.resource_version.as_str(), "" | "0") {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        self.revision().map(drop)
    }

    pub fn revision(&self) -> Result<Option<Revision>, ApiError> {
        parse_revision(&self.resource_version)
    }

    pub fn freshness(&self) -> Result<Freshness, ApiError> {
        Ok(match (self.revision()?, self.version_match) {
            (None, _) => Freshness::Consistent,
            (Some(0), _) => Freshness::Any,
            (Some(revision), Some(Match::Exact)) => Freshness::Exact(revision),
            // A limit with a plain resourceVersion means exactly that version.
            (Some(revision), None) if self.limit > 0 => Freshness::Exact(revision),
            (Some(revision), _) => Freshness::NotOlderThan(revision),
        })
    }
}

/// None when unset.
pub fn parse_revision(text: &str) -> Result<Option<Revision>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse::<u64>()
        .ok()
        .and_then(|n| Revision::try_from(n).ok())
        .map(Some)
        .ok_or_else(|| {
            refuse(
                "FieldValueInvalid",
                "resourceVersion",
                format!("Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"),
            )
        })
}

fn refuse(reason: &'static str, field: &str, message: String) -> ApiError {
    ApiError::invalid(
        "meta.k8s.io",
        "ListOptions",
        "",
        vec![Cause {
            reason,
            message,
            field: field.to_owned(),
        }],
    )
}

fn flag(value: &str) -> bool {
    !matches!(value, "false" | "0" | "False" | "FALSE" | "f" | "F")
}

fn number(key: &str, value: &str) -> Result<usize, ApiError> {
    if value.is_empty() {
        return Ok(0);
    }
    value.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "unable to convert query parameter {key}: invalid value \"{value}\""
        ))
    })
}

/// Where a paged list goes on: upstream's token, base64 of JSON.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Continue {
    v: String,
    #[serde(rename = "rv")]
    pub revision: Revision,
    /// The first key not yet shown, relative to the list's prefix.
    pub start: String,
}

impl Continue {
    /// In place of a revision: go on in whatever state there is now.
    pub const INCONSISTENT: Revision = -1;

    pub fn new(revision: Revision, start: String) -> Self {
        Self {
            v: "meta.k8s.io/v1".into(),
            revision,
            start,
        }
    }

    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    pub fn decode(token: &str) -> Result<Self, ApiError> {
        let bad = |why: &str| ApiError::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD
            .decode(token.trim_end_matches('='))
            .map_err(|error| bad(&error.to_string()))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|error| bad(&error.to_string()))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(bad(&format!(
                "server does not recognize this encoded version \"{}\"",
                token.v
            )));
        }
        if token.revision < Self::INCONSISTENT
            || token.revision == 0
            || token.start.is_empty()
            || token.start.contains("..")
        {
            return Err(bad(
                "incorrect encoded start resourceVersion or key (version meta.k8s.io/v1)",
            ));
        }
        Ok(token)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// What create, update, patch and delete share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_validation: FieldValidation,
}

impl WriteOptions {
    pub fn parse(query: &str, kind: &str) -> Result<Self, ApiError> {
        let mut options = Self::default();
        let refuse = |field: &str, value: &str, allowed: &str| {
            let message = format!("Unsupported value: \"{value}\": supported values: {allowed}");
            let cause = Cause {
                reason: "FieldValueNotSupported",
                message,
                field: field.into(),
            };
            ApiError::invalid("meta.k8s.io", kind, "", vec![cause])
        };
        for (key, value) in query_pairs(query) {
            match (key.as_str(), value.as_str()) {
                ("dryRun", "All") => options.dry_run = true,
                ("dryRun", "") => {}
                ("dryRun", _) => return Err(refuse("dryRun", &value, "\"All\"")),
                ("fieldValidation", "Ignore") => options.field_validation = FieldValidation::Ignore,
                ("fieldValidation", "" | "Warn") => options.field_validation = FieldValidation::Warn,
                ("fieldValidation", "Strict") => options.field_validation = FieldValidation::Strict,
                ("fieldValidation", _) => {
                    return Err(refuse(
                        "fieldValidation",
                        &value,
                        "\"Ignore\", \"Strict\", \"Warn\"",
                    ));
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_version_says_which_state() {
        for (query, expected) in [
            ("", Freshness::Consistent),
            ("limit=5", Freshness::Consistent),
            ("resourceVersion=0", Freshness::Any),
            ("resourceVersion=0&limit=5", Freshness::Any),
            ("resourceVersion=7", Freshness::NotOlderThan(7)),
            ("resourceVersion=7&limit=5", Freshness::Exact(7)),
            (
                "resourceVersion=7&resourceVersionMatch=Exact",
                Freshness::Exact(7),
            ),
            (
                "resourceVersion=7&limit=5&resourceVersionMatch=NotOlderThan",
                Freshness::NotOlderThan(7),
            ),
        ] {
            let options = ListOptions::parse(query).unwrap();
            options.validate(false).unwrap();
            assert_eq!(options.freshness().unwrap(), expected, "{query}");
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for (query, watch, code) in [
            ("resourceVersionMatch=Exact", false, 422),
            ("resourceVersionMatch=Exact&resourceVersion=0", false, 422),
            ("sendInitialEvents=true", false, 422),
            ("sendInitialEvents=true", true, 422),
            ("resourceVersionMatch=NotOlderThan&resourceVersion=1", true, 422),
            ("resourceVersion=x", false, 422),
            ("continue=abc&resourceVersion=5", false, 400),
        ] {
            let error = ListOptions::parse(query).unwrap().validate(watch).unwrap_err();
            assert_eq!(error.code.as_u16(), code, "{query}");
        }
        let fine = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        ListOptions::parse(fine).unwrap().validate(true).unwrap();
    }

    #[test]
    fn continue_tokens_come_back() {
        let token = Continue::new(12, "default/web\0".into());
        assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        for bad in [
            "",
            "###",
            "e30",
            &Continue::new(0, "x".into()).encode(),
            &Continue::new(1, "../x".into()).encode(),
        ] {
            assert_eq!(Continue::decode(bad).unwrap_err().code.as_u16(), 400, "{bad}");
        }
    }

    #[test]
    fn write_options_are_checked() {
        let options = WriteOptions::parse("dryRun=All&fieldValidation=Strict", "CreateOptions").unwrap();
        assert_eq!(
            options,
            WriteOptions {
                dry_run: true,
                field_validation: FieldValidation::Strict
            }
        );
        assert!(WriteOptions::parse("dryRun=Some", "CreateOptions").is_err());
        assert!(WriteOptions::parse("fieldValidation=x", "CreateOptions").is_err());
    }
}
