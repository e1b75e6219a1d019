//! Users that a proxy in front of us vouches for, in headers both ways. Upstream:
//! `apiserver/pkg/authentication/request/headerrequest` and `client-go/transport.SetAuthProxyHeaders`.

use crate::user::{ANONYMOUS, AUTHENTICATED, UserInfo};

/// Which headers say who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrontProxyHeaders {
    pub username: Vec<String>,
    pub uid: Vec<String>,
    pub group: Vec<String>,
    pub extra_prefix: Vec<String>,
}

impl Default for FrontProxyHeaders {
    fn default() -> Self {
        Self {
            username: vec!["X-Remote-User".into()],
            uid: vec!["X-Remote-Uid".into()],
            group: vec!["X-Remote-Group".into()],
            extra_prefix: vec!["X-Remote-Extra-".into()],
        }
    }
}

impl FrontProxyHeaders {
    /// Whether a header with this name, in lower case, may say who asks.
    pub fn claims(&self, name: &str) -> bool {
        let whole = self.username.iter().chain(&self.uid).chain(&self.group);
        whole.into_iter().any(|header| header.eq_ignore_ascii_case(name))
            || self.extra_prefix.iter().any(|prefix| has_prefix(name, prefix))
    }

    /// Whom the headers name; names are in lower case.
    pub fn user<'a>(&self, headers: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> Option<UserInfo> {
        let first = |names: &[String]| {
            names.iter().find_map(|wanted| {
                headers
                    .clone()
                    .find(|(name, value)| wanted.eq_ignore_ascii_case(name) && !value.is_empty())
                    .map(|(_, value)| value.to_owned())
            })
        };
        let mut user = UserInfo {
            name: first(&self.username)?,
            uid: first(&self.uid).unwrap_or_default(),
            ..UserInfo::default()
        };
        for (name, value) in headers.clone() {
            if self.group.iter().any(|wanted| wanted.eq_ignore_ascii_case(name)) {
                user.groups.push(value.to_owned());
            }
            if let Some(prefix) = self.extra_prefix.iter().find(|prefix| has_prefix(name, prefix)) {
                let key = unescape(&name[prefix.len()..].to_ascii_lowercase());
                user.extra.entry(key).or_default().push(value.to_owned());
            }
        }
        if user.name != ANONYMOUS {
            user.join(AUTHENTICATED);
        }
        Some(user)
    }
}

/// The headers that tell an extension API server who asks.
pub fn front_proxy_headers(user: &UserInfo) -> Vec<(String, String)> {
    let mut headers = vec![("x-remote-user".to_owned(), user.name.clone())];
    if !user.uid.is_empty() {
        headers.push(("x-remote-uid".to_owned(), user.uid.clone()));
    }
    headers.extend(
        user.groups
            .iter()
            .map(|group| ("x-remote-group".to_owned(), group.clone())),
    );
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape(key));
        headers.extend(values.iter().map(|value| (name.clone(), value.clone())));
    }
    headers
}

fn has_prefix(name: &str, prefix: &str) -> bool {
    name.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Bytes that may not stand in a header name become `%XX`.
fn escape(key: &str) -> String {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    key.bytes()
        .map(|byte| {
            if legal(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// The other way round; a key that is not escaped well is taken as it is.
fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%').then(|| tail.get(..2)).flatten();
        let byte = escaped
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, byte) {
            (b'%', None) => return key.to_owned(),
            (_, Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (byte, None) => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_travel_in_headers_and_come_back() {
        let mut user = UserInfo::new("jane", &["devs", AUTHENTICATED]);
        user.uid = "7".into();
        user.extra
            .insert("example.com/a b".into(), vec!["x".into(), "y".into()]);
        let headers = front_proxy_headers(&user);
        let pairs = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        assert_eq!(FrontProxyHeaders::default().user(pairs.clone()), Some(user));
        assert!(
            pairs
                .clone()
                .all(|(name, _)| FrontProxyHeaders::default().claims(name))
        );
        assert!(
            pairs
                .clone()
                .any(|(name, _)| name == "x-remote-extra-example.com%2Fa%20b")
        );
    }

    #[test]
    fn nobody_is_named_without_a_user_header() {
        let headers = [("x-remote-group", "system:masters"), ("x-remote-user", "")];
        assert_eq!(FrontProxyHeaders::default().user(headers.into_iter()), None);
        assert!(!FrontProxyHeaders::default().claims("x-remote"));
    }

    #[test]
    fn broken_escapes_stay() {
        for (escaped, plain) in [
            ("a%2fb", "a/b"),
            ("a%zz", "a%zz"),
            ("a%", "a%"),
            ("plain", "plain"),
        ] {
            assert_eq!(unescape(escaped), plain);
        }
    }
}
