//! What upstream fills in when a field is absent.

use serde_json::Value;

use crate::catalog::Kind;

pub fn apply(kind: &Kind, object: &mut Value) {
    let _ = (kind, object);
}
