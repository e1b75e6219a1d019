//! Container images built from a tree: OCI image layouts in a tar archive, the same bytes every time.

use crate::{
    digest::sha256,
    tree::{Node, Tree},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, io};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The zero of all times here: images are identified by content.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What a container of the image runs, and the names it is known by (`registry/repository:tag`).
pub struct ImageSpec<'a> {
    pub names: &'a [String],
    /// What runs before the arguments; with none, the command is all of it.
    pub entrypoint: &'a [&'a str],
    pub command: &'a [&'a str],
    pub environment: &'a [&'a str],
}

/// An image-layout archive with one image of one uncompressed layer (the file system that carries it compresses).
pub fn archive(spec: &ImageSpec<'_>, files: &Tree) -> io::Result<Vec<u8>> {
    let layer = tar(files)?;
    let layer_digest = format!("sha256:{}", sha256(&layer));
    let config = bytes(&json!({
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "config": { "Entrypoint": spec.entrypoint, "Cmd": spec.command, "Env": spec.environment },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        "history": [{ "created": CREATED, "created_by": "ironlet image" }],
    }));
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config),
        "layers": [descriptor(LAYER, &layer)],
    }));
    let named: Vec<Value> = spec
        .names
        .iter()
        .map(|name| {
            let mut entry = descriptor(MANIFEST, &manifest);
            let tag = name.rsplit_once(':').map_or(name.as_str(), |(_, tag)| tag);
            entry["platform"] = json!({ "architecture": "amd64", "os": "linux" });
            entry["annotations"] =
                json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
            entry
        })
        .collect();
    let index = bytes(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": named }));

    let blobs: BTreeMap<String, &[u8]> = [&layer, &config, &manifest]
        .map(|data| (sha256(data), data.as_slice()))
        .into();
    let mut out = tar::Builder::new(Vec::new());
    file(
        &mut out,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0o644,
    )?;
    file(&mut out, "index.json", &index, 0o644)?;
    for (digest, data) in blobs {
        file(&mut out, &format!("blobs/sha256/{digest}"), data, 0o644)?;
    }
    out.into_inner()
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn descriptor(media_type: &str, data: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", sha256(data)), "size": data.len() })
}

fn tar(tree: &Tree) -> io::Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    for (path, entry) in tree.iter() {
        match &entry.node {
            Node::File(data) => file(&mut out, path, data, entry.mode)?,
            Node::Directory => {
                let mut header = header(tar::EntryType::Directory, 0, entry.mode);
                out.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Node::Link(target) => {
                let mut header = header(tar::EntryType::Symlink, 0, entry.mode);
                out.append_link(&mut header, path, target)?;
            }
        }
    }
    out.into_inner()
}

fn file(out: &mut tar::Builder<Vec<u8>>, path: &str, data: &[u8], mode: u32) -> io::Result<()> {
    out.append_data(
        &mut header(tar::EntryType::Regular, data.len() as u64, mode),
        path,
        data,
    )
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn build() -> Vec<u8> {
        let mut files = Tree::default();
        files.file("bin/tool", 0o755, "#!", "x").unwrap();
        files.link("bin/sh", "tool", "x").unwrap();
        let names = [
            "docker.io/library/tool:latest".to_owned(),
            "docker.io/library/tool:1.2".to_owned(),
        ];
        let spec = ImageSpec {
            names: &names,
            entrypoint: &[],
            command: &["sh"],
            environment: &["PATH=/bin"],
        };
        archive(&spec, &files).unwrap()
    }

    #[test]
    fn every_digest_in_the_archive_is_that_of_a_blob_in_it() {
        let data = build();
        assert_eq!(data, build());
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(data.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"]
                .as_str()
                .unwrap()
                .strip_prefix("sha256:")
                .unwrap();
            let data = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(sha256(data), digest);
            assert_eq!(descriptor["size"], data.len());
            data.clone()
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let names: Vec<_> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["annotations"]["io.containerd.image.name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["docker.io/library/tool:latest", "docker.io/library/tool:1.2"]
        );
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][1])).unwrap();
        let layer = blob(&manifest["layers"][0]);
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", sha256(&layer))
        );
        let paths: Vec<_> = tar::Archive::new(layer.as_slice())
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(paths, ["bin/", "bin/sh", "bin/tool"]);
    }
}
