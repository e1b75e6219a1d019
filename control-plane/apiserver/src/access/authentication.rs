//! AuthenticationConfiguration, and the `--oidc-*` flags that say the same of one issuer.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use auth::TokenAuthenticator;
use serde_json::{Value, json};

use super::Authentication;
use super::jwt::JwtAuthenticator;
use crate::object::{items, string};

/// Who may come without credentials.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    #[default]
    Anywhere,
    /// For these paths only.
    At(Vec<String>),
    Nobody,
}

impl Anonymous {
    pub fn may_ask(&self, path: &str) -> bool {
        match self {
            Self::Anywhere => true,
            Self::At(paths) => paths.iter().any(|allowed| allowed == path),
            Self::Nobody => false,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct OidcOptions {
    pub issuer_url: String,
    pub client_id: String,
    pub ca_file: Option<PathBuf>,
    pub username_claim: String,
    pub username_prefix: String,
    pub groups_claim: String,
    pub groups_prefix: String,
    pub required_claims: Vec<(String, String)>,
    pub signing_algs: Vec<String>,
}

impl OidcOptions {
    pub fn configuration(&self) -> Result<Value, String> {
        let ca = self.ca_file.as_ref().map(|path| {
            std::fs::read_to_string(path)
                .map_err(|error| format!("--oidc-ca-file {}: {error}", path.display()))
        });
        let username_prefix = match self.username_prefix.as_str() {
            "-" => String::new(),
            "" if self.username_claim != "email" => format!("{}#", self.issuer_url),
            prefix => prefix.to_owned(),
        };
        let required = self
            .required_claims
            .iter()
            .map(|(claim, value)| json!({"claim": claim, "requiredValue": value}));
        let mut groups = json!({});
        if !self.groups_claim.is_empty() {
            groups = json!({"claim": self.groups_claim, "prefix": self.groups_prefix});
        }
        Ok(json!({"jwt": [{
            "issuer": {
                "url": self.issuer_url,
                "audiences": [self.client_id],
                "certificateAuthority": ca.transpose()?.unwrap_or_default(),
            },
            "claimMappings": {
                "username": {"claim": self.username_claim, "prefix": username_prefix},
                "groups": groups,
            },
            "claimValidationRules": required.collect::<Vec<_>>(),
            "signingAlgorithms": self.signing_algs,
        }]}))
    }
}

/// The error names the field. `issuer` is ours: nobody else may be it.
pub fn configured(config: &Value, issuer: &str) -> Result<Authentication, String> {
    let mut tokens: Vec<Arc<dyn TokenAuthenticator>> = Vec::new();
    let (mut urls, mut discoveries) = (HashSet::new(), HashSet::new());
    for (index, jwt) in items(config, "jwt").iter().enumerate() {
        let path = format!("jwt[{index}]");
        for (field, seen) in [("url", &mut urls), ("discoveryURL", &mut discoveries)] {
            let given = string(&jwt["issuer"], field);
            if !given.is_empty() && !seen.insert(given.to_owned()) {
                return Err(format!("{path}.issuer.{field}: Duplicate value: {given:?}"));
            }
        }
        tokens.push(Arc::new(JwtAuthenticator::new(jwt, &path, issuer)?));
    }
    Ok(Authentication {
        tokens,
        anonymous: anonymous(&config["anonymous"])?,
    })
}

fn anonymous(config: &Value) -> Result<Anonymous, String> {
    let conditions = items(config, "conditions");
    if config.is_null() {
        return Ok(Anonymous::Anywhere);
    }
    if config["enabled"] != true {
        return match conditions.is_empty() {
            true => Ok(Anonymous::Nobody),
            false => Err("anonymous.conditions: Invalid value: enabled should be set to true when conditions are defined".into()),
        };
    }
    if conditions.is_empty() {
        return Ok(Anonymous::Anywhere);
    }
    let paths = conditions
        .iter()
        .map(|condition| string(condition, "path").to_owned());
    Ok(Anonymous::At(paths.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "https://kubernetes.default.svc";

    fn jwt(change: impl FnOnce(&mut Value)) -> Result<Authentication, String> {
        let mut jwt = json!({
            "issuer": {"url": "https://issuer.example.com", "audiences": ["a"]},
            "claimMappings": {"username": {"claim": "sub", "prefix": ""}},
        });
        change(&mut jwt);
        configured(&json!({"jwt": [jwt]}), OURS)
    }

    #[test]
    fn mistakes_name_their_field() {
        assert_eq!(jwt(|_| {}).unwrap().tokens.len(), 1);
        type Spoil = fn(&mut Value);
        let flaws: [(Spoil, &str); 11] = [
            (
                |jwt| jwt["issuer"]["url"] = json!(""),
                "jwt[0].issuer.url: Required value: URL is required",
            ),
            (
                |jwt| jwt["issuer"]["url"] = json!("http://x"),
                "jwt[0].issuer.url: Invalid value: \"http://x\": URL scheme must be https",
            ),
            (
                |jwt| jwt["issuer"]["url"] = json!(OURS),
                "jwt[0].issuer.url: Invalid value: ",
            ),
            (
                |jwt| jwt["issuer"]["audiences"] = json!([]),
                "jwt[0].issuer.audiences: Required value: at least one jwt[0].issuer.audiences is required",
            ),
            (
                |jwt| jwt["issuer"]["audiences"] = json!(["a", "b"]),
                "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny",
            ),
            (
                |jwt| jwt["claimMappings"]["username"] = json!({}),
                "jwt[0].claimMappings.username: Required value: claim or expression is required",
            ),
            (
                |jwt| jwt["claimMappings"]["username"] = json!({"claim": "sub"}),
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set",
            ),
            (
                |jwt| jwt["claimMappings"]["username"] = json!({"expression": "nothing.sub"}),
                "jwt[0].claimMappings.username.expression: Invalid value: \"nothing.sub\": compilation failed: ",
            ),
            (
                |jwt| jwt["claimMappings"]["extra"] = json!([{"key": "x", "valueExpression": "'a'"}]),
                "jwt[0].claimMappings.extra[0].key: Invalid value: \"x\": key must be a domain-prefixed path",
            ),
            (
                |jwt| jwt["claimValidationRules"] = json!([{}]),
                "jwt[0].claimValidationRules[0]: Required value: claim or expression is required",
            ),
            (
                |jwt| jwt["userValidationRules"] = json!([{"expression": "claims.a"}]),
                "jwt[0].userValidationRules[0].expression: Invalid value: ",
            ),
        ];
        for (spoil, expected) in flaws {
            let told = jwt(spoil).err().expect(expected);
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn the_anonymous_may_be_kept_to_paths() {
        for (config, path, expected) in [
            (json!(null), "/api", true),
            (json!({"enabled": true}), "/api", true),
            (json!({"enabled": false}), "/livez", false),
            (
                json!({"enabled": true, "conditions": [{"path": "/livez"}]}),
                "/livez",
                true,
            ),
            (
                json!({"enabled": true, "conditions": [{"path": "/livez"}]}),
                "/livez/ping",
                false,
            ),
        ] {
            assert_eq!(
                anonymous(&config).unwrap().may_ask(path),
                expected,
                "{config} {path}"
            );
        }
        assert!(anonymous(&json!({"conditions": [{"path": "/livez"}]})).is_err());
    }

    #[test]
    fn names_of_users_are_told_apart_by_issuer_unless_they_are_addresses() {
        for (claim, prefix, expected) in [
            ("sub", "", "https://i#"),
            ("email", "", ""),
            ("sub", "-", ""),
            ("email", "x:", "x:"),
        ] {
            let options = OidcOptions {
                issuer_url: "https://i".into(),
                username_claim: claim.into(),
                username_prefix: prefix.into(),
                ..OidcOptions::default()
            };
            let config = options.configuration().unwrap();
            assert_eq!(
                config["jwt"][0]["claimMappings"]["username"]["prefix"], expected,
                "{claim} {prefix}"
            );
        }
    }
}
