//! The image store: one record an image, one folder an unpacked layer.

use super::manifest::{self, Configuration, Manifest};
use super::reference::{Reference, is_hex64};
use super::{ImageError, unpack};
use crate::state::{self, ImageRecord, LayerRecord, Layout, hex, new_id, remove_tree};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where an image's blobs come from: an archive, or files fetched from a registry.
pub trait BlobSource {
    fn open(&self, digest: &str) -> Result<Box<dyn Read + '_>, ImageError>;
}

pub struct ImageStore {
    layout: Layout,
    images: Mutex<BTreeMap<String, ImageRecord>>,
    /// One import at a time touches layers.
    writer: Mutex<()>,
}

/// Fewer digits of an ID than people are shown are taken for a name.
const SHORT_ID: usize = 12;

pub fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

impl ImageStore {
    /// Opens the store, dropping what a crash left half done.
    pub fn open(layout: Layout) -> Result<Self, ImageError> {
        let at = |path: PathBuf| move |source| ImageError::Io { path, source };
        remove_tree(&layout.temporary()).map_err(at(layout.temporary()))?;
        for folder in [layout.images(), layout.layers(), layout.temporary()] {
            fs::create_dir_all(&folder).map_err(at(folder.clone()))?;
        }
        let mut images = BTreeMap::new();
        for entry in fs::read_dir(layout.images())
            .map_err(at(layout.images()))?
            .flatten()
        {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match state::load::<ImageRecord>(&path) {
                Ok(Some(image)) if layers_are_whole(&layout, &image) => {
                    images.insert(image.id.clone(), image);
                }
                Ok(_) => {
                    tracing::warn!(record = %path.display(), "dropping an image whose layers are damaged");
                    drop(fs::remove_file(&path));
                }
                Err(error) => {
                    tracing::warn!(%error, "dropping an unreadable image record");
                    drop(fs::remove_file(&path));
                }
            }
        }
        let store = Self {
            layout,
            images: Mutex::new(images),
            writer: Mutex::new(()),
        };
        store.drop_half_made_layers()?;
        Ok(store)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<String, ImageRecord>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn list(&self) -> Vec<ImageRecord> {
        self.images().values().cloned().collect()
    }

    pub fn get(&self, id: &str) -> Option<ImageRecord> {
        self.images().get(id).cloned()
    }

    /// Finds an image by ID (whole, the 64 digits, or the first of them), by name and tag, or by name and digest.
    pub fn find(&self, wanted: &str) -> Option<ImageRecord> {
        let images = self.images();
        let id = if is_hex64(wanted) {
            format!("sha256:{wanted}")
        } else {
            wanted.to_owned()
        };
        if let Some(image) = images.get(&id) {
            return Some(image.clone());
        }
        by_name(&images, wanted)
            .or_else(|| by_beginning(&images, wanted))
            .cloned()
    }

    /// Unpacks what is missing of an image and records it under the names. Idempotent.
    pub fn add(
        &self,
        blobs: &dyn BlobSource,
        manifest_digest: &str,
        manifest: &Manifest,
        names: &[Reference],
        pinned: bool,
    ) -> Result<String, ImageError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = Vec::new();
        blobs
            .open(&manifest.config.digest)?
            .read_to_end(&mut bytes)
            .map_err(|source| ImageError::Io {
                path: manifest.config.digest.clone().into(),
                source,
            })?;
        let id = digest_of(&bytes);
        if id != manifest.config.digest {
            return Err(ImageError::DigestMismatch {
                what: "image configuration".into(),
                expected: manifest.config.digest.clone(),
                actual: id,
            });
        }
        let configuration: Configuration = manifest::parse("image configuration", &bytes)?;
        let diff_ids = configuration.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() {
            return Err(ImageError::Invalid(format!(
                "the manifest has {} layers, the configuration {}",
                manifest.layers.len(),
                diff_ids.len()
            )));
        }
        for (layer, diff_id) in manifest.layers.iter().zip(&diff_ids) {
            if !super::reference::is_digest(diff_id) {
                return Err(ImageError::Invalid(format!(
                    "diff ID {diff_id:?} is not a sha256 digest"
                )));
            }
            if !self.has_layer(diff_id) {
                self.unpack_layer(blobs.open(&layer.digest)?, diff_id)?;
            }
        }
        let mut image = self.get(&id).unwrap_or(ImageRecord {
            id: id.clone(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size: manifest.config.size.max(1) + manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
            layers: diff_ids,
            config: configuration.config.unwrap_or_default(),
            pinned,
        });
        image.pinned |= pinned;
        for name in names {
            // A name with both is a name by digest, as upstream normalises it.
            push_new(
                &mut image.repo_tags,
                name.tagged().filter(|_| name.digest.is_none()),
            );
            push_new(&mut image.repo_digests, Some(name.with_digest(manifest_digest)));
        }
        self.save(image.clone())?;
        self.move_tags(&image)?;
        Ok(id)
    }

    /// A tag names one image: whoever had it before loses it.
    fn move_tags(&self, owner: &ImageRecord) -> Result<(), ImageError> {
        for mut other in self.list() {
            let before = other.repo_tags.len();
            other.repo_tags.retain(|tag| !owner.repo_tags.contains(tag));
            if other.id != owner.id && other.repo_tags.len() != before {
                self.save(other)?;
            }
        }
        Ok(())
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.layout
            .images()
            .join(format!("{}.json", id.trim_start_matches("sha256:")))
    }

    fn save(&self, image: ImageRecord) -> Result<(), ImageError> {
        state::save(&self.record_path(&image.id), &image)?;
        self.images().insert(image.id.clone(), image);
        Ok(())
    }

    fn unpack_layer(&self, blob: Box<dyn Read + '_>, diff_id: &str) -> Result<(), ImageError> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |source| ImageError::Io { path, source }
        };
        let temporary = self.layout.temporary();
        let folder = temporary.join(new_id().map_err(at(&temporary))?);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let unpacked = match unpack::unpack(blob, &folder) {
            Ok(unpacked) if unpacked.diff_id == diff_id => unpacked,
            other => {
                remove_tree(&folder).map_err(at(&folder))?;
                let actual = other?.diff_id;
                return Err(ImageError::DigestMismatch {
                    what: "layer".into(),
                    expected: diff_id.into(),
                    actual,
                });
            }
        };
        let target = self.layout.layer(diff_id);
        let record = self.layout.layer_record(diff_id);
        state::remove_record(&record).map_err(at(&record))?;
        remove_tree(&target).map_err(at(&target))?;
        fs::rename(&folder, &target).map_err(at(&target))?;
        // The record is the proof that the layer is whole; it reaches the disk after the files.
        let layers = fs::File::open(self.layout.layers()).map_err(at(&target))?;
        rustix::fs::syncfs(&layers).map_err(|error| at(&target)(error.into()))?;
        let layer = LayerRecord {
            diff_id: diff_id.into(),
            bytes: unpacked.bytes,
            inodes: unpacked.inodes,
            names: names_in(&target),
        };
        Ok(state::save(&record, &layer)?)
    }

