//! Whether an image may become this machine's system: its manifest, and who signed that. Pure.

use minisign_verify::{PublicKey, Signature};
use serde::Deserialize;
use thiserror::Error;

use crate::v1::UpgradeHeader;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("manifest.json: {0}")]
    Manifest(String),
    #[error("the image is {0:?}, not Ironlet")]
    Foreign(String),
    #[error("manifest.json has no file {0:?}")]
    NoFile(String),
    #[error(
        "this machine takes signed images only (ironlet.upgrade-key), and the image has no manifest.json.minisig"
    )]
    Unsigned,
    #[error("manifest.json.minisig: {0}")]
    Signature(String),
    #[error("ironlet.upgrade-key: {0}")]
    Key(String),
    #[error("this machine is a master, and the image is a {0}'s: it has no control plane")]
    Role(String),
    #[error("the image is for virtual machines (kernel {image}): it lacks the drivers that {running} has")]
    Drivers { image: String, running: String },
}

#[derive(Deserialize)]
struct Manifest {
    name: String,
    version: String,
    role: String,
    kernel: String,
    files: Vec<FileFacts>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct FileFacts {
    pub name: String,
    pub size: u64,
    pub sha256: String,
}

/// What the machine is.
pub struct Machine<'a> {
    pub is_master: bool,
    /// The running kernel's release.
    pub kernel: &'a str,
    /// Only what this minisign key has signed is taken.
    pub key: Option<&'a str>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Image {
    pub version: String,
    /// Kernel and initramfs.
    pub files: [FileFacts; 2],
    pub signature_checked: bool,
}

/// Debian's name for kernels without the drivers of real hardware.
const VIRTUAL: &str = "cloud";

pub fn check(header: &UpgradeHeader, machine: &Machine<'_>) -> Result<Image, Refusal> {
    if let Some(key) = machine.key {
        verify(header, key)?;
    }
    let manifest: Manifest =
        serde_json::from_slice(&header.manifest).map_err(|error| Refusal::Manifest(error.to_string()))?;
    if manifest.name != "ironlet" {
        return Err(Refusal::Foreign(manifest.name));
    }
    if machine.is_master && manifest.role != "master" {
        return Err(Refusal::Role(manifest.role));
    }
    if manifest.kernel.contains(VIRTUAL) && !machine.kernel.contains(VIRTUAL) {
        return Err(Refusal::Drivers {
            image: manifest.kernel,
            running: machine.kernel.to_owned(),
        });
    }
    let file = |name: &str| {
        let found = manifest.files.iter().find(|file| file.name == name);
        found.cloned().ok_or_else(|| Refusal::NoFile(name.to_owned()))
    };
    Ok(Image {
        files: [file(&header.kernel)?, file(&header.initramfs)?],
        version: format!("{}, Linux {}", manifest.version, manifest.kernel),
        signature_checked: machine.key.is_some(),
    })
}

fn verify(header: &UpgradeHeader, key: &str) -> Result<(), Refusal> {
    if header.signature.is_empty() {
        return Err(Refusal::Unsigned);
    }
    let key = PublicKey::from_base64(key).map_err(|error| Refusal::Key(error.to_string()))?;
    let wrong = |error: minisign_verify::Error| Refusal::Signature(error.to_string());
    let signature = Signature::decode(&header.signature).map_err(wrong)?;
    key.verify(&header.manifest, &signature, false).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine<'static> = Machine {
        is_master: false,
        kernel: "6.12.57+deb13-amd64",
        key: None,
    };

    fn header(role: &str, kernel: &str) -> UpgradeHeader {
        let file = |name: &str| format!(r#"{{"name":"{name}","size":3,"sha256":"aa"}}"#);
        let manifest = format!(
            r#"{{"name":"ironlet","version":"0.2.0","role":"{role}","kernel":"{kernel}","parts":[],
            "files":[{},{}]}}"#,
            file("pxe/vmlinuz"),
            file("pxe/initramfs")
        );
        UpgradeHeader {
            manifest: manifest.into_bytes(),
            signature: String::new(),
            kernel: "pxe/vmlinuz".into(),
            initramfs: "pxe/initramfs".into(),
        }
    }

    #[test]
    fn an_image_has_to_fit_the_machine() {
        let image = check(&header("worker", "6.12.60-amd64"), &MACHINE).unwrap();
        assert_eq!(image.version, "0.2.0, Linux 6.12.60-amd64");
        assert_eq!(image.files[1].name, "pxe/initramfs");
        assert!(!image.signature_checked);
        let master = Machine {
            is_master: true,
            ..MACHINE
        };
        let no_kernel = UpgradeHeader {
            kernel: "vmlinuz".into(),
            ..header("worker", "6.12.60-amd64")
        };
        let cut = UpgradeHeader {
            manifest: b"{\"name\":".to_vec(),
            ..UpgradeHeader::default()
        };
        let foreign = UpgradeHeader {
            manifest: br#"{"name":"x","version":"","role":"","kernel":"","files":[]}"#.to_vec(),
            ..UpgradeHeader::default()
        };
        for (header, machine, reason) in [
            (
                header("worker", "6.12.60-amd64"),
                &master,
                "it has no control plane",
            ),
            (
                header("worker", "6.12.60-cloud-amd64"),
                &MACHINE,
                "it lacks the drivers",
            ),
            (no_kernel, &MACHINE, "no file \"vmlinuz\""),
            (cut, &MACHINE, "manifest.json: "),
            (foreign, &MACHINE, "the image is \"x\""),
        ] {
            let error = check(&header, machine).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn with_a_key_only_what_it_signed_is_taken() {
        let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let other = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let sign = |pair: &minisign::KeyPair, header: UpgradeHeader| UpgradeHeader {
            signature: minisign::sign(None, &pair.sk, header.manifest.as_slice(), None, None)
                .unwrap()
                .into_string(),
            ..header
        };
        let key = pair.pk.to_base64();
        let machine = Machine {
            key: Some(&key),
            ..MACHINE
        };
        let plain = || header("worker", "6.12.60-amd64");
        assert!(check(&sign(&pair, plain()), &machine).unwrap().signature_checked);
        assert_eq!(check(&plain(), &machine), Err(Refusal::Unsigned));
        let error = check(&sign(&other, plain()), &machine).unwrap_err();
        assert!(matches!(error, Refusal::Signature(_)), "{error}");
        let mut changed = sign(&pair, plain());
        changed.manifest.push(b' ');
        assert!(matches!(check(&changed, &machine), Err(Refusal::Signature(_))));
        let broken = Machine {
            key: Some("RW"),
            ..MACHINE
        };
        let error = check(&sign(&pair, plain()), &broken).unwrap_err().to_string();
        assert!(error.starts_with("ironlet.upgrade-key: "), "{error}");
    }
}
