//! Unpacks one layer's tar stream into a folder fit to be an overlay's lower layer.

use super::ImageError;
use crate::state::hex;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar::EntryType;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const XATTR_PREFIX: &str = "SCHILY.xattr.";

#[derive(Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed stream.
    pub diff_id: String,
    pub bytes: u64,
    pub inodes: u64,
}

/// Decompresses by what the stream starts with: gzip, zstd, or neither.
pub fn decompressed<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 4];
    let mut filled = 0;
    while filled < magic.len() {
        match source.read(&mut magic[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    let whole = io::Cursor::new(magic[..filled].to_vec()).chain(source);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

/// What a name in a layer asks for (OCI image-spec, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
enum Name {
    Keep(PathBuf),
    Whiteout(PathBuf),
    Opaque(PathBuf),
    Root,
}

/// Cleans an entry's path; `None` when it tries to leave the root.
fn classify(path: &Path) -> Option<Name> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    let Some(name) = clean.file_name().map(|name| name.as_bytes().to_vec()) else {
        return Some(Name::Root);
    };
    let parent = clean.parent().map(Path::to_path_buf).unwrap_or_default();
    Some(if name == OPAQUE {
        Name::Opaque(parent)
    } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        Name::Whiteout(parent.join(OsStr::from_bytes(hidden)))
    } else {
        Name::Keep(clean)
    })
}

/// Unpacks a layer (compressed or not) into the empty folder `target`.
pub fn unpack(source: impl Read, target: &Path) -> Result<Unpacked, ImageError> {
    let io_at = |source| ImageError::Io {
        path: target.to_path_buf(),
        source,
    };
    let root = rustix::fs::open(target, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| io_at(e.into()))?;
    let stream = decompressed(source).map_err(io_at)?;
    let mut archive = tar::Archive::new(Hashing {
        inner: stream,
        hash: Sha256::new(),
    });
    let (mut bytes, mut inodes) = (0, 0);
    let mut folder_times = Vec::new();
    for entry in archive.entries().map_err(io_at)? {
        let mut entry = entry.map_err(io_at)?;
        let path = entry.path().map_err(io_at)?.into_owned();
        let fail = |source: io::Error| ImageError::Entry {
            path: path.clone(),
            source,
        };
        let name = classify(&path).ok_or_else(|| fail(io::Error::other("leaves the root of the layer")))?;
        bytes += entry.size();
        inodes += 1;
        match name {
            Name::Root => apply_metadata(root.as_fd(), &mut entry).map_err(fail)?,
            Name::Opaque(folder) => {
                let folder = open_folder(root.as_fd(), &folder).map_err(fail)?;
                rustix::fs::fsetxattr(folder, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                    .map_err(|e| fail(e.into()))?;
            }
            Name::Whiteout(hidden) => {
                let (parent, leaf) = open_parent(root.as_fd(), &hidden).map_err(fail)?;
                rustix::fs::mknodat(&parent, &leaf, FileType::CharacterDevice, Mode::empty(), 0)
                    .or_else(|e| if e == Errno::EXIST { Ok(()) } else { Err(e) })
                    .map_err(|e| fail(e.into()))?;
            }
            Name::Keep(path) => {
                if let Some(time) = write_entry(root.as_fd(), &path, &mut entry).map_err(fail)? {
                    folder_times.push((path, time));
                }
            }
        }
    }
    // Times of folders last: what was put into them has changed them.
    for (path, time) in folder_times.into_iter().rev() {
        if let Ok(folder) = open_folder(root.as_fd(), &path) {
            rustix::fs::futimens(folder, &time).map_err(|e| ImageError::Entry {
                path,
                source: e.into(),
            })?;
        }
    }
    let mut hashing = archive.into_inner();
    io::copy(&mut hashing, &mut io::sink()).map_err(io_at)?;
    Ok(Unpacked {
        diff_id: format!("sha256:{}", hex(&hashing.hash.finalize())),
        bytes,
        inodes,
    })
}

/// Opens a folder inside the root, whatever links lie on the way.
fn open_folder(root: BorrowedFd, path: &Path) -> io::Result<OwnedFd> {
    if path.as_os_str().is_empty() {
        return root.try_clone_to_owned();
    }
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        root,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?)
}

/// The folder that holds `path` (made when missing) and the last name.
fn open_parent(root: BorrowedFd, path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let leaf = PathBuf::from(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    let parent = path.parent().unwrap_or(Path::new(""));
    let folder = match open_folder(root, parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let (above, name) = open_parent(root, parent)?;
            rustix::fs::mkdirat(&above, &name, Mode::from_raw_mode(0o755))?;
            open_folder(root, parent)?
        }
        other => other?,
    };
    Ok((folder, leaf))
}

/// Makes one file system object; the times come back for folders.
fn write_entry<R: Read>(
    root: BorrowedFd,
    path: &Path,
    entry: &mut tar::Entry<R>,
) -> io::Result<Option<Timestamps>> {
    let (parent, leaf) = open_parent(root, path)?;
    let kind = entry.header().entry_type();
    let old = rustix::fs::statat(&parent, &leaf, AtFlags::SYMLINK_NOFOLLOW)
        .map(|stat| FileType::from_raw_mode(stat.st_mode));
    match old {
        Ok(FileType::Directory) if kind == EntryType::Directory => {}
        Ok(FileType::Directory) => remove_folder(&parent, &leaf)?,
        Ok(_) => rustix::fs::unlinkat(&parent, &leaf, AtFlags::empty())?,
        Err(_) => {}
    }
    let mode = Mode::from_raw_mode(entry.header().mode()? & 0o7777);
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = std::fs::File::from(rustix::fs::openat(
                &parent,
                &leaf,
                flags,
                Mode::RUSR | Mode::WUSR,
            )?);
            io::copy(entry, &mut file)?;
            file.flush()?;
            apply_metadata(file.as_fd(), entry)?;
            rustix::fs::futimens(&file, &times(entry)?)?;
        }
        EntryType::Directory => {
            if !matches!(old, Ok(FileType::Directory)) {
                rustix::fs::mkdirat(&parent, &leaf, mode)?;
            }
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let folder = rustix::fs::openat(&parent, &leaf, flags, Mode::empty())?;
            apply_metadata(folder.as_fd(), entry)?;
            return Ok(Some(times(entry)?));
        }
        EntryType::Symlink => {
            let target = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
            rustix::fs::symlinkat(&*target, &parent, &leaf)?;
            own(&parent, &leaf, entry)?;
            rustix::fs::utimensat(&parent, &leaf, &times(entry)?, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        EntryType::Link => {
            let target = entry.link_name()?.ok_or(io::ErrorKind::InvalidData)?;
            let Some(Name::Keep(target)) = classify(&target) else {
                return Err(io::Error::other(format!(
                    "hard link to {target:?} leaves the root of the layer"
                )));
            };
            let (folder, name) = open_parent(root, &target)?;
            rustix::fs::linkat(&folder, &name, &parent, &leaf, AtFlags::empty())?;
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            let file_type = match kind {
                EntryType::Char => FileType::CharacterDevice,
                EntryType::Block => FileType::BlockDevice,
                _ => FileType::Fifo,
            };
            let device = rustix::fs::makedev(
                entry.header().device_major()?.unwrap_or(0),
                entry.header().device_minor()?.unwrap_or(0),
            );
            rustix::fs::mknodat(&parent, &leaf, file_type, mode, device)?;
            own(&parent, &leaf, entry)?;
            rustix::fs::chmodat(&parent, &leaf, mode, AtFlags::empty())?;
        }
        other => return Err(io::Error::other(format!("unsupported kind of entry {other:?}"))),
    }
    Ok(None)
}

fn remove_folder(parent: &OwnedFd, name: &Path) -> io::Result<()> {
    let path = PathBuf::from(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(parent)
    ))
    .join(name);
    std::fs::remove_dir_all(path)
}

