//! Pulls images over the OCI distribution protocol: mirrors first, every byte checked by its digest.

mod auth;

pub use auth::Credentials;

use super::manifest::{self, Descriptor, Document, MANIFEST_TYPES, Manifest};
use super::store::{BlobSource, digest_of};
use super::{ImageError, Reference};
use crate::RegistryMirror;
use crate::state::hex;
use auth::Challenge;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tokio::io::AsyncWriteExt;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{url}: {source}")]
    Request {
        url: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{url}: unexpected status {status}: {body}")]
    Status {
        url: String,
        status: StatusCode,
        body: String,
    },
    #[error("{0}: not found")]
    NotFound(String),
    #[error("pull access denied, repository does not exist or may require authorization: {url}: {status}")]
    Denied { url: String, status: StatusCode },
    #[error("{url} asks for credentials in a way that is not understood: {challenge:?}")]
    Challenge { url: String, challenge: String },
    #[error("{0}: too many redirects")]
    Redirects(String),
    #[error("no certificate authorities to trust: {0}")]
    NoRoots(io::Error),
}

type HttpsClient = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Manifests are small; whatever claims otherwise is not read to the end.
const MAX_MANIFEST: usize = 4 << 20;
const MAX_ERROR_BODY: usize = 4096;
const MAX_REDIRECTS: usize = 5;
const PARALLEL_BLOBS: usize = 3;

/// The one registry whose host is not its name.
const RENAMED: (&str, &str) = ("docker.io", "registry-1.docker.io");

pub struct Registry {
    mirrors: Vec<RegistryMirror>,
    client: Mutex<Option<HttpsClient>>,
}

/// A fetched image: its manifest, and its blobs as files.
pub struct Pulled {
    pub digest: String,
    pub manifest: Manifest,
    pub blobs: FetchedBlobs,
}

pub struct FetchedBlobs(PathBuf);

impl BlobSource for FetchedBlobs {
    fn open(&self, digest: &str) -> Result<Box<dyn Read + '_>, ImageError> {
        let path = blob_path(&self.0, digest);
        File::open(&path)
            .map(|file| Box::new(file) as Box<dyn Read>)
            .map_err(|source| ImageError::Io { path, source })
    }
}

fn blob_path(folder: &Path, digest: &str) -> PathBuf {
    folder.join(digest.strip_prefix("sha256:").unwrap_or(digest))
}

/// A place to fetch from: a base address, and what to add to every query.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    base: String,
    query: String,
}

/// Where to look for a repository, best first.
fn endpoints(host: &str, mirrors: &[RegistryMirror]) -> Vec<Endpoint> {
    let mut all: Vec<Endpoint> = mirrors
        .iter()
        .filter(|mirror| mirror.host == host)
        // A mirror of several registries learns from `ns` which one is meant, as containerd tells it.
        .map(|mirror| Endpoint { base: mirror.url.trim_end_matches('/').to_owned(), query: format!("?ns={}", auth::escape(host)) })
        .collect();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let local = name == "localhost" || name.starts_with("127.") || name == "[::1]";
    let scheme = if local { "http" } else { "https" };
    let host = if host == RENAMED.0 { RENAMED.1 } else { host };
    all.push(Endpoint {
        base: format!("{scheme}://{host}"),
        query: String::new(),
    });
    all
}

impl Registry {
    pub fn new(mirrors: Vec<RegistryMirror>) -> Self {
        Self {
            mirrors,
            client: Mutex::new(None),
        }
    }

    /// Made at the first pull: a machine without certificate authorities can still run its own images.
    fn client(&self) -> Result<HttpsClient, RegistryError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(RegistryError::NoRoots)?
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .build();
        let made: HttpsClient = Client::builder(TokioExecutor::new()).build(connector);
        Ok(client.insert(made).clone())
    }

    /// Fetches an image into a folder, from the first endpoint that has it.
    pub async fn fetch(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        folder: &Path,
    ) -> Result<Pulled, ImageError> {
        tokio::fs::create_dir_all(folder)
            .await
            .map_err(|source| ImageError::Io {
                path: folder.into(),
                source,
            })?;
        let client = self.client()?;
        let mut last = None;
        for endpoint in endpoints(&reference.host, &self.mirrors) {
            let session = Session {
                client: client.clone(),
                endpoint,
                repository: reference.repository.clone(),
                credentials: credentials.clone(),
                authorization: tokio::sync::Mutex::new(None),
            };
            match session.fetch(reference, folder).await {
                Ok(pulled) => return Ok(pulled),
                Err(error) => {
                    tracing::debug!(endpoint = session.endpoint.base, %error, "pull");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| ImageError::Invalid("no endpoint".into())))
    }
}

