//! Who a request comes from: client certificate, bearer token, or nobody.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use pki::{BootstrapToken, CertificateInfo, ServiceAccountVerifier, looks_like_jwt};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::lookup::{LookupError, ObjectLookup};
use crate::user::{ANONYMOUS, AUTHENTICATED, UserInfo};
use crate::{bootstrap_token, service_account};

/// Good tokens are believed again without a look-up this long (upstream's success TTL).
const CACHE_SECONDS: i64 = 10;
const CACHE_LIMIT: usize = 4096;
const WEBSOCKET_BEARER: &str = "base64url.bearer.authorization.k8s.io.";

#[derive(Debug, Error)]
pub enum Unauthenticated {
    /// Credentials were given and are not good: 401 `Unauthorized`. The text is for our log, not for the client.
    #[error("{0}")]
    Rejected(String),
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// What a request shows of its sender.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// The leaf the client proved to hold, DER; its chain is verified by TLS already.
    pub certificate: Option<&'a [u8]>,
    /// The `Authorization` header.
    pub authorization: Option<&'a str>,
    /// The `Sec-WebSocket-Protocol` header: browsers put the token there.
    pub websocket_protocol: Option<&'a str>,
}

/// What a token was found to be, and until when we believe it unseen.
struct Believed {
    user: UserInfo,
    until: i64,
}

pub struct Authenticator {
    verifier: ServiceAccountVerifier,
    issuer: String,
    audiences: Vec<String>,
    believed: Mutex<HashMap<[u8; 32], Believed>>,
}

impl Authenticator {
    /// The issuer is also the API's audience.
    pub fn new(verifier: ServiceAccountVerifier, issuer: impl Into<String>) -> Self {
        let issuer = issuer.into();
        Self {
            verifier,
            audiences: vec![issuer.clone()],
            issuer,
            believed: Mutex::default(),
        }
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub fn verifier(&self) -> &ServiceAccountVerifier {
        &self.verifier
    }

    /// No credentials at all make `system:anonymous`; bad ones are refused.
    pub async fn authenticate(
        &self,
        credentials: Credentials<'_>,
        lookup: &dyn ObjectLookup,
        now: Timestamp,
    ) -> Result<UserInfo, Unauthenticated> {
        if let Some(certificate) = credentials.certificate {
            return certificate_user(certificate);
        }
        let Some(token) = bearer_token(&credentials) else {
            return Ok(UserInfo::anonymous());
        };
        let id: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(user) = self.believed(&id, now) {
            return Ok(user);
        }
        let user = self.token_user(&token, &self.audiences, lookup, now).await?;
        let Some(mut user) = user else {
            return Err(Unauthenticated::Rejected("invalid bearer token".into()));
        };
        user.join(AUTHENTICATED);
        self.believe(id, &user, now);
        Ok(user)
    }

    /// Whom a bearer token stands for, for one of `audiences`; groups as the authenticator of its kind gives them.
    pub(crate) async fn token_user(
        &self,
        token: &str,
        audiences: &[String],
        lookup: &dyn ObjectLookup,
        now: Timestamp,
    ) -> Result<Option<UserInfo>, Unauthenticated> {
        if let Ok(token) = BootstrapToken::parse(token) {
            let name = bootstrap_token::secret_name(&token);
            let secret = lookup
                .get("", "secrets", bootstrap_token::NAMESPACE, &name)
                .await?;
            return Ok(secret.and_then(|secret| bootstrap_token::user(&token, &secret, now)));
        }
        if !looks_like_jwt(token) {
            return Ok(None);
        }
        let reject = |why: String| Unauthenticated::Rejected(why);
        let claims = self
            .verifier
            .verify(token)
            .map_err(|error| reject(error.to_string()))?;
        service_account::judge(&claims, &self.issuer, audiences, now).map_err(|why| reject(why.into()))?;
        Ok(service_account::user(&claims, lookup, now).await?)
    }

    fn believed(&self, id: &[u8; 32], now: Timestamp) -> Option<UserInfo> {
        let believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = believed.get(id).filter(|entry| now.as_second() < entry.until)?;
        Some(entry.user.clone())
    }

    fn believe(&self, id: [u8; 32], user: &UserInfo, now: Timestamp) {
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        if believed.len() >= CACHE_LIMIT {
            believed.retain(|_, entry| now.as_second() < entry.until);
        }
        if believed.len() < CACHE_LIMIT {
            believed.insert(
                id,
                Believed {
                    user: user.clone(),
                    until: now.as_second() + CACHE_SECONDS,
                },
            );
        }
    }
}

/// CN is the user, each O a group.
pub fn certificate_user(der: &[u8]) -> Result<UserInfo, Unauthenticated> {
    let info =
        CertificateInfo::from_der(der).map_err(|error| Unauthenticated::Rejected(error.to_string()))?;
    if info.subject.common_name.is_empty() {
        return Err(Unauthenticated::Rejected(
            "client certificate has no common name".into(),
        ));
    }
    let mut user = UserInfo {
        name: info.subject.common_name,
        groups: info.subject.organizations,
        ..UserInfo::default()
    }
    .with_extra("credential-id", format!("X509SHA256={}", info.fingerprint));
    if user.name != ANONYMOUS {
        user.join(AUTHENTICATED);
    }
    Ok(user)
}

fn bearer_token(credentials: &Credentials<'_>) -> Option<String> {
    let from_header = credentials.authorization.and_then(|header| {
        let (scheme, token) = header.trim().split_once(' ')?;
        let token = token.trim();
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.to_owned())
    });
    let from_protocol = || {
        let protocols = credentials.websocket_protocol?;
        let encoded = protocols
            .split(',')
            .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_BEARER))?;
        String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).ok()?).ok()
    };
    from_header.or_else(from_protocol)
}
