//! CustomResourceDefinitions and their objects over HTTPS, as clients meet them.

// Each test binary uses its own part of it.
#[allow(dead_code)]
mod support;

use serde_json::{Value, json};
use support::{Client, Server};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

async fn server() -> (Server, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Server::start(directory.path()).await, directory)
}

fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "required": ["color"], "properties": {
            "color": {"type": "string", "enum": ["red", "blue"], "description": "How it looks."},
            "size": {"type": "integer", "default": 3, "minimum": 1},
            "note": {"type": "string", "nullable": true},
            "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
        "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "selector": {"type": "string"}}}}}});
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": schema,
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
            "selectableFields": [{"jsonPath": ".spec.color"}],
            "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"}]})
    };
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [version("v1", true), version("v1beta1", false)]}})
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

/// Waits until the definition says that it is served.
async fn establish(admin: &Client, definition: Value) {
    let mut watch = admin.watch(&format!("{DEFINITIONS}?watch=true")).await;
    let (code, created) = admin.post(DEFINITIONS, definition).await;
    assert_eq!(code, 201, "{created}");
    loop {
        let event = watch.next().await.expect("a running watch");
        let conditions = event["object"]["status"]["conditions"].as_array().cloned();
        let is_established = |it: &Value| it["type"] == "Established" && it["status"] == "True";
        if conditions.unwrap_or_default().iter().any(is_established) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_is_served_and_described() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    establish(&admin, definition()).await;
    let (_, read) = admin.get(&format!("{DEFINITIONS}/widgets.example.com")).await;
    assert_eq!(read["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(read["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(read["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(read["status"]["acceptedNames"]["singular"], "widget");
    assert_eq!(read["metadata"]["generation"], 1);
    assert!(read["metadata"].get("finalizers").is_none());

    let (_, list) = admin.get("/apis/example.com/v1").await;
    let names: Vec<&str> = list["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);
    let (_, group) = admin.get("/apis/example.com").await;
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let (_, index) = admin.get("/openapi/v3").await;
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap()
        .to_owned();
    let (_, document) = admin.get(&url).await;
    let schema = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["color"]["description"],
        "How it looks."
    );
    assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], "Widget");

    let patch = &document["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    let accepted = patch["requestBody"]["content"].as_object().unwrap();
    assert!(accepted.contains_key("application/merge-patch+json"));
    assert!(
        !accepted.contains_key("application/strategic-merge-patch+json"),
        "kubectl apply would send it"
    );

    let mut rival = definition();
    rival["metadata"]["name"] = json!("gadgets.example.com");
    rival["spec"]["names"]["plural"] = json!("gadgets");
    let mut watch = admin
        .watch(&format!(
            "{DEFINITIONS}?watch=true&resourceVersion={}&fieldSelector=metadata.name%3Dgadgets.example.com",
            read["metadata"]["resourceVersion"].as_str().unwrap()
        ))
        .await;
    admin.post(DEFINITIONS, rival).await;
    let conditions = loop {
        let event = watch.next().await.expect("a running watch");
        if let Some([accepted, established]) = event["object"]["status"]["conditions"]
            .as_array()
            .map(Vec::as_slice)
        {
            break [accepted.clone(), established.clone()];
        }
    };
    assert_eq!(conditions[0]["status"], "False");
    assert_eq!(conditions[1]["reason"], "NotAccepted");
    assert_eq!(admin.get("/apis/example.com/v1/gadgets").await.0, 404);

    let mut broken = definition();
    broken["metadata"]["name"] = json!("other.example.com");
    broken["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"type": "object", "properties": {"a": {}}});
    let (code, status) = admin.post(DEFINITIONS, broken).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    let message = status["message"].as_str().unwrap();
    assert!(
        message.contains(
            r#"metadata.name: Invalid value: "other.example.com": must be spec.names.plural+"."+spec.group"#
        ),
        "{message}"
    );
    assert!(message.contains("spec.versions[0].schema.openAPIV3Schema.properties[a].type: Required value: must not be empty for specified object fields"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_written_like_any_others() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    establish(&admin, definition()).await;
    let odd = widget(
        "a",
        json!({"color": "red", "shape": "round", "note": null, "any": {"x": [1]}}),
    );
    let (code, strict) = admin
        .post(&format!("{WIDGETS}?fieldValidation=Strict"), odd.clone())
        .await;
    assert_eq!(code, 400);
    assert!(
        strict["message"]
            .as_str()
            .unwrap()
            .ends_with(r#"strict decoding error: unknown field "spec.shape""#),
        "{strict}"
    );
    let (code, created) = admin.post(WIDGETS, odd).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(
        created["spec"],
        json!({"color": "red", "size": 3, "note": null, "any": {"x": [1]}})
    );
    assert_eq!(created["metadata"]["generation"], 1);

    let (code, refused) = admin.post(WIDGETS, widget("b", json!({"size": "big"}))).await;
    assert_eq!(code, 422);
    assert_eq!(
        refused["message"],
        r#"Widget.example.com "b" is invalid: [spec.color: Required value, spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"]"#
    );
    assert_eq!(refused["details"]["causes"][1]["reason"], "FieldValueTypeInvalid");

    let path = format!("{WIDGETS}/a");
    let (code, patched) = admin
        .patch(
            &path,
            "merge-patch+json",
            json!({"spec": {"size": 5}, "status": {"replicas": 9}}),
        )
        .await;
    assert_eq!(
        (code, &patched["spec"]["size"], &patched["metadata"]["generation"]),
        (200, &json!(5), &json!(2))
    );
    assert!(patched.get("status").is_none(), "status has a path of its own");
    let (code, patched) = admin
        .patch(
            &format!("{path}/status"),
            "merge-patch+json",
            json!({"status": {"replicas": 2, "selector": "a=b"}}),
        )
        .await;
    assert_eq!(
        (
            code,
            &patched["metadata"]["generation"],
            &patched["status"]["replicas"]
        ),
        (200, &json!(2), &json!(2))
    );
    let (code, strategic) = admin.patch(&path, "strategic-merge-patch+json", json!({})).await;
    assert_eq!(code, 415);
    assert_eq!(
        strategic["message"],
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
    );
    let mut unconditional = widget("a", json!({"color": "blue"}));
    let (code, refused) = admin.put(&path, unconditional.clone()).await;
    assert_eq!(
        (code, &refused["details"]["causes"][0]["field"]),
        (422, &json!("metadata.resourceVersion"))
    );
    unconditional["metadata"]["resourceVersion"] = patched["metadata"]["resourceVersion"].clone();
    let (code, updated) = admin.put(&path, unconditional).await;
    assert_eq!((code, &updated["status"]["replicas"]), (200, &json!(2)));

    let (_, scale) = admin.get(&format!("{path}/scale")).await;
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]),
        (&json!(3), &json!({"replicas": 2, "selector": "a=b"}))
    );
    let (code, _) = admin
        .patch(
            &format!("{path}/scale"),
            "merge-patch+json",
            json!({"spec": {"replicas": 7}}),
        )
        .await;
    assert_eq!(code, 200);
    let (_, beta) = admin
        .get("/apis/example.com/v1beta1/namespaces/default/widgets/a")
        .await;
    assert_eq!(
        (&beta["apiVersion"], &beta["spec"]["size"]),
        (&json!("example.com/v1beta1"), &json!(7))
    );
    let mut red = widget("c", json!({"color": "red"}));
    red["apiVersion"] = json!("example.com/v1beta1");
    let (code, red) = admin
        .post("/apis/example.com/v1beta1/namespaces/default/widgets", red)
        .await;
    assert_eq!(
        (code, &red["apiVersion"]),
        (201, &json!("example.com/v1beta1")),
        "{red}"
    );
    let (_, selected) = admin
        .get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dred"))
        .await;
    assert_eq!(
        (
            selected["kind"].as_str(),
            selected["items"].as_array().unwrap().len()
        ),
        (Some("WidgetList"), 1)
    );
    assert_eq!(
        (
            &selected["items"][0]["metadata"]["name"],
            &selected["items"][0]["apiVersion"]
        ),
        (&json!("c"), &json!("example.com/v1"))
    );
    assert_eq!(
        admin
            .get(&format!("{WIDGETS}?fieldSelector=spec.size%3D3"))
            .await
            .0,
        400
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_goes_after_its_objects() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    establish(&admin, definition()).await;
    let mut held = widget("held", json!({"color": "red"}));
    held["metadata"]["finalizers"] = json!(["example.com/wait"]);
    assert_eq!(admin.post(WIDGETS, held).await.0, 201);
    assert_eq!(
        admin
            .post(WIDGETS, widget("free", json!({"color": "red"})))
            .await
            .0,
        201
    );
    let mut widgets = admin.watch(&format!("{WIDGETS}?watch=true")).await;
    let mut definitions = admin.watch(&format!("{DEFINITIONS}?watch=true")).await;
    for _ in 0..2 {
        assert_eq!(widgets.brief().await.0, "ADDED");
    }
    let (code, going) = admin
        .delete(&format!("{DEFINITIONS}/widgets.example.com"), Value::Null)
        .await;
    assert_eq!(code, 200);
    assert_eq!(
        going["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    let mut seen = vec![widgets.brief().await, widgets.brief().await];
    seen.sort();
    assert_eq!(
        seen,
        [
            ("DELETED".into(), "free".into()),
            ("MODIFIED".into(), "held".into())
        ]
    );
    assert_eq!(
        admin
            .post(WIDGETS, widget("late", json!({"color": "red"})))
            .await
            .0,
        405
    );
    let (code, _) = admin
        .patch(
            &format!("{WIDGETS}/held"),
            "merge-patch+json",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    assert_eq!(code, 200);
    loop {
        if definitions.brief().await.0 == "DELETED" {
            break;
        }
    }
    while widgets.next().await.is_some() {}
    // The watch ended because the kind is gone.
    assert_eq!(admin.get(WIDGETS).await.0, 404);
    establish(&admin, definition()).await;
    let (_, list) = admin.get(WIDGETS).await;
    assert_eq!(list["items"], json!([]), "a new definition begins empty");
}
