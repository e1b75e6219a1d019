//! Says since when the uses of tokens kept in Secrets are recorded, for who cleans up those that are not used:
//! `kube-system/kube-apiserver-legacy-service-account-token-tracking`.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::{RETRY, ensure_object, own_request};
use crate::endpoints::{Intent, update_object};
use crate::object;
use crate::state::ApiServer;
use crate::status::ApiError;

const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";
const SINCE: &str = "since";

/// Returns when the ConfigMap holds a date.
pub async fn publish(server: &ApiServer) {
    while let Err(error) = publish_once(server).await {
        tracing::warn!(error = error.message, "cannot publish {NAME}");
        tokio::time::sleep(RETRY).await;
    }
}

async fn publish_once(server: &ApiServer) -> Result<(), ApiError> {
    let today = Timestamp::now().to_zoned(TimeZone::UTC).date().to_string();
    let request = own_request(server, "", "configmaps", "kube-system", NAME)?;
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": "kube-system"},
        "data": {SINCE: today},
    });
    if ensure_object(server, &request, map).await? {
        return Ok(());
    }
    let intent = Intent {
        request: &request,
        dry_run: false,
    };
    let make = |current: &Value| Ok(dated(current, &today));
    update_object(server, intent, make).await.map(drop)
}

/// The date there stays, if it is one.
fn dated(map: &Value, today: &str) -> Value {
    let mut next = map.clone();
    let since = map["data"][SINCE].as_str().unwrap_or_default();
    if Date::strptime("%Y-%m-%d", since).is_err() {
        object::field(&mut next, "data").insert(SINCE.into(), today.into());
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_date_stays() {
        let known = json!({"data": {SINCE: "2024-02-29", "other": "x"}});
        assert_eq!(dated(&known, "2026-01-01"), known);
        for unreadable in [json!({}), json!({"data": {SINCE: "long ago"}})] {
            assert_eq!(dated(&unreadable, "2026-01-01")["data"][SINCE], "2026-01-01");
        }
    }
}