fn owner<R: Read>(entry: &tar::Entry<R>) -> io::Result<(Option<Uid>, Option<Gid>)> {
    let id = |value: u64| u32::try_from(value).map_err(io::Error::other);
    Ok((
        Some(Uid::from_raw(id(entry.header().uid()?)?)),
        Some(Gid::from_raw(id(entry.header().gid()?)?)),
    ))
}

fn own<R: Read>(parent: &OwnedFd, leaf: &Path, entry: &tar::Entry<R>) -> io::Result<()> {
    let (uid, gid) = owner(entry)?;
    Ok(rustix::fs::chownat(
        parent,
        leaf,
        uid,
        gid,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Owner, then mode (chown clears set-uid), then extended attributes (chown clears capabilities).
fn apply_metadata<R: Read>(file: BorrowedFd, entry: &mut tar::Entry<R>) -> io::Result<()> {
    let (uid, gid) = owner(entry)?;
    rustix::fs::fchown(file, uid, gid)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.header().mode()? & 0o7777))?;
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        if let Some(name) = extension
            .key()
            .ok()
            .and_then(|key| key.strip_prefix(XATTR_PREFIX))
        {
            match rustix::fs::fsetxattr(file, name, extension.value_bytes(), XattrFlags::empty()) {
                Err(Errno::NOTSUP) => {
                    tracing::warn!(attribute = name, "the file system cannot hold this attribute")
                }
                other => other?,
            }
        }
    }
    Ok(())
}

