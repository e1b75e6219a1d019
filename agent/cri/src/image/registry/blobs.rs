//! Blobs on their way from a registry to the layer store: each is fetched once however many pulls want it,
//! and its file goes with the last of them, also when a pull is given up half-way.

use super::super::ImageError;
use super::super::store::BlobSource;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A blob's file; the lock holds whether it is whole, and belongs to whoever fetches it.
pub struct Slot {
    pub path: PathBuf,
    pub whole: tokio::sync::Mutex<bool>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove a fetched blob");
            }
            _ => {}
        }
    }
}

/// The blobs that some pull holds.
#[derive(Default)]
pub struct Blobs(Mutex<BTreeMap<String, Weak<Slot>>>);

impl Blobs {
    /// The slot of a digest, shared with whoever has it already.
    pub fn slot(&self, folder: &Path, digest: &str) -> Result<Arc<Slot>, ImageError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|_, slot| slot.strong_count() > 0);
        if let Some(slot) = held.get(digest).and_then(Weak::upgrade) {
            return Ok(slot);
        }
        // Never the name of a slot that is just being dropped.
        let name = crate::state::new_id().map_err(|source| ImageError::Io {
            path: folder.into(),
            source,
        })?;
        let slot = Arc::new(Slot {
            path: folder.join(name),
            whole: tokio::sync::Mutex::new(false),
        });
        held.insert(digest.to_owned(), Arc::downgrade(&slot));
        Ok(slot)
    }
}

/// The blobs of one image, kept until this is dropped.
pub struct FetchedBlobs(pub BTreeMap<String, Arc<Slot>>);

impl BlobSource for FetchedBlobs {
    fn open(&self, digest: &str) -> Result<Box<dyn Read + '_>, ImageError> {
        let slot = self
            .0
            .get(digest)
            .ok_or_else(|| ImageError::Unfetched(digest.to_owned()))?;
        File::open(&slot.path)
            .map(|file| Box::new(file) as Box<dyn Read>)
            .map_err(|source| ImageError::Io {
                path: slot.path.clone(),
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_shared_and_goes_with_its_last_holder() {
        let dir = crate::test_support::TempDir::new("blobs");
        let blobs = Blobs::default();
        let first = blobs.slot(dir.path(), "sha256:a").unwrap();
        let second = blobs.slot(dir.path(), "sha256:a").unwrap();
        let other = blobs.slot(dir.path(), "sha256:b").unwrap();
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        std::fs::write(&first.path, "x").unwrap();
        drop(first);
        assert!(second.path.exists());
        let path = second.path.clone();
        drop(second);
        assert!(!path.exists());
        assert_ne!(blobs.slot(dir.path(), "sha256:a").unwrap().path, path);
    }
}
