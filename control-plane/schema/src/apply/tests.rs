//! What upstream documents of server-side apply, case by case.

use serde_json::{Value, json};

use super::*;
use crate::catalog::{Catalog, GroupVersionKind};

const EARLY: &str = "2026-01-01T00:00:00Z";
const LATE: &str = "2026-01-01T01:00:00Z";

fn kind(api_version: &str, name: &str) -> Kind {
    let gvk = GroupVersionKind::from_api_version(api_version, name);
    Kind::clone(Catalog::builtin().kind(&gvk).expect("built in"))
}

fn writer(manager: &str) -> Writer<'_> {
    Writer {
        manager,
        subresource: "",
        now: EARLY,
        reset: &["status"],
    }
}

fn deployment(replicas: Option<u32>, containers: Value) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}}}});
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = json!(replicas);
    }
    object
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

fn applied(kind: &Kind, live: Option<&Value>, config: &Value, manager: &str) -> Value {
    apply(kind, live, config, writer(manager), false).expect("applies")
}

fn created(kind: &Kind, mut object: Value, manager: &str) -> Value {
    fields::check(kind, &mut object).expect("valid");
    track_update(kind, None, &mut object, writer(manager));
    object
}

/// `(manager, fieldsV1)` in order.
fn owners(object: &Value) -> Vec<(String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .map(|entry| {
            let manager = entry["manager"].as_str().unwrap_or_default().to_owned();
            (manager, entry["fieldsV1"].clone())
        })
        .collect()
}

#[test]
fn an_applier_owns_what_it_names() {
    let kind = kind("apps/v1", "Deployment");
    let config = deployment(
        Some(2),
        json!([{"name": "c", "image": "i", "args": ["x"], "ports": [{"containerPort": 80}]}]),
    );
    let live = applied(&kind, None, &config, "me");
    let entry = &live["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["operation"], &entry["apiVersion"], &entry["time"]),
        (&json!("Apply"), &json!("apps/v1"), &json!(EARLY))
    );
    assert_eq!(
        entry["fieldsV1"],
        json!({"f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:args": {}, "f:image": {}, "f:name": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}}}}}}})
    );
    let later = Writer {
        now: LATE,
        ..writer("me")
    };
    let again = apply(&kind, Some(&live), &config, later, false).expect("applies");
    assert_eq!(
        again, live,
        "applying the same again changes nothing, not even the time"
    );
}

