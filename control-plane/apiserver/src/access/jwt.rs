//! Tokens of one OIDC issuer: verified, then mapped to a user by claims or by CEL (upstream: `plugin/pkg/authenticator/token/oidc`).

use std::collections::BTreeMap;

use async_trait::async_trait;
use auth::{Known, TokenAuthenticator, UserInfo};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schema::cel::{self, Bindings, CelValue, Expression};
use serde_json::{Value, json};

use super::keys::{KeySet, Signed};
use crate::object::{items, string};
use crate::proxy::dial;

/// What asymmetric algorithms there are; ES512 waits for a library that has its curve.
const ALGORITHMS: [&str; 8] = [
    "RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512",
];
/// Clocks differ (go-oidc's leeway for `nbf`).
const LEEWAY_SECONDS: i64 = 300;

/// What of the claims becomes one field.
enum Mapping {
    Nothing,
    Claim { claim: String, prefix: String },
    Expression(Expression),
}

enum ClaimRule {
    Required { claim: String, value: String },
    Expression(Expression, String),
}

pub struct JwtAuthenticator {
    issuer: String,
    audiences: Vec<String>,
    algorithms: Vec<String>,
    api_audience: String,
    keys: KeySet,
    username: Mapping,
    groups: Mapping,
    uid: Mapping,
    extra: Vec<(String, Expression)>,
    claim_rules: Vec<ClaimRule>,
    user_rules: Vec<(Expression, String)>,
}

impl JwtAuthenticator {
    /// A `JWTAuthenticator`; the error begins with `path`.
    pub fn new(config: &Value, path: &str, api_audience: &str) -> Result<Self, String> {
        let issuer = &config["issuer"];
        let url = string(issuer, "url");
        check_url(url, &format!("{path}.issuer.url"))?;
        if url == api_audience {
            return Err(format!(
                "{path}.issuer.url: Invalid value: {url:?}: URL must not overlap with disallowed issuers: [{api_audience}]"
            ));
        }
        let discovery = string(issuer, "discoveryURL");
        if !discovery.is_empty() {
            check_url(discovery, &format!("{path}.issuer.discoveryURL"))?;
            if discovery.trim_end_matches('/') == url.trim_end_matches('/') {
                return Err(format!(
                    "{path}.issuer.discoveryURL: Invalid value: {discovery:?}: discoveryURL must be different from URL"
                ));
            }
        }
        let strings = |of: &Value, field: &str| -> Vec<String> {
            let all = items(of, field).iter().filter_map(Value::as_str);
            all.map(str::to_owned).collect()
        };
        let audiences = strings(issuer, "audiences");
        if audiences.is_empty() {
            return Err(format!(
                "{path}.issuer.audiences: Required value: at least one {path}.issuer.audiences is required"
            ));
        }
        let policy = string(issuer, "audienceMatchPolicy");
        if audiences.len() > 1 && policy != "MatchAny" {
            return Err(format!(
                "{path}.issuer.audienceMatchPolicy: Invalid value: {policy:?}: audienceMatchPolicy must be MatchAny for multiple audiences"
            ));
        }
        let ca = string(issuer, "certificateAuthority");
        let tls = match ca {
            "" => dial::system_config(None),
            ca => dial::client_config(Some(ca), None),
        };
        let tls = tls.map_err(|error| {
            format!("{path}.issuer.certificateAuthority: Invalid value: \"<omitted>\": {error}")
        })?;
        let mappings = &config["claimMappings"];
        let mappings_path = format!("{path}.claimMappings");
        let username = mapping(&mappings["username"], &format!("{mappings_path}.username"), true)?;
        if matches!(username, Mapping::Nothing) {
            return Err(format!(
                "{mappings_path}.username: Required value: claim or expression is required"
            ));
        }
        let mut extra = Vec::new();
        for (index, entry) in items(mappings, "extra").iter().enumerate() {
            let path = format!("{mappings_path}.extra[{index}]");
            let key = string(entry, "key");
            if key.is_empty() {
                return Err(format!("{path}.key: Required value"));
            }
            if key != key.to_lowercase() || !key.contains('/') {
                return Err(format!(
                    "{path}.key: Invalid value: {key:?}: key must be a domain-prefixed path in lower case (such as \"example.org/foo\")"
                ));
            }
            extra.push((
                key.to_owned(),
                expression(entry, "valueExpression", &path, "claims")?,
            ));
        }
        let algorithms = match strings(config, "signingAlgorithms") {
            given if given.is_empty() => ALGORITHMS.map(str::to_owned).to_vec(),
            given => given,
        };
        Ok(Self {
            keys: KeySet::new(url, discovery, tls),
            issuer: url.to_owned(),
            audiences,
            algorithms,
            api_audience: api_audience.to_owned(),
            username,
            groups: mapping(&mappings["groups"], &format!("{mappings_path}.groups"), true)?,
            uid: mapping(&mappings["uid"], &format!("{mappings_path}.uid"), false)?,
            extra,
            claim_rules: claim_rules(config, path)?,
            user_rules: user_rules(config, path)?,
        })
    }

