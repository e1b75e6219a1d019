//! `EncryptionConfiguration` of `apiserver.config.k8s.io/v1`, checked.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::cipher::Cipher;
use super::{Rule, Rules};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("{field}: {why}")]
    Invalid { field: String, why: String },
}

fn invalid(field: impl Into<String>, why: impl Into<String>) -> ConfigError {
    ConfigError::Invalid {
        field: field.into(),
        why: why.into(),
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionConfiguration {
    api_version: String,
    kind: String,
    resources: Vec<Resources>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    resources: Vec<String>,
    providers: Vec<Provider>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Provider {
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<Nothing>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<Key>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    name: String,
    secret: String,
}

type Make = fn(&str, &[u8]) -> Result<Cipher, &'static str>;

impl EncryptionConfiguration {
    pub(super) fn rules(&self) -> Result<Rules, ConfigError> {
        if self.api_version != "apiserver.config.k8s.io/v1" || self.kind != "EncryptionConfiguration" {
            return Err(invalid(
                "kind",
                "expected EncryptionConfiguration of apiserver.config.k8s.io/v1",
            ));
        }
        let rules = self.resources.iter().enumerate();
        rules
            .map(|(place, entry)| entry.rule(&format!("resources[{place}]")))
            .collect::<Result<_, _>>()
            .map(Rules)
    }
}

impl Resources {
    fn rule(&self, field: &str) -> Result<Rule, ConfigError> {
        let mut ciphers = Vec::new();
        for (place, provider) in self.providers.iter().enumerate() {
            ciphers.extend(provider.ciphers(&format!("{field}.providers[{place}]"))?);
        }
        if self.resources.is_empty() || ciphers.is_empty() {
            return Err(invalid(field, "resources and providers must not be empty"));
        }
        let named = self.resources.iter().filter(|name| *name != "*.*");
        Ok(Rule {
            prefixes: named.map(|name| prefix(name)).collect(),
            all: self.resources.iter().any(|name| name == "*.*"),
            ciphers,
        })
    }
}

/// Where a resource's keys are: `secrets`, `deployments.apps`, `*.apps`.
fn prefix(name: &str) -> String {
    match name.split_once('.') {
        None | Some((_, "events.k8s.io")) => format!("/registry/{}/", name.split('.').next().unwrap_or(name)),
        Some(("*", group)) => format!("/registry/{group}/"),
        Some((plural, group)) => format!("/registry/{group}/{plural}/"),
    }
}

impl Provider {
    fn ciphers(&self, field: &str) -> Result<Vec<Cipher>, ConfigError> {
        let kinds = [
            ("aesgcm", &self.aesgcm, Cipher::aes_gcm as Make),
            ("aescbc", &self.aescbc, Cipher::aes_cbc),
            ("secretbox", &self.secretbox, Cipher::secretbox),
        ];
        let given = kinds.iter().filter(|(_, keys, _)| keys.is_some()).count();
        if given + usize::from(self.identity.is_some()) != 1 {
            return Err(invalid(
                field,
                "expected exactly one of aesgcm, aescbc, secretbox, identity",
            ));
        }
        let mut ciphers = Vec::new();
        for (kind, keys, make) in kinds {
            for (place, key) in keys.iter().flat_map(|keys| &keys.keys).enumerate() {
                let field = format!("{field}.{kind}.keys[{place}]");
                if key.name.is_empty() || key.name.contains(':') {
                    return Err(invalid(
                        format!("{field}.name"),
                        "must not be empty or contain ':'",
                    ));
                }
                let secret = STANDARD
                    .decode(&key.secret)
                    .map_err(|_| invalid(format!("{field}.secret"), "secrets must be base64 encoded"))?;
                let cipher =
                    make(&key.name, &secret).map_err(|why| invalid(format!("{field}.secret"), why))?;
                ciphers.push(cipher);
            }
        }
        if self.identity.is_some() {
            ciphers.push(Cipher::Identity);
        }
        Ok(ciphers)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rules(resources: &[&str], providers: Value) -> Result<Rules, ConfigError> {
        let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
            "resources": [{"resources": resources, "providers": providers}]});
        serde_json::from_value::<EncryptionConfiguration>(config)
            .unwrap()
            .rules()
    }

    #[test]
    fn resources_are_found_by_their_keys() {
        let rules = rules(
            &["secrets", "deployments.apps", "*.example.com"],
            json!([{"identity": {}}]),
        )
        .unwrap();
        for (key, covered) in [
            ("/registry/secrets/ns/a", true),
            ("/registry/apps/deployments/ns/a", true),
            ("/registry/example.com/widgets/a", true),
            ("/registry/configmaps/ns/a", false),
            ("/registry/apps/daemonsets/ns/a", false),
        ] {
            assert_eq!(rules.of(key.as_bytes()).is_some(), covered, "{key}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let key = |secret: &str| json!([{"aesgcm": {"keys": [{"name": "k", "secret": secret}]}}]);
        let good = STANDARD.encode([1; 32]);
        assert!(rules(&["secrets"], key(&good)).is_ok());
        for (providers, field) in [
            (key("?"), "resources[0].providers[0].aesgcm.keys[0].secret"),
            (key("AAAA"), "resources[0].providers[0].aesgcm.keys[0].secret"),
            (json!([{}]), "resources[0].providers[0]"),
            (json!([]), "resources[0]"),
        ] {
            let Err(ConfigError::Invalid { field: told, .. }) = rules(&["secrets"], providers) else {
                panic!("{field}");
            };
            assert_eq!(told, field);
        }
    }
}
