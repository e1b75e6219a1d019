//! Kubeconfigs: written for our own components, and read back as far as we ourselves need them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum KubeconfigError {
    #[error("kubeconfig is not readable as YAML: {0}")]
    Parse(String),
    #[error("kubeconfig: {0} is missing")]
    Missing(&'static str),
    #[error("kubeconfig: {0} is not base64 of text")]
    Encoding(&'static str),
}

/// How the user proves who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    Anonymous,
    Token(String),
    ClientCertificate {
        certificate_pem: String,
        key_pem: String,
    },
}

/// One cluster, one user, one context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kubeconfig {
    pub cluster: String,
    pub user: String,
    /// `https://host:port`
    pub server: String,
    pub ca_pem: String,
    pub credentials: Credentials,
}

impl Kubeconfig {
    /// JSON is YAML; laid out so that people can read it.
    pub fn render(&self) -> String {
        let mut user = json!({});
        match &self.credentials {
            Credentials::Anonymous => {}
            Credentials::Token(token) => user["token"] = json!(token),
            Credentials::ClientCertificate {
                certificate_pem,
                key_pem,
            } => {
                user["client-certificate-data"] = json!(STANDARD.encode(certificate_pem));
                user["client-key-data"] = json!(STANDARD.encode(key_pem));
            }
        }
        let context = format!("{}@{}", self.user, self.cluster);
        let (users, contexts, current) = if self.credentials == Credentials::Anonymous {
            (json!([]), json!([]), String::new())
        } else {
            let entry = json!({"cluster": self.cluster, "user": self.user});
            (
                json!([{"name": self.user, "user": user}]),
                json!([{"context": entry, "name": context}]),
                context,
            )
        };
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "preferences": {},
            "clusters": [{
                "name": self.cluster,
                "cluster": {"certificate-authority-data": STANDARD.encode(&self.ca_pem), "server": self.server},
            }],
            "users": users,
            "contexts": contexts,
            "current-context": current,
        });
        yaml(&document)
    }

    /// The current context of a kubeconfig, or its only cluster when it has none (`cluster-info`). Inline data only.
    pub fn parse(text: &str) -> Result<Self, KubeconfigError> {
        let document: Value =
            serde_saphyr::from_str(text).map_err(|error| KubeconfigError::Parse(error.to_string()))?;
        let named = |list: &str, name: &str| -> Option<Value> {
            document[list]
                .as_array()?
                .iter()
                .find(|entry| entry["name"] == name)
                .cloned()
        };
        let current = document["current-context"].as_str().unwrap_or_default();
        let context = named("contexts", current).map(|entry| entry["context"].clone());
        let text_of = |value: &Value| value.as_str().map(str::to_owned);
        let cluster = match &context {
            Some(context) => named("clusters", context["cluster"].as_str().unwrap_or_default()),
            None => document["clusters"].get(0).cloned(),
        }
        .ok_or(KubeconfigError::Missing("clusters"))?;
        let user_name = context
            .as_ref()
            .and_then(|context| text_of(&context["user"]))
            .unwrap_or_default();
        let user = named("users", &user_name)
            .map(|entry| entry["user"].clone())
            .unwrap_or_default();
        let credentials = if let Some(token) = text_of(&user["token"]) {
            Credentials::Token(token)
        } else if !user["client-certificate-data"].is_null() {
            Credentials::ClientCertificate {
                certificate_pem: data(&user, "client-certificate-data")?,
                key_pem: data(&user, "client-key-data")?,
            }
        } else {
            Credentials::Anonymous
        };
        Ok(Self {
            cluster: text_of(&cluster["name"]).unwrap_or_default(),
            user: user_name,
            server: text_of(&cluster["cluster"]["server"]).ok_or(KubeconfigError::Missing("server"))?,
            ca_pem: data(&cluster["cluster"], "certificate-authority-data")?,
            credentials,
        })
    }
}

fn data(object: &Value, field: &'static str) -> Result<String, KubeconfigError> {
    let encoded = object[field].as_str().ok_or(KubeconfigError::Missing(field))?;
    let bytes = STANDARD
        .decode(encoded.trim())
        .map_err(|_| KubeconfigError::Encoding(field))?;
    String::from_utf8(bytes).map_err(|_| KubeconfigError::Encoding(field))
}

/// The block style of our one document shape: mappings, lists of mappings, and quoted text.
fn yaml(value: &Value) -> String {
    fn write(out: &mut String, value: &Value, indent: usize) {
        let Value::Object(fields) = value else { return };
        for (position, (key, value)) in fields.iter().enumerate() {
            if position > 0 {
                out.push_str(&" ".repeat(indent));
            }
            match value {
                Value::Object(inner) if !inner.is_empty() => {
                    out.push_str(&format!("{key}:\n{}", " ".repeat(indent + 2)));
                    write(out, value, indent + 2);
                }
                Value::Array(items) if !items.is_empty() => {
                    out.push_str(&format!("{key}:\n"));
                    for item in items {
                        out.push_str(&format!("{}- ", " ".repeat(indent)));
                        write(out, item, indent + 2);
                    }
                }
                scalar => out.push_str(&format!("{key}: {scalar}\n")),
            }
        }
    }
    let mut out = String::new();
    write(&mut out, value, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(credentials: Credentials) -> Kubeconfig {
        let user = if credentials == Credentials::Anonymous {
            ""
        } else {
            "admin"
        };
        Kubeconfig {
            cluster: "ironlet".into(),
            user: user.into(),
            server: "https://127.0.0.1:6443".into(),
            ca_pem: "-----BEGIN CERTIFICATE-----\n".into(),
            credentials,
        }
    }

    #[test]
    fn what_is_rendered_reads_back_the_same() {
        for credentials in [
            Credentials::Anonymous,
            Credentials::Token("abcdef.0123456789abcdef".into()),
            Credentials::ClientCertificate {
                certificate_pem: "c".into(),
                key_pem: "k".into(),
            },
        ] {
            let config = sample(credentials);
            assert_eq!(Kubeconfig::parse(&config.render()).unwrap(), config);
        }
    }

    #[test]
    fn rendering_is_block_yaml() {
        let text = sample(Credentials::Token("t".into())).render();
        assert!(
            text.contains("clusters:\n- cluster:\n    certificate-authority-data: \""),
            "{text}"
        );
        assert!(text.contains("current-context: \"admin@ironlet\"\n"), "{text}");
    }

    #[test]
    fn problems_name_the_field() {
        let error = Kubeconfig::parse("clusters: [{name: a, cluster: {server: x}}]").unwrap_err();
        assert!(
            error.to_string().contains("certificate-authority-data"),
            "{error}"
        );
        assert!(Kubeconfig::parse("a: [").is_err());
        assert!(
            Kubeconfig::parse("{}")
                .unwrap_err()
                .to_string()
                .contains("clusters")
        );
    }
}
