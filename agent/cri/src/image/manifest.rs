//! OCI (and Docker schema 2) manifests, indexes and configurations, as far as running needs them.

use super::ImageError;
use crate::state::records::ImageConfig;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Deserialize)]
pub struct Descriptor {
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
}

/// An index or a manifest: told apart by what it holds.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Document {
    Index { manifests: Vec<Descriptor> },
    Manifest(Manifest),
}

#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
pub struct Configuration {
    #[serde(default)]
    pub config: Option<ImageConfig>,
    pub rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
pub struct RootFs {
    pub diff_ids: Vec<String>,
}

/// The accepted media types, for registries' content negotiation.
pub const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// This machine's architecture in OCI's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Json {
        what: what.to_owned(),
        source,
    })
}

/// The entry of an index to run here: ours by platform, or the only one that names none.
pub fn choose<'a>(manifests: &'a [Descriptor], architecture: &str) -> Option<&'a Descriptor> {
    let ours = |p: &Platform| p.os == "linux" && p.architecture == architecture;
    manifests
        .iter()
        .find(|m| m.platform.as_ref().is_some_and(ours))
        .or_else(|| manifests.iter().find(|m| m.platform.is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_entry_of_this_platform_is_chosen() {
        let index: Document = parse(
            "index",
            br#"{"manifests":[
                {"digest":"sha256:a","platform":{"os":"windows","architecture":"amd64"}},
                {"digest":"sha256:b","platform":{"os":"linux","architecture":"arm64"}},
                {"digest":"sha256:c","platform":{"os":"linux","architecture":"amd64"}}]}"#,
        )
        .unwrap();
        let Document::Index { manifests } = index else {
            panic!("not an index")
        };
        assert_eq!(choose(&manifests, "amd64").unwrap().digest, "sha256:c");
        assert_eq!(choose(&manifests, "arm64").unwrap().digest, "sha256:b");
        assert!(choose(&manifests, "s390x").is_none());
    }

    #[test]
    fn a_configuration_may_hold_nulls() {
        let configuration: Configuration = parse(
            "config",
            br#"{"config":{"Cmd":["sh"],"Entrypoint":null,"Env":null},"rootfs":{"diff_ids":["sha256:x"]}}"#,
        )
        .unwrap();
        assert_eq!(configuration.config.unwrap().cmd, ["sh"]);
    }
}