#[test]
fn a_creator_owns_what_it_sets_beyond_the_empty_object() {
    let kind = kind("apps/v1", "Deployment");
    let live = created(
        &kind,
        deployment(Some(1), json!([{"name": "c", "image": "i"}])),
        "kubectl-create",
    );
    let mut fields = live["metadata"]["managedFields"][0]["fieldsV1"].clone();
    assert_eq!(
        fields["f:spec"]["f:template"]["f:spec"],
        json!({"f:containers": {
        "k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}, "f:resources": {}}}})
    );
    fields["f:spec"]["f:template"]["f:spec"].take();
    assert_eq!(
        fields,
        json!({"f:spec": {"f:replicas": {}, "f:selector": {}, "f:template": {
        "f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": null}}})
    );
}

#[test]
fn other_values_conflict_and_force_takes_over() {
    let kind = kind("apps/v1", "Deployment");
    let containers = json!([{"name": "c", "image": "i"}]);
    let live = created(
        &kind,
        deployment(Some(1), containers.clone()),
        "kubectl-client-side-apply",
    );
    let config = deployment(Some(3), containers.clone());
    let error = apply(&kind, Some(&live), &config, writer("me"), false).expect_err("conflicts");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas"
    );
    let forced = apply(&kind, Some(&live), &config, writer("me"), true).expect("forced");
    assert_eq!(forced["spec"]["replicas"], 3);
    let owners = owners(&forced);
    assert_eq!(owners[0].0, "me");
    assert!(owners[1].1["f:spec"].get("f:replicas").is_none(), "{owners:?}");
    let forced = apply(
        &kind,
        Some(&forced),
        &deployment(Some(3), json!([])),
        writer("me"),
        false,
    )
    .expect("lets go");
    let both = deployment(Some(4), json!([{"name": "c", "image": "j"}]));
    let error = apply(&kind, Some(&forced), &both, writer("other"), false).expect_err("conflicts");
    assert_eq!(
        error.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.template.spec.containers[name=\"c\"].image\nconflicts with \"me\":\n- .spec.replicas"
    );
}

#[test]
fn equal_values_are_shared() {
    let kind = kind("v1", "ConfigMap");
    let first = applied(&kind, None, &config_map(json!({"a": "1", "b": "1"})), "one");
    let shared = applied(&kind, Some(&first), &config_map(json!({"a": "1"})), "two");
    assert_eq!(owners(&shared).len(), 2);
    // The first lets go of both: one has another owner.
    let left = applied(&kind, Some(&shared), &config_map(json!({})), "one");
    assert_eq!(left["data"], json!({"a": "1"}));
    let last = applied(
        &kind,
        Some(&left),
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}),
        "two",
    );
    assert!(last.get("data").is_none(), "{last}");
}

#[test]
fn what_is_applied_no_longer_goes_with_its_list_item() {
    let kind = kind("apps/v1", "Deployment");
    let two = json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i", "env": [{"name": "X", "value": "1"}]}]);
    let live = applied(&kind, None, &deployment(Some(1), two), "me");
    let one = applied(
        &kind,
        Some(&live),
        &deployment(None, json!([{"name": "a", "image": "i"}])),
        "me",
    );
    assert!(one["spec"].get("replicas").is_none());
    assert_eq!(
        one["spec"]["template"]["spec"]["containers"],
        json!([{"name": "a", "image": "i", "resources": {}}])
    );
    // An item stays when somebody else applied it, too; an update within it does not keep it.
    let theirs = deployment(None, json!([{"name": "b", "tty": true}]));
    for (other_applies, left) in [(true, 2), (false, 1)] {
        let mut other = live.clone();
        if other_applies {
            other = applied(&kind, Some(&live), &theirs, "other");
        } else {
            other["spec"]["template"]["spec"]["containers"][1]["tty"] = json!(true);
            track_update(&kind, Some(&live), &mut other, writer("editor"));
        }
        let config = deployment(None, json!([{"name": "a", "image": "i"}]));
        let after = applied(&kind, Some(&other), &config, "me");
        let containers = after["spec"]["template"]["spec"]["containers"].as_array();
        assert_eq!(containers.map(Vec::len), Some(left), "{after}");
        if other_applies {
            assert_eq!(
                containers.and_then(|list| list.last()),
                Some(&json!({"name": "b", "tty": true, "resources": {}}))
            );
        }
    }
}

#[test]
fn lists_merge_in_the_order_that_was_applied() {
    let kind = kind("apps/v1", "Deployment");
    let names = |object: &Value| -> Vec<String> {
        let list = object["spec"]["template"]["spec"]["containers"].as_array();
        list.into_iter()
            .flatten()
            .map(|c| c["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let list = |names: &[&str]| {
        Value::Array(
            names
                .iter()
                .map(|name| json!({"name": name, "image": "i"}))
                .collect(),
        )
    };
    for (live, config, expected) in [
        (&["a", "b"][..], &["c"][..], &["a", "b", "c"][..]),
        (&["a", "b"], &["b", "a"], &["b", "a"]),
        (&["x", "a", "y", "b"], &["b", "a"], &["x", "y", "b", "a"]),
        (&["a", "y"], &["n", "a"], &["n", "a", "y"]),
    ] {
        let live = created(&kind, deployment(None, list(live)), "creator");
        let merged = applied(&kind, Some(&live), &deployment(None, list(config)), "me");
        assert_eq!(names(&merged), expected);
    }
}

#[test]
fn sets_and_atomic_lists() {
    let kind = kind("v1", "ConfigMap");
    let with = |finalizers: Value| {
        let mut object = config_map(json!({}));
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let one = applied(&kind, None, &with(json!(["a.b/c"])), "one");
    let two = applied(&kind, Some(&one), &with(json!(["d.e/f"])), "two");
    assert_eq!(two["metadata"]["finalizers"], json!(["a.b/c", "d.e/f"]));
    let left = applied(&kind, Some(&two), &config_map(json!({})), "one");
    assert_eq!(left["metadata"]["finalizers"], json!(["d.e/f"]));
    let kind = self::kind("apps/v1", "Deployment");
    let args = |args: Value| deployment(None, json!([{"name": "c", "image": "i", "args": args}]));
    let live = applied(&kind, None, &args(json!(["a"])), "one");
    let error =
        apply(&kind, Some(&live), &args(json!(["a", "b"])), writer("two"), false).expect_err("atomic");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"one\": .spec.template.spec.containers[name=\"c\"].args"
    );
}

#[test]
fn updates_move_ownership() {
    let kind = kind("v1", "ConfigMap");
    let live = applied(&kind, None, &config_map(json!({"a": "1", "b": "1"})), "me");
    let mut updated = live.clone();
    updated["data"] = json!({"a": "2", "c": "1"});
    track_update(&kind, Some(&live), &mut updated, writer("editor"));
    assert_eq!(
        owners(&updated),
        [("editor".to_owned(), json!({"f:data": {"f:a": {}, "f:c": {}}}))],
        "changed by another and removed: nothing is left to the applier"
    );
    let mut same = updated.clone();
    track_update(
        &kind,
        Some(&updated),
        &mut same,
        Writer {
            now: LATE,
            ..writer("third")
        },
    );
    assert_eq!(same, updated);
    let mut quick = updated.clone();
    quick["data"]["a"] = json!("3");
    track_update(
        &kind,
        Some(&updated),
        &mut quick,
        Writer {
            now: LATE,
            ..writer("editor")
        },
    );
    assert_eq!(owners(&quick), owners(&updated), "only the time is new");
    assert_eq!(quick["metadata"]["managedFields"][0]["time"], LATE);
}

#[test]
fn managed_fields_may_be_edited_and_reset() {
    let kind = kind("v1", "ConfigMap");
    let live = created(&kind, config_map(json!({"a": "1"})), "creator");
    for (given, expected) in [
        (json!([{}]), json!(null)),
        (json!([]), live["metadata"]["managedFields"].clone()),
        (
            json!([{"operation": "Guess"}]),
            live["metadata"]["managedFields"].clone(),
        ),
    ] {
        let mut object = live.clone();
        object["metadata"]["managedFields"] = given.clone();
        track_update(&kind, Some(&live), &mut object, writer("editor"));
        assert_eq!(object["metadata"]["managedFields"], expected, "{given}");
    }
    let mut renamed = live.clone();
    renamed["metadata"]["managedFields"][0]["manager"] = json!("kubectl");
    renamed["metadata"]["managedFields"][0]["operation"] = json!("Apply");
    track_update(&kind, Some(&live), &mut renamed, writer("editor"));
    assert_eq!(owners(&renamed)[0].0, "kubectl");
    let mut through_status = renamed.clone();
    through_status["metadata"]["managedFields"] = json!([{}]);
    let status = Writer {
        subresource: "status",
        reset: &["spec", "metadata"],
        ..writer("editor")
    };
    track_update(&kind, Some(&renamed), &mut through_status, status);
    assert_eq!(owners(&through_status)[0].0, "kubectl", "a sub-resource cannot");
}

#[test]
fn objects_without_owners_had_one_before_the_first_apply() {
    let kind = kind("v1", "ConfigMap");
    let live = config_map(json!({"a": "1"}));
    let mut updated = live.clone();
    updated["data"]["b"] = json!("1");
    track_update(&kind, Some(&live), &mut updated, writer("editor"));
    assert!(
        owners(&updated).is_empty(),
        "tracking starts with a create or an apply"
    );
    let error = apply(
        &kind,
        Some(&live),
        &config_map(json!({"a": "2"})),
        writer("me"),
        false,
    )
    .expect_err("conflict");
    assert!(
        error
            .to_string()
            .contains("\"before-first-apply\" using v1: .data.a"),
        "{error}"
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_clients_side() {
    let kind = kind("v1", "ConfigMap");
    let mut object = config_map(json!({"a": "1", "b": "1"}));
    let annotation = config_map(json!({"a": "1", "b": "0"})).to_string();
    object["metadata"]["annotations"] = json!({LAST_APPLIED: annotation});
    let live = created(&kind, object, "kubectl-client-side-apply");
    let taken = applied(&kind, Some(&live), &config_map(json!({"a": "2"})), "kubectl");
    assert_eq!(taken["data"]["a"], "2");
    let renewed: Value = serde_json::from_str(
        taken["metadata"]["annotations"][LAST_APPLIED]
            .as_str()
            .expect("kept"),
    )
    .expect("JSON");
    assert_eq!(renewed, config_map(json!({"a": "2"})));
    for (manager, data) in [("kubectl", json!({"b": "2"})), ("other", json!({"a": "2"}))] {
        let refused = apply(&kind, Some(&live), &config_map(data), writer(manager), false);
        assert!(matches!(refused, Err(ApplyError::Conflicts(_))), "{manager}");
    }
}

#[test]
fn status_and_spec_have_their_own_owners() {
    let kind = kind("apps/v1", "Deployment");
    let live = created(
        &kind,
        deployment(Some(1), json!([{"name": "c", "image": "i"}])),
        "creator",
    );
    let mut reported = live.clone();
    reported["status"] = json!({"replicas": 1});
    let status = Writer {
        subresource: "status",
        reset: &["spec", "metadata"],
        ..writer("controller")
    };
    track_update(&kind, Some(&live), &mut reported, status);
    let entry = &reported["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["subresource"], &entry["fieldsV1"]),
        (&json!("status"), &json!({"f:status": {"f:replicas": {}}}))
    );
    let config = json!({"metadata": {"name": "d"}, "spec": {"replicas": 9}, "status": {"replicas": 2}});
    let error = apply(
        &kind,
        Some(&reported),
        &config,
        Writer {
            manager: "me",
            ..status
        },
        false,
    )
    .expect_err("conflict");
    assert_eq!(
        error.to_string(),
        "Apply failed with 1 conflict: conflict with \"controller\" with subresource \"status\" using apps/v1: .status.replicas"
    );
}

#[test]
fn configurations_must_fit_the_kind() {
    let kind = kind("apps/v1", "Deployment");
    for (config, message) in [
        (
            json!({"spec": {"nonsense": 1}}),
            ".spec.nonsense: field not declared in schema",
        ),
        (json!({"spec": []}), ".spec: expected map, got []"),
        (
            deployment(None, json!([{"name": "c"}, {"name": "c"}])),
            ".spec.template.spec.containers: duplicate entries for key [name=\"c\"]",
        ),
        (
            json!({"metadata": {"managedFields": []}}),
            "metadata.managedFields must be nil",
        ),
    ] {
        let error = apply(&kind, None, &config, writer("me"), false).expect_err("refused");
        assert_eq!(error.to_string(), message);
    }
}