    async fn user(&self, token: &str) -> Result<Option<UserInfo>, String> {
        let claims = token
            .split('.')
            .nth(1)
            .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims = claims.and_then(|claims| serde_json::from_slice::<Value>(&claims).ok());
        let (Some(claims), Some(signed)) = (claims, Signed::parse(token)) else {
            return Ok(None);
        };
        if string(&claims, "iss") != self.issuer {
            return Ok(None);
        }
        self.verify(&claims, &signed)
            .await
            .map_err(|why| format!("oidc: verify token: {why}"))?;
        self.mapped(&claims)
            .map(Some)
            .map_err(|why| format!("oidc: {why}"))
    }

    async fn verify(&self, claims: &Value, signed: &Signed<'_>) -> Result<(), String> {
        let held = match &claims["aud"] {
            Value::String(one) => vec![one.as_str()],
            many => many
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect(),
        };
        if !self
            .audiences
            .iter()
            .any(|audience| held.contains(&audience.as_str()))
        {
            return Err(format!(
                "oidc: expected audience in {:?} got {held:?}",
                self.audiences
            ));
        }
        let now = jiff::Timestamp::now().as_second();
        let seconds = |field: &str| {
            claims[field]
                .as_i64()
                .or(claims[field].as_f64().map(|time| time as i64))
        };
        if seconds("exp").is_none_or(|expiry| expiry <= now) {
            return Err("oidc: token is expired".into());
        }
        if seconds("nbf").is_some_and(|from| now + LEEWAY_SECONDS < from) {
            return Err("oidc: current time before the nbf (not before) time".into());
        }
        if !self.algorithms.iter().any(|known| known == signed.algorithm()) {
            return Err(format!(
                "oidc: id token signed with unsupported algorithm, expected {:?} got {:?}",
                self.algorithms,
                signed.algorithm()
            ));
        }
        self.keys.verify(signed).await
    }

    fn mapped(&self, claims: &Value) -> Result<UserInfo, String> {
        let scope: Bindings = vec![("claims", cel::from_json(claims))];
        for rule in &self.claim_rules {
            match rule {
                ClaimRule::Required { claim, value } => match claims.get(claim) {
                    None => return Err(format!("required claim {claim} not present in ID token")),
                    Some(Value::String(held)) if held == value => {}
                    Some(held) => {
                        return Err(format!(
                            "required claim {claim} value does not match. Got = {held}, want = {value}"
                        ));
                    }
                },
                ClaimRule::Expression(expression, message) => hold(expression, message, &scope)
                    .map_err(|why| format!("error evaluating claim validation expression: {why}"))?,
            }
        }
        let name = match &self.username {
            Mapping::Claim { claim, prefix } => {
                let named = claims[claim.as_str()]
                    .as_str()
                    .ok_or_else(|| format!("parse username claims {claim:?}: claim not present"))?;
                if claim == "email" && claims.get("email_verified").is_some_and(|is| *is != true) {
                    return Err("email not verified".into());
                }
                format!("{prefix}{named}")
            }
            mapping => one(mapping, claims, &scope)
                .map_err(|why| format!("error evaluating username claim expression: {why}"))?,
        };
        if name.is_empty() {
            return Err("empty username via CEL expression is not allowed".into());
        }
        let mut extra = BTreeMap::new();
        for (key, expression) in &self.extra {
            let values = expression
                .evaluate(&scope)
                .and_then(|value| list(&value))
                .map_err(|why| format!("error evaluating extra claim expression: {why}"))?;
            let values: Vec<String> = values.into_iter().filter(|value| !value.is_empty()).collect();
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        let user = UserInfo {
            name,
            uid: one(&self.uid, claims, &scope)
                .map_err(|why| format!("error evaluating uid claim expression: {why}"))?,
            groups: self
                .groups(claims, &scope)
                .map_err(|why| format!("error evaluating group claim expression: {why}"))?,
            extra,
        };
        let scope: Bindings = vec![("user", cel::from_json(&shown(&user)))];
        for (expression, message) in &self.user_rules {
            hold(expression, message, &scope)
                .map_err(|why| format!("error evaluating user info validation rule: {why}"))?;
        }
        Ok(user)
    }

    fn groups(&self, claims: &Value, scope: &Bindings) -> Result<Vec<String>, String> {
        let (found, prefix) = match &self.groups {
            Mapping::Nothing => return Ok(Vec::new()),
            Mapping::Claim { claim, prefix } => match claims.get(claim) {
                None | Some(Value::Null) => return Ok(Vec::new()),
                Some(value) => (list(&cel::from_json(value))?, prefix.as_str()),
            },
            Mapping::Expression(expression) => (list(&expression.evaluate(scope)?)?, ""),
        };
        let named = found.into_iter().filter(|group| !group.is_empty());
        Ok(named.map(|group| format!("{prefix}{group}")).collect())
    }
}

#[async_trait]
impl TokenAuthenticator for JwtAuthenticator {
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Known>, String> {
        // Whoever such a token is for, it names users of this API only.
        if !audiences.contains(&self.api_audience) {
            return Ok(None);
        }
        let audiences = vec![self.api_audience.clone()];
        Ok(self.user(token).await?.map(|user| Known { user, audiences }))
    }
}

fn check_url(url: &str, path: &str) -> Result<(), String> {
    let invalid = |why: &str| Err(format!("{path}: Invalid value: {url:?}: {why}"));
    if url.is_empty() {
        return Err(format!("{path}: Required value: URL is required"));
    }
    let Ok(parsed) = url.parse::<http::Uri>() else {
        return invalid("URL must be valid");
    };
    if parsed.scheme_str() != Some("https") {
        return invalid("URL scheme must be https");
    }
    if parsed
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return invalid("URL must not contain a username or password");
    }
    if url.contains('?') {
        return invalid("URL must not contain a query");
    }
    if url.contains('#') {
        return invalid("URL must not contain a fragment");
    }
    Ok(())
}

