//! Webhooks, conversion and policies over HTTPS, as clients meet them.

// Each test binary uses its own part of it.
#[allow(dead_code)]
mod support;
#[path = "support/webhook.rs"]
mod webhook;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Client, Server};
use webhook::{Webhook, patch, review};

const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn server() -> (Server, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Server::start(directory.path()).await, directory)
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

fn configuration(name: &str, webhooks: Value) -> Value {
    json!({"metadata": {"name": name}, "webhooks": webhooks})
}

fn hook(name: &str, client: Value, operations: &[&str], group: &str, resource: &str) -> Value {
    json!({"name": name, "clientConfig": client, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "rules": [{"operations": operations, "apiGroups": [group], "apiVersions": ["*"], "resources": [resource]}]})
}

/// Configurations are honoured soon, not at once.
async fn eventually(what: &str, mut attempt: impl AsyncFnMut() -> bool) {
    let trying = async {
        while !attempt().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), trying)
        .await
        .expect(what);
}

/// Registers webhooks, and waits until a ConfigMap of this name is refused.
async fn register(admin: &Client, path: &str, configuration: Value, marker: Value) {
    let (code, answer) = admin.post(path, configuration).await;
    assert_eq!(code, 201, "{answer}");
    eventually("the webhook is asked", async || {
        let path = format!("{CONFIG_MAPS}?dryRun=All");
        admin.post(&path, marker.clone()).await.0 >= 400
    })
    .await;
}

