//! AdmissionReview v1: the question, and what an answer means (upstream: `plugin/webhook/request`).

use std::collections::BTreeMap;

use base64::Engine as _;
use http::StatusCode;
use serde_json::{Value, json};

use super::super::{items, text};
use crate::status::ApiError;

pub fn question(uid: &str, mut request: Value, object: Value, old: Value) -> Value {
    request["uid"] = json!(uid);
    request["object"] = object;
    request["oldObject"] = old;
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}

/// What a webhook decided.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub refusal: Option<Value>,
    /// RFC 6902.
    pub patch: Option<Value>,
    pub warnings: Vec<String>,
    /// Of the audit event.
    pub annotations: BTreeMap<String, String>,
}

/// Upstream's `VerifyAdmissionResponse`.
pub fn read(uid: &str, may_patch: bool, review: &Value) -> Result<Answer, String> {
    let (version, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
    if (version, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {version}, Kind={kind}"
        ));
    }
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    if text(&response["uid"]) != uid {
        return Err(format!(
            "expected response.uid={uid:?}, got {:?}",
            text(&response["uid"])
        ));
    }
    let (patch, patch_type) = (text(&response["patch"]), text(&response["patchType"]));
    let patch = match (patch.is_empty(), patch_type) {
        (true, "") => None,
        (true, _) => return Err("webhook returned response.patchType but not response.patch".into()),
        (false, _) if !may_patch => {
            return Err("a validating webhook may not return response.patch".into());
        }
        (false, "") => return Err("webhook returned response.patch but not response.patchType".into()),
        (false, "JSONPatch") => Some(decode(patch)?),
        (false, other) => return Err(format!("invalid value of response.patchType: {other:?}")),
    };
    let warnings = items(&response["warnings"])
        .iter()
        .map(|warning| text(warning).to_owned());
    Ok(Answer {
        refusal: (response["allowed"] != true).then(|| response["status"].clone()),
        patch,
        warnings: warnings.collect(),
        annotations: serde_json::from_value(response["auditAnnotations"].clone()).unwrap_or_default(),
    })
}

fn decode(patch: &str) -> Result<Value, String> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(patch)
        .map_err(|error| format!("response.patch: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("response.patch: {error}"))
}

/// The reasons that upstream's clients know (`metav1.StatusReason`).
const REASONS: [&str; 19] = [
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "StoreReadError",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
];

/// Upstream's `ToStatusErr`.
pub fn denied(webhook: &str, status: &Value) -> ApiError {
    let by = format!("admission webhook {webhook:?} denied the request");
    let (message, reason) = (text(&status["message"]), text(&status["reason"]));
    let message = match (message, reason) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (message, _) => format!("{by}: {message}"),
    };
    let code = status["code"]
        .as_u64()
        .filter(|code| (400..1000).contains(code))
        .unwrap_or(400);
    let code = u16::try_from(code)
        .ok()
        .and_then(|code| StatusCode::from_u16(code).ok());
    let reason = REASONS
        .iter()
        .find(|known| **known == reason)
        .copied()
        .unwrap_or_default();
    let mut error = ApiError::new(code.unwrap_or(StatusCode::BAD_REQUEST), reason, message);
    *error.details = status["details"].clone();
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(response: Value) -> Value {
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
    }

    #[test]
    fn answers_are_verified() {
        // [{"op":"add","path":"/a","value":1}]
        let patch = "W3sib3AiOiJhZGQiLCJwYXRoIjoiL2EiLCJ2YWx1ZSI6MX1d";
        for (answer, may_patch, problem) in [
            (review(json!({"uid": "u", "allowed": true})), true, ""),
            (
                review(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch"})),
                true,
                "",
            ),
            (
                review(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch"})),
                false,
                "a validating webhook may not return response.patch",
            ),
            (
                review(json!({"uid": "u", "allowed": true, "patch": patch})),
                true,
                "webhook returned response.patch but not response.patchType",
            ),
            (
                review(json!({"uid": "x", "allowed": true})),
                true,
                "expected response.uid=\"u\", got \"x\"",
            ),
            (review(Value::Null), true, "webhook response was absent"),
            (
                json!({"kind": "Pod", "apiVersion": "v1"}),
                true,
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got v1, Kind=Pod",
            ),
        ] {
            let read = read("u", may_patch, &answer);
            assert_eq!(read.err().unwrap_or_default(), problem);
        }
    }

    #[test]
    fn refusals_read_as_upstreams() {
        for (status, code, message) in [
            (
                json!({"message": "no"}),
                400,
                r#"admission webhook "w" denied the request: no"#,
            ),
            (
                json!({"reason": "because", "code": 403}),
                403,
                r#"admission webhook "w" denied the request: because"#,
            ),
            (
                Value::Null,
                400,
                r#"admission webhook "w" denied the request without explanation"#,
            ),
            (
                json!({"code": 200}),
                400,
                r#"admission webhook "w" denied the request without explanation"#,
            ),
        ] {
            let error = denied("w", &status);
            assert_eq!((error.code.as_u16(), error.message.as_str()), (code, message));
        }
    }
}
