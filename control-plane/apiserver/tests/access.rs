//! Senders vouched for by OIDC issuers and webhooks, requests decided by webhooks: against a running server.

// Each test binary uses its own part of it.
#[allow(dead_code)]
mod support;
#[allow(dead_code)]
#[path = "support/webhook.rs"]
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apiserver::AccessOptions;
use apiserver::access::{AuthorizationWebhook, Mode, OidcOptions, TokenWebhook};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use support::{Client, Server};
use webhook::Webhook;

struct Key {
    id: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(id: &'static str) -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap();
        Self { id, pair }
    }

    fn public(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.id, "x": part(&point[1..33]), "y": part(&point[33..])})
    }

    fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!(
            "{}.{}",
            part(&json!({"alg": "ES256", "kid": self.id})),
            part(claims)
        );
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// An OpenID provider with whatever keys it has at the time.
async fn issuer(keys: Arc<Mutex<Vec<Value>>>) -> (Webhook, String) {
    let address = Arc::new(Mutex::new(String::new()));
    let own = address.clone();
    let provider = Webhook::start(move |path, _| {
        let url = own.lock().unwrap().clone();
        Some(match path {
            "/.well-known/openid-configuration" => json!({"issuer": url, "jwks_uri": format!("{url}/keys")}),
            "/keys" => json!({"keys": *keys.lock().unwrap()}),
            _ => json!({}),
        })
    })
    .await;
    let url = format!("https://{}", provider.address);
    address.lock().unwrap().clone_from(&url);
    (provider, url)
}

fn ca(hook: &Webhook) -> String {
    String::from_utf8(STANDARD.decode(&hook.bundle).unwrap()).unwrap()
}

fn kubeconfig(directory: &Path, hook: &Webhook) -> PathBuf {
    let path = directory.join("webhook.kubeconfig");
    let cluster =
        json!({"server": format!("https://{}/", hook.address), "certificate-authority-data": hook.bundle});
    let config = json!({"clusters": [{"name": "c", "cluster": cluster}], "contexts": [{"name": "x", "context": {"cluster": "c"}}], "current-context": "x"});
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

async fn who(client: &Client) -> (u16, Value) {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let (code, answer) = client
        .post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
        .await;
    (code, answer["status"]["userInfo"].clone())
}

async fn start(directory: &Path, access: AccessOptions) -> Server {
    Server::start_with(&directory.join("store"), |config| config.access = access).await
}

fn bearer(server: &Server, token: &str) -> Client {
    let mut client = server.anonymous();
    client.token = Some(token.to_owned());
    client
}

#[tokio::test]
async fn issuers_vouch_for_users() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Key::new("first"), Key::new("second"));
    let keys = Arc::new(Mutex::new(vec![first.public()]));
    let (provider, url) = issuer(keys.clone()).await;
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
        "jwt": [{
            "issuer": {"url": url, "audiences": ["us", "them"], "audienceMatchPolicy": "MatchAny", "certificateAuthority": ca(&provider)},
            "claimMappings": {
                "username": {"expression": "'oidc:' + claims.sub"},
                "groups": {"claim": "roles", "prefix": "oidc:"},
                "uid": {"claim": "oid"},
                "extra": [{"key": "example.com/tenant", "valueExpression": "claims.tenant"}],
            },
            "claimValidationRules": [{"expression": "claims.tenant != 'bad'", "message": "bad tenant"}],
            "userValidationRules": [{"expression": "!user.groups.exists(g, g.startsWith('oidc:system:'))", "message": "reserved"}],
        }],
        "anonymous": {"enabled": true, "conditions": [{"path": "/livez"}]},
    });
    let path = directory.path().join("authentication.yaml");
    std::fs::write(&path, config.to_string()).unwrap();
    let server = start(
        directory.path(),
        AccessOptions {
            authentication_config: Some(path),
            ..AccessOptions::default()
        },
    )
    .await;
    let now = jiff::Timestamp::now().as_second();
    let claims = json!({"iss": url, "aud": "us", "sub": "jane", "oid": "77", "roles": ["a", "b"], "tenant": "t", "exp": now + 600, "iat": now});
    let (code, user) = who(&bearer(&server, &first.sign(&claims))).await;
    assert_eq!(code, 201);
    assert_eq!(
        user,
        json!({"username": "oidc:jane", "uid": "77", "groups": ["oidc:a", "oidc:b", "system:authenticated"],
            "extra": {"example.com/tenant": ["t"]}})
    );
    type Spoil = fn(&mut Value);
    let flaws: [(&str, Spoil); 6] = [
        ("audience", |claims| claims["aud"] = json!(["others"])),
        ("expired", |claims| claims["exp"] = json!(1000)),
        ("issuer", |claims| claims["iss"] = json!("https://elsewhere")),
        ("claim rule", |claims| claims["tenant"] = json!("bad")),
        ("user rule", |claims| claims["roles"] = json!(["system:masters"])),
        ("subject", |claims| claims["sub"] = json!(5)),
    ];
    for (flaw, spoil) in flaws {
        let mut claims = claims.clone();
        spoil(&mut claims);
        assert_eq!(who(&bearer(&server, &first.sign(&claims))).await.0, 401, "{flaw}");
    }
    let forged = Key::new("first");
    assert_eq!(
        who(&bearer(&server, &forged.sign(&claims))).await.0,
        401,
        "another's key"
    );

    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": first.sign(&claims)}});
    let (_, review) = server
        .admin()
        .post("/apis/authentication.k8s.io/v1/tokenreviews", asked)
        .await;
    assert_eq!(review["status"]["authenticated"], true, "{review}");
    assert_eq!(review["status"]["user"]["username"], "oidc:jane");

    // Keys change: a token that names an unknown one has them fetched again, though not all the time.
    keys.lock().unwrap().push(second.public());
    let mut client = bearer(&server, &second.sign(&claims));
    let mut tries = 0;
    while who(&client).await.0 != 201 {
        tries += 1;
        assert!(tries < 100, "the new key was never fetched");
        tokio::time::sleep(Duration::from_millis(100)).await;
        client = bearer(&server, &second.sign(&claims));
    }

    let nobody = server.anonymous();
    assert_eq!(nobody.text("/livez").await.0, 200);
    assert_eq!(nobody.get("/api").await.0, 401);
    server.handle.shutdown().await;
}

