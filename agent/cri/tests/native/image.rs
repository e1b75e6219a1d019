//! A tiny OCI image made from Debian's static busybox.

use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;

const APPLETS: [&str; 26] = [
    "sh", "cat", "echo", "sleep", "id", "ls", "mknod", "unshare", "tty", "stty", "nc", "printf", "true",
    "false", "kill", "hostname", "ps", "env", "touch", "mkdir", "head", "dd", "tr", "seq", "test", "pwd",
];

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn entry(
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
fn layers() -> [Vec<u8>; 2] {
    use tar::EntryType::{Directory, Regular, Symlink};
    let busybox = std::fs::read("/bin/busybox").expect("/bin/busybox (busybox-static)");
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

/// Writes the image as an OCI archive named `name`.
pub fn write_archive(path: &Path, name: &str) {
    let mut blobs: Vec<Vec<u8>> = Vec::new();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers() {
        diff_ids.push(format!("sha256:{}", digest(&layer)));
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&layer).expect("gzip");
        let packed = gzip.finish().expect("gzip");
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        descriptors.push(json!({"mediaType": media_type, "digest": format!("sha256:{}", digest(&packed)), "size": packed.len()}));
        blobs.push(packed);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"Env": ["FROM_IMAGE=yes"], "Cmd": ["/bin/sh"], "WorkingDir": "/made/by/runtime"},
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "layers": descriptors,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": format!("sha256:{}", digest(&config)), "size": config.len()},
    })
    .to_string()
    .into_bytes();
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": format!("sha256:{}", digest(&manifest)), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }]});
    blobs.extend([config, manifest]);
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
            &format!("blobs/sha256/{}", digest(&blob)),
            "",
            0o644,
            &blob,
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
