//! Signs `cluster-info` with every bootstrap token meant for it, so that joining nodes can trust what they read.

use super::{Context, Running};
use crate::action::Action;
use crate::caches::Caches;
use crate::config::Error as StartError;
use crate::executor::Error;
use crate::key::Key;
use crate::queue::Queue;
use crate::runner::Controller;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::Timestamp;
use pki::{BootstrapToken, cluster_info_signature};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

struct BootstrapSigner(Arc<Caches>);

fn cluster_info() -> Key {
    Key::new("kube-public", "cluster-info")
}

pub fn start(context: &Context) -> Result<Running, StartError> {
    let queue = Arc::new(Queue::default());
    let to = queue.clone();
    context
        .caches
        .cluster_info
        .on(move |change| to.add(change.key.clone()));
    let to = queue.clone();
    context.caches.token_secrets.on(move |_| to.add(cluster_info()));
    Ok(super::spawn(
        context,
        BootstrapSigner(context.caches.clone()),
        queue,
    ))
}

impl Controller for BootstrapSigner {
    const NAME: &'static str = "bootstrap-signer-controller";

    async fn plan(&self, key: &Key, now: Timestamp) -> Result<Vec<Action>, Error> {
        let Some(info) = self.0.cluster_info.get(key) else {
            return Ok(Vec::new());
        };
        Ok(reconcile(&info, &self.0.token_secrets.list(), now))
    }
}

fn reconcile(info: &ConfigMap, secrets: &[Arc<Secret>], now: Timestamp) -> Vec<Action> {
    let data = info.data.clone().unwrap_or_default();
    let Some(kubeconfig) = data.get(KUBECONFIG) else {
        return Vec::new();
    };
    let wanted: BTreeMap<String, String> = secrets
        .iter()
        .filter(|s| field(s, "usage-bootstrap-signing").as_deref() == Some("true"))
        .filter(|s| expiration(s).is_none_or(|end| end > now))
        .filter_map(|s| token(s))
        .map(|t| {
            (
                format!("{SIGNATURE_PREFIX}{}", t.id()),
                cluster_info_signature(kubeconfig, &t),
            )
        })
        .collect();
    let stale = data
        .keys()
        .filter(|k| k.starts_with(SIGNATURE_PREFIX) && !wanted.contains_key(*k))
        .map(|k| (k.clone(), Value::Null));
    let changed = wanted
        .iter()
        .filter(|(k, v)| data.get(*k) != Some(v))
        .map(|(k, v)| (k.clone(), json!(v)));
    let patch: serde_json::Map<String, Value> = stale.chain(changed).collect();
    if patch.is_empty() {
        Vec::new()
    } else {
        vec![Action::patch_as_seen(info, json!({"data": patch}))]
    }
}

pub fn field(secret: &Secret, name: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(name)?;
    String::from_utf8(bytes.0.clone()).ok()
}

/// When the token ends; a time that cannot be read means it has ended (upstream fails closed).
pub fn expiration(secret: &Secret) -> Option<Timestamp> {
    let text = field(secret, "expiration").filter(|t| !t.is_empty())?;
    Some(text.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The token, if the secret is named after it as it must be.
fn token(secret: &Secret) -> Option<BootstrapToken> {
    let token = format!(
        "{}.{}",
        field(secret, "token-id")?,
        field(secret, "token-secret")?
    );
    let token = BootstrapToken::parse(&token).ok()?;
    let name = format!("bootstrap-token-{}", token.id());
    (secret.metadata.name.as_deref() == Some(&name)).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pki::verify_cluster_info;
    use serde_json::from_value;

    fn secret(signing: &str, expiration: &str) -> Arc<Secret> {
        let mut secret: Secret =
            from_value(json!({"metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"}}))
                .unwrap();
        let data = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-signing", signing),
            ("expiration", expiration),
        ];
        secret.data = Some(
            data.iter()
                .map(|(k, v)| (k.to_string(), k8s_openapi::ByteString(v.as_bytes().to_vec())))
                .collect(),
        );
        Arc::new(secret)
    }

    fn info(extra: Value) -> ConfigMap {
        let mut body =
            json!({"metadata": {"name": "cluster-info", "namespace": "kube-public"}, "data": extra});
        body["data"]["kubeconfig"] = json!("k");
        from_value(body).unwrap()
    }

    fn run(info: &ConfigMap, secret: Arc<Secret>) -> Option<Value> {
        match &reconcile(info, &[secret], "2026-01-01T00:00:00Z".parse().unwrap())[..] {
            [] => None,
            [Action::Patch { patch, .. }] => Some(patch["data"].clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn signatures_come_stay_and_go() {
        let data = run(&info(json!({})), secret("true", "")).unwrap();
        let signature = data["jws-kubeconfig-abcdef"].as_str().unwrap();
        let token = BootstrapToken::parse("abcdef.0123456789abcdef").unwrap();
        assert_eq!(verify_cluster_info("k", signature, &token), Ok(()));
        let signed = info(json!({"jws-kubeconfig-abcdef": signature}));
        assert_eq!(
            run(&signed, secret("true", "2027-01-01T00:00:00Z")),
            None,
            "converged"
        );
        for ended in [
            secret("false", ""),
            secret("true", "2025-01-01T00:00:00Z"),
            secret("true", "nonsense"),
        ] {
            assert_eq!(run(&signed, ended), Some(json!({"jws-kubeconfig-abcdef": null})));
        }
    }
}
