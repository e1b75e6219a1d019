//! The block device that a selector means.

use super::{
    DiskError, LABEL,
    devices::{self, content},
    signature::Content,
};
use node_config::DiskSelector;
use std::{fs, os::unix::fs::FileTypeExt, path::PathBuf};

/// The device and what it holds.
pub fn find(selector: &DiskSelector) -> Result<(PathBuf, Content), DiskError> {
    let absent = || DiskError::Absent(selector.clone());
    match selector {
        DiskSelector::None => Err(absent()),
        DiskSelector::Device(path) => {
            if !fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
                return Err(absent());
            }
            let content = content(path).map_err(|error| DiskError::Io {
                path: path.clone(),
                error,
            })?;
            Ok((path.clone(), content))
        }
        DiskSelector::Label(label) => {
            let wanted = Content::Ext { label: label.clone() };
            let found: Vec<(PathBuf, Content)> = devices::all()
                .into_iter()
                .filter_map(|path| content(&path).ok().map(|content| (path, content)))
                .collect();
            let fresh = |(path, content): &&(PathBuf, Content)| {
                *content == Content::Blank && devices::partition_name(path).as_ref() == Some(label)
            };
            let labelled = found.iter().find(|(_, content)| *content == wanted);
            // An install leaves its state partition blank.
            let chosen = labelled.or_else(|| found.iter().find(fresh).filter(|_| label == LABEL));
            chosen.cloned().ok_or_else(absent)
        }
    }
}
