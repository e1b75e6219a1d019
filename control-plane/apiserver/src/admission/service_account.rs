//! Every pod runs as a service account, and finds its token where client libraries look for it.

use async_trait::async_trait;
use rand::Rng as _;
use serde_json::{Value, json};

use super::{forbidden, is, is_mirror_pod, items, list_mut, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct ServiceAccount;

const DEFAULT_ACCOUNT: &str = "default";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Not 3600, so that such tokens can be told from others and be extended.
const TOKEN_SECONDS: i64 = 3607;
/// Upstream's alphabet of generated names: no vowels, no look-alikes.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

#[async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, pod: &mut Value) -> Result<(), ApiError> {
        if !is(context, "", "pods") || context.operation != Operation::Create || is_mirror_pod(pod) {
            return Ok(());
        }
        if text(&pod["spec"]["serviceAccountName"]).is_empty() {
            pod["spec"]["serviceAccountName"] = json!(DEFAULT_ACCOUNT);
        }
        pod["spec"]["serviceAccount"] = pod["spec"]["serviceAccountName"].clone();
        let name = text(&pod["spec"]["serviceAccountName"]);
        let namespace = &context.info.namespace;
        let account = context
            .reader
            .get("", "serviceaccounts", namespace, name)
            .await?
            .ok_or_else(|| {
                let why = format!(
                    "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
                );
                forbidden(context, Some(pod), why)
            })?;
        let automount = [&pod["spec"], &account]
            .iter()
            .find_map(|object| object["automountServiceAccountToken"].as_bool())
            .unwrap_or(true);
        if automount {
            mount_token(&mut pod["spec"], || random_name(VOLUME_PREFIX));
        }
        if items(&pod["spec"]["imagePullSecrets"]).is_empty()
            && !items(&account["imagePullSecrets"]).is_empty()
        {
            pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
        }
        Ok(())
    }

    async fn validate(&self, context: &AdmissionContext<'_>, pod: Option<&Value>) -> Result<(), ApiError> {
        let Some(pod) = pod.filter(|pod| is(context, "", "pods") && is_mirror_pod(pod)) else {
            return Ok(());
        };
        if context.operation != Operation::Create {
            return Ok(());
        }
        match mirror_pod_problem(&pod["spec"]) {
            Some(why) => Err(forbidden(context, Some(pod), why)),
            None => Ok(()),
        }
    }
}

/// A mirror pod is its node's own word; it must not reach for anything of the cluster.
fn mirror_pod_problem(spec: &Value) -> Option<&'static str> {
    if !text(&spec["serviceAccountName"]).is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    let volumes = items(&spec["volumes"]);
    let containers = ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| items(&spec[list]));
    let secret_in_environment = containers.into_iter().any(|container| {
        items(&container["env"])
            .iter()
            .any(|env| env["valueFrom"]["secretKeyRef"].is_object())
            || items(&container["envFrom"])
                .iter()
                .any(|source| source["secretRef"].is_object())
    });
    let projected = || {
        volumes
            .iter()
            .flat_map(|volume| items(&volume["projected"]["sources"]))
    };
    if secret_in_environment
        || volumes.iter().any(|volume| volume["secret"].is_object())
        || projected().any(|source| source["secret"].is_object())
        || !items(&spec["imagePullSecrets"]).is_empty()
    {
        return Some("a mirror pod may not reference secrets");
    }
    projected()
        .any(|source| source["serviceAccountToken"].is_object())
        .then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

fn mount_token(spec: &mut Value, new_name: impl FnOnce() -> String) {
    let existing = items(&spec["volumes"])
        .iter()
        .map(|volume| text(&volume["name"]))
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let (name, has_volume) = match existing {
        Some(name) => (name, true),
        None => (new_name(), false),
    };
    let mut needed = false;
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            let mounted = items(&container["volumeMounts"])
                .iter()
                .any(|mount| mount["mountPath"] == MOUNT_PATH);
            if !mounted {
                list_mut(container, "volumeMounts")
                    .push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                needed = true;
            }
        }
    }
    if needed && !has_volume {
        list_mut(spec, "volumes").push(json!({
            "name": name,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {"downwardAPI": {"items": [
                        {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
                    ]}},
                ],
            },
        }));
    }
}

