//! Images of any shape, and a tiny one made from Debian's static busybox.

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;

const APPLETS: [&str; 26] = [
    "sh", "cat", "echo", "sleep", "id", "ls", "mknod", "unshare", "tty", "stty", "nc", "printf", "true",
    "false", "kill", "hostname", "ps", "env", "touch", "mkdir", "head", "dd", "tr", "seq", "test", "pwd",
];

pub fn named(bytes: &[u8]) -> String {
    format!("sha256:{}", digest(bytes))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub fn entry(
    tar: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    link: &str,
    mode: u32,
    content: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(content.len() as u64);
    header.set_mtime(1);
    if link.is_empty() {
        tar.append_data(&mut header, path, content).expect("entry");
    } else {
        tar.append_link(&mut header, path, link).expect("link");
    }
}

/// Two layers: the second hides a file of the first.
pub fn layers() -> [Vec<u8>; 2] {
    use tar::EntryType::{Directory, Regular, Symlink};
    let busybox = std::fs::read(crate::packages::BUSYBOX.path()).expect("busybox");
    let mut base = tar::Builder::new(Vec::new());
    for folder in ["bin", "etc", "tmp", "home"] {
        entry(&mut base, Directory, folder, "", 0o1777, b"");
    }
    entry(&mut base, Regular, "bin/busybox", "", 0o755, &busybox);
    for applet in APPLETS {
        entry(
            &mut base,
            Symlink,
            &format!("bin/{applet}"),
            "busybox",
            0o777,
            b"",
        );
    }
    entry(
        &mut base,
        Regular,
        "etc/passwd",
        "",
        0o644,
        b"root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home:/bin/sh\n",
    );
    entry(
        &mut base,
        Regular,
        "etc/group",
        "",
        0o644,
        b"root:x:0:\napp:x:1001:\nvideo:x:44:app\n",
    );
    entry(&mut base, Regular, "etc/hidden", "", 0o644, b"old");
    entry(&mut base, Regular, "etc/not-executable", "", 0o644, b"old");
    let mut top = tar::Builder::new(Vec::new());
    entry(&mut top, Regular, "etc/.wh.hidden", "", 0o644, b"");
    entry(&mut top, Regular, "etc/shown", "", 0o644, b"new\n");
    [base.into_inner().expect("tar"), top.into_inner().expect("tar")]
}

#[derive(Clone, Copy)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Which words its documents use.
#[derive(Clone, Copy, PartialEq)]
pub enum Dialect {
    Oci,
    Docker,
}

pub struct Image {
    /// Configuration and layers.
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
    pub dialect: Dialect,
}

impl Image {
    pub fn new(layers: &[(Vec<u8>, Packing)], config: &Value, dialect: Dialect) -> Self {
        let (mut blobs, mut descriptors, mut diff_ids) = (Vec::new(), Vec::new(), Vec::new());
        for (layer, packing) in layers {
            diff_ids.push(named(layer));
            let (packed, suffix) = match packing {
                Packing::Plain => (layer.clone(), ""),
                Packing::Zstd => (zstd::encode_all(&layer[..], 1).expect("zstd"), "+zstd"),
                Packing::Gzip => {
                    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
                    gzip.write_all(layer).expect("gzip");
                    (gzip.finish().expect("gzip"), "+gzip")
                }
            };
            let media_type = match dialect {
                Dialect::Oci => format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
                Dialect::Docker => "application/vnd.docker.image.rootfs.diff.tar.gzip".into(),
            };
            descriptors
                .push(json!({"mediaType": media_type, "digest": named(&packed), "size": packed.len()}));
            blobs.push(packed);
        }
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string()
        .into_bytes();
        let config_type = match dialect {
            Dialect::Oci => "application/vnd.oci.image.config.v1+json",
            Dialect::Docker => "application/vnd.docker.container.image.v1+json",
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type(dialect), "layers": descriptors,
            "config": {"mediaType": config_type, "digest": named(&config), "size": config.len()},
        })
        .to_string()
        .into_bytes();
        blobs.push(config);
        Self {
            blobs,
            manifest,
            dialect,
        }
    }

    pub fn id(&self) -> String {
        named(self.blobs.last().expect("a configuration"))
    }

    pub fn digest(&self) -> String {
        named(&self.manifest)
    }
}

pub fn manifest_type(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Oci => "application/vnd.oci.image.manifest.v1+json",
        Dialect::Docker => "application/vnd.docker.distribution.manifest.v2+json",
    }
}

/// The image that most cases run.
pub fn busybox() -> Image {
    let config = json!({"Env": ["FROM_IMAGE=yes"], "Cmd": ["/bin/sh"], "WorkingDir": "/made/by/runtime"});
    Image::new(
        &layers().map(|layer| (layer, Packing::Gzip)),
        &config,
        Dialect::Oci,
    )
}

/// Writes the image as an OCI archive named `name`.
pub fn write_archive(path: &Path, name: &str) {
    let image = busybox();
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": manifest_type(image.dialect), "digest": image.digest(), "size": image.manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }]});
    let blobs = image.blobs.iter().chain([&image.manifest]);
    let mut archive = tar::Builder::new(Vec::new());
    entry(
        &mut archive,
        tar::EntryType::Regular,
        "oci-layout",
        "",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    );
    for blob in blobs {
        entry(
            &mut archive,
            tar::EntryType::Regular,
            &format!("blobs/sha256/{}", digest(blob)),
            "",
            0o644,
            blob,
        );
    }
    entry(
        &mut archive,
        tar::EntryType::Regular,
        "index.json",
        "",
        0o644,
        index.to_string().as_bytes(),
    );
    let archive = archive.into_inner().expect("tar");
    let bytes = if path.extension().is_some_and(|e| e == "zst") {
        zstd::encode_all(&archive[..], 1).expect("zstd")
    } else {
        archive
    };
    std::fs::write(path, bytes).expect("archive");
}