#[tokio::test]
async fn flags_describe_one_issuer() {
    let directory = tempfile::tempdir().unwrap();
    let key = Key::new("k");
    let (provider, url) = issuer(Arc::new(Mutex::new(vec![key.public()]))).await;
    let ca_file = directory.path().join("ca.crt");
    std::fs::write(&ca_file, ca(&provider)).unwrap();
    let server = start(
        directory.path(),
        AccessOptions {
            oidc: Some(OidcOptions {
                issuer_url: url.clone(),
                client_id: "us".into(),
                ca_file: Some(ca_file),
                username_claim: "email".into(),
                groups_claim: "groups".into(),
                required_claims: vec![("hd".into(), "example.com".into())],
                signing_algs: vec!["ES256".into()],
                ..OidcOptions::default()
            }),
            anonymous: false,
            ..AccessOptions::default()
        },
    )
    .await;
    let exp = jiff::Timestamp::now().as_second() + 600;
    let claims = |verified: bool, domain: &str| json!({"iss": url, "aud": ["us"], "email": "j@example.com", "email_verified": verified, "groups": "one", "hd": domain, "exp": exp});
    let (code, user) = who(&bearer(&server, &key.sign(&claims(true, "example.com")))).await;
    assert_eq!(code, 201);
    assert_eq!(
        user,
        json!({"username": "j@example.com", "groups": ["one", "system:authenticated"]})
    );
    for claims in [claims(false, "example.com"), claims(true, "example.org")] {
        assert_eq!(who(&bearer(&server, &key.sign(&claims))).await.0, 401);
    }
    assert_eq!(
        server.anonymous().get("/api").await.0,
        401,
        "--anonymous-auth=false"
    );
    server.handle.shutdown().await;
}

#[tokio::test]
async fn a_webhook_knows_tokens_and_is_asked_once() {
    let directory = tempfile::tempdir().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = asked.clone();
    let hook = Webhook::start(move |_, review| {
        counting.fetch_add(1, Ordering::Relaxed);
        let status = match review["spec"]["token"].as_str().unwrap() {
            "opaque" => json!({"authenticated": true, "user": {"username": "web", "uid": "1", "groups": ["g"], "extra": {"a": ["b"]}}}),
            _ => json!({"authenticated": false, "error": "no such token"}),
        };
        Some(json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}))
    })
    .await;
    let server = start(
        directory.path(),
        AccessOptions {
            token_webhook: Some(TokenWebhook {
                config_file: kubeconfig(directory.path(), &hook),
                cache_ttl: Duration::from_secs(120),
            }),
            ..AccessOptions::default()
        },
    )
    .await;
    let client = bearer(&server, "opaque");
    for _ in 0..3 {
        let (code, user) = who(&client).await;
        assert_eq!(code, 201);
        assert_eq!(
            user,
            json!({"username": "web", "uid": "1", "groups": ["g", "system:authenticated"], "extra": {"a": ["b"]}})
        );
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    assert_eq!(who(&bearer(&server, "wrong")).await.0, 401);
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "other"}});
    let (_, review) = server
        .admin()
        .post("/apis/authentication.k8s.io/v1/tokenreviews", review)
        .await;
    assert_eq!(review["status"]["error"], "[invalid bearer token, no such token]");
    server.handle.shutdown().await;
}

