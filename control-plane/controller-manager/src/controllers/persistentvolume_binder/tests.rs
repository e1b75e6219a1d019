use super::*;
use serde_json::{Value, from_value, json};

fn merged(mut body: Value, extra: &Value) -> Value {
    if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
        for (key, value) in extra {
            let old = body.remove(key).unwrap_or(Value::Null);
            let new = if old.is_object() {
                merged(old, value)
            } else {
                value.clone()
            };
            body.insert(key.clone(), new);
        }
    }
    body
}

fn claim(extra: Value) -> Arc<PersistentVolumeClaim> {
    let body = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "1"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}},
        "status": {"phase": "Pending"}});
    Arc::new(from_value(merged(body, &extra)).unwrap())
}

fn volume(extra: Value) -> Arc<PersistentVolume> {
    let body = json!({"metadata": {"name": "v", "uid": "vu", "resourceVersion": "2"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": "fast", "capacity": {"storage": "2Gi"}},
        "status": {"phase": "Available"}});
    Arc::new(from_value(merged(body, &extra)).unwrap())
}

fn class(mode: &str) -> Arc<StorageClass> {
    Arc::new(
        from_value(json!({"metadata": {"name": "fast"}, "provisioner": "p.io", "volumeBindingMode": mode}))
            .unwrap(),
    )
}

/// Each action in a word or two.
fn words(plan: &[Action]) -> Vec<String> {
    let one = |action: &Action| match action {
        Action::Patch { at, patch } => match patch["status"]["phase"].as_str() {
            Some(phase) => format!("{} {phase}", at.key.name),
            None => format!("patch {}", at.key.name),
        },
        Action::Event(notice) => notice.reason.clone(),
        other => format!("{other:?}"),
    };
    plan.iter().map(one).collect()
}

fn of_claim(
    c: &Arc<PersistentVolumeClaim>,
    volumes: &[Arc<PersistentVolume>],
    classes: &[Arc<StorageClass>],
) -> Vec<String> {
    let world = World {
        volumes: volumes.to_vec(),
        classes: classes.to_vec(),
        claim: &|_| None,
        pods: Vec::new(),
    };
    words(&claim::reconcile(c, &world))
}

fn of_volume(v: &Arc<PersistentVolume>, c: Option<Arc<PersistentVolumeClaim>>) -> Vec<String> {
    let world = World {
        volumes: Vec::new(),
        classes: Vec::new(),
        claim: &|_| c.clone(),
        pods: Vec::new(),
    };
    words(&volume::reconcile(v, &world))
}

fn both_bound() -> (Arc<PersistentVolumeClaim>, Arc<PersistentVolume>) {
    let done = json!({"metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}, "spec": {"volumeName": "v"},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}}});
    let taken = json!({"spec": {"claimRef": {"name": "c", "namespace": "n", "uid": "u"}}, "status": {"phase": "Bound"}});
    (claim(done), volume(taken))
}

#[test]
fn a_claim_gets_a_volume_or_hears_why_not() {
    let late = [class("WaitForFirstConsumer")];
    let now = [class("Immediate")];
    let free = [volume(json!({}))];
    let plain = claim(json!({}));
    let bound: &[&str] = &["patch v", "v Bound", "patch c", "c Bound"];
    for (what, c, volumes, classes, expected) in [
        ("match", &plain, &free[..], &now[..], bound),
        ("waits", &plain, &free, &late, &["WaitForFirstConsumer"]),
        (
            "selected",
            &claim(json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "a"}}})),
            &[],
            &late,
            &["patch c", "ExternalProvisioning"],
        ),
        (
            "provision",
            &plain,
            &[],
            &now,
            &["patch c", "ExternalProvisioning"],
        ),
        ("no class", &plain, &[], &[], &["ProvisioningFailed"]),
        (
            "nothing",
            &claim(json!({"spec": {"storageClassName": ""}})),
            &[],
            &[],
            &["FailedBinding"],
        ),
        (
            "named",
            &claim(json!({"spec": {"volumeName": "v"}})),
            &free,
            &late,
            bound,
        ),
        (
            "named, absent",
            &claim(json!({"spec": {"volumeName": "w"}})),
            &free,
            &now,
            &[],
        ),
        (
            "named, too small",
            &claim(json!({"spec": {"volumeName": "v", "resources": {"requests": {"storage": "9Gi"}}}})),
            &free,
            &now,
            &["VolumeMismatch"],
        ),
    ] {
        assert_eq!(of_claim(c, volumes, classes), expected, "{what}");
    }
}

#[test]
fn what_is_bound_stays_quiet_and_losses_are_told() {
    let (c, v) = both_bound();
    assert!(of_claim(&c, std::slice::from_ref(&v), &[]).is_empty());
    assert!(of_volume(&v, Some(c.clone())).is_empty());
    assert_eq!(of_claim(&c, &[], &[]), ["c Lost", "ClaimLost"]);
    let other = volume(json!({"spec": {"claimRef": {"name": "d", "namespace": "n", "uid": "x"}}}));
    assert_eq!(of_claim(&c, &[other], &[]), ["c Lost", "ClaimMisbound"]);
}

#[test]
fn volumes_follow_their_claims() {
    let (_, v) = both_bound();
    let with = |extra: Value| {
        let body = serde_json::to_value(&*v).unwrap();
        Arc::new(from_value::<PersistentVolume>(merged(body, &extra)).unwrap())
    };
    let provisioned = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "p.io"}},
        "spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    assert_eq!(of_volume(&v, None), ["v Released"]);
    assert_eq!(
        of_volume(&with(provisioned), None),
        ["v Released"],
        "its provisioner deletes it"
    );
    let orphan = with(json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}));
    assert_eq!(of_volume(&orphan, None), ["v Failed", "VolumeFailedDelete"]);
    let elsewhere = claim(json!({"spec": {"volumeName": "w"}}));
    assert_eq!(of_volume(&v, Some(elsewhere)), ["patch v", "v Available"]);
    assert_eq!(
        of_volume(&volume(json!({"status": {"phase": "Pending"}})), None),
        ["v Available"]
    );
    assert!(of_volume(&volume(json!({})), None).is_empty());
}