    /// Forgets an image with all its names; layers that no image needs go with it.
    pub fn remove(&self, id: &str, keep: &BTreeSet<String>) -> Result<(), ImageError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.images().remove(id).is_some() {
            let path = self.record_path(id);
            fs::remove_file(&path).map_err(|source| ImageError::Io { path, source })?;
        }
        self.drop_layers_but(keep)
    }

    /// Removes layers that were kept for a container only.
    pub fn collect(&self, keep: &BTreeSet<String>) -> Result<(), ImageError> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.drop_layers_but(keep)
    }

    /// Forgets an image whose layers are not whole, so that it is fetched or imported again. Containers that
    /// stand on the layers keep what is left of them.
    pub fn forget_damaged(&self, image: &ImageRecord) -> Result<bool, ImageError> {
        if layers_are_whole(&self.layout, image) {
            return Ok(false);
        }
        // Perhaps another import is mending it.
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if layers_are_whole(&self.layout, image) {
            return Ok(false);
        }
        if self.images().remove(&image.id).is_some() {
            let path = self.record_path(&image.id);
            fs::remove_file(&path).map_err(|source| ImageError::Io { path, source })?;
        }
        Ok(true)
    }

    fn drop_half_made_layers(&self) -> Result<(), ImageError> {
        for entry in fs::read_dir(self.layout.layers()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.with_extension("json").exists() {
                remove_tree(&path).map_err(|source| ImageError::Io { path, source })?;
            }
        }
        Ok(())
    }

    /// Removes the layers that neither an image nor `keep` needs.
    fn drop_layers_but(&self, keep: &BTreeSet<String>) -> Result<(), ImageError> {
        let mut needed: BTreeSet<String> = self
            .images()
            .values()
            .flat_map(|image| image.layers.clone())
            .collect();
        needed.extend(keep.iter().cloned());
        for layer in self.layers() {
            if needed.contains(&layer.diff_id) {
                continue;
            }
            let record = self.layout.layer_record(&layer.diff_id);
            fs::remove_file(&record).map_err(|source| ImageError::Io { path: record, source })?;
            let folder = self.layout.layer(&layer.diff_id);
            remove_tree(&folder).map_err(|source| ImageError::Io { path: folder, source })?;
        }
        Ok(())
    }

    /// Every whole layer on disk.
    pub fn layers(&self) -> Vec<LayerRecord> {
        fs::read_dir(self.layout.layers())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                entry
                    .path()
                    .extension()
                    .is_some_and(|extension| extension == "json")
            })
            .filter_map(|entry| state::load(&entry.path()).ok().flatten())
            .collect()
    }

    pub fn has_layer(&self, diff_id: &str) -> bool {
        layer_is_whole(&self.layout, diff_id)
    }

    /// The folders of an image's layers, lowest first.
    pub fn layer_folders(&self, image: &ImageRecord) -> Vec<PathBuf> {
        image
            .layers
            .iter()
            .map(|layer| self.layout.layer(layer))
            .collect()
    }
}

