//! RFC 6902, with the status upstream gives to a patch that does not apply.

use json_patch::{Patch, PatchErrorKind, PatchOperation};
use serde_json::Value;

use super::PatchError;

/// Upstream's limit against patches that take for ever.
const MAX_OPERATIONS: usize = 10_000;

pub(super) fn apply(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let mut patch = patch.clone();
    fill_values(&mut patch);
    let patch: Patch = serde_json::from_value(patch)
        .map_err(|error| PatchError::bad_request(format!("error decoding patch: {error}")))?;
    if patch.0.len() > MAX_OPERATIONS {
        let message = format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            patch.0.len()
        );
        return Err(PatchError {
            code: 413,
            reason: "RequestEntityTooLarge",
            message,
            cause: None,
        });
    }
    let mut result = current.clone();
    for operation in patch.iter() {
        if !is_absent_as_wanted(&result, operation) {
            json_patch::patch(&mut result, std::slice::from_ref(operation))
                .map_err(|error| PatchError::unprocessable(describe(operation, &error.kind)))?;
        }
    }
    Ok(result)
}

/// Upstream's library takes a missing field for null: clients test so that nobody was before them.
fn is_absent_as_wanted(current: &Value, operation: &PatchOperation) -> bool {
    let PatchOperation::Test(test) = operation else {
        return false;
    };
    let path = test.path.as_str();
    let container = path
        .rsplit_once('/')
        .and_then(|(parent, _)| current.pointer(parent));
    test.value.is_null() && container.is_some_and(Value::is_object) && current.pointer(path).is_none()
}

/// Go's clients leave out empty values; upstream's library takes what is missing for null.
fn fill_values(patch: &mut Value) {
    let operations = patch.as_array_mut().into_iter().flatten();
    for operation in operations.filter_map(Value::as_object_mut) {
        let kind = operation.get("op").and_then(Value::as_str);
        if matches!(kind, Some("add" | "replace" | "test")) {
            operation.entry("value").or_insert(Value::Null);
        }
    }
}

fn describe(operation: &PatchOperation, problem: &PatchErrorKind) -> String {
    let path = operation.path();
    let name = match operation {
        PatchOperation::Add(_) => "add",
        PatchOperation::Remove(_) => "remove",
        PatchOperation::Replace(_) => "replace",
        PatchOperation::Move(_) => "move",
        PatchOperation::Copy(_) => "copy",
        PatchOperation::Test(_) => "test",
    };
    match problem {
        PatchErrorKind::TestFailed => format!("testing value {path} failed: test failed"),
        PatchErrorKind::InvalidPointer | PatchErrorKind::InvalidFromPointer => {
            format!("{name} operation does not apply: doc is missing path: {path}: missing value")
        }
        other => format!("{name} operation does not apply: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn applies_in_order_or_not_at_all() {
        let current = json!({"metadata": {"labels": {"a": "1"}}, "list": [1, 2]});
        let patch = json!([
            {"op": "test", "path": "/metadata/labels/a", "value": "1"},
            {"op": "add", "path": "/metadata/labels/x~1y", "value": "2"},
            {"op": "add", "path": "/list/-", "value": 3},
            {"op": "remove", "path": "/list/0"}]);
        assert_eq!(
            apply(&current, &patch),
            Ok(json!({"metadata": {"labels": {"a": "1", "x/y": "2"}}, "list": [2, 3]}))
        );
    }

    #[test]
    fn a_value_left_out_is_null() {
        assert_eq!(
            apply(
                &json!({"a": {"b": 1}, "c": null}),
                &json!([{"op": "test", "path": "/c"}, {"op": "replace", "path": "/a"}])
            ),
            Ok(json!({"a": null, "c": null}))
        );
    }

    #[test]
    fn a_field_that_is_not_there_is_null() {
        let patch = |path| json!([{"op": "test", "path": path, "value": null}, {"op": "add", "path": "/a/b", "value": 1}]);
        assert_eq!(
            apply(&json!({"a": {}}), &patch("/a/b")),
            Ok(json!({"a": {"b": 1}}))
        );
        for path in ["/a/c", "/x/b"] {
            assert_eq!(
                apply(&json!({"a": {"c": 0}}), &patch(path)).unwrap_err().code,
                422,
                "{path}"
            );
        }
    }

    #[test]
    fn failures_have_upstreams_status() {
        for (patch, code, cause) in [
            (
                json!([{"op": "test", "path": "/a", "value": 2}]),
                422,
                Some("testing value /a failed: test failed"),
            ),
            (
                json!([{"op": "remove", "path": "/b"}]),
                422,
                Some("remove operation does not apply: doc is missing path: /b: missing value"),
            ),
            (json!({"a": 1}), 400, None),
            (json!([{"op": "explode", "path": "/a"}]), 400, None),
        ] {
            let error = apply(&json!({"a": 1}), &patch).expect_err("refused");
            assert_eq!((error.code, error.cause.as_deref()), (code, cause), "{patch}");
        }
    }
}