fn random_name(prefix: &str) -> String {
    let mut random = rand::rng();
    let letter = |_| char::from(SUFFIX_ALPHABET[random.random_range(0..SUFFIX_ALPHABET.len())]);
    let suffix: String = (0..5).map(letter).collect();
    format!("{prefix}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Objects, Request};
    use super::*;

    fn admit(account: Value, pod: Value) -> Result<Value, String> {
        let objects = Objects::new(&[("serviceaccounts", account)]);
        let request = Request::create("/api/v1/namespaces/ns/pods", "Pod");
        request
            .run(&ServiceAccount, &objects, Some(pod))
            .map(Option::unwrap)
    }

    fn account(extra: Value) -> Value {
        let mut account = json!({"metadata": {"name": "default", "namespace": "ns"}});
        account
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        account
    }

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    #[test]
    fn a_plain_pod_gets_account_token_and_pull_secrets() {
        let secrets = json!([{"name": "pull"}]);
        let containers = json!([{"name": "c"}]);
        let init = json!([{"name": "i"}]);
        let admitted = admit(
            account(json!({"imagePullSecrets": secrets})),
            pod(json!({"containers": containers, "initContainers": init})),
        )
        .unwrap();
        let spec = &admitted["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["serviceAccount"], "default");
        assert_eq!(spec["imagePullSecrets"], secrets);
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(
            name.strip_prefix(VOLUME_PREFIX)
                .is_some_and(|suffix| suffix.len() == 5),
            "{name}"
        );
        let mount = json!([{"name": name, "readOnly": true, "mountPath": MOUNT_PATH}]);
        assert_eq!(spec["containers"][0]["volumeMounts"], mount);
        assert_eq!(spec["initContainers"][0]["volumeMounts"], mount);
        let sources = &spec["volumes"][0]["projected"]["sources"];
        assert_eq!(
            sources[0],
            json!({"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}})
        );
        assert_eq!(sources[1]["configMap"]["name"], "kube-root-ca.crt");
        assert_eq!(
            sources[2]["downwardAPI"]["items"][0]["fieldRef"]["fieldPath"],
            "metadata.namespace"
        );
        assert_eq!(spec["volumes"][0]["projected"]["defaultMode"], 420);
    }

    #[test]
    fn tokens_are_not_mounted_where_unwanted() {
        let plain = || json!({"containers": [{"name": "c"}]});
        let off = json!({"automountServiceAccountToken": false});
        let admitted = admit(account(off.clone()), pod(plain())).unwrap();
        assert!(admitted["spec"]["volumes"].is_null());
        let mut spec = plain();
        spec["automountServiceAccountToken"] = json!(true);
        assert!(admit(account(off), pod(spec)).unwrap()["spec"]["volumes"].is_array());
        let own =
            json!({"containers": [{"name": "c", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]});
        let admitted = admit(account(json!({})), pod(own.clone())).unwrap();
        assert_eq!(admitted["spec"]["containers"], own["containers"]);
        assert!(admitted["spec"]["volumes"].is_null());
    }

    #[test]
    fn a_missing_account_is_named() {
        let error = admit(account(json!({})), pod(json!({"serviceAccountName": "other"}))).unwrap_err();
        assert_eq!(
            error,
            r#"pods "p" is forbidden: error looking up service account ns/other: serviceaccount "other" not found"#
        );
    }

    #[test]
    fn mirror_pods_reach_for_nothing() {
        let mirror = |spec: Value| {
            let mut pod = pod(spec);
            pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
            admit(account(json!({})), pod)
        };
        assert!(mirror(json!({"containers": [{"name": "c"}]})).is_ok());
        for (spec, words) in [
            (json!({"serviceAccountName": "a"}), "service accounts"),
            (
                json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
                "secrets",
            ),
            (
                json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
                "ServiceAccountToken",
            ),
        ] {
            let error = mirror(spec).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
