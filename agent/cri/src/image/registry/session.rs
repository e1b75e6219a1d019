//! One endpoint's answers about one repository: redirects, challenges, and patience with passing faults.

use super::auth::{self, Challenge};
use super::{Credentials, Endpoint, HttpsClient, RegistryError};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use std::time::Duration;

pub const MAX_REDIRECTS: usize = 5;
/// Manifests are small; whatever claims otherwise is not read to the end.
const MAX_MANIFEST: usize = 4 << 20;
const MAX_ERROR_BODY: usize = 4096;
/// How often a request is tried, and the first pause between two tries; it doubles.
pub const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
/// A registry that says nothing for so long will say nothing more.
pub const SILENCE: Duration = Duration::from_secs(60);

pub struct Session {
    pub client: HttpsClient,
    pub endpoint: Endpoint,
    pub repository: String,
    pub credentials: Credentials,
    pub authorization: tokio::sync::Mutex<Option<String>>,
}

/// Whether asking again may help.
fn passing(error: &RegistryError) -> bool {
    match error {
        RegistryError::Request { .. } | RegistryError::Silent(_) => true,
        RegistryError::Status { status, .. } => {
            status.is_server_error()
                || matches!(
                    *status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                )
        }
        _ => false,
    }
}

pub async fn pause(attempt: u32) {
    tokio::time::sleep(PAUSE * 2u32.saturating_pow(attempt)).await;
}

impl Session {
    /// A small document, whole.
    pub async fn document(&self, path: &str, accept: &str) -> Result<Bytes, RegistryError> {
        let response = self.get(path, accept, 0).await?;
        Limited::new(response.into_body(), MAX_MANIFEST)
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .map_err(|source| RegistryError::Request {
                method: Method::GET,
                url: self.url(path),
                source,
            })
    }

    fn url(&self, path: &str) -> String {
        format!(
            "{}/v2/{}/{path}{}",
            self.endpoint.base, self.repository, self.endpoint.query
        )
    }

