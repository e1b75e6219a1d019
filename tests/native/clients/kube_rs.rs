//! kube-rs against one API server: discovery, watchers in both modes, apply and its conflicts, finalizers, objects
//! without types.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::{TryStreamExt, pin_mut};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::finalizer::{Event, finalizer};
use kube::runtime::{WatchStreamExt, reflector, wait, watcher};
use kube::{Client, Config, ResourceExt};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(30);
const FINALIZER: &str = "kube-rs.example.com/f";

pub async fn all_of_it(kubeconfig: &Path) {
    let read = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig");
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .expect("a configuration");
    let client = Client::try_from(config).expect("a client");
    discovery(&client).await;
    for (name, mode) in [
        ("listed", watcher::Config::default()),
        ("streamed", watcher::Config::default().streaming_lists()),
    ] {
        reflected(&client, name, mode).await;
    }
    applied(&client).await;
    finalized(&client).await;
}

async fn discovery(client: &Client) {
    let plain = Discovery::new(client.clone()).run().await.expect("discovery");
    let aggregated = Discovery::new(client.clone())
        .run_aggregated()
        .await
        .expect("aggregated discovery");
    for found in [plain, aggregated] {
        let (deployments, capabilities) = found.get("apps").unwrap().recommended_kind("Deployment").unwrap();
        assert_eq!(
            (deployments.version.as_str(), capabilities.scope.clone()),
            ("v1", Scope::Namespaced)
        );
        assert!(capabilities.supports_operation(verbs::WATCH));
        let listable = found
            .groups()
            .flat_map(kube::discovery::ApiGroup::recommended_resources);
        for (resource, capabilities) in listable.filter(|(_, c)| c.supports_operation(verbs::LIST)) {
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            let listed = api.list(&ListParams::default().limit(5)).await;
            assert!(listed.is_ok(), "{}: {listed:?} {capabilities:?}", resource.plural);
        }
    }
}

/// A reflector's store follows what happens, however its first list is made.
async fn reflected(client: &Client, name: &str, mode: watcher::Config) {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let (reader, writer) = reflector::store();
    let events = watcher(api.clone(), mode.labels(&format!("suite={name}")))
        .reflect(writer)
        .touched_objects();
    pin_mut!(events);
    let object = json!({"metadata": {"name": name, "labels": {"suite": name}}, "data": {"k": "v"}});
    let created = serde_json::from_value(object).unwrap();
    api.create(&PostParams::default(), &created)
        .await
        .expect("created");
    let mut next = async || {
        tokio::time::timeout(PATIENCE, events.try_next())
            .await
            .expect("in time")
            .expect("no error")
            .unwrap()
    };
    assert_eq!(next().await.name_any(), name);
    let patch = Patch::Merge(json!({"data": {"k": "w"}}));
    api.patch(name, &PatchParams::default(), &patch)
        .await
        .expect("patched");
    assert_eq!(next().await.data.unwrap()["k"], "w");
    assert_eq!(reader.state().len(), 1);
    api.delete(name, &DeleteParams::default()).await.expect("deleted");
    assert_eq!(next().await.name_any(), name);
    assert!(reader.state().is_empty());
}

async fn applied(client: &Client) {
    let api: Api<Deployment> = Api::default_namespaced(client.clone());
    let wanted = |replicas| {
        Patch::Apply(json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "kube-rs"},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"app": "kube-rs"}},
                "template": {"metadata": {"labels": {"app": "kube-rs"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
            },
        }))
    };
    let one = PatchParams::apply("one");
    let first = api.patch("kube-rs", &one, &wanted(0)).await.expect("applied");
    let again = api
        .patch("kube-rs", &one, &wanted(0))
        .await
        .expect("applied again");
    assert_eq!(first.metadata.generation, again.metadata.generation);
    match api.patch("kube-rs", &PatchParams::apply("two"), &wanted(1)).await {
        Err(kube::Error::Api(status)) => assert_eq!((status.code, status.reason.as_str()), (409, "Conflict")),
        other => panic!("a conflict was overruled: {other:?}"),
    }
    let forced = api
        .patch("kube-rs", &PatchParams::apply("two").force(), &wanted(1))
        .await;
    assert_eq!(forced.expect("forced").spec.unwrap().replicas, Some(1));
    assert_eq!(
        api.get_scale("kube-rs")
            .await
            .expect("a scale")
            .spec
            .unwrap()
            .replicas,
        Some(1)
    );
    let uid = first.uid().unwrap();
    api.delete("kube-rs", &DeleteParams::foreground())
        .await
        .expect("deleted");
    let gone = wait::await_condition(api, "kube-rs", wait::conditions::is_deleted(&uid));
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("in time")
        .expect("gone");
}

async fn finalized(client: &Client) {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let created = serde_json::from_value(json!({"metadata": {"name": "final"}})).unwrap();
    api.create(&PostParams::default(), &created)
        .await
        .expect("created");
    let mut seen = Vec::new();
    for deletes in [false, true] {
        if deletes {
            api.delete("final", &DeleteParams::default())
                .await
                .expect("marked");
        }
        // Once to put the finalizer there, once to act on the object.
        for _ in 0..2 - usize::from(deletes) {
            let object = Arc::new(api.get("final").await.expect("still there"));
            let act = finalizer(&api, FINALIZER, object, async |event| {
                seen.push(matches!(event, Event::Cleanup(_)));
                Ok::<_, std::convert::Infallible>(kube::runtime::controller::Action::await_change())
            });
            act.await.expect("reconciled");
        }
    }
    assert_eq!(seen, [false, true]);
    assert!(api.get_opt("final").await.expect("an answer").is_none());
}
