//! Jobs: unless the user manages the selector, pods are found by the job's uid.

use auth::UserInfo;
use serde_json::{Value, json};

use super::Strategy;
use crate::object;

pub struct Job;

impl Strategy for Job {
    /// Runs after the uid is set.
    fn prepare_for_create(&self, object: &mut Value, _user: &UserInfo) {
        if object["spec"]["manualSelector"] == true {
            return;
        }
        let (uid, name) = (object::uid(object).to_owned(), object::name(object).to_owned());
        let spec = object::field(object, "spec");
        let template = spec.entry("template").or_insert_with(|| json!({}));
        let labels = object::metadata(template)
            .entry("labels")
            .or_insert_with(|| json!({}));
        for (key, value) in [("controller-uid", &uid), ("job-name", &name)] {
            labels[key] = json!(value);
            labels[format!("batch.kubernetes.io/{key}")] = json!(value);
        }
        let selector = spec.entry("selector").or_insert_with(|| json!({}));
        object::field(selector, "matchLabels")
            .insert("batch.kubernetes.io/controller-uid".into(), json!(uid));
    }
}