fn mapping(config: &Value, path: &str, has_prefix: bool) -> Result<Mapping, String> {
    let (claim, expressed) = (string(config, "claim"), string(config, "expression"));
    let prefix = config["prefix"].as_str();
    match (claim, expressed) {
        ("", "") => Ok(Mapping::Nothing),
        (claim, "") if has_prefix && prefix.is_none() => Err(format!(
            "{path}.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing ({claim:?})"
        )),
        (claim, "") => Ok(Mapping::Claim {
            claim: claim.to_owned(),
            prefix: prefix.unwrap_or_default().to_owned(),
        }),
        ("", _) if prefix.is_some() => Err(format!(
            "{path}.prefix: Invalid value: {:?}: prefix can't be set when expression is set",
            prefix.unwrap_or_default()
        )),
        ("", _) => expression(config, "expression", path, "claims").map(Mapping::Expression),
        _ => Err(format!(
            "{path}: Invalid value: \"\": claim and expression can't both be set"
        )),
    }
}

fn expression(config: &Value, field: &str, path: &str, variable: &str) -> Result<Expression, String> {
    let written = string(config, field);
    if written.is_empty() {
        return Err(format!("{path}.{field}: Required value: {field} is required"));
    }
    Expression::compile(written, &[variable])
        .map_err(|why| format!("{path}.{field}: Invalid value: {written:?}: {why}"))
}

fn claim_rules(config: &Value, path: &str) -> Result<Vec<ClaimRule>, String> {
    let rules = items(config, "claimValidationRules").iter().enumerate();
    rules
        .map(|(index, rule)| {
            let path = format!("{path}.claimValidationRules[{index}]");
            match (string(rule, "claim"), string(rule, "expression")) {
                ("", "") => Err(format!("{path}: Required value: claim or expression is required")),
                (claim, "") => Ok(ClaimRule::Required {
                    claim: claim.to_owned(),
                    value: string(rule, "requiredValue").to_owned(),
                }),
                ("", _) => expression(rule, "expression", &path, "claims")
                    .map(|compiled| ClaimRule::Expression(compiled, string(rule, "message").to_owned())),
                _ => Err(format!(
                    "{path}: Invalid value: \"\": claim and expression can't both be set"
                )),
            }
        })
        .collect()
}

fn user_rules(config: &Value, path: &str) -> Result<Vec<(Expression, String)>, String> {
    let rules = items(config, "userValidationRules").iter().enumerate();
    rules
        .map(|(index, rule)| {
            let path = format!("{path}.userValidationRules[{index}]");
            Ok((
                expression(rule, "expression", &path, "user")?,
                string(rule, "message").to_owned(),
            ))
        })
        .collect()
}

fn hold(expression: &Expression, message: &str, scope: &Bindings) -> Result<(), String> {
    match expression.evaluate_bool(scope)? {
        true => Ok(()),
        false if message.is_empty() => Err(format!("validation expression '{}' failed", expression.text())),
        false => Err(format!(
            "validation expression '{}' failed: {message}",
            expression.text()
        )),
    }
}

fn one(mapping: &Mapping, claims: &Value, scope: &Bindings) -> Result<String, String> {
    match mapping {
        Mapping::Nothing => Ok(String::new()),
        Mapping::Claim { claim, .. } => claims[claim.as_str()]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("claim {claim:?} not present")),
        Mapping::Expression(expression) => {
            let value = expression.evaluate(scope)?;
            let told = cel::text(&value).map(str::to_owned);
            told.ok_or_else(|| "expression must return a string".into())
        }
    }
}

/// A string is a list of one; null is none.
fn list(value: &CelValue) -> Result<Vec<String>, String> {
    const WRONG: &str = "expression must return a string or a list of strings";
    match (cel::text(value), value) {
        (Some(one), _) => Ok(vec![one.to_owned()]),
        (None, CelValue::Null) => Ok(Vec::new()),
        (None, CelValue::List(many)) => {
            let many = many.iter().map(|item| cel::text(item).map(str::to_owned));
            many.collect::<Option<_>>().ok_or_else(|| WRONG.into())
        }
        _ => Err(WRONG.into()),
    }
}

/// `user` in expressions has all its fields.
fn shown(user: &UserInfo) -> Value {
    json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra})
}
