//! Bearer tokens asked about at a webhook: TokenReview v1 (upstream: `plugin/pkg/authenticator/token/webhook`).

use std::time::Duration;

use async_trait::async_trait;
use auth::{Known, TokenAuthenticator, UserInfo};
use serde_json::{Value, json};

use super::TokenWebhook;
use crate::cached::Cached;
use crate::object::{items, string};
use crate::webhook::WebhookClient;

const PATIENCE: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

pub struct TokenReviewer {
    client: WebhookClient,
    ttl: Duration,
    known: Cached<Option<Known>>,
}

impl TokenReviewer {
    pub fn new(options: &TokenWebhook) -> Result<Self, String> {
        Ok(Self {
            client: WebhookClient::from_kubeconfig(&options.config_file)?,
            ttl: options.cache_ttl,
            known: Cached::default(),
        })
    }

    async fn ask(&self, token: &str, audiences: &[String]) -> Result<Value, String> {
        let question = json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
            "spec": {"token": token, "audiences": audiences}, "status": {"user": {}},
        });
        let mut pause = PAUSE;
        for _ in 1..ATTEMPTS {
            match self.client.send(&question, PATIENCE).await {
                Ok(answer) => return Ok(answer),
                Err(error) => tracing::warn!(%error, "the token webhook does not answer; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = pause.mul_f64(1.5);
        }
        self.client.send(&question, PATIENCE).await
    }
}

#[async_trait]
impl TokenAuthenticator for TokenReviewer {
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Known>, String> {
        let question = json!([token, audiences]).to_string();
        if let Some(known) = self.known.get(&question) {
            return Ok(known);
        }
        let answer = self.ask(token, audiences).await?;
        let status = &answer["status"];
        let known = read(status, audiences)?;
        self.known.put(&question, known.clone(), self.ttl);
        match string(status, "error") {
            "" => Ok(known),
            why => Err(why.to_owned()),
        }
    }
}

fn read(status: &Value, audiences: &[String]) -> Result<Option<Known>, String> {
    if status["authenticated"] != true {
        return Ok(None);
    }
    let told: Vec<&str> = items(status, "audiences")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    // A webhook that does not know of audiences means the API's own.
    let held = audiences
        .iter()
        .filter(|audience| told.is_empty() || told.contains(&audience.as_str()));
    let held: Vec<String> = held.cloned().collect();
    if held.is_empty() && !audiences.is_empty() {
        return Ok(None);
    }
    let user = &status["user"];
    let decode = |error: serde_json::Error| format!("webhook returned an unusable user: {error}");
    let of = |field: &str| user.get(field).filter(|value| !value.is_null()).cloned();
    let groups = of("groups")
        .map(serde_json::from_value)
        .transpose()
        .map_err(decode)?;
    let extra = of("extra")
        .map(serde_json::from_value)
        .transpose()
        .map_err(decode)?;
    Ok(Some(Known {
        user: UserInfo {
            name: string(user, "username").to_owned(),
            uid: string(user, "uid").to_owned(),
            groups: groups.unwrap_or_default(),
            extra: extra.unwrap_or_default(),
        },
        audiences: held,
    }))
}
