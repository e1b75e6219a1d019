//! The promises of `image build`: equal inputs give equal bytes, and every part is accounted for.

use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const IMAGE: &str = env!("CARGO_BIN_EXE_image");

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn build(binaries: &Path, out: &Path) {
    let output = Command::new(IMAGE)
        .args([
            "build",
            "--role",
            "worker",
            "--cmdline",
            "ironlet.hostname=twin",
            "--binaries",
        ])
        .arg(binaries)
        .arg("--out")
        .arg(out)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Uses the packages in the cache, downloading them when they are not there. The executables need not be the real
/// ones for this; a static program stands in for each.
#[test]
fn equal_inputs_give_equal_bytes() {
    let scratch = Scratch::new("twins");
    let binaries = scratch.0.join("binaries");
    fs::create_dir(&binaries).unwrap();
    for name in ["init", "agent", "cluster-dns", "metrics-server"] {
        fs::copy(IMAGE, binaries.join(name)).unwrap();
    }
    let outs = ["first", "second"].map(|name| scratch.0.join(name));
    for out in &outs {
        build(&binaries, out);
    }
    let files = |out: &Path| -> BTreeSet<String> {
        fs::read_dir(out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect()
    };
    let expected = BTreeSet::from(["cmdline", "initramfs", "manifest.json", "vmlinuz"].map(str::to_owned));
    assert_eq!(files(&outs[0]), expected, "nothing else is left behind");
    for name in &expected {
        assert!(
            fs::read(outs[0].join(name)).unwrap() == fs::read(outs[1].join(name)).unwrap(),
            "{name} differs"
        );
    }

    let manifest: Value = serde_json::from_slice(&fs::read(outs[0].join("manifest.json")).unwrap()).unwrap();
    for file in manifest["files"].as_array().unwrap() {
        let data = fs::read(outs[0].join(file["name"].as_str().unwrap())).unwrap();
        assert_eq!(file["size"], data.len(), "{file}");
    }
    let parts = manifest["parts"].as_array().unwrap();
    let names: BTreeSet<&str> = parts.iter().map(|part| part["name"].as_str().unwrap()).collect();
    for part in [
        "agent",
        "image:busybox",
        "init",
        "iptables",
        "kernel",
        "kernel-modules",
        "libc6",
    ] {
        assert!(names.contains(part), "{part} is not in {names:?}");
    }
    for part in ["control-plane", "etcd-server", "openapi-descriptions"] {
        assert!(!names.contains(part), "{part} does not belong to a worker");
    }
    for part in parts.iter().filter(|part| part["name"] != "layout") {
        assert!(
            part["version"].is_string() && part["sha256"].as_str().is_some_and(|hash| hash.len() == 64),
            "{part}"
        );
    }
    let cmdline = fs::read_to_string(outs[0].join("cmdline")).unwrap();
    assert!(cmdline.ends_with(" ironlet.hostname=twin\n"), "{cmdline}");
}

#[test]
fn arguments_that_cannot_work_are_named() {
    let scratch = Scratch::new("arguments");
    let table: [(&[&str], &str); 2] = [
        (
            &["--role", "worker", "--cmdline", "ironlet.nonsense=1"],
            "--cmdline: ironlet.nonsense",
        ),
        (
            &["--role", "worker", "--binaries", "/nonexistent"],
            "--binaries /nonexistent",
        ),
    ];
    for (arguments, expected) in table {
        let output = Command::new(IMAGE)
            .arg("build")
            .args(arguments)
            .arg("--out")
            .arg(&scratch.0)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(expected),
            "{arguments:?}: {stderr}"
        );
    }
}