/// Denies what says `deny`, changes what says `change`.
fn usual(path: &str, question: &Value) -> Option<Value> {
    let request = &question["request"];
    let object = if request["operation"] == "DELETE" {
        &request["oldObject"]
    } else {
        &request["object"]
    };
    let data = &object["data"];
    let response = match path {
        "/never" => return None,
        "/validate" if data["deny"].is_string() || object["container"] == "secret" => {
            json!({"allowed": false, "status": {"message": "it says so", "code": 403, "reason": "Forbidden"}, "warnings": ["careful"]})
        }
        "/mutate" if data["deny"].is_string() => json!({"allowed": false}),
        "/mutate" if data["change"] == "1" => {
            patch(json!([{"op": "add", "path": "/data/changed", "value": "yes"}]))
        }
        "/first" if data["change"] == "2" => {
            let seen = data["second"].is_string();
            patch(
                json!([{"op": "add", "path": if seen { "/data/again" } else { "/data/first" }, "value": "yes"}]),
            )
        }
        "/second" if data["change"] == "2" => {
            patch(json!([{"op": "add", "path": "/data/second", "value": "yes"}]))
        }
        "/pods" => patch(
            json!([{"op": "add", "path": "/spec/initContainers", "value": [{"name": "added", "image": "x"}]}]),
        ),
        _ => json!({"allowed": true}),
    };
    Some(review(question, response))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validating_webhooks_refuse() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let webhook = Webhook::start(usual).await;
    let service =
        json!({"metadata": {"name": "hook"}, "spec": {"type": "ExternalName", "externalName": "localhost"}});
    assert_eq!(
        admin.post("/api/v1/namespaces/default/services", service).await.0,
        201
    );
    let all = ["CREATE", "UPDATE", "DELETE", "CONNECT"];
    let mut one = hook(
        "deny.example.com",
        webhook.by_service("/validate"),
        &all,
        "",
        "*/*",
    );
    one["matchConditions"] = json!([{"name": "not-skipped", "expression": "!has(object.metadata) || object.metadata.name != 'skip-me'"}]);
    let config = configuration("deny", json!([one]));
    admin.post(CONFIG_MAPS, config_map("kept", json!({}))).await;
    register(
        &admin,
        VALIDATING,
        config,
        config_map("marker", json!({"deny": "1"})),
    )
    .await;

    let (code, status) = admin
        .post(CONFIG_MAPS, config_map("a", json!({"deny": "1"})))
        .await;
    assert_eq!(code, 403, "{status}");
    assert_eq!(
        status["message"],
        r#"admission webhook "deny.example.com" denied the request: it says so"#
    );
    assert_eq!(status["reason"], "Forbidden");
    assert_eq!(
        admin
            .post(CONFIG_MAPS, config_map("skip-me", json!({"deny": "1"})))
            .await
            .0,
        201
    );
    assert_eq!(
        admin.post(CONFIG_MAPS, config_map("fine", json!({}))).await.0,
        201
    );
    for kind in ["merge-patch+json", "strategic-merge-patch+json"] {
        let path = format!("{CONFIG_MAPS}/kept");
        assert_eq!(
            admin.patch(&path, kind, json!({"data": {"deny": "1"}})).await.0,
            403
        );
    }
    // Streams are asked about, too; without the webhook there would be no pod.
    let (code, status) = admin
        .get(&format!("{PODS}/none/attach?container=secret&stdin=true"))
        .await;
    assert_eq!(code, 403, "{status}");

    // What denies everything cannot keep itself.
    let config = configuration(
        "deny-configurations",
        json!([hook(
            "all.example.com",
            webhook.by_url("/validate"),
            &all,
            "*",
            "*/*"
        )]),
    );
    assert_eq!(admin.post(VALIDATING, config).await.0, 201);
    assert_eq!(
        admin
            .delete(&format!("{VALIDATING}/deny-configurations"), Value::Null)
            .await
            .0,
        200
    );
    assert_eq!(
        admin.delete(&format!("{VALIDATING}/deny"), Value::Null).await.0,
        200
    );
    eventually("the webhook is forgotten", async || {
        admin
            .post(CONFIG_MAPS, config_map("a", json!({"deny": "1"})))
            .await
            .0
            == 201
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutating_webhooks_change() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let webhook = Webhook::start(usual).await;
    let on = |name: &str, path: &str| hook(name, webhook.by_url(path), &["CREATE"], "", "configmaps");
    let mut first = on("first.example.com", "/first");
    first["reinvocationPolicy"] = json!("IfNeeded");
    let pods = hook(
        "pods.example.com",
        webhook.by_url("/pods"),
        &["CREATE"],
        "",
        "pods",
    );
    let hooks = json!([
        on("mutate.example.com", "/mutate"),
        first,
        on("second.example.com", "/second"),
        pods
    ]);
    register(
        &admin,
        MUTATING,
        configuration("change", hooks),
        config_map("marker", json!({"deny": "1"})),
    )
    .await;

    let (code, object) = admin
        .post(CONFIG_MAPS, config_map("a", json!({"change": "1"})))
        .await;
    assert_eq!(
        (code, &object["data"]),
        (201, &json!({"change": "1", "changed": "yes"}))
    );
    let (code, object) = admin
        .post(CONFIG_MAPS, config_map("b", json!({"change": "2"})))
        .await;
    let told = json!({"change": "2", "first": "yes", "second": "yes", "again": "yes"});
    assert_eq!(
        (code, &object["data"]),
        (201, &told),
        "the first is asked again, once"
    );
    let (_, status) = admin
        .post(CONFIG_MAPS, config_map("c", json!({"deny": "1"})))
        .await;
    assert_eq!(
        status["message"],
        r#"admission webhook "mutate.example.com" denied the request without explanation"#
    );

    let account = json!({"metadata": {"name": "default"}});
    admin
        .post("/api/v1/namespaces/default/serviceaccounts", account)
        .await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let (code, pod) = admin.post(PODS, pod).await;
    assert_eq!(code, 201, "{pod}");
    let added = &pod["spec"]["initContainers"][0];
    assert_eq!(
        added["terminationMessagePolicy"], "File",
        "defaults come after mutation: {pod}"
    );
    let mounts = added["volumeMounts"].as_array().map(Vec::len);
    assert_eq!(mounts, Some(1), "so do the plug-ins: {pod}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_close_or_open() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let webhook = Webhook::start(usual).await;
    let on = |name: &str, client: Value, policy: &str| {
        let mut hook = hook(name, client, &["CREATE"], "", "configmaps");
        hook["failurePolicy"] = json!(policy);
        hook["timeoutSeconds"] = json!(1);
        hook["objectSelector"] = json!({"matchLabels": {"slow": name.split('.').next()}});
        hook
    };
    let unreachable =
        json!({"service": {"namespace": "default", "name": "none"}, "caBundle": webhook.bundle});
    let mut untrusted = webhook.by_url("/validate");
    untrusted["caBundle"] = json!(Webhook::start(usual).await.bundle);
    let hooks = json!([
        on("slow.example.com", webhook.by_url("/never"), "Fail"),
        on("open.example.com", webhook.by_url("/never"), "Ignore"),
        on("gone.example.com", unreachable, "Fail"),
        on("untrusted.example.com", untrusted, "Fail"),
    ]);
    let of = |label: &str| json!({"metadata": {"name": label, "labels": {"slow": label}}});
    register(&admin, VALIDATING, configuration("slow", hooks), of("gone")).await;
    let told = async |label: &str| {
        let (code, status) = admin.post(CONFIG_MAPS, of(label)).await;
        (code, status["message"].as_str().unwrap_or_default().to_owned())
    };
    let (code, message) = told("slow").await;
    let url = format!("https://{}/never?timeout=1s", webhook.address);
    let expected = format!(
        r#"Internal error occurred: failed calling webhook "slow.example.com": failed to call webhook: Post "{url}": context deadline exceeded"#
    );
    assert_eq!((code, message), (500, expected));
    assert_eq!(told("open").await.0, 201);
    let expected = r#"Internal error occurred: failed calling webhook "gone.example.com": failed to call webhook: Post "https://none.default.svc:443/?timeout=1s": service "none" not found"#;
    assert_eq!(told("gone").await, (500, expected.to_owned()));
    assert_eq!(told("untrusted").await.0, 500);
    assert_eq!(told("other").await.0, 201);
}

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(name: &str, replicas: i64) -> Value {
    json!({"metadata": {"name": name}, "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}}}})
}

fn constraints() -> Value {
    json!({"resourceRules": [{"operations": ["CREATE", "UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]}]})
}

async fn bind(admin: &Client, kind: &str, policy: &str, mut spec: Value) {
    spec["policyName"] = json!(policy);
    let (code, answer) = admin
        .post(
            &format!("{GROUP}/{kind}"),
            json!({"metadata": {"name": format!("{policy}-binding")}, "spec": spec}),
        )
        .await;
    assert_eq!(code, 201, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validating_policies_refuse() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let policies = format!("{GROUP}/validatingadmissionpolicies");
    let policy = json!({"metadata": {"name": "replicas"}, "spec": {"matchConstraints": constraints(),
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "variables": [{"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "odd", "expression": "variables.replicas % 2 == 1"}],
        "matchConditions": [{"name": "not-free", "expression": "object.metadata.name != 'free'"}],
        "validations": [
            {"expression": "variables.replicas > int(params.data.least)", "messageExpression": "'wants more than ' + params.data.least + ', got ' + string(variables.replicas)"},
            {"expression": "!variables.odd", "reason": "Forbidden"},
            {"expression": "authorizer.group('').resource('secrets').namespace('default').check('get').allowed()", "message": "cannot read secrets"}]}});
    admin
        .post(CONFIG_MAPS, config_map("limits", json!({"least": "1"})))
        .await;
    assert_eq!(admin.post(&policies, policy).await.0, 201);
    let reference = json!({"name": "limits", "namespace": "default", "parameterNotFoundAction": "Deny"});
    let binding = json!({"validationActions": ["Deny"], "paramRef": reference});
    bind(&admin, "validatingadmissionpolicybindings", "replicas", binding).await;
    let create = async |name: &str, replicas: i64| {
        let (code, answer) = admin
            .post(&format!("{DEPLOYMENTS}?dryRun=All"), deployment(name, replicas))
            .await;
        (
            code,
            answer["message"].as_str().unwrap_or_default().to_owned(),
            answer["reason"].clone(),
        )
    };
    eventually("the policy is asked", async || create("marker", 1).await.0 != 201).await;
    let denied = |why: &str| {
        format!(
            r#"deployments.apps "d" is forbidden: ValidatingAdmissionPolicy 'replicas' with binding 'replicas-binding' denied request: {why}"#
        )
    };
    assert_eq!(
        create("d", 1).await,
        (422, denied("wants more than 1, got 1"), json!("Invalid"))
    );
    assert_eq!(
        create("d", 3).await,
        (
            403,
            denied("failed expression: !variables.odd"),
            json!("Forbidden")
        )
    );
    assert_eq!(create("d", 2).await.0, 201);
    assert_eq!(create("free", 1).await.0, 201);
    admin.delete(&format!("{CONFIG_MAPS}/limits"), Value::Null).await;
    eventually("parameters are gone", async || {
        let why = "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
        create("d", 2).await.1 == denied(why)
    })
    .await;

    let broken = json!({"metadata": {"name": "broken"}, "spec": {"matchConstraints": constraints(), "validations": [{"expression": "object.spec >"}]}});
    let (code, status) = admin.post(&policies, broken).await;
    let message = status["message"].as_str().unwrap_or_default();
    assert!(code == 422 && message.contains("spec.validations[0].expression: Invalid value: \"object.spec >\": compilation failed: ERROR: <input>:1:"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutating_policies_change() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let policies = format!("{GROUP}/mutatingadmissionpolicies");
    let apply = "Object{metadata: Object.metadata{annotations: {'mutated-by': 'policy'}}, spec: Object.spec{replicas: object.spec.replicas + 1,
        template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'c', imagePullPolicy: 'Never'}]}}}}";
    let patch =
        "[JSONPatch{op: 'add', path: '/metadata/labels', value: {'replicas': string(object.spec.replicas)}}]";
    let policy = json!({"metadata": {"name": "change"}, "spec": {"matchConstraints": constraints(), "reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}]}});
    let (code, answer) = admin.post(&policies, policy).await;
    assert_eq!(code, 201, "{answer}");
    bind(&admin, "mutatingadmissionpolicybindings", "change", json!({})).await;
    let path = format!("{DEPLOYMENTS}?dryRun=All");
    let mut made = Value::Null;
    eventually("the policy is asked", async || {
        made = admin.post(&path, deployment("d", 2)).await.1;
        made["metadata"]["annotations"].is_object()
    })
    .await;
    assert_eq!(made["metadata"]["annotations"], json!({"mutated-by": "policy"}));
    assert_eq!(
        made["metadata"]["labels"],
        json!({"replicas": "3"}),
        "the second sees what the first did"
    );
    let container = &made["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"]),
        (&json!("x"), &json!("Never")),
        "{made}"
    );
    let managers: Vec<&Value> = made["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| &entry["manager"])
        .collect();
    assert!(
        !managers.contains(&&json!("mutating-admission-policy")),
        "{managers:?}"
    );
}

/// `host:port` in one field as v1 has it, in two as v2 has it.
fn convert(review: &Value) -> Value {
    let wanted = review["request"]["desiredAPIVersion"].as_str().unwrap();
    let objects = review["request"]["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| {
            let mut object = object.clone();
            let fields = object.as_object_mut().unwrap();
            if wanted == "example.com/v2" {
                let both = fields.remove("hostPort").unwrap();
                let (host, port) = both.as_str().unwrap().split_once(':').unwrap();
                fields.insert("host".into(), json!(host));
                fields.insert("port".into(), json!(port));
            } else {
                let (host, port) = (fields.remove("host").unwrap(), fields.remove("port").unwrap());
                fields.insert(
                    "hostPort".into(),
                    json!(format!("{}:{}", host.as_str().unwrap(), port.as_str().unwrap())),
                );
            }
            object["apiVersion"] = json!(wanted);
            object
        });
    let objects: Vec<Value> = objects.collect();
    json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
        "response": {"uid": review["request"]["uid"], "result": {"status": "Success"}, "convertedObjects": objects}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_converted_by_a_webhook() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let webhook = Webhook::start(|_, review| Some(convert(review))).await;
    let version = |name: &str, stored: bool, fields: &[&str]| {
        let properties: serde_json::Map<String, Value> = fields
            .iter()
            .map(|field| ((*field).to_owned(), json!({"type": "string"})))
            .collect();
        json!({"name": name, "served": true, "storage": stored, "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}}})
    };
    let versions = |first_stored: bool| {
        json!([
            version("v1", first_stored, &["hostPort"]),
            version("v2", !first_stored, &["host", "port"])
        ])
    };
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let definition = json!({"metadata": {"name": "places.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "places", "kind": "Place"}, "versions": versions(true),
        "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": webhook.by_url("/convert"), "conversionReviewVersions": ["v1"]}}}});
    let (code, answer) = admin.post(definitions, definition).await;
    assert_eq!(code, 201, "{answer}");
    let path = |version: &str| format!("/apis/example.com/{version}/namespaces/default/places");
    let one = json!({"apiVersion": "example.com/v1", "kind": "Place", "metadata": {"name": "one"}, "hostPort": "localhost:80"});
    eventually("the definition is served", async || {
        admin.post(&path("v1"), one.clone()).await.0 == 201
    })
    .await;
    let (_, seen) = admin.get(&format!("{}/one", path("v2"))).await;
    assert_eq!(
        (&seen["host"], &seen["port"], &seen["hostPort"]),
        (&json!("localhost"), &json!("80"), &Value::Null),
        "{seen}"
    );

    // From now on the other version is stored.
    let change = json!({"spec": {"versions": versions(false)}});
    assert_eq!(
        admin
            .patch(
                &format!("{definitions}/places.example.com"),
                "merge-patch+json",
                change
            )
            .await
            .0,
        200
    );
    let two = json!({"apiVersion": "example.com/v2", "kind": "Place", "metadata": {"name": "two"}, "host": "h", "port": "1"});
    assert_eq!(admin.post(&path("v2"), two).await.0, 201);
    let three = json!({"apiVersion": "example.com/v1", "kind": "Place", "metadata": {"name": "three"}, "hostPort": "i:2"});
    eventually("the other version is stored", async || {
        admin
            .post(&format!("{}?dryRun=All", path("v1")), three.clone())
            .await
            .0
            == 201
    })
    .await;
    let listed = async |version: &str, field: &str| -> Vec<Value> {
        let (_, list) = admin.get(&path(version)).await;
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item[field].clone())
            .collect()
    };
    assert_eq!(
        listed("v1", "hostPort").await,
        [json!("localhost:80"), json!("h:1")]
    );
    assert_eq!(listed("v2", "host").await, [json!("localhost"), json!("h")]);

    // A change through either version moves what is stored.
    let (code, changed) = admin
        .patch(
            &format!("{}/one", path("v1")),
            "merge-patch+json",
            json!({"hostPort": "there:81"}),
        )
        .await;
    assert_eq!(
        (code, &changed["hostPort"]),
        (200, &json!("there:81")),
        "{changed}"
    );
    assert_eq!(admin.get(&format!("{}/one", path("v2"))).await.1["host"], "there");
    let mut watch = admin.watch(&format!("{}?watch=true", path("v1"))).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["object"]["apiVersion"], &event["object"]["hostPort"]),
        (&json!("example.com/v1"), &json!("there:81"))
    );
}

#[tokio::test]
async fn policies_tell_what_their_expressions_confuse() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    let admin = server.admin();
    let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    for (name, expression, count) in [
        ("correct", "object.spec.replicas > 1", 0),
        ("confused", "object.spec.replicas > '1'", 1),
    ] {
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]},
                "validations": [{"expression": expression}],
            },
        });
        assert_eq!(admin.post(policies, policy).await.0, 201);
        let mut watch = admin
            .watch(&format!(
                "{policies}?watch=1&fieldSelector=metadata.name%3D{name}&timeoutSeconds=20"
            ))
            .await;
        let checked = loop {
            let event = watch.next().await.expect("the policy is checked");
            if event["object"]["status"]["typeChecking"].is_object() {
                break event["object"].clone();
            }
        };
        assert_eq!(
            checked["status"]["observedGeneration"],
            checked["metadata"]["generation"]
        );
        let warnings = checked["status"]["typeChecking"]["expressionWarnings"].as_array();
        assert_eq!(warnings.map_or(0, Vec::len), count, "{checked}");
    }
    server.handle.shutdown().await;
}

#[tokio::test]
async fn plug_ins_are_turned_off_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start_with(directory.path(), |config| {
        config.admission.disable = vec!["ServiceAccount".into()];
    })
    .await;
    let pod = json!({"metadata": {"name": "alone"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let (code, pod) = server.admin().post(PODS, pod).await;
    assert_eq!(code, 201, "{pod}");
    assert!(pod["spec"]["serviceAccountName"].is_null(), "{pod}");
    server.handle.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_sub_resources_are_asked_is_admitted_as_created() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let webhook = Webhook::start(move |_, question| {
        let request = &question["request"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = text(&request["resource"]["resource"]);
        let kind = &request["object"]["kind"];
        assert_eq!(kind, &request["kind"]["kind"], "{request}");
        log.lock().unwrap().push(format!(
            "{} {resource}/{} {}",
            text(&request["operation"]),
            text(&request["subResource"]),
            text(kind)
        ));
        let marks = json!([{"op": "add", "path": "/metadata/annotations", "value": {"seen": "yes"}}]);
        let answer = match text(kind).as_str() {
            "ConfigMap" => json!({"allowed": false}),
            "Binding" => patch(marks),
            _ => json!({"allowed": true}),
        };
        Some(review(question, answer))
    })
    .await;
    let mut all = hook(
        "all.example.com",
        webhook.by_url("/"),
        &["CREATE", "UPDATE", "DELETE"],
        "",
        "*/*",
    );
    all["rules"][0]["resources"] = json!(["*/*", "configmaps"]);
    let account = json!({"metadata": {"name": "a"}});
    let (code, account) = admin
        .post("/api/v1/namespaces/default/serviceaccounts", account)
        .await;
    assert_eq!(code, 201, "{account}");
    let pod = json!({"metadata": {"name": "p"},
        "spec": {"serviceAccountName": "a", "containers": [{"name": "c", "image": "i"}]}});
    let (code, pod) = admin.post(PODS, pod).await;
    assert_eq!(code, 201, "{pod}");
    let labels = json!({"topology.kubernetes.io/zone": "z"});
    let node = json!({"metadata": {"name": "n", "labels": labels}});
    assert_eq!(admin.post("/api/v1/nodes", node).await.0, 201);
    let configuration = configuration("all", json!([all]));
    register(&admin, MUTATING, configuration, config_map("marker", json!({}))).await;
    seen.lock().unwrap().clear();

    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let (code, status) = admin.post(&format!("{PODS}/p/binding"), binding).await;
    assert_eq!(code, 201, "{status}");
    let (_, bound) = admin.get(&format!("{PODS}/p")).await;
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["metadata"]["annotations"], json!({"seen": "yes"}));
    assert_eq!(
        bound["metadata"]["labels"],
        json!({"topology.kubernetes.io/zone": "z"})
    );

    // A node may have tokens for its pods, and no other.
    let kubelet = server.client("system:node:n", &["system:nodes"]);
    let tokens = "/api/v1/namespaces/default/serviceaccounts/a/token";
    let token =
        |spec: Value| json!({"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1", "spec": spec});
    let bound_to = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": bound["metadata"]["uid"]});
    eventually("the authorizer has seen the pod", async || {
        let asked = token(json!({"audiences": [], "boundObjectRef": bound_to}));
        kubelet.post(tokens, asked).await.0 == 201
    })
    .await;
    let (code, status) = kubelet.post(tokens, token(json!({"audiences": []}))).await;
    assert_eq!(code, 403, "{status}");
    let why = status["message"].as_str().unwrap();
    assert!(why.ends_with("node requested token not bound to a pod"), "{why}");

    let eviction = json!({"metadata": {"name": "p"}, "deleteOptions": {"gracePeriodSeconds": 0}});
    let (code, status) = admin.post(&format!("{PODS}/p/eviction"), eviction).await;
    assert_eq!(code, 201, "{status}");
    let mut seen = seen.lock().unwrap().clone();
    seen.dedup();
    assert_eq!(
        seen,
        [
            "CREATE pods/binding Binding",
            "CREATE serviceaccounts/token TokenRequest",
            "CREATE pods/eviction Eviction",
        ],
        "and neither the update of the pod nor its deletion"
    );
    server.handle.shutdown().await;
}
