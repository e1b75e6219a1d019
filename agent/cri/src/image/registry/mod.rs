//! Pulls images over the OCI distribution protocol: mirrors first, every byte checked by its digest.

mod auth;
mod blobs;
mod session;

pub use auth::Credentials;
pub use blobs::FetchedBlobs;

use super::manifest::{self, Configuration, Descriptor, Document, MANIFEST_TYPES, Manifest};
use super::store::digest_of;
use super::{ImageError, Reference};
use crate::RegistryMirror;
use crate::state::hex;
use blobs::{Blobs, Slot};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use session::{ATTEMPTS, SILENCE, Session};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// What went wrong with a registry, in containerd's words where it has some.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("failed to do request: {method} {url:?}: {source}")]
    Request {
        method: Method,
        url: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody listens, no such name, not trusted: nothing that passes while a pull waits.
    #[error("failed to do request: {method} {url:?}: {message}")]
    Connect {
        method: Method,
        url: String,
        message: String,
    },
    #[error("unexpected status from GET request to {url}: {status}: {body}")]
    Status {
        url: String,
        status: StatusCode,
        body: String,
    },
    #[error("not found")]
    NotFound,
    #[error(
        "pull access denied, repository does not exist or may require authorization: authorization failed: {0}"
    )]
    Denied(String),
    #[error(
        "failed to authorize: failed to fetch oauth token: unexpected status from {method} request to {url}: {status}"
    )]
    Token {
        method: Method,
        url: String,
        status: StatusCode,
    },
    #[error("the registry asks for credentials in a way that is not understood: {0:?}")]
    Challenge(String),
    #[error("{0}: too many redirects")]
    Redirects(String),
    #[error("{0}: no answer within {SILENCE:?}")]
    Silent(String),
    #[error("{digest}: the registry sends more than the {size} bytes of the manifest")]
    TooLong { digest: String, size: u64 },
    #[error("no certificate authorities to trust: {0}")]
    NoRoots(io::Error),
}

type HttpsClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

const PARALLEL_BLOBS: usize = 3;
const CONNECT: Duration = Duration::from_secs(30);
/// How deep indexes may point to indexes.
const MAX_NESTING: usize = 4;

/// The one registry whose host is not its name.
const RENAMED: (&str, &str) = ("docker.io", "registry-1.docker.io");

pub struct Registry {
    mirrors: Vec<RegistryMirror>,
    client: Mutex<Option<HttpsClient>>,
    blobs: Blobs,
}

/// A fetched image: its manifest, and its blobs as files.
pub struct Pulled {
    pub digest: String,
    pub manifest: Manifest,
    pub blobs: FetchedBlobs,
}

/// A base address, and what to add to every query.
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
            blobs: Blobs::default(),
        }
    }

    /// Made at the first pull: a machine without certificate authorities can still run its own images.
    fn client(&self) -> Result<HttpsClient, RegistryError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(RegistryError::NoRoots)?
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(http);
        let made: HttpsClient = Client::builder(TokioExecutor::new()).build(connector);
        Ok(client.insert(made).clone())
    }

    /// Fetches what is missing of an image, from the first endpoint that has it. `have` knows the diff IDs
    /// of layers that need not be fetched.
    pub async fn fetch(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        folder: &Path,
        have: &(dyn Fn(&str) -> bool + Send + Sync),
    ) -> Result<Pulled, ImageError> {
        let client = self.client()?;
        let mut told: Option<ImageError> = None;
        for endpoint in endpoints(&reference.host, &self.mirrors) {
            let session = Session {
                client: client.clone(),
                endpoint,
                repository: reference.repository.clone(),
                credentials: credentials.clone(),
                authorization: tokio::sync::Mutex::new(None),
            };
            match self.fetch_from(&session, reference, folder, have).await {
                Ok(pulled) => return Ok(pulled),
                Err(error) => {
                    tracing::debug!(endpoint = session.endpoint.base, %error, "pull");
                    // A mirror's bad answer says more than that the registry cannot be reached either.
                    if !told.as_ref().is_some_and(ImageError::is_fault) {
                        told = Some(error);
                    }
                }
            }
        }
        Err(told.unwrap_or_else(|| ImageError::Invalid("no endpoint".into())))
    }

    async fn fetch_from(
        &self,
        session: &Session,
        reference: &Reference,
        folder: &Path,
        have: &(dyn Fn(&str) -> bool + Send + Sync),
    ) -> Result<Pulled, ImageError> {
        let unresolved = |error: ImageError| ImageError::Unresolved {
            reference: reference.to_string(),
            missing: matches!(error, ImageError::Registry(RegistryError::NotFound)),
            source: Box::new(error),
        };
        let (named, first) = manifest_of(session, reference.wanted())
            .await
            .map_err(unresolved)?;
        let manifest = choose_manifest(session, &named, first).await?;
        let config = self.blob(session, &manifest.config, folder).await?;
        let bytes = tokio::fs::read(&config.path)
            .await
            .map_err(|source| ImageError::Io {
                path: config.path.clone(),
                source,
            })?;
        let configuration: Configuration = manifest::parse("image configuration", &bytes)?;
        let missing: BTreeMap<&str, &Descriptor> = manifest
            .layers
            .iter()
            .enumerate()
            .filter(|(index, _)| {
                !configuration
                    .rootfs
                    .diff_ids
                    .get(*index)
                    .is_some_and(|id| have(id))
            })
            .map(|(_, layer)| (layer.digest.as_str(), layer))
            .collect();
        let downloads: Vec<_> = missing
            .into_values()
            .map(|layer| {
                async move {
                    Ok::<_, ImageError>((layer.digest.clone(), self.blob(session, layer, folder).await?))
                }
                .boxed()
            })
            .collect();
        let mut slots: BTreeMap<String, Arc<Slot>> = futures::stream::iter(downloads)
            .buffer_unordered(PARALLEL_BLOBS)
            .try_collect()
            .await?;
        slots.insert(manifest.config.digest.clone(), config);
        Ok(Pulled {
            digest: named,
            manifest,
            blobs: FetchedBlobs(slots),
        })
    }

    /// A whole, verified blob: fetched here, or by another pull that wanted it first.
    async fn blob(
        &self,
        session: &Session,
        blob: &Descriptor,
        folder: &Path,
    ) -> Result<Arc<Slot>, ImageError> {
        if !super::reference::is_digest(&blob.digest) {
            return Err(ImageError::Invalid(format!(
                "{:?} is not a sha256 digest",
                blob.digest
            )));
        }
        let slot = self.blobs.slot(folder, &blob.digest)?;
        let mut whole = slot.whole.lock().await;
        if !*whole {
            download(session, blob, &slot.path).await?;
            *whole = true;
        }
        drop(whole);
        Ok(slot)
    }
}

