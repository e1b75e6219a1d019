//! Who a request comes from: client certificate, bearer token, or nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use pki::{BootstrapToken, CertificateInfo, LEGACY_ISSUER, ServiceAccountVerifier, looks_like_jwt};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::lookup::{LookupError, ObjectLookup};
use crate::user::{ANONYMOUS, AUTHENTICATED, UserInfo};
use crate::{bootstrap_token, legacy_token, service_account};

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

/// Whom a token stands for, and for which of the audiences asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

/// Knows bearer tokens of some other kind. `None`: not one of them.
#[async_trait]
pub trait TokenAuthenticator: Send + Sync {
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Known>, String>;
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
    others: Vec<Arc<dyn TokenAuthenticator>>,
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
            others: Vec::new(),
        }
    }

    /// Asked in order about what is no token of ours.
    pub fn with(mut self, others: Vec<Arc<dyn TokenAuthenticator>>) -> Self {
        self.others = others;
        self
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
        let known = self.token_user(&token, &self.audiences, lookup, now).await?;
        let Some(Known { mut user, .. }) = known else {
            return Err(Unauthenticated::Rejected("invalid bearer token".into()));
        };
        user.join(AUTHENTICATED);
        // Each use of a token kept in a Secret counts, and it ends with its Secret.
        if issuer_of(&token).as_deref() != Some(LEGACY_ISSUER) {
            self.believe(id, &user, now);
        }
        Ok(user)
    }

    /// Whom a bearer token stands for, for one of `audiences`; groups as the authenticator of its kind gives them.
    pub(crate) async fn token_user(
        &self,
        token: &str,
        audiences: &[String],
        lookup: &dyn ObjectLookup,
        now: Timestamp,
    ) -> Result<Option<Known>, Unauthenticated> {
        let mut problems = Vec::new();
        match self.own_token(token, audiences, lookup, now).await {
            Ok(Some(known)) => return Ok(Some(known)),
            Ok(None) => {}
            Err(Unauthenticated::Rejected(why)) => problems.push(why),
            Err(error) => return Err(error),
        }
        for other in &self.others {
            match other.authenticate(token, audiences).await {
                Ok(Some(known)) => return Ok(Some(known)),
                Ok(None) => {}
                Err(why) => problems.push(why),
            }
        }
        match problems.is_empty() {
            true => Ok(None),
            false => Err(Unauthenticated::Rejected(problems.join(", "))),
        }
    }

    /// Bootstrap tokens and service-account tokens, bound ones and those kept in Secrets.
    async fn own_token(
        &self,
        token: &str,
        audiences: &[String],
        lookup: &dyn ObjectLookup,
        now: Timestamp,
    ) -> Result<Option<Known>, Unauthenticated> {
        if let Ok(token) = BootstrapToken::parse(token) {
            // Such tokens are for the API only.
            let audiences = common(&self.audiences, audiences);
            if audiences.is_empty() {
                return Ok(None);
            }
            let name = bootstrap_token::secret_name(&token);
            let secret = lookup
                .get("", "secrets", bootstrap_token::NAMESPACE, &name)
                .await?;
            let user = secret.and_then(|secret| bootstrap_token::user(&token, &secret, now));
            return Ok(user.map(|user| Known { user, audiences }));
        }
        let reject = |why: String| Unauthenticated::Rejected(why);
        match issuer_of(token).filter(|_| looks_like_jwt(token)) {
            Some(issuer) if issuer == self.issuer => {}
            Some(issuer) if issuer == LEGACY_ISSUER => {
                // Such tokens name no audience: they are for the API.
                let audiences = common(&self.audiences, audiences);
                if audiences.is_empty() {
                    return Err(reject("token audiences do not match".into()));
                }
                let claims = self
                    .verifier
                    .verify_legacy(token)
                    .map_err(|error| reject(error.to_string()))?;
                let user = legacy_token::user(token, &claims, lookup, now).await?;
                return Ok(Some(Known { user, audiences }));
            }
            _ => return Ok(None),
        }
        let claims = self
            .verifier
            .verify(token)
            .map_err(|error| reject(error.to_string()))?;
        service_account::judge(&claims, &self.issuer, audiences, now).map_err(|why| reject(why.into()))?;
        let audiences = common(&claims.aud, audiences);
        let user = service_account::user(&claims, lookup, now).await?;
        Ok(user.map(|user| Known { user, audiences }))
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

/// Those of `wanted` that are among `held`.
fn common(held: &[String], wanted: &[String]) -> Vec<String> {
    let shared = wanted.iter().filter(|audience| held.contains(audience));
    shared.cloned().collect()
}

/// `iss`, unverified.
pub(crate) fn issuer_of(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    Some(claims["iss"].as_str()?.to_owned())
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use pki::{BoundObject, KubernetesClaims, ServiceAccountKey, TokenClaims};
    use serde_json::json;

    use super::*;

    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    #[derive(Default)]
    struct Objects {
        list: Vec<(&'static str, Value)>,
        reads: AtomicUsize,
    }

    #[async_trait]
    impl ObjectLookup for Objects {
        async fn get(
            &self,
            _: &str,
            resource: &str,
            namespace: &str,
            name: &str,
        ) -> Result<Option<Value>, LookupError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            let found = self.list.iter().find(|(kind, object)| {
                let metadata = &object["metadata"];
                *kind == resource
                    && metadata["name"] == name
                    && metadata["namespace"].as_str().unwrap_or_default() == namespace
            });
            Ok(found.map(|(_, object)| object.clone()))
        }
    }

    fn world() -> Objects {
        let object =
            |name: &str, uid: &str| json!({"metadata": {"name": name, "namespace": "ns", "uid": uid}});
        Objects {
            list: vec![
                ("serviceaccounts", object("sa", "sa-uid")),
                ("pods", object("p", "p-uid")),
                ("nodes", json!({"metadata": {"name": "n", "uid": "n-uid"}})),
            ],
            ..Objects::default()
        }
    }

    fn bound(name: &str, uid: &str) -> BoundObject {
        BoundObject {
            name: name.into(),
            uid: uid.into(),
        }
    }

    fn claims() -> TokenClaims {
        TokenClaims {
            aud: vec![ISSUER.into()],
            iss: ISSUER.into(),
            exp: 2000,
            iat: 1000,
            nbf: 1000,
            jti: "j".into(),
            sub: "system:serviceaccount:ns:sa".into(),
            kubernetes: KubernetesClaims {
                namespace: "ns".into(),
                serviceaccount: bound("sa", "sa-uid"),
                pod: Some(bound("p", "p-uid")),
                node: Some(bound("n", "n-uid")),
                ..KubernetesClaims::default()
            },
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    struct Setup {
        authenticator: Authenticator,
        key: ServiceAccountKey,
    }

    impl Setup {
        fn new() -> Self {
            let (private, public) = ServiceAccountKey::generate_pem().unwrap();
            let verifier = ServiceAccountVerifier::from_pem(&public).unwrap();
            Self {
                authenticator: Authenticator::new(verifier, ISSUER),
                key: ServiceAccountKey::from_pem(&private).unwrap(),
            }
        }

        async fn bearer(
            &self,
            token: &str,
            objects: &Objects,
            now: i64,
        ) -> Result<UserInfo, Unauthenticated> {
            let header = format!("Bearer {token}");
            let credentials = Credentials {
                authorization: Some(&header),
                ..Credentials::default()
            };
            self.authenticator
                .authenticate(credentials, objects, at(now))
                .await
        }
    }

    #[tokio::test]
    async fn a_good_token_is_its_service_account() {
        let setup = Setup::new();
        let token = setup.key.sign(&claims()).unwrap();
        let user = setup.bearer(&token, &world(), 1500).await.unwrap();
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert_eq!(user.uid, "sa-uid");
        assert_eq!(
            user.groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:ns",
                AUTHENTICATED
            ]
        );
        let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")][0].as_str();
        assert_eq!(extra("pod-name"), "p");
        assert_eq!(extra("pod-uid"), "p-uid");
        assert_eq!(extra("node-name"), "n");
        assert_eq!(extra("credential-id"), "JTI=j");
    }

    #[tokio::test]
    async fn each_flaw_spoils_a_token() {
        type Spoil = fn(&mut TokenClaims);
        let flaws: [(&str, Spoil); 7] = [
            ("issuer", |claims| claims.iss = "https://elsewhere".into()),
            ("audience", |claims| claims.aud = vec!["vault".into()]),
            ("expired", |claims| claims.exp = 1500),
            ("not yet valid", |claims| claims.nbf = 1501),
            ("subject", |claims| {
                claims.sub = "system:serviceaccount:ns:other".into()
            }),
            ("account's uid", |claims| {
                claims.kubernetes.serviceaccount.uid = "old".into()
            }),
            ("pod's uid", |claims| {
                claims.kubernetes.pod = Some(bound("p", "old"))
            }),
        ];
        let setup = Setup::new();
        for (flaw, spoil) in flaws {
            let mut claims = claims();
            spoil(&mut claims);
            let token = setup.key.sign(&claims).unwrap();
            let outcome = setup.bearer(&token, &world(), 1500).await;
            assert!(matches!(outcome, Err(Unauthenticated::Rejected(_))), "{flaw}");
        }
        for garbage in ["x", "a.b.c", "abcdef.0123456789abcdef"] {
            assert!(setup.bearer(garbage, &world(), 1500).await.is_err(), "{garbage}");
        }
    }

    #[tokio::test]
    async fn tokens_end_a_minute_after_their_pod() {
        let setup = Setup::new();
        let token = setup.key.sign(&claims()).unwrap();
        for (now, accepted) in [(1459, true), (1460, false)] {
            let mut objects = world();
            objects.list[1].1["metadata"]["deletionTimestamp"] = json!(at(1400).to_string());
            // A new authenticator each time: one that has believed the token would not look.
            let authenticator = Authenticator::new(setup.authenticator.verifier().clone(), ISSUER);
            let header = format!("Bearer {token}");
            let credentials = Credentials {
                authorization: Some(&header),
                ..Credentials::default()
            };
            let outcome = authenticator.authenticate(credentials, &objects, at(now)).await;
            assert_eq!(outcome.is_ok(), accepted, "at {now}");
        }
    }

    #[tokio::test]
    async fn good_tokens_are_believed_for_ten_seconds() {
        let setup = Setup::new();
        let token = setup.key.sign(&claims()).unwrap();
        let objects = world();
        setup.bearer(&token, &objects, 1500).await.unwrap();
        let reads = objects.reads.load(Ordering::Relaxed);
        let gone = Objects::default();
        assert!(setup.bearer(&token, &gone, 1509).await.is_ok());
        assert!(reads > 0 && gone.reads.load(Ordering::Relaxed) == 0);
        assert!(setup.bearer(&token, &gone, 1510).await.is_err());
    }

    #[tokio::test]
    async fn a_token_kept_in_a_secret_ends_with_it_at_once() {
        let setup = Setup::new();
        let claims = pki::LegacyClaims {
            iss: LEGACY_ISSUER.into(),
            namespace: "ns".into(),
            secret_name: "s".into(),
            service_account_name: "sa".into(),
            service_account_uid: "sa-uid".into(),
            sub: "system:serviceaccount:ns:sa".into(),
        };
        let token = setup.key.sign_legacy(&claims).unwrap();
        let mut objects = world();
        let data = base64::engine::general_purpose::STANDARD.encode(&token);
        let secret = json!({"metadata": {"name": "s", "namespace": "ns"}, "data": {"token": data}});
        objects.list.push(("secrets", secret));
        let user = setup.bearer(&token, &objects, 1500).await.unwrap();
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert_eq!(user.uid, "sa-uid");
        let elsewhere = ["vault".to_owned()];
        let known = setup
            .authenticator
            .token_user(&token, &elsewhere, &objects, at(1500))
            .await;
        assert!(matches!(known, Err(Unauthenticated::Rejected(_))));
        objects.list.pop();
        let outcome = setup.bearer(&token, &objects, 1500).await;
        assert!(matches!(outcome, Err(Unauthenticated::Rejected(_))));
    }

    #[tokio::test]
    async fn certificates_name_user_and_groups_and_nobody_is_anonymous() {
        let setup = Setup::new();
        let nobody = setup
            .authenticator
            .authenticate(Credentials::default(), &world(), at(0))
            .await
            .unwrap();
        assert_eq!(nobody, UserInfo::anonymous());
        let authority = pki::CertificateAuthority::generate("ca", at(1000)).unwrap();
        let subject = pki::Subject::new("jane", &["dev", "ops"]);
        let identity = authority
            .issue(&pki::LeafRequest::client(subject), at(1000))
            .unwrap();
        let der = pem_to_der(&identity.certificate_pem);
        let credentials = Credentials {
            certificate: Some(&der),
            ..Credentials::default()
        };
        let user = setup
            .authenticator
            .authenticate(credentials, &world(), at(1000))
            .await
            .unwrap();
        assert_eq!(user.name, "jane");
        assert_eq!(user.groups, ["dev", "ops", AUTHENTICATED]);
        assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));
    }

    fn pem_to_der(pem: &str) -> Vec<u8> {
        use base64::engine::general_purpose::STANDARD;
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        STANDARD.decode(body).unwrap()
    }

    #[tokio::test]
    async fn browsers_put_the_token_into_the_protocol() {
        let setup = Setup::new();
        let token = setup.key.sign(&claims()).unwrap();
        let protocol = format!(
            "v5.channel.k8s.io, {WEBSOCKET_BEARER}{}",
            URL_SAFE_NO_PAD.encode(&token)
        );
        let credentials = Credentials {
            websocket_protocol: Some(&protocol),
            ..Credentials::default()
        };
        let user = setup
            .authenticator
            .authenticate(credentials, &world(), at(1500))
            .await
            .unwrap();
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
    }
}