fn times<R: Read>(entry: &tar::Entry<R>) -> io::Result<Timestamps> {
    let time = Timespec {
        tv_sec: i64::try_from(entry.header().mtime()?).map_err(io::Error::other)?,
        tv_nsec: 0,
    };
    Ok(Timestamps {
        last_access: time,
        last_modification: time,
    })
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_and_escapes_are_told_apart() {
        for (path, expected) in [
            ("./etc/passwd", Some(Name::Keep("etc/passwd".into()))),
            ("/etc/passwd", Some(Name::Keep("etc/passwd".into()))),
            ("etc/.wh.passwd", Some(Name::Whiteout("etc/passwd".into()))),
            (".wh.bin", Some(Name::Whiteout("bin".into()))),
            ("var/.wh..wh..opq", Some(Name::Opaque("var".into()))),
            ("./", Some(Name::Root)),
            ("../etc/passwd", None),
            ("a/../../b", None),
        ] {
            assert_eq!(classify(Path::new(path)), expected, "{path}");
        }
    }

    fn layer(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().unwrap()
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, kind: EntryType, path: &str, link: &str, content: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_mtime(7);
        header.set_uid(u64::from(rustix::process::getuid().as_raw()));
        header.set_gid(u64::from(rustix::process::getgid().as_raw()));
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        // Written as raw bytes: the builder refuses the hostile names these tests need.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }

    #[test]
    fn links_files_and_modes_come_out_as_packed() {
        let tar = layer(|b| {
            add(b, EntryType::Directory, "bin", "", b"");
            add(b, EntryType::Regular, "bin/tool", "", b"content");
            add(b, EntryType::Link, "bin/other", "bin/tool", b"");
            add(b, EntryType::Symlink, "sbin", "bin", b"");
            add(b, EntryType::Regular, "sbin/late", "", b"through a link");
        });
        let dir = crate::test_support::TempDir::new("unpack");
        let unpacked = unpack(&tar[..], dir.path()).unwrap();
        assert_eq!(unpacked.diff_id, format!("sha256:{}", hex(&Sha256::digest(&tar))));
        assert_eq!(std::fs::read(dir.path().join("bin/other")).unwrap(), b"content");
        assert_eq!(
            std::fs::read(dir.path().join("bin/late")).unwrap(),
            b"through a link"
        );
        assert_eq!(
            std::fs::read_link(dir.path().join("sbin")).unwrap(),
            Path::new("bin")
        );
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        let zstd = zstd::encode_all(&tar[..], 1).unwrap();
        for packed in [gzip.finish().unwrap(), zstd] {
            let dir = crate::test_support::TempDir::new("unpack");
            assert_eq!(unpack(&packed[..], dir.path()).unwrap(), unpacked);
        }
    }

    #[test]
    fn nothing_is_written_outside_the_root() {
        let outside = crate::test_support::TempDir::new("outside");
        let target = outside.path().to_str().unwrap();
        let link = |kind| {
            layer(|b| {
                add(b, kind, "evil", target, b"");
                add(b, EntryType::Regular, "evil/file", "", b"x");
            })
        };
        let dir = crate::test_support::TempDir::new("unpack");
        // The link resolves inside the root, where its target does not exist.
        let _ = unpack(&link(EntryType::Symlink)[..], dir.path());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let dir = crate::test_support::TempDir::new("unpack");
        assert!(unpack(&link(EntryType::Link)[..], dir.path()).is_err());
        let up = layer(|b| add(b, EntryType::Regular, "../evil", "", b"x"));
        assert!(unpack(&up[..], dir.path()).is_err());
    }
}