/// A manifest and its digest, which must be the one asked for, if one was.
async fn manifest_of(session: &Session, wanted: &str) -> Result<(String, Bytes), ImageError> {
    let bytes = session
        .document(&format!("manifests/{wanted}"), MANIFEST_TYPES)
        .await?;
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

/// Follows indexes to the manifest of this platform.
async fn choose_manifest(session: &Session, digest: &str, bytes: Bytes) -> Result<Manifest, ImageError> {
    let (mut digest, mut bytes) = (digest.to_owned(), bytes);
    for _ in 0..MAX_NESTING {
        match manifest::parse(&digest, &bytes)? {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index { manifests } => {
                let chosen = manifest::choose(&manifests, manifest::architecture())
                    .ok_or(ImageError::NoPlatform(manifest::architecture()))?;
                (digest, bytes) = manifest_of(session, &chosen.digest).await?;
            }
        }
    }
    Err(ImageError::Invalid("indexes nested too deeply".into()))
}

/// Fetches a blob; a connection that breaks is taken up where it broke.
async fn download(session: &Session, blob: &Descriptor, path: &Path) -> Result<(), ImageError> {
    let at = |source| ImageError::Io {
        path: path.into(),
        source,
    };
    // Made here and not by another thread, which would go on after a pull is given up and its slot is gone.
    let mut file = tokio::fs::File::from_std(std::fs::File::create(path).map_err(at)?);
    let mut hash = Sha256::new();
    let (mut received, mut attempt) = (0u64, 0);
    loop {
        let before = received;
        let error = match piece(session, blob, &mut file, &mut hash, &mut received).await {
            Ok(()) => break,
            Err(error) => error,
        };
        let broken = matches!(
            error,
            ImageError::Registry(RegistryError::Request { .. } | RegistryError::Silent(_))
        );
        // Progress earns new patience: only a registry that sends nothing is given up.
        attempt = if received > before { 0 } else { attempt + 1 };
        if !broken || attempt >= ATTEMPTS {
            return Err(error);
        }
        tracing::info!(digest = blob.digest, received, %error, "taking up a broken download");
        session::pause(attempt).await;
    }
    file.flush().await.map_err(at)?;
    let actual = format!("sha256:{}", hex(&hash.finalize()));
    if actual == blob.digest {
        Ok(())
    } else {
        Err(ImageError::DigestMismatch {
            what: "blob".into(),
            expected: blob.digest.clone(),
            actual,
        })
    }
}

/// Receives from `received` on until the end or a fault.
async fn piece(
    session: &Session,
    blob: &Descriptor,
    file: &mut tokio::fs::File,
    hash: &mut Sha256,
    received: &mut u64,
) -> Result<(), ImageError> {
    use std::io::SeekFrom;
    use tokio::io::AsyncSeekExt;
    let at = |source| ImageError::Io {
        path: blob.digest.clone().into(),
        source,
    };
    let path = format!("blobs/{}", blob.digest);
    let response = session.get(&path, "*/*", *received).await?;
    if *received > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        // This registry starts from the beginning, and so must the file.
        (*received, *hash) = (0, Sha256::new());
        file.set_len(0).await.map_err(at)?;
        file.seek(SeekFrom::Start(0)).await.map_err(at)?;
    }
    let mut body = response.into_body();
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame())
            .await
            .map_err(|_| RegistryError::Silent(blob.digest.clone()))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| RegistryError::Request {
            method: Method::GET,
            url: path.clone(),
            source: session::causes(&error).into(),
        })?;
        if let Ok(bytes) = frame.into_data() {
            *received += bytes.len() as u64;
            if blob.size > 0 && *received > blob.size {
                return Err(RegistryError::TooLong {
                    digest: blob.digest.clone(),
                    size: blob.size,
                }
                .into());
            }
            hash.update(&bytes);
            file.write_all(&bytes).await.map_err(at)?;
        }
    }
    // What tokio holds back may yet fail: a full disk must not pass for a whole blob.
    file.flush().await.map_err(at)
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
}
