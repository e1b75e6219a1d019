//! Imports OCI archives (`oci-layout` in a tar, perhaps zstd-compressed): images that come with the machine.

use super::manifest::{self, Descriptor, Document};
use super::store::{BlobSource, ImageStore, digest_of};
use super::{ImageError, Reference};
use crate::state::{self, new_id, remove_tree};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Annotations that name an image in an archive's index, best first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// What an imported file looked like; the same file is not read twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    modified: i64,
    images: Vec<String>,
}

/// Imports every archive of the folder; one bad archive does not keep the others out.
pub fn import_all(store: &ImageStore, folder: &Path) -> Result<(), ImageError> {
    let at = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ImageError::Io { path, source }
    };
    let stamps_path = store.layout().imports();
    let mut stamps: BTreeMap<PathBuf, Stamp> = state::load(&stamps_path)?.unwrap_or_default();
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(at(folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    paths.retain(|path| {
        path.to_str()
            .is_some_and(|path| path.ends_with(".tar") || path.ends_with(".tar.zst"))
    });
    paths.sort();
    for path in paths {
        let metadata = fs::metadata(&path).map_err(at(&path))?;
        let modified = std::os::unix::fs::MetadataExt::mtime(&metadata);
        let known = stamps.get(&path).is_some_and(|stamp| {
            stamp.size == metadata.len()
                && stamp.modified == modified
                && stamp.images.iter().all(|id| store.get(id).is_some())
        });
        if known {
            continue;
        }
        match import(store, &path) {
            Ok(images) => {
                tracing::info!(archive = %path.display(), images = images.len(), "imported images");
                stamps.insert(
                    path,
                    Stamp {
                        size: metadata.len(),
                        modified,
                        images,
                    },
                );
                state::save(&stamps_path, &stamps)?;
            }
            Err(error) => tracing::error!(archive = %path.display(), %error, "cannot import images"),
        }
    }
    Ok(())
}

/// Imports one archive and returns the IDs of its images.
pub fn import(store: &ImageStore, path: &Path) -> Result<Vec<String>, ImageError> {
    let at = |source| ImageError::Io {
        path: path.to_path_buf(),
        source,
    };
    let folder = store.layout().temporary().join(new_id().map_err(at)?);
    fs::create_dir_all(&folder).map_err(at)?;
    let result = extract(path, &folder).and_then(|()| {
        register(
            store,
            &ArchiveBlobs {
                folder: folder.clone(),
            },
        )
    });
    remove_tree(&folder).map_err(at)?;
    result
}

/// Takes `index.json` and the blobs out of the archive; nothing else is looked at.
fn extract(path: &Path, folder: &Path) -> Result<(), ImageError> {
    let at = |source| ImageError::Io {
        path: path.to_path_buf(),
        source,
    };
    let stream = super::unpack::decompressed(File::open(path).map_err(at)?).map_err(at)?;
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries().map_err(at)? {
        let mut entry = entry.map_err(at)?;
        let name = entry
            .path()
            .map_err(at)?
            .to_string_lossy()
            .trim_start_matches("./")
            .to_owned();
        let target = match name.strip_prefix("blobs/sha256/") {
            Some(hex) if super::reference::is_hex64(hex) => folder.join(hex),
            _ if name == "index.json" => folder.join("index.json"),
            _ => continue,
        };
        let mut file = File::create(&target).map_err(at)?;
        io::copy(&mut entry, &mut file).map_err(at)?;
    }
    Ok(())
}

fn register(store: &ImageStore, blobs: &ArchiveBlobs) -> Result<Vec<String>, ImageError> {
    let path = blobs.folder.join("index.json");
    let index = fs::read(&path).map_err(|source| ImageError::Io { path, source })?;
    let Document::Index { manifests } = manifest::parse("index.json", &index)? else {
        return Err(ImageError::Invalid("index.json holds no manifests".into()));
    };
    let mut images = Vec::new();
    for descriptor in manifests {
        let names: Vec<Reference> = NAME_ANNOTATIONS
            .iter()
            .filter_map(|key| descriptor.annotations.get(*key))
            .filter_map(|name| Reference::parse(name).ok())
            .take(1)
            .collect();
        let Some(manifest) = resolve(blobs, &descriptor)? else {
            continue;
        };
        images.push(store.add(blobs, &descriptor.digest, &manifest, &names, true)?);
    }
    if images.is_empty() {
        return Err(ImageError::Invalid(format!(
            "no image for linux/{}",
            manifest::architecture()
        )));
    }
    Ok(images)
}

/// Follows nested indexes to the manifest of this platform.
fn resolve(blobs: &ArchiveBlobs, descriptor: &Descriptor) -> Result<Option<manifest::Manifest>, ImageError> {
    let bytes = blobs.read(&descriptor.digest)?;
    match manifest::parse(&descriptor.digest, &bytes)? {
        Document::Manifest(manifest) => Ok(Some(manifest)),
        Document::Index { manifests } => manifest::choose(&manifests, manifest::architecture())
            .map_or(Ok(None), |inner| resolve(blobs, inner)),
    }
}

struct ArchiveBlobs {
    folder: PathBuf,
}

impl BlobSource for ArchiveBlobs {
    fn open(&self, digest: &str) -> Result<Box<dyn Read + '_>, ImageError> {
        let path = self.folder.join(digest.strip_prefix("sha256:").unwrap_or(digest));
        File::open(&path)
            .map(|file| Box::new(file) as Box<dyn Read>)
            .map_err(|source| ImageError::Io { path, source })
    }
}

impl ArchiveBlobs {
    fn read(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        let path = self.folder.clone();
        self.open(digest)?
            .read_to_end(&mut bytes)
            .map_err(|source| ImageError::Io { path, source })?;
        let actual = digest_of(&bytes);
        if actual != digest {
            return Err(ImageError::DigestMismatch {
                what: "blob".into(),
                expected: digest.into(),
                actual,
            });
        }
        Ok(bytes)
    }
}
