//! How registries ask for credentials: `WWW-Authenticate`, and the token that a challenge leads to.

use base64::Engine;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    pub identity_token: String,
    pub registry_token: String,
}

impl Credentials {
    /// The `Authorization` of someone who has a name and a password.
    pub fn basic(&self) -> Option<String> {
        let pair = format!("{}:{}", self.username, self.password);
        (!self.username.is_empty())
            .then(|| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// Reads the challenges of a `WWW-Authenticate` header (RFC 9110, 11.6.1); the first known one counts.
pub fn parse(header: &str) -> Option<Challenge> {
    let mut rest = header.trim();
    while !rest.is_empty() {
        let (scheme, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let (parameters, remaining) = parameters(after);
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => return Some(Challenge::Basic),
            "bearer" => {
                let get = |name: &str| parameters.get(name).cloned();
                return Some(Challenge::Bearer {
                    realm: get("realm")?,
                    service: get("service"),
                    scope: get("scope"),
                });
            }
            _ => rest = remaining,
        }
    }
    None
}

/// `name="value", …` up to the next scheme, and what follows.
fn parameters(text: &str) -> (BTreeMap<String, String>, &str) {
    let mut all = BTreeMap::new();
    let mut rest = text.trim_start();
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim();
        if name.contains([' ', ',']) {
            break;
        }
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted_value(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        all.insert(name.to_ascii_lowercase(), value);
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    (all, rest)
}

fn quoted_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// The address that gives a token for reading a repository.
pub fn token_url(realm: &str, service: Option<&str>, scope: Option<&str>, repository: &str) -> String {
    let scope = scope.map_or_else(|| format!("repository:{repository}:pull"), str::to_owned);
    let mut query = vec![("scope", scope)];
    query.extend(service.map(|service| ("service", service.to_owned())));
    let query: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{name}={}", escape(value)))
        .collect();
    let separator = if realm.contains('?') { '&' } else { '?' };
    format!("{realm}{separator}{}", query.join("&"))
}

/// The form that trades a refresh token for a token for reading a repository (OAuth 2, RFC 6749 section 6).
pub fn refresh_form(refresh: &str, service: Option<&str>, scope: Option<&str>, repository: &str) -> String {
    let scope = scope.map_or_else(|| format!("repository:{repository}:pull"), str::to_owned);
    [
        ("grant_type", "refresh_token"),
        ("client_id", "ironlet"),
        ("service", service.unwrap_or_default()),
        ("scope", &scope),
        ("refresh_token", refresh),
    ]
    .map(|(name, value)| format!("{name}={}", escape(value)))
    .join("&")
}

pub fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth/token",service="registry",scope="repository:a/b:pull,push""#,
                bearer(
                    "https://auth/token",
                    Some("registry"),
                    Some("repository:a/b:pull,push"),
                ),
            ),
            (
                r#"bearer realm="https://a" , service=reg"#,
                bearer("https://a", Some("reg"), None),
            ),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            (
                r#"Digest realm="x", nonce="y", Bearer realm="z""#,
                bearer("z", None, None),
            ),
            (r#"Bearer realm="a\"b""#, bearer("a\"b", None, None)),
            ("Bearer service=x", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn refresh_tokens_are_traded_by_form() {
        assert_eq!(
            refresh_form("a/b", Some("r"), None, "x"),
            "grant_type=refresh_token&client_id=ironlet&service=r&scope=repository%3Ax%3Apull&refresh_token=a%2Fb"
        );
    }

    #[test]
    fn tokens_are_asked_for_by_scope() {
        assert_eq!(
            token_url("https://a/t", Some("r 1"), None, "b/c"),
            "https://a/t?scope=repository%3Ab%2Fc%3Apull&service=r%201"
        );
        assert_eq!(
            token_url("https://a/t?x=1", None, Some("s"), ""),
            "https://a/t?x=1&scope=s"
        );
    }
}
