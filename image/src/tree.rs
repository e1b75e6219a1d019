//! A file tree in memory: what goes into an archive, and which part of the product each file belongs to.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::Path,
};

/// What a path holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    Directory,
    File(Vec<u8>),
    Link(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub node: Node,
    pub mode: u32,
    /// Name of the part in the manifest.
    pub part: String,
}

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("two different things at /{0}")]
    Conflict(String),
    #[error("/{0} is inside something that is not a directory")]
    Parent(String),
}

/// Paths are relative, without a leading or trailing slash; sorted, so a directory comes before what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    pub fn directory(&mut self, path: &str, mode: u32, part: &str) -> Result<(), TreeError> {
        self.insert(path, Node::Directory, mode, part)
    }

    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        data: impl Into<Vec<u8>>,
        part: &str,
    ) -> Result<(), TreeError> {
        self.insert(path, Node::File(data.into()), mode, part)
    }

    pub fn link(&mut self, path: &str, target: &str, part: &str) -> Result<(), TreeError> {
        self.insert(path, Node::Link(target.to_owned()), 0o777, part)
    }

    /// Puts a node at `path`, making the missing parents; the same thing twice is fine.
    pub fn insert(&mut self, path: &str, node: Node, mode: u32, part: &str) -> Result<(), TreeError> {
        let path = path.trim_matches('/');
        let mut end = 0;
        while let Some(slash) = path[end..].find('/') {
            let parent = &path[..end + slash];
            end += slash + 1;
            match self.entries.get(parent) {
                Some(Entry {
                    node: Node::Directory,
                    ..
                }) => {}
                Some(_) => return Err(TreeError::Parent(path.to_owned())),
                None => {
                    let entry = Entry {
                        node: Node::Directory,
                        mode: 0o755,
                        part: part.to_owned(),
                    };
                    self.entries.insert(parent.to_owned(), entry);
                }
            }
        }
        match self.entries.get(path) {
            Some(old) if old.node != node => Err(TreeError::Conflict(path.to_owned())),
            Some(old) if node != Node::Directory && old.mode != mode => {
                Err(TreeError::Conflict(path.to_owned()))
            }
            _ => {
                self.entries.insert(
                    path.to_owned(),
                    Entry {
                        node,
                        mode,
                        part: part.to_owned(),
                    },
                );
                Ok(())
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// Writes the tree below `root`, with exactly these modes whatever the umask.
    pub fn write_to(&self, root: &Path) -> io::Result<()> {
        for (path, entry) in self.iter() {
            let path = root.join(path);
            match &entry.node {
                Node::Directory => {
                    fs::create_dir(&path)?;
                    fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))?;
                }
                Node::File(data) => {
                    let mut file = fs::OpenOptions::new()
                        .create_new(true)
                        .write(true)
                        .mode(0o600)
                        .open(&path)?;
                    file.write_all(data)?;
                    file.set_permissions(fs::Permissions::from_mode(entry.mode))?;
                }
                Node::Link(target) => symlink(target, &path)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_made_and_conflicts_refused() {
        let mut tree = Tree::default();
        tree.file("usr/bin/a", 0o755, "x", "p").unwrap();
        tree.directory("/usr/bin/", 0o755, "p").unwrap();
        tree.file("usr/bin/a", 0o755, "x", "q").unwrap();
        assert!(matches!(
            tree.file("usr/bin/a", 0o755, "y", "p"),
            Err(TreeError::Conflict(_))
        ));
        assert!(matches!(
            tree.file("usr/bin/a/b", 0o755, "y", "p"),
            Err(TreeError::Parent(_))
        ));
        assert_eq!(
            tree.iter().map(|(path, _)| path).collect::<Vec<_>>(),
            ["usr", "usr/bin", "usr/bin/a"]
        );
    }
}
