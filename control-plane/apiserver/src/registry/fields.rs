//! The fields that field selectors may use, besides `metadata.name` and `metadata.namespace`.

use std::sync::Arc;

use schema::{Catalog, Resource};

use crate::cache::SelectableField;
use crate::selectors::FieldSelector;
use crate::status::ApiError;

type Builtin = (&'static str, &'static str);

const POD: &[Builtin] = &[
    ("spec.nodeName", "/spec/nodeName"),
    ("spec.restartPolicy", "/spec/restartPolicy"),
    ("spec.schedulerName", "/spec/schedulerName"),
    ("spec.serviceAccountName", "/spec/serviceAccountName"),
    ("spec.hostNetwork", "/spec/hostNetwork"),
    ("status.phase", "/status/phase"),
    ("status.podIP", "/status/podIP"),
    ("status.nominatedNodeName", "/status/nominatedNodeName"),
];
const EVENT: &[Builtin] = &[
    ("involvedObject.kind", "/involvedObject/kind"),
    ("involvedObject.namespace", "/involvedObject/namespace"),
    ("involvedObject.name", "/involvedObject/name"),
    ("involvedObject.uid", "/involvedObject/uid"),
    ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
    (
        "involvedObject.resourceVersion",
        "/involvedObject/resourceVersion",
    ),
    ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
    ("reason", "/reason"),
    ("reportingComponent", "/reportingComponent"),
    ("source", "/source/component|/reportingComponent"),
    ("type", "/type"),
];
/// The same under the names of the younger group.
const REGARDING: &[Builtin] = &[
    ("regarding.kind", "/involvedObject/kind"),
    ("regarding.namespace", "/involvedObject/namespace"),
    ("regarding.name", "/involvedObject/name"),
    ("regarding.uid", "/involvedObject/uid"),
    ("regarding.apiVersion", "/involvedObject/apiVersion"),
    ("regarding.resourceVersion", "/involvedObject/resourceVersion"),
    ("regarding.fieldPath", "/involvedObject/fieldPath"),
    ("reason", "/reason"),
    ("reportingController", "/reportingComponent"),
    ("type", "/type"),
];

fn builtin(group: &str, plural: &str) -> &'static [Builtin] {
    match (group, plural) {
        ("", "pods") => POD,
        ("", "events") => EVENT,
        ("events.k8s.io", "events") => REGARDING,
        ("", "nodes") => &[("spec.unschedulable", "/spec/unschedulable")],
        ("", "namespaces") => &[("status.phase", "/status/phase")],
        ("", "secrets") => &[("type", "/type")],
        ("", "services") => &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
        ("", "replicationcontrollers") => &[("status.replicas", "/status/replicas")],
        ("apps", "replicasets") => &[("status.replicas", "/status/replicas")],
        ("batch", "jobs") => &[("status.successful", "/status/succeeded")],
        ("certificates.k8s.io", "certificatesigningrequests") => &[("spec.signerName", "/spec/signerName")],
        ("resource.k8s.io", "resourceslices") => &[
            ("spec.nodeName", "/spec/nodeName"),
            ("spec.driver", "/spec/driver"),
        ],
        _ => &[],
    }
}

/// Of one served version.
pub fn of_resource(resource: &Resource) -> Arc<[SelectableField]> {
    let Some(custom) = &resource.kind.custom else {
        let fields = builtin(&resource.group, &resource.plural).iter();
        return fields
            .map(|(name, pointer)| ((*name).into(), (*pointer).into()))
            .collect();
    };
    let fields = custom.selectable.iter();
    let entry = |path: &String| {
        (
            path.trim_start_matches('.').into(),
            schema::custom::pointer(path).into(),
        )
    };
    fields.map(entry).collect()
}

/// Of all served versions, which share a cache.
pub fn of_kind(catalog: &Catalog, group: &str, plural: &str) -> Arc<[SelectableField]> {
    let mut fields: Vec<SelectableField> = catalog
        .resources()
        .filter(|resource| super::prefix(&resource.group, &resource.plural) == super::prefix(group, plural))
        .flat_map(|resource| of_resource(resource).to_vec())
        .collect();
    fields.sort();
    fields.dedup();
    fields.into()
}

/// A selector on a field that cannot be selected is a bad request, never an empty list.
pub fn check(selector: &FieldSelector, selectable: &[SelectableField]) -> Result<(), ApiError> {
    for field in selector.fields() {
        let known = matches!(field, "metadata.name" | "metadata.namespace")
            || selectable.iter().any(|(name, _)| **name == *field);
        if !known {
            return Err(ApiError::bad_request(format!(
                "field label not supported: {field}"
            )));
        }
    }
    Ok(())
}