/// Allows ann what it is asked about, denies bad, has no opinion on others.
async fn judge(asked: Arc<Mutex<Vec<Value>>>) -> Webhook {
    Webhook::start(move |_, review| {
        let spec = review["spec"].clone();
        let status = match spec["user"].as_str().unwrap_or_default() {
            "ann" => json!({"allowed": true, "reason": "webhook likes ann"}),
            "bad" => json!({"allowed": false, "denied": true, "reason": "webhook hates bad"}),
            _ => json!({"allowed": false, "reason": "webhook knows nothing"}),
        };
        asked.lock().unwrap().push(spec);
        Some(
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status}),
        )
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_decides_beside_rbac() {
    let directory = tempfile::tempdir().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let hook = judge(asked.clone()).await;
    let server = start(
        directory.path(),
        AccessOptions {
            modes: vec![Mode::Webhook, Mode::Rbac],
            authorization_webhook: Some(AuthorizationWebhook {
                config_file: kubeconfig(directory.path(), &hook),
                authorized_ttl: Duration::from_secs(300),
                unauthorized_ttl: Duration::from_secs(300),
            }),
            ..AccessOptions::default()
        },
    )
    .await;
    let list = "/api/v1/namespaces/default/pods?labelSelector=a%3Db&fieldSelector=spec.nodeName%3Dn";
    let ann = server.client("ann", &[]);
    for _ in 0..2 {
        assert_eq!(ann.get(list).await.0, 200);
    }
    let about = |user: &str| -> Vec<Value> {
        let asked = asked.lock().unwrap();
        asked
            .iter()
            .filter(|spec| spec["user"] == user)
            .cloned()
            .collect()
    };
    let questions = about("ann");
    assert_eq!(
        questions.len(),
        1,
        "the second answer is remembered: {questions:?}"
    );
    assert_eq!(
        questions[0]["resourceAttributes"],
        json!({"verb": "list", "version": "v1", "resource": "pods", "namespace": "default",
            "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n"]}]},
            "labelSelector": {"requirements": [{"key": "a", "operator": "In", "values": ["b"]}]}})
    );
    let (code, refused) = server.client("bad", &[]).get("/version").await;
    assert_eq!(code, 403, "denied although RBAC lets everyone see it");
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with(": webhook hates bad"),
        "{refused}"
    );
    let other = server.client("other", &[]);
    assert_eq!(
        other.get("/version").await.0,
        200,
        "RBAC decides what the webhook has no opinion on"
    );
    let (code, refused) = other.get("/api/v1/pods").await;
    assert_eq!(code, 403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .ends_with(": webhook knows nothing"),
        "{refused}"
    );

    // Those who ask in the midst of other work reach the webhook, too.
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": "ann", "resourceAttributes": {"verb": "delete", "resource": "nodes"}}});
    let (_, review) = server
        .admin()
        .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        .await;
    assert_eq!(
        review["status"],
        json!({"allowed": true, "reason": "webhook likes ann"})
    );
    server.handle.shutdown().await;
}

#[tokio::test]
async fn a_configuration_orders_authorizers() {
    let directory = tempfile::tempdir().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let hook = judge(asked.clone()).await;
    kubeconfig(directory.path(), &hook);
    let webhook = |policy: &str, condition: &str| {
        json!({"timeout": "3s", "subjectAccessReviewVersion": "v1", "matchConditionSubjectAccessReviewVersion": "v1",
            "failurePolicy": policy, "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": "webhook.kubeconfig"},
            "matchConditions": [{"expression": condition}]})
    };
    let config = json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
        "authorizers": [
            {"type": "Webhook", "name": "pods", "webhook": webhook("NoOpinion", "has(request.resourceAttributes) && request.resourceAttributes.resource == 'pods'")},
            {"type": "Webhook", "name": "broken", "webhook": webhook("Deny", "request.user != 'eve' || request.nothing == 'x'")},
            {"type": "RBAC", "name": "rbac"},
        ],
    });
    let path = directory.path().join("authorization.yaml");
    std::fs::write(&path, config.to_string()).unwrap();
    let server = start(
        directory.path(),
        AccessOptions {
            authorization_config: Some(path),
            ..AccessOptions::default()
        },
    )
    .await;
    assert_eq!(server.client("ann", &[]).get("/api/v1/pods").await.0, 200);
    assert!(asked.lock().unwrap().iter().any(|spec| spec["user"] == "ann"));
    let (code, refused) = server.client("eve", &[]).get("/version").await;
    assert_eq!(
        code, 403,
        "a condition that cannot be evaluated fails as the policy says"
    );
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("no such key: nothing"),
        "{refused}"
    );
    assert!(!asked.lock().unwrap().iter().any(|spec| spec["user"] == "eve"));
    server.handle.shutdown().await;
}

#[tokio::test]
async fn a_file_may_hold_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens.csv");
    std::fs::write(&path, "secret,jane,77,\"dev,ops\"\n").unwrap();
    let options = AccessOptions {
        token_auth_file: Some(path),
        ..AccessOptions::default()
    };
    let server = start(directory.path(), options).await;
    let (code, user) = who(&bearer(&server, "secret")).await;
    assert_eq!(code, 201);
    assert_eq!(
        user,
        json!({"username": "jane", "uid": "77", "groups": ["dev", "ops", "system:authenticated"]})
    );
    assert_eq!(who(&bearer(&server, "other")).await.0, 401);
    server.handle.shutdown().await;
}
