//! CustomResourceDefinitions: which versions objects are stored in is remembered in the status.

use auth::UserInfo;
use serde_json::Value;

use super::Strategy;

pub struct CustomResourceDefinition;

impl Strategy for CustomResourceDefinition {
    fn prepare_for_create(&self, object: &mut Value, _user: &UserInfo) {
        schema::custom::note_stored_version(object);
    }

    fn prepare_for_update(&self, object: &mut Value, _old: &Value) {
        schema::custom::note_stored_version(object);
    }
}
