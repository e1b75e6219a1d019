//! The scale sub-resource of any kind the API server has.

use crate::discovery::{self, Kind};
use http::{Method, Request, header};
use kube::Client;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Kinds not known are looked for again after this (upstream's REST mapper is reset as often).
const REFRESH: Duration = Duration::from_secs(30);

type Kinds = HashMap<(String, String), Kind>;

pub struct Scales {
    client: Client,
    kinds: Mutex<Option<(Instant, Kinds)>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Scale {
    url: String,
    object: Value,
}

impl Scale {
    pub fn spec_replicas(&self) -> i32 {
        replicas(&self.object["spec"])
    }

    pub fn status_replicas(&self) -> i32 {
        replicas(&self.object["status"])
    }

    pub fn selector(&self) -> &str {
        self.object["status"]["selector"].as_str().unwrap_or_default()
    }

    /// Of the object it is the scale of.
    pub fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }
}

/// What the server said instead; the code is 0 if it was not the server.
struct Refusal {
    code: u16,
    message: String,
}

fn replicas(part: &Value) -> i32 {
    let replicas = part["replicas"].as_i64().unwrap_or_default();
    i32::try_from(replicas).unwrap_or(i32::MAX)
}

/// The group of an `apiVersion`; none if it is not one.
pub fn group_of(api_version: &str) -> Option<&str> {
    match api_version.split('/').collect::<Vec<_>>()[..] {
        [_] => Some(""),
        [group, _] => Some(group),
        _ => None,
    }
}

impl Scales {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            kinds: Mutex::default(),
        }
    }

    /// As [`Self::get`], for those who can tell apart what is missing: none if the object is gone.
    pub async fn find(
        &self,
        namespace: &str,
        api_version: &str,
        kind: &str,
        name: &str,
    ) -> Result<Option<Scale>, String> {
        let known = self.known(api_version, kind).await?;
        let object = format!("{}/{name}", known.url(namespace));
        let url = format!("{object}/scale");
        match self.send(Method::GET, &url, Vec::new()).await {
            Ok(object) => Ok(Some(Scale { url, object })),
            Err(refusal) if refusal.code != 404 => Err(refusal.message),
            Err(_) => match self.send(Method::GET, &object, Vec::new()).await {
                Ok(_) => {
                    let title = known.title();
                    let title = title.trim_end_matches('.');
                    Err(format!("{title} does not implement the scale subresource"))
                }
                Err(refusal) if refusal.code == 404 => Ok(None),
                Err(refusal) => Err(refusal.message),
            },
        }
    }

    /// Errors are upstream's words.
    pub async fn get(
        &self,
        namespace: &str,
        api_version: &str,
        kind: &str,
        name: &str,
    ) -> Result<Scale, String> {
        let known = self.known(api_version, kind).await?;
        let url = format!("{}/{name}/scale", known.url(namespace));
        match self.send(Method::GET, &url, Vec::new()).await {
            Ok(object) => Ok(Scale { url, object }),
            Err(refusal) => Err(refusal.message),
        }
    }

    pub async fn set(&self, scale: &Scale, replicas: i32) -> Result<(), String> {
        let mut object = scale.object.clone();
        object["spec"]["replicas"] = replicas.into();
        let body = object.to_string().into_bytes();
        let sent = self.send(Method::PUT, &scale.url, body).await;
        sent.map(drop).map_err(|refusal| refusal.message)
    }

    async fn send(&self, method: Method, url: &str, body: Vec<u8>) -> Result<Value, Refusal> {
        let plain = |message: String| Refusal { code: 0, message };
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(body)
            .map_err(|error| plain(error.to_string()))?;
        self.client.request(request).await.map_err(|error| match error {
            kube::Error::Api(status) => Refusal {
                code: status.code,
                message: status.message,
            },
            other => plain(other.to_string()),
        })
    }

    async fn known(&self, api_version: &str, kind: &str) -> Result<Kind, String> {
        let group =
            group_of(api_version).ok_or_else(|| format!("unexpected GroupVersion string: {api_version}"))?;
        let known = self.kind(group, kind).await?;
        known.ok_or_else(|| format!("no matches for kind {kind:?} in group {group:?}"))
    }

    async fn kind(&self, group: &str, kind: &str) -> Result<Option<Kind>, String> {
        let key = (group.to_owned(), kind.to_owned());
        let known = || self.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, kinds)) = &*known()
            && (kinds.contains_key(&key) || since.elapsed() < REFRESH)
        {
            return Ok(kinds.get(&key).cloned());
        }
        let found = discovery::kinds(&self.client)
            .await
            .map_err(|error| error.to_string())?;
        let found: Kinds = found
            .into_iter()
            .map(|found| ((found.resource.group.clone(), found.resource.kind.clone()), found))
            .collect();
        let wanted = found.get(&key).cloned();
        *known() = Some((Instant::now(), found));
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_versions() {
        for (version, want) in [("v1", Some("")), ("apps/v1", Some("apps")), ("a/b/c", None)] {
            assert_eq!(group_of(version), want);
        }
    }
}