    /// A successful answer, from byte `offset` on when the registry can; after retries.
    pub async fn get(
        &self,
        path: &str,
        accept: &str,
        offset: u64,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut attempt = 0;
        loop {
            match self.get_once(path, accept, offset).await {
                Err(error) if passing(&error) && attempt + 1 < ATTEMPTS => {
                    tracing::debug!(%error, attempt, "asking the registry again");
                    pause(attempt).await;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn get_once(
        &self,
        path: &str,
        accept: &str,
        offset: u64,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut url = self.url(path);
        let mut authorization = self.authorization.lock().await.clone();
        let mut asked = false;
        for _ in 0..MAX_REDIRECTS {
            let mut request = Request::get(&url).header(header::ACCEPT, accept);
            if offset > 0 {
                request = request.header(header::RANGE, format!("bytes={offset}-"));
            }
            if let Some(authorization) = &authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            let response = self.request(&url, request, Bytes::new()).await?;
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    authorization = Some(self.authenticate(&response).await?);
                    self.authorization.lock().await.clone_from(&authorization);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    let told = message_of(&body_of(response).await);
                    return Err(RegistryError::Denied(told.unwrap_or_else(|| {
                        format!("unexpected status from GET request to {url}: {status}")
                    })));
                }
                StatusCode::NOT_FOUND => return Err(RegistryError::NotFound),
                _ if status.is_redirection() => {
                    let target =
                        redirect(&url, &response).ok_or_else(|| RegistryError::Redirects(url.clone()))?;
                    // Credentials are for the registry alone, not for where it keeps its blobs.
                    if authority(&target) != authority(&url) {
                        authorization = None;
                    }
                    url = target;
                }
                _ => {
                    let body = body_of(response).await;
                    return Err(RegistryError::Status { url, status, body });
                }
            }
        }
        Err(RegistryError::Redirects(url))
    }

    async fn request(
        &self,
        url: &str,
        request: http::request::Builder,
        body: Bytes,
    ) -> Result<Response<Incoming>, RegistryError> {
        let method = request.method_ref().cloned().unwrap_or_default();
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| RegistryError::Request {
            method: method.clone(),
            url: url.to_owned(),
            source,
        };
        let request = request
            .header(header::USER_AGENT, concat!("ironlet/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| failed(error.into()))?;
        tokio::time::timeout(SILENCE, self.client.request(request))
            .await
            .map_err(|_| RegistryError::Silent(url.to_owned()))?
            .map_err(|error| match error.is_connect() {
                true => RegistryError::Connect {
                    method: method.clone(),
                    url: url.to_owned(),
                    message: causes(&error),
                },
                false => failed(causes(&error).into()),
            })
    }

    /// Answers a challenge: with the password, or with a token from where the registry points.
    async fn authenticate(&self, response: &Response<Incoming>) -> Result<String, RegistryError> {
        if !self.credentials.registry_token.is_empty() {
            return Ok(format!("Bearer {}", self.credentials.registry_token));
        }
        let header = response
            .headers()
            .get(header::WWW_AUTHENTICATE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        match auth::parse(header) {
            Some(Challenge::Basic) => self
                .credentials
                .basic()
                .ok_or_else(|| RegistryError::Denied("no basic auth credentials".into())),
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => self.token(&realm, service.as_deref(), scope.as_deref()).await,
            None => Err(RegistryError::Challenge(header.to_owned())),
        }
    }

    /// A bearer token: asked for anonymously, with a password, or with a refresh token (OAuth 2).
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, RegistryError> {
        let refresh = &self.credentials.identity_token;
        let (address, request, form) = if refresh.is_empty() {
            let address = auth::token_url(realm, service, scope, &self.repository);
            let mut request = Request::get(&address).header(header::ACCEPT, "application/json");
            if let Some(basic) = self.credentials.basic() {
                request = request.header(header::AUTHORIZATION, basic);
            }
            (address, request, String::new())
        } else {
            let request = Request::post(realm)
                .header(header::ACCEPT, "application/json")
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
            let form = auth::refresh_form(refresh, service, scope, &self.repository);
            (realm.to_owned(), request, form)
        };
        let method = request.method_ref().cloned().unwrap_or_default();
        let answer = self.request(&address, request, form.into()).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_MANIFEST).collect().await;
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| RegistryError::Request {
            method: method.clone(),
            url: address.clone(),
            source,
        };
        if status != StatusCode::OK {
            return Err(RegistryError::Token {
                method,
                url: address,
                status,
            });
        }
        let body = body.map_err(&failed)?.to_bytes();
        let token: Token = serde_json::from_slice(&body).map_err(|error| failed(error.into()))?;
        let token = token
            .token
            .or(token.access_token)
            .filter(|token| !token.is_empty());
        token
            .map(|token| format!("Bearer {token}"))
            .ok_or_else(|| RegistryError::Denied("the token server gives no token".into()))
    }
}

async fn body_of(response: Response<Incoming>) -> String {
    let body = Limited::new(response.into_body(), MAX_ERROR_BODY).collect().await;
    body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned())
        .unwrap_or_default()
}

/// What a registry's error document says (distribution spec, "Error Codes").
fn message_of(body: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        code: String,
        #[serde(default)]
        message: String,
    }
    let document: Document = serde_json::from_str(body).ok()?;
    let first = document.errors.first()?;
    Some(format!("{}: {}", first.code.to_lowercase(), first.message))
}

#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// hyper's errors keep their reason in their source.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn authority(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

/// Where a redirect leads, absolute or on the same host.
fn redirect<B>(url: &str, response: &Response<B>) -> Option<String> {
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    if location.starts_with('/') {
        Some(authority(url)? + location)
    } else {
        Some(location.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_or_leave() {
        let to = |location: &str| {
            let response = Response::builder().header("location", location).body(()).unwrap();
            redirect("https://a:1/v2/x", &response)
        };
        assert_eq!(to("/y").as_deref(), Some("https://a:1/y"));
        assert_eq!(to("https://b/z").as_deref(), Some("https://b/z"));
    }

    #[test]
    fn only_passing_faults_are_tried_again() {
        let status = |code: u16| RegistryError::Status {
            url: String::new(),
            status: StatusCode::from_u16(code).unwrap(),
            body: String::new(),
        };
        for (error, expected) in [
            (status(500), true),
            (status(503), true),
            (status(429), true),
            (status(400), false),
            (RegistryError::NotFound, false),
            (RegistryError::Denied(String::new()), false),
            (RegistryError::Silent(String::new()), true),
        ] {
            assert_eq!(passing(&error), expected, "{error:?}");
        }
    }

    #[test]
    fn the_registrys_own_words_are_kept() {
        let body = r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
        assert_eq!(
            message_of(body).as_deref(),
            Some("denied: requested access to the resource is denied")
        );
        assert_eq!(message_of("<html>"), None);
    }
}
