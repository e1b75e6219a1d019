//! ConfigMaps, Secrets and service-account tokens that pods refer to, fetched by name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::api::{Api, PostParams};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ObjectError {
    /// The API server's own words, e.g. `configmap "x" not found`.
    #[error("{0}")]
    Api(String),
    #[error("failed to fetch token: {0}")]
    Token(String),
}

pub type Data = BTreeMap<String, Vec<u8>>;

fn api_error(error: &kube::Error) -> ObjectError {
    ObjectError::Api(match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    })
}

/// Reads objects with the node's credentials; keeps tokens until most of their life is over.
pub struct Objects {
    client: kube::Client,
    tokens: Mutex<HashMap<TokenKey, CachedToken>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    pod_uid: String,
    account: String,
    audience: String,
    seconds: i64,
}

struct CachedToken {
    token: String,
    issued: Timestamp,
    expires: Timestamp,
}

impl CachedToken {
    /// Upstream asks anew after 80 % of the lifetime, or after a day.
    fn is_fresh(&self, now: Timestamp) -> bool {
        let lifetime = self.expires.duration_since(self.issued).as_secs();
        let age = now.duration_since(self.issued).as_secs();
        age < lifetime * 8 / 10 && age < 24 * 3600
    }
}

impl Objects {
    pub fn new(client: kube::Client) -> Self {
        Self {
            client,
            tokens: Mutex::new(HashMap::new()),
        }
    }

    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Data>, ObjectError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let Some(object) = api.get_opt(name).await.map_err(|error| api_error(&error))? else {
            return Ok(None);
        };
        let text = object
            .data
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.into_bytes()));
        let binary = object
            .binary_data
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| (key, value.0));
        Ok(Some(text.chain(binary).collect()))
    }

    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Data>, ObjectError> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let Some(object) = api.get_opt(name).await.map_err(|error| api_error(&error))? else {
            return Ok(None);
        };
        Ok(Some(
            object
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0))
                .collect(),
        ))
    }

    /// A token of the pod's service account, bound to the pod.
    pub async fn token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, ObjectError> {
        Ok(self.token_until(pod, audience, seconds).await?.0)
    }

    /// The token and when it ends.
    pub async fn token_until(
        &self,
        pod: &Pod,
        audience: &str,
        seconds: i64,
    ) -> Result<(String, Timestamp), ObjectError> {
        let metadata = &pod.metadata;
        let account = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.clone());
        let account = account
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".into());
        let pod_uid = metadata.uid.clone().unwrap_or_default();
        let key = TokenKey {
            pod_uid: pod_uid.clone(),
            account,
            audience: audience.to_owned(),
            seconds,
        };
        let now = Timestamp::now();
        if let Some(cached) = self.tokens.lock().unwrap_or_else(|e| e.into_inner()).get(&key)
            && cached.is_fresh(now)
        {
            return Ok((cached.token.clone(), cached.expires));
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: (!audience.is_empty()).then(|| vec![audience.to_owned()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    kind: Some("Pod".into()),
                    api_version: Some("v1".into()),
                    name: metadata.name.clone(),
                    uid: Some(pod_uid),
                }),
            }),
            ..Default::default()
        };
        let namespace = metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let answer = api
            .create_token_request(&key.account, &PostParams::default(), &request)
            .await;
        let status = answer
            .map_err(|error| ObjectError::Token(api_error(&error).to_string()))?
            .status;
        let issued = status.and_then(|status| Some((status.token?, status.expiration_timestamp?.0)));
        let (token, expires) = issued.ok_or_else(|| ObjectError::Token("the answer has no token".into()))?;
        let cached = CachedToken {
            token: token.clone(),
            issued: now,
            expires,
        };
        self.tokens
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(key, cached);
        Ok((token, expires))
    }

    pub fn forget_pod(&self, uid: &str) {
        self.tokens
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .retain(|key, _| key.pod_uid != uid);
    }
}

/// How often mounted ConfigMaps, Secrets and tokens are looked at again (upstream's sync frequency).
pub const REFRESH: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_after_most_of_their_life() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let token = |lifetime| CachedToken {
            token: String::new(),
            issued: at(0),
            expires: at(lifetime),
        };
        for (lifetime, age, fresh) in [
            (3600, 2879, true),
            (3600, 2880, false),
            (1_000_000, 86_400, false),
        ] {
            assert_eq!(token(lifetime).is_fresh(at(age)), fresh, "{lifetime} {age}");
        }
    }
}
