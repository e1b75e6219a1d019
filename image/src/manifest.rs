//! manifest.json: every part of an image with its version, size and hash, and every file of the output.

use crate::{
    digest,
    tree::{Node, Tree},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Version of each part, filled while the image is put together.
#[derive(Debug, Default)]
pub struct Versions(BTreeMap<String, String>);

impl Versions {
    pub fn set(&mut self, part: &str, version: &str) {
        self.0.insert(part.to_owned(), version.to_owned());
    }
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Manifest {
    pub name: &'static str,
    pub version: &'static str,
    pub role: String,
    pub kernel: String,
    pub cmdline: String,
    /// What the image is made of; sizes are uncompressed.
    pub parts: Vec<Part>,
    /// What was written beside the manifest.
    pub files: Vec<Part>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    pub size: usize,
    pub sha256: String,
}

impl Part {
    pub fn file(name: &str, data: &[u8]) -> Self {
        Self {
            name: name.to_owned(),
            version: None,
            size: data.len(),
            sha256: digest::sha256(data),
        }
    }
}

/// The parts of a tree. A part's hash covers the paths, modes and contents of its files.
pub fn parts(tree: &Tree, versions: &Versions) -> Vec<Part> {
    let mut sums: BTreeMap<&str, (usize, Sha256)> = BTreeMap::new();
    for (path, entry) in tree.iter() {
        let (size, hash) = sums.entry(&entry.part).or_default();
        let content: &[u8] = match &entry.node {
            Node::Directory => &[],
            Node::File(data) => {
                *size += data.len();
                data
            }
            Node::Link(target) => target.as_bytes(),
        };
        hash.update(format!("{path}\0{:o}\0{}\0", entry.mode, content.len()));
        hash.update(content);
    }
    let part = |(name, (size, hash)): (&str, (usize, Sha256))| Part {
        name: name.to_owned(),
        version: versions.0.get(name).cloned(),
        size,
        sha256: digest::hex(&hash.finalize()),
    };
    sums.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_sum_of_its_files_and_changes_with_any_of_them() {
        let build = |text: &str| {
            let mut tree = Tree::default();
            tree.file("a/x", 0o644, "12345", "one").unwrap();
            tree.file("a/y", 0o644, text, "one").unwrap();
            tree.file("b", 0o644, "b", "two").unwrap();
            let mut versions = Versions::default();
            versions.set("one", "1.0");
            parts(&tree, &versions)
        };
        let (first, second) = (build("678"), build("679"));
        assert_eq!(
            (first[0].name.as_str(), first[0].size, first[0].version.as_deref()),
            ("one", 8, Some("1.0"))
        );
        assert_ne!(first[0].sha256, second[0].sha256);
        assert_eq!(first[1], second[1]);
    }
}
