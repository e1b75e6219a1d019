//! An image to upgrade to: what `image build` wrote to a directory, there or behind a URL.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

const MANIFEST: &str = "manifest.json";
const SIGNATURE: &str = "manifest.json.minisig";

/// Where a manifest has the system, best first: what media bring has the drivers of servers.
const LAYOUTS: [[&str; 2]; 2] = [["pxe/vmlinuz", "pxe/initramfs"], ["vmlinuz", "initramfs"]];

#[derive(Debug, Error)]
pub enum ImageError {
    #[error("{path}: {error}")]
    File { path: PathBuf, error: std::io::Error },
    #[error("{url}: {reason}")]
    Http { url: String, reason: String },
    #[error("{0}: {1}")]
    Manifest(String, serde_json::Error),
    #[error(
        "{0} names no system to upgrade to: build the image with --format pxe (or kernel, for virtual machines)"
    )]
    NoSystem(String),
}

pub enum Source {
    Directory(PathBuf),
    /// Without a slash at its end.
    Url(String),
}

#[derive(Deserialize)]
struct Manifest {
    files: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    name: String,
    size: u64,
}

pub struct Image {
    pub manifest: Vec<u8>,
    /// Empty when there is none.
    pub signature: String,
    /// Kernel and initramfs, as the manifest names them.
    pub names: [&'static str; 2],
    pub size: u64,
}

pub type Stream = Pin<Box<dyn AsyncRead + Send>>;

impl Source {
    pub fn parse(text: &str) -> Self {
        if text.starts_with("https://") || text.starts_with("http://") {
            Self::Url(text.trim_end_matches('/').to_owned())
        } else {
            Self::Directory(PathBuf::from(text))
        }
    }

    fn place(&self, name: &str) -> String {
        match self {
            Self::Directory(path) => path.join(name).display().to_string(),
            Self::Url(url) => format!("{url}/{name}"),
        }
    }

    pub async fn image(&self) -> Result<Image, ImageError> {
        let manifest = self.read(MANIFEST).await?.ok_or_else(|| self.missing(MANIFEST))?;
        let signature = self.read(SIGNATURE).await?.unwrap_or_default();
        let place = || self.place(MANIFEST);
        let (names, size) = system(&manifest)
            .map_err(|error| ImageError::Manifest(place(), error))?
            .ok_or_else(|| ImageError::NoSystem(place()))?;
        Ok(Image {
            manifest,
            signature: String::from_utf8_lossy(&signature).into_owned(),
            names,
            size,
        })
    }

    fn missing(&self, name: &str) -> ImageError {
        match self {
            Self::Directory(path) => ImageError::File {
                path: path.join(name),
                error: std::io::ErrorKind::NotFound.into(),
            },
            Self::Url(_) => ImageError::Http {
                url: self.place(name),
                reason: "not found".to_owned(),
            },
        }
    }

    async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(mut stream) = self.find(name).await? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        stream
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| ImageError::File {
                path: PathBuf::from(self.place(name)),
                error,
            })?;
        Ok(Some(bytes))
    }

    pub async fn open(&self, name: &str) -> Result<Stream, ImageError> {
        self.find(name).await?.ok_or_else(|| self.missing(name))
    }

    /// None when there is no such file.
    async fn find(&self, name: &str) -> Result<Option<Stream>, ImageError> {
        match self {
            Self::Directory(directory) => file(&directory.join(name)).await,
            Self::Url(_) => fetch(&self.place(name)).await,
        }
    }
}

async fn file(path: &Path) -> Result<Option<Stream>, ImageError> {
    match tokio::fs::File::open(path).await {
        Ok(file) => Ok(Some(Box::pin(file))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ImageError::File {
            path: path.to_owned(),
            error,
        }),
    }
}

async fn fetch(url: &str) -> Result<Option<Stream>, ImageError> {
    let failed = |reason: String| ImageError::Http {
        url: url.to_owned(),
        reason,
    };
    let tls = hyper_rustls::HttpsConnectorBuilder::new()
        .with_native_roots()
        .map_err(|error| failed(error.to_string()))?;
    let connector = tls.https_or_http().enable_http1().build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let uri = url.parse().map_err(|_| failed("not a URL".to_owned()))?;
    let response = client.get(uri).await;
    let response = response.map_err(|error| failed(api_client::innermost(&error)))?;
    match response.status() {
        status if status.is_success() => {}
        http::StatusCode::NOT_FOUND => return Ok(None),
        status => return Err(failed(status.to_string())),
    }
    let (mut writer, reader) = tokio::io::duplex(1 << 20);
    let mut body = response.into_body();
    tokio::spawn(async move {
        while let Some(Ok(frame)) = body.frame().await {
            if let Ok(data) = frame.into_data()
                && tokio::io::AsyncWriteExt::write_all(&mut writer, &data)
                    .await
                    .is_err()
            {
                return;
            }
        }
    });
    Ok(Some(Box::pin(reader)))
}

/// The files of the system that a manifest names, and their size together.
fn system(manifest: &[u8]) -> Result<Option<([&'static str; 2], u64)>, serde_json::Error> {
    let manifest: Manifest = serde_json::from_slice(manifest)?;
    let size = |name: &str| {
        let found = manifest.files.iter().find(|file| file.name == name);
        found.map(|file| file.size)
    };
    let sum = |names: &[&str; 2]| Some(size(names[0])? + size(names[1])?);
    Ok(LAYOUTS.into_iter().find_map(|names| Some((names, sum(&names)?))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_servers_boot_goes_first() {
        let manifest = |names: &[&str]| {
            let files: Vec<String> = names
                .iter()
                .map(|name| format!(r#"{{"name":"{name}","size":5}}"#))
                .collect();
            format!(r#"{{"files":[{}]}}"#, files.join(",")).into_bytes()
        };
        let both = manifest(&["vmlinuz", "initramfs", "pxe/vmlinuz", "pxe/initramfs"]);
        assert_eq!(system(&both).unwrap(), Some((LAYOUTS[0], 10)));
        let kernel = manifest(&["vmlinuz", "initramfs", "pxe/vmlinuz"]);
        assert_eq!(system(&kernel).unwrap(), Some((LAYOUTS[1], 10)));
        assert_eq!(system(&manifest(&["ironlet.iso"])).unwrap(), None);
        assert!(system(b"{").is_err());
    }

    #[test]
    fn places() {
        assert_eq!(Source::parse("https://h/i/").place("a"), "https://h/i/a");
        assert_eq!(Source::parse("/i").place("pxe/a"), "/i/pxe/a");
    }
}