/// The names in a folder; none when it cannot be read.
fn names_in(folder: &Path) -> Option<BTreeSet<String>> {
    let names = fs::read_dir(folder)
        .ok()?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<std::io::Result<_>>().ok()
}

/// Whether a layer has its record and, at the top at least, what was unpacked.
fn layer_is_whole(layout: &Layout, diff_id: &str) -> bool {
    let Ok(Some(record)) = state::load::<LayerRecord>(&layout.layer_record(diff_id)) else {
        return false;
    };
    let found = names_in(&layout.layer(diff_id));
    found.is_some() && (record.names.is_none() || record.names == found)
}

fn layers_are_whole(layout: &Layout, image: &ImageRecord) -> bool {
    image.layers.iter().all(|layer| layer_is_whole(layout, layer))
}

fn by_name<'a>(images: &'a BTreeMap<String, ImageRecord>, wanted: &str) -> Option<&'a ImageRecord> {
    let reference = Reference::parse(wanted).ok()?;
    images.values().find(|image| match &reference.digest {
        Some(digest) => image.repo_digests.contains(&reference.with_digest(digest)),
        None => reference
            .tagged()
            .is_some_and(|tagged| image.repo_tags.contains(&tagged)),
    })
}

/// By the first digits of an ID, when only one image has them.
fn by_beginning<'a>(images: &'a BTreeMap<String, ImageRecord>, wanted: &str) -> Option<&'a ImageRecord> {
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    if digits.len() < SHORT_ID || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let from = format!("sha256:{digits}");
    let mut found = images
        .range(from.clone()..)
        .take_while(|(id, _)| id.starts_with(&from));
    match (found.next(), found.next()) {
        (Some((_, only)), None) => Some(only),
        _ => None,
    }
}

fn push_new(list: &mut Vec<String>, item: Option<String>) {
    if let Some(item) = item.filter(|item| !list.contains(item)) {
        list.push(item);
    }
}