/// Talks to one endpoint about one repository.
struct Session {
    client: HttpsClient,
    endpoint: Endpoint,
    repository: String,
    credentials: Credentials,
    authorization: tokio::sync::Mutex<Option<String>>,
}

impl Session {
    async fn fetch(&self, reference: &Reference, folder: &Path) -> Result<Pulled, ImageError> {
        let (mut digest, mut bytes) = self.manifest(reference.wanted()).await?;
        // What the user named is what the image is known by, also when it is an index.
        let named = digest.clone();
        let mut manifest = None;
        for _ in 0..MAX_REDIRECTS {
            match manifest::parse(&digest, &bytes)? {
                Document::Manifest(found) => {
                    manifest = Some(found);
                    break;
                }
                Document::Index { manifests } => {
                    let chosen = manifest::choose(&manifests, manifest::architecture()).ok_or_else(|| {
                        ImageError::Invalid(format!(
                            "no match for platform linux/{} in manifest",
                            manifest::architecture()
                        ))
                    })?;
                    (digest, bytes) = self.manifest(&chosen.digest).await?;
                }
            }
        }
        let manifest = manifest.ok_or_else(|| ImageError::Invalid("indexes nested too deeply".into()))?;
        let blobs: BTreeMap<&str, &Descriptor> = manifest
            .layers
            .iter()
            .chain([&manifest.config])
            .map(|blob| (blob.digest.as_str(), blob))
            .collect();
        let downloads: Vec<_> = blobs
            .into_values()
            .map(|blob| self.blob(blob, folder).boxed())
            .collect();
        futures::stream::iter(downloads)
            .buffer_unordered(PARALLEL_BLOBS)
            .try_collect::<()>()
            .await?;
        Ok(Pulled {
            digest: named,
            manifest,
            blobs: FetchedBlobs(folder.to_path_buf()),
        })
    }

    /// A manifest and its digest, which must be the one asked for, if one was.
    async fn manifest(&self, wanted: &str) -> Result<(String, Vec<u8>), ImageError> {
        let response = self.get(&format!("manifests/{wanted}"), MANIFEST_TYPES).await?;
        let bytes = Limited::new(response.into_body(), MAX_MANIFEST)
            .collect()
            .await
            .map_err(|source| RegistryError::Request {
                url: format!("{}/{wanted}", self.endpoint.base),
                source,
            })?;
        let bytes = bytes.to_bytes().to_vec();
        let digest = digest_of(&bytes);
        if super::reference::is_digest(wanted) && digest != wanted {
            return Err(ImageError::DigestMismatch {
                what: "manifest".into(),
                expected: wanted.into(),
                actual: digest,
            });
        }
        Ok((digest, bytes))
    }

