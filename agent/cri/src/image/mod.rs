//! Images: names, the store of records and unpacked layers, archives, registries.

pub mod archive;
pub mod manifest;
pub mod reference;
pub mod registry;
pub mod store;
pub mod unpack;

pub use reference::Reference;
pub use store::ImageStore;

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Reference(#[from] reference::ReferenceError),
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    #[error(transparent)]
    Registry(#[from] registry::RegistryError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{what}: not valid JSON: {source}")]
    Json { what: String, source: serde_json::Error },
    #[error("{what} hashes to {actual}, not to {expected}")]
    DigestMismatch {
        what: String,
        expected: String,
        actual: String,
    },
    #[error("{0}")]
    Invalid(String),
    #[error("failed to resolve reference {reference:?}: {}", if *missing { format!("{reference}: not found") } else { source.to_string() })]
    Unresolved {
        reference: String,
        missing: bool,
        source: Box<ImageError>,
    },
    #[error("no match for platform linux/{0} in manifest: not found")]
    NoPlatform(&'static str),
    /// A layer went between the look at what is there and its use.
    #[error("blob {0} was not fetched")]
    Unfetched(String),
    #[error("layer entry {path:?}: {source}")]
    Entry { path: PathBuf, source: std::io::Error },
}

impl ImageError {
    /// Something is wrong with what was found, as opposed to nothing found, reached or shown.
    fn is_fault(&self) -> bool {
        use registry::RegistryError;
        match self {
            Self::Unresolved { source, .. } => source.is_fault(),
            Self::Registry(error) => !matches!(
                error,
                RegistryError::Connect { .. }
                    | RegistryError::NotFound
                    | RegistryError::Denied(_)
                    | RegistryError::Token { .. }
                    | RegistryError::Challenge(_)
            ),
            _ => true,
        }
    }
}
