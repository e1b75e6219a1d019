//! CustomResourceDefinitions whose versions a webhook converts: ConversionReview v1 (upstream: `conversion/webhook_converter.go`).

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use schema::custom::Converter;
use serde_json::{Value, json};

use crate::object::{copy_metadata, text};
use crate::registry::names;
use crate::state::ApiServer;
use crate::webhook::WebhookClient;

const PATIENCE: Duration = Duration::from_secs(30);

struct WebhookConverter {
    server: Weak<ApiServer>,
    client: WebhookClient,
    kind: String,
}

impl fmt::Debug for WebhookConverter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "WebhookConverter({})", self.kind)
    }
}

pub fn of_definition(server: &Arc<ApiServer>, definition: &Value) -> Option<Arc<dyn Converter>> {
    let conversion = &definition["spec"]["conversion"];
    (conversion["strategy"] == "Webhook").then(|| {
        Arc::new(WebhookConverter {
            server: Arc::downgrade(server),
            client: WebhookClient::new(&conversion["webhook"]["clientConfig"]),
            kind: text(definition, "/spec/names/kind").to_owned(),
        }) as Arc<dyn Converter>
    })
}

impl Converter for WebhookConverter {
    /// The engine converts in places that cannot wait, so this thread does, and others take over its tasks.
    fn convert(&self, objects: Vec<Value>, api_version: &str) -> Result<Vec<Value>, String> {
        let from = objects
            .first()
            .map_or("", |object| text(object, "/apiVersion"))
            .to_owned();
        let asking = self.ask(objects, api_version);
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asking))
            .map_err(|why| format!("conversion webhook for {from}, Kind={} failed: {why}", self.kind))
    }
}

impl WebhookConverter {
    async fn ask(&self, objects: Vec<Value>, api_version: &str) -> Result<Vec<Value>, String> {
        let server = self.server.upgrade().ok_or("the server is shutting down")?;
        let uid = names::uid();
        let request = json!({"uid": uid, "desiredAPIVersion": api_version, "objects": objects});
        let review =
            json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "request": request});
        let answer = self.client.post(server.as_ref(), &review, PATIENCE).await?;
        read(&uid, api_version, &objects, &answer)
    }
}

/// The answer's objects, with metadata that a conversion may not change as it was.
fn read(uid: &str, api_version: &str, objects: &[Value], answer: &Value) -> Result<Vec<Value>, String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("no response provided".into());
    }
    let told = text(response, "/uid");
    if told != uid {
        return Err(format!("expected response.uid={uid:?}, got {told:?}"));
    }
    let result = &response["result"];
    if result["status"] != "Success" {
        return Err(match text(result, "/message") {
            "" => "Internal error occurred: unknown error".into(),
            message => message.to_owned(),
        });
    }
    let converted = response["convertedObjects"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if converted.len() != objects.len() {
        return Err(format!(
            "webhook returned {} objects, expected {}",
            converted.len(),
            objects.len()
        ));
    }
    let pairs = converted.iter().zip(objects).enumerate();
    pairs
        .map(|(index, (converted, original))| {
            let invalid = |why: String| format!("invalid converted object at index {index}: {why}");
            let version = text(converted, "/apiVersion");
            if version != api_version {
                return Err(invalid(format!(
                    "invalid groupVersion (expected {api_version}, received {version})"
                )));
            }
            for field in ["kind", "metadata/name", "metadata/namespace", "metadata/uid"] {
                let pointer = format!("/{field}");
                let (now, before) = (text(converted, &pointer), text(original, &pointer));
                if now != before {
                    let field = field.replace('/', ".");
                    return Err(invalid(format!("{field} was changed from {before:?} to {now:?}")));
                }
            }
            let mut object = converted.clone();
            object["metadata"] = original["metadata"].clone();
            for field in ["labels", "annotations"] {
                copy_metadata(&mut object, converted, field);
            }
            Ok(object)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_verified() {
        let before = [
            json!({"apiVersion": "x/v1", "kind": "W", "metadata": {"name": "a", "finalizers": ["f"], "labels": {"l": "1"}}}),
        ];
        let after = |name: &str| json!({"apiVersion": "x/v2", "kind": "W", "metadata": {"name": name, "labels": {"l": "2"}}, "spec": {}});
        let answer = |uid: &str, status: &str, objects: Vec<Value>| json!({"response": {"uid": uid, "result": {"status": status, "message": "cannot"}, "convertedObjects": objects}});
        let good = read("u", "x/v2", &before, &answer("u", "Success", vec![after("a")])).expect("is good");
        assert_eq!(
            good[0]["metadata"],
            json!({"name": "a", "finalizers": ["f"], "labels": {"l": "2"}})
        );
        for (answer, expected) in [
            (json!({}), "no response provided"),
            (
                answer("v", "Success", vec![]),
                r#"expected response.uid="u", got "v""#,
            ),
            (answer("u", "Failure", vec![]), "cannot"),
            (
                answer("u", "Success", vec![]),
                "webhook returned 0 objects, expected 1",
            ),
            (
                answer("u", "Success", vec![before[0].clone()]),
                "invalid converted object at index 0: invalid groupVersion (expected x/v2, received x/v1)",
            ),
            (
                answer("u", "Success", vec![after("b")]),
                r#"invalid converted object at index 0: metadata.name was changed from "a" to "b""#,
            ),
        ] {
            assert_eq!(read("u", "x/v2", &before, &answer), Err(expected.to_owned()));
        }
    }
}
