//! The API over HTTPS, as clients meet it.

mod support;

use serde_json::{Value, json};
use support::Server;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn server() -> (Server, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Server::start(directory.path()).await, directory)
}

fn config_map(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    })
}

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

/// Pods need their namespace's service account; its controller does not run here.
async fn with_account(server: &Server) -> support::Client {
    let admin = server.admin();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    let (code, _) = admin
        .post("/api/v1/namespaces/default/serviceaccounts", account)
        .await;
    assert_eq!(code, 201);
    admin
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_written_and_read() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let (code, created) = admin.post(CONFIG_MAPS, config_map("a", json!({}))).await;
    assert_eq!(code, 201, "{created}");
    assert!(!created["metadata"]["uid"].as_str().unwrap().is_empty());
    let (_, read) = admin.get(&format!("{CONFIG_MAPS}/a")).await;
    assert_eq!(read, created, "what was answered is what is there");
    let (code, again) = admin.post(CONFIG_MAPS, config_map("a", json!({}))).await;
    assert_eq!((code, &again["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(again["message"], "configmaps \"a\" already exists");

    let mut stale = created.clone();
    stale["data"]["a"] = json!("2");
    let (code, updated) = admin.put(&format!("{CONFIG_MAPS}/a"), stale.clone()).await;
    assert_eq!((code, &updated["data"]["a"]), (200, &json!("2")));
    stale["data"]["a"] = json!("3");
    let (code, conflict) = admin.put(&format!("{CONFIG_MAPS}/a"), stale).await;
    assert_eq!((code, &conflict["reason"]), (409, &json!("Conflict")));
    let (_, same) = admin.put(&format!("{CONFIG_MAPS}/a"), updated.clone()).await;
    assert_eq!(same, updated, "an update that changes nothing makes no revision");

    let (code, missing) = admin.get(&format!("{CONFIG_MAPS}/b")).await;
    assert_eq!(
        (code, &missing["message"]),
        (404, &json!("configmaps \"b\" not found"))
    );
    let generated = json!({"metadata": {"generateName": "g-"}});
    let (_, generated) = admin.post(CONFIG_MAPS, generated).await;
    assert_eq!(
        generated["metadata"]["name"].as_str().unwrap().len(),
        7,
        "{generated}"
    );
    let (code, nameless) = admin.post(CONFIG_MAPS, json!({"metadata": {}})).await;
    assert_eq!(
        (code, &nameless["details"]["causes"][0]["field"]),
        (422, &json!("metadata.name"))
    );
    let (code, deleted) = admin.delete(&format!("{CONFIG_MAPS}/a"), Value::Null).await;
    assert_eq!((code, &deleted["status"]), (200, &json!("Success")));
    assert_eq!(admin.get(&format!("{CONFIG_MAPS}/a")).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dry_runs_and_unknown_fields() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let (code, _) = admin
        .post(&format!("{CONFIG_MAPS}?dryRun=All"), config_map("dry", json!({})))
        .await;
    assert_eq!(code, 201);
    assert_eq!(admin.get(&format!("{CONFIG_MAPS}/dry")).await.0, 404);
    let mut odd = config_map("odd", json!({}));
    odd["nonsense"] = json!(1);
    let (code, status) = admin
        .post(&format!("{CONFIG_MAPS}?fieldValidation=Strict"), odd.clone())
        .await;
    assert_eq!(code, 400);
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("unknown field \"nonsense\""),
        "{status}"
    );
    let (code, pruned) = admin.post(CONFIG_MAPS, odd).await;
    assert_eq!(code, 201);
    assert!(pruned.get("nonsense").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_of_each_kind() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let path = format!("{CONFIG_MAPS}/p");
    admin.post(CONFIG_MAPS, config_map("p", json!({}))).await;
    let cases = [
        (
            "merge-patch+json",
            json!({"data": {"b": "2"}}),
            json!({"a": "1", "b": "2"}),
        ),
        (
            "json-patch+json",
            json!([{"op": "remove", "path": "/data/a"}]),
            json!({"b": "2"}),
        ),
        (
            "strategic-merge-patch+json",
            json!({"data": {"b": null, "c": "3"}}),
            json!({"c": "3"}),
        ),
    ];
    for (kind, body, expected) in cases {
        let (code, patched) = admin.patch(&path, kind, body).await;
        assert_eq!((code, &patched["data"]), (200, &expected), "{kind}: {patched}");
    }
    let (code, status) = admin.patch(&path, "odd+json", json!({})).await;
    assert_eq!((code, &status["reason"]), (415, &json!("UnsupportedMediaType")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applied_configurations_own_their_fields() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let path = |name: &str, manager: &str| format!("{CONFIG_MAPS}/{name}?fieldManager={manager}");
    let config = |data: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
    let one = config(json!({"k": "1"}));
    let (code, dry) = admin
        .patch(
            &format!("{}&dryRun=All", path("a", "me")),
            "apply-patch+yaml",
            one.clone(),
        )
        .await;
    assert_eq!(code, 201, "{dry}");
    assert_eq!(admin.get(&format!("{CONFIG_MAPS}/a")).await.0, 404);
    let (code, created) = admin
        .patch(&path("a", "me"), "apply-patch+yaml", one.clone())
        .await;
    assert_eq!(code, 201, "{created}");
    let owned = &created["metadata"]["managedFields"][0];
    assert_eq!(
        (&owned["manager"], &owned["operation"], &owned["fieldsV1"]),
        (&json!("me"), &json!("Apply"), &json!({"f:data": {"f:k": {}}}))
    );
    let (code, again) = admin.patch(&path("a", "me"), "apply-patch+yaml", one).await;
    assert_eq!((code, &again), (200, &created), "nothing to do makes no revision");

    let other = config(json!({"k": "2", "l": "1"}));
    let (code, conflict) = admin
        .patch(&path("a", "you"), "apply-patch+yaml", other.clone())
        .await;
    assert_eq!(code, 409);
    assert_eq!(
        conflict["message"],
        "Apply failed with 1 conflict: conflict with \"me\": .data.k"
    );
    assert_eq!(
        conflict["details"]["causes"],
        json!([{"reason": "FieldManagerConflict", "message": "conflict with \"me\"", "field": ".data.k"}])
    );
    let forced = format!("{}&force=true", path("a", "you"));
    let (code, taken) = admin.patch(&forced, "apply-patch+yaml", other).await;
    assert_eq!((code, &taken["data"]), (200, &json!({"k": "2", "l": "1"})));
    assert_eq!(taken["metadata"]["managedFields"].as_array().unwrap().len(), 1);
    let (_, edited) = admin
        .patch(
            &path("a", "editor"),
            "merge-patch+json",
            json!({"data": {"l": "2"}}),
        )
        .await;
    assert_eq!(edited["metadata"]["managedFields"][1]["manager"], "editor");
    let (_, reset) = admin
        .patch(
            &path("a", "editor"),
            "merge-patch+json",
            json!({"metadata": {"managedFields": [{}]}}),
        )
        .await;
    assert_eq!(reset["metadata"].get("managedFields"), None);

    let (code, nobody) = admin
        .patch(&format!("{CONFIG_MAPS}/a"), "apply-patch+yaml", config(json!({})))
        .await;
    assert_eq!(
        (code, &nobody["details"]["causes"][0]["field"]),
        (422, &json!("fieldManager"))
    );
    let (code, odd) = admin
        .patch(
            &path("a", "me"),
            "apply-patch+yaml",
            json!({"apiVersion": "v2", "kind": "ConfigMap"}),
        )
        .await;
    assert_eq!((code, &odd["reason"]), (400, &json!("BadRequest")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_in_pages_of_one_revision() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    for n in 0..5 {
        admin
            .post(
                CONFIG_MAPS,
                config_map(&format!("l{n}"), json!({"n": n.to_string()})),
            )
            .await;
    }
    let (_, first) = admin.get(&format!("{CONFIG_MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["l0", "l1"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens between the pages is not seen in them.
    admin.delete(&format!("{CONFIG_MAPS}/l3"), Value::Null).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = admin
        .get(&format!("{CONFIG_MAPS}?limit=5&continue={token}"))
        .await;
    assert_eq!(names(&rest), ["l2", "l3", "l4"]);
    assert_eq!(
        rest["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let (_, now) = admin
        .get(&format!("{CONFIG_MAPS}?labelSelector=n%20notin%20(0,1)"))
        .await;
    assert_eq!(names(&now), ["l2", "l4"]);
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let (_, then) = admin
        .get(&format!(
            "{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact"
        ))
        .await;
    assert_eq!(names(&then).len(), 5);

    server
        .store
        .compact(server.store.revision().await.unwrap())
        .await
        .unwrap();
    let (code, gone) = admin
        .get(&format!("{CONFIG_MAPS}?limit=5&continue={token}"))
        .await;
    assert_eq!((code, &gone["reason"]), (410, &json!("Expired")));
    let (code, _) = admin
        .get(&format!("{CONFIG_MAPS}?fieldSelector=data.a%3D1"))
        .await;
    assert_eq!(code, 400, "not a selectable field");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_see_what_selectors_let_through() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    admin
        .post(CONFIG_MAPS, config_map("old", json!({"w": "yes"})))
        .await;
    let mut watch = admin
        .watch(&format!("{CONFIG_MAPS}?watch=true&labelSelector=w%3Dyes"))
        .await;
    assert_eq!(watch.brief().await, ("ADDED".into(), "old".into()));
    let change = async |name: &str, label: &str| {
        let (code, _) = admin
            .patch(
                &format!("{CONFIG_MAPS}/{name}"),
                "merge-patch+json",
                json!({"metadata": {"labels": {"w": label}}}),
            )
            .await;
        assert_eq!(code, 200);
    };
    admin
        .post(CONFIG_MAPS, config_map("new", json!({"w": "no"})))
        .await;
    change("new", "yes").await;
    assert_eq!(watch.brief().await, ("ADDED".into(), "new".into()));
    admin
        .patch(
            &format!("{CONFIG_MAPS}/new"),
            "merge-patch+json",
            json!({"data": {"x": "y"}}),
        )
        .await;
    assert_eq!(watch.brief().await, ("MODIFIED".into(), "new".into()));
    change("new", "no").await;
    let left = watch.next().await.unwrap();
    assert_eq!(
        (&left["type"], &left["object"]["metadata"]["labels"]["w"]),
        (&json!("DELETED"), &json!("yes"))
    );
    let (_, now) = admin.get(&format!("{CONFIG_MAPS}/new")).await;
    assert_eq!(
        left["object"]["metadata"]["resourceVersion"], now["metadata"]["resourceVersion"],
        "of the change"
    );
    admin.delete(&format!("{CONFIG_MAPS}/old"), Value::Null).await;
    assert_eq!(watch.brief().await, ("DELETED".into(), "old".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_begin_where_asked() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let (_, first) = admin.post(CONFIG_MAPS, config_map("a", json!({}))).await;
    admin.post(CONFIG_MAPS, config_map("b", json!({}))).await;
    let revision = first["metadata"]["resourceVersion"].as_str().unwrap();
    let mut after = admin
        .watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}"))
        .await;
    assert_eq!(after.brief().await, ("ADDED".into(), "b".into()));
    let streaming =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut streamed = admin.watch(&format!("{CONFIG_MAPS}?watch=1&{streaming}")).await;
    assert_eq!(streamed.brief().await, ("ADDED".into(), "a".into()));
    assert_eq!(streamed.brief().await, ("ADDED".into(), "b".into()));
    let end = streamed.next().await.unwrap();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(
        end["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(
        streamed.next().await.unwrap()["type"],
        "BOOKMARK",
        "the last word"
    );
    assert!(streamed.next().await.is_none(), "timeoutSeconds ends it");
    server
        .store
        .compact(server.store.revision().await.unwrap())
        .await
        .unwrap();
    let mut old = admin
        .watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=1"))
        .await;
    let gone = old.next().await.unwrap();
    assert_eq!(
        (&gone["type"], &gone["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_bound_and_die_gracefully() {
    let (server, _directory) = server().await;
    let admin = with_account(&server).await;
    let (code, created) = admin.post(PODS, pod("p")).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(
        (&created["status"]["phase"], &created["status"]["qosClass"]),
        (&json!("Pending"), &json!("BestEffort"))
    );
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let (code, status) = admin.post(&format!("{PODS}/p/binding"), binding.clone()).await;
    assert_eq!(code, 201, "{status}");
    let (code, _) = admin.post(&format!("{PODS}/p/binding"), binding).await;
    assert_eq!(code, 409, "bound once");
    let (_, bound) = admin.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await;
    assert_eq!(names(&bound), ["p"]);
    assert_eq!(
        bound["items"][0]["status"]["conditions"][0]["type"],
        "PodScheduled"
    );
    assert_eq!(
        bound["items"][0]["metadata"]["generation"], 1,
        "not a new generation"
    );

    let (_, status) = admin
        .patch(
            &format!("{PODS}/p/status"),
            "merge-patch+json",
            json!({"spec": {"nodeName": "x"}, "status": {"phase": "Running"}}),
        )
        .await;
    assert_eq!(
        (&status["status"]["phase"], &status["spec"]["nodeName"]),
        (&json!("Running"), &json!("n1"))
    );
    let (code, dying) = admin
        .delete(&format!("{PODS}/p"), json!({"gracePeriodSeconds": 7}))
        .await;
    assert_eq!(
        (code, &dying["metadata"]["deletionGracePeriodSeconds"]),
        (200, &json!(7)),
        "{dying}"
    );
    admin
        .delete(&format!("{PODS}/p"), json!({"gracePeriodSeconds": 0}))
        .await;
    assert_eq!(admin.get(&format!("{PODS}/p")).await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn finalizers_and_namespaces_hold_on() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let mut held = config_map("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/f"]);
    admin.post(CONFIG_MAPS, held).await;
    let (code, dying) = admin.delete(&format!("{CONFIG_MAPS}/held"), Value::Null).await;
    assert_eq!(code, 200);
    assert!(dying["metadata"]["deletionTimestamp"].is_string(), "{dying}");
    admin
        .patch(
            &format!("{CONFIG_MAPS}/held"),
            "merge-patch+json",
            json!({"metadata": {"finalizers": null}}),
        )
        .await;
    assert_eq!(admin.get(&format!("{CONFIG_MAPS}/held")).await.0, 404);

    let (_, namespace) = admin
        .post("/api/v1/namespaces", json!({"metadata": {"name": "t"}}))
        .await;
    assert_eq!(
        (&namespace["status"]["phase"], &namespace["spec"]["finalizers"]),
        (&json!("Active"), &json!(["kubernetes"]))
    );
    let (_, dying) = admin.delete("/api/v1/namespaces/t", Value::Null).await;
    assert_eq!(dying["status"]["phase"], "Terminating");
    let (code, refused) = admin
        .post("/api/v1/namespaces/t/configmaps", config_map("late", json!({})))
        .await;
    assert_eq!(code, 403, "{refused}");
    let mut done = dying.clone();
    done["spec"] = json!({});
    assert_eq!(admin.put("/api/v1/namespaces/t/finalize", done).await.0, 200);
    assert_eq!(admin.get("/api/v1/namespaces/t").await.0, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_get_addresses_and_give_them_back() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let services = "/api/v1/namespaces/default/services";
    let (_, kubernetes) = admin.get(&format!("{services}/kubernetes")).await;
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    let service = |name: &str, spec: Value| {
        let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
        for (field, value) in spec.as_object().unwrap() {
            service["spec"][field] = value.clone();
        }
        service
    };
    let (code, created) = admin
        .post(
            services,
            service("a", json!({"type": "NodePort", "clusterIP": "10.96.0.10"})),
        )
        .await;
    assert_eq!(code, 201, "{created}");
    let port = created["spec"]["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30000..=32767).contains(&port));
    let (code, taken) = admin
        .post(services, service("b", json!({"clusterIP": "10.96.0.10"})))
        .await;
    assert_eq!(code, 422);
    assert!(
        taken["message"].as_str().unwrap().contains("already allocated"),
        "{taken}"
    );
    let (code, taken) = admin
        .post(
            services,
            service(
                "b",
                json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]}),
            ),
        )
        .await;
    assert_eq!(code, 422);
    assert!(
        taken["message"]
            .as_str()
            .unwrap()
            .contains("provided port is already allocated"),
        "{taken}"
    );
    assert_eq!(
        admin
            .get("/apis/networking.k8s.io/v1/ipaddresses/10.96.0.10")
            .await
            .0,
        200
    );
    admin.delete(&format!("{services}/a"), Value::Null).await;
    assert_eq!(
        admin
            .get("/apis/networking.k8s.io/v1/ipaddresses/10.96.0.10")
            .await
            .0,
        404
    );
    let (code, _) = admin
        .post(services, service("b", json!({"clusterIP": "10.96.0.10"})))
        .await;
    assert_eq!(code, 201, "free again");
    let (_, slices) = admin
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await;
    assert_eq!(slices["endpoints"][0]["addresses"], json!(["127.0.0.1"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scale_is_a_new_generation() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let (code, created) = admin.post(deployments, deployment).await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(
        (&created["metadata"]["generation"], &created["spec"]["replicas"]),
        (&json!(1), &json!(1))
    );
    let (_, scale) = admin.get(&format!("{deployments}/d/scale")).await;
    assert_eq!(
        (&scale["kind"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!("a=b"))
    );
    let (code, scaled) = admin
        .patch(
            &format!("{deployments}/d/scale"),
            "merge-patch+json",
            json!({"spec": {"replicas": 3}}),
        )
        .await;
    assert_eq!((code, &scaled["spec"]["replicas"]), (200, &json!(3)), "{scaled}");
    let (_, now) = admin.get(&format!("{deployments}/d")).await;
    assert_eq!(
        (&now["metadata"]["generation"], &now["spec"]["replicas"]),
        (&json!(2), &json!(3))
    );
    let (_, status) = admin
        .patch(
            &format!("{deployments}/d/status"),
            "merge-patch+json",
            json!({"status": {"replicas": 2}, "spec": {"replicas": 9}}),
        )
        .await;
    assert_eq!(
        (
            &status["metadata"]["generation"],
            &status["status"]["replicas"],
            &status["spec"]["replicas"]
        ),
        (&json!(2), &json!(2), &json!(3))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_may_do_what_their_roles_say() {
    let (server, _directory) = server().await;
    let admin = with_account(&server).await;
    let (code, _) = server.anonymous().get("/version").await;
    assert_eq!(code, 200, "for everybody");
    let (code, status) = server.anonymous().get("/api/v1/nodes").await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    let mut liar = server.anonymous();
    liar.token = Some("not.a.token".into());
    assert_eq!(liar.get("/version").await.0, 401);

    let (code, token) = admin
        .post(
            "/api/v1/namespaces/default/serviceaccounts/default/token",
            json!({"spec": {}}),
        )
        .await;
    assert_eq!(code, 201, "{token}");
    let mut account = server.anonymous();
    account.token = Some(token["status"]["token"].as_str().unwrap().to_owned());
    let (code, refused) = account.get(CONFIG_MAPS).await;
    assert_eq!(code, 403);
    assert_eq!(
        refused["message"],
        "configmaps is forbidden: User \"system:serviceaccount:default:default\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let binding = json!({
        "metadata": {"name": "view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    });
    let (code, bound) = admin
        .post(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
            binding,
        )
        .await;
    assert_eq!(code, 201, "{bound}");
    let question =
        json!({"spec": {"resourceAttributes": {"verb": "bind", "resource": "pods", "namespace": "other"}}});
    let (_, answer) = account
        .post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", question)
        .await;
    assert_eq!(answer["status"]["allowed"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_can_learn_the_api() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    assert_eq!(admin.text("/readyz").await.1, "ok");
    for endpoint in ["healthz", "livez", "readyz"] {
        let (_, checks) = admin.text(&format!("/{endpoint}?verbose")).await;
        for check in [
            "ping",
            "poststarthook/crd-informer-synced",
            "autoregister-completion",
        ] {
            assert!(checks.contains(&format!("[+]{check} ok\n")), "{checks}");
        }
        assert!(
            checks.ends_with(&format!("{endpoint} check passed\n")),
            "{checks}"
        );
    }
    let (_, groups) = admin.get("/apis").await;
    assert!(
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|group| group["name"] == "apps")
    );
    let (_, core) = admin.get("/api/v1").await;
    assert!(
        core["resources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|resource| resource["name"] == "pods/log")
    );
    let (_, index) = admin.get("/openapi/v3").await;
    let apps = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap()
        .to_owned();
    let (code, document) = admin.get(&apps).await;
    assert_eq!(code, 200);
    assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    assert_eq!(admin.get("/apis/apps/v1/nonsense").await.0, 404);
    let (code, refused) = admin
        .post("/api/v1/namespaces/default/componentstatuses", json!({}))
        .await;
    assert_eq!(code, 404, "{refused}");
    let (_, keys) = admin.get("/openid/v1/jwks").await;
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_have_two_faces() {
    let (server, _directory) = server().await;
    let admin = server.admin();
    let event = json!({
        "metadata": {"name": "e"}, "action": "a", "reason": "r", "type": "Normal", "note": "words",
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "c", "reportingInstance": "i",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
    });
    let (code, created) = admin
        .post("/apis/events.k8s.io/v1/namespaces/default/events", event)
        .await;
    assert_eq!(code, 201, "{created}");
    assert_eq!(created["note"], "words");
    let (_, core) = admin
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp")
        .await;
    assert_eq!(
        (
            &core["items"][0]["message"],
            &core["items"][0]["reportingComponent"]
        ),
        (&json!("words"), &json!("c"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(directory.path()).await;
    server
        .admin()
        .post(CONFIG_MAPS, config_map("kept", json!({})))
        .await;
    let Server { handle, store, .. } = server;
    handle.shutdown().await;
    drop(store);
    let server = Server::start(directory.path()).await;
    assert_eq!(server.admin().get(&format!("{CONFIG_MAPS}/kept")).await.0, 200);
}