    async fn blob(&self, blob: &Descriptor, folder: &Path) -> Result<(), ImageError> {
        if !super::reference::is_digest(&blob.digest) {
            return Err(ImageError::Invalid(format!(
                "{:?} is not a sha256 digest",
                blob.digest
            )));
        }
        let mut body = self
            .get(&format!("blobs/{}", blob.digest), "*/*")
            .await?
            .into_body();
        let path = blob_path(folder, &blob.digest);
        let at = |source| ImageError::Io {
            path: path.clone(),
            source,
        };
        let mut file = tokio::fs::File::create(&path).await.map_err(at)?;
        let mut hash = Sha256::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|source| RegistryError::Request {
                url: blob.digest.clone(),
                source: source.into(),
            })?;
            if let Ok(bytes) = frame.into_data() {
                hash.update(&bytes);
                file.write_all(&bytes).await.map_err(at)?;
            }
        }
        file.flush().await.map_err(at)?;
        let actual = format!("sha256:{}", hex(&hash.finalize()));
        if actual != blob.digest {
            return Err(ImageError::DigestMismatch {
                what: "blob".into(),
                expected: blob.digest.clone(),
                actual,
            });
        }
        Ok(())
    }

    /// A successful answer, after authentication and redirects.
    async fn get(&self, path: &str, accept: &str) -> Result<Response<Incoming>, RegistryError> {
        let mut url = format!(
            "{}/v2/{}/{path}{}",
            self.endpoint.base, self.repository, self.endpoint.query
        );
        let mut authorization = self.authorization.lock().await.clone();
        let mut asked = false;
        for _ in 0..MAX_REDIRECTS {
            let response = self.request(&url, accept, authorization.as_deref()).await?;
            let status = response.status();
            match status {
                StatusCode::OK => return Ok(response),
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    authorization = Some(self.authenticate(&url, &response).await?);
                    self.authorization.lock().await.clone_from(&authorization);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(RegistryError::Denied { url, status });
                }
                StatusCode::NOT_FOUND => return Err(RegistryError::NotFound(url)),
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
                    let body = Limited::new(response.into_body(), MAX_ERROR_BODY).collect().await;
                    let body = body
                        .map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned())
                        .unwrap_or_default();
                    return Err(RegistryError::Status { url, status, body });
                }
            }
        }
        Err(RegistryError::Redirects(url))
    }

    async fn request(
        &self,
        url: &str,
        accept: &str,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| RegistryError::Request {
            url: url.to_owned(),
            source,
        };
        let mut request = Request::get(url)
            .header(header::ACCEPT, accept)
            .header(header::USER_AGENT, concat!("ironlet/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request.body(Empty::new()).map_err(|error| failed(error.into()))?;
        self.client
            .request(request)
            .await
            .map_err(|error| failed(causes(&error).into()))
    }

    /// Answers a challenge: with the password, or with a token from where the registry points.
    async fn authenticate(&self, url: &str, response: &Response<Incoming>) -> Result<String, RegistryError> {
        if !self.credentials.registry_token.is_empty() {
            return Ok(format!("Bearer {}", self.credentials.registry_token));
        }
        let header = response
            .headers()
            .get(header::WWW_AUTHENTICATE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let basic = self.credentials.basic();
        match auth::parse(header) {
            Some(Challenge::Basic) => basic.ok_or_else(|| RegistryError::Denied {
                url: url.to_owned(),
                status: response.status(),
            }),
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => {
                let address = auth::token_url(&realm, service.as_deref(), scope.as_deref(), &self.repository);
                let answer = self
                    .request(&address, "application/json", basic.as_deref())
                    .await?;
                let status = answer.status();
                if status != StatusCode::OK {
                    return Err(RegistryError::Denied { url: address, status });
                }
                let failed = |source| RegistryError::Request {
                    url: address.clone(),
                    source,
                };
                let body = Limited::new(answer.into_body(), MAX_MANIFEST)
                    .collect()
                    .await
                    .map_err(failed)?
                    .to_bytes();
                let token: Token = serde_json::from_slice(&body).map_err(|error| failed(error.into()))?;
                Ok(format!(
                    "Bearer {}",
                    token.token.or(token.access_token).unwrap_or_default()
                ))
            }
            None => Err(RegistryError::Challenge {
                url: url.to_owned(),
                challenge: header.to_owned(),
            }),
        }
    }
}

#[derive(serde::Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// hyper's errors keep their reason in their source.
fn causes(error: &dyn std::error::Error) -> String {
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
    fn mirrors_come_before_the_registry_itself() {
        let mirrors = [
            RegistryMirror {
                host: "docker.io".into(),
                url: "http://mirror:5000/".into(),
            },
            RegistryMirror {
                host: "quay.io".into(),
                url: "http://other".into(),
            },
        ];
        let bases = |host: &str| {
            endpoints(host, &mirrors)
                .into_iter()
                .map(|e| e.base + &e.query)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            bases("docker.io"),
            ["http://mirror:5000?ns=docker.io", "https://registry-1.docker.io"]
        );
        assert_eq!(bases("ghcr.io"), ["https://ghcr.io"]);
        assert_eq!(bases("localhost:5000"), ["http://localhost:5000"]);
        assert_eq!(bases("127.0.0.1:1"), ["http://127.0.0.1:1"]);
    }

    #[test]
    fn redirects_stay_or_leave() {
        let to = |location: &str| {
            let response = Response::builder().header("location", location).body(()).unwrap();
            redirect("https://a:1/v2/x", &response)
        };
        assert_eq!(to("/y").as_deref(), Some("https://a:1/y"));
        assert_eq!(to("https://b/z").as_deref(), Some("https://b/z"));
    }
}
