//! The invariants of the code map: which crate may depend on which, and what leaves may not touch.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// Crate → the workspace crates it may use. A crate that is not here fails the test.
const EDGES: &[(&str, &[&str])] = &[
    (
        "agent",
        &[
            "api-client",
            "cri",
            "hollow",
            "kube-proxy",
            "kubelet",
            "network",
            "node-api",
            "node-config",
            "pki",
        ],
    ),
    ("api", &[]),
    ("api-client", &["api"]),
    ("apiserver", &["auth", "pki", "quota", "schema", "store"]),
    ("auth", &["pki"]),
    ("boot-disk", &[]),
    ("cloud-controller-manager", &["api", "api-client"]),
    ("cluster-dns", &[]),
    (
        "control-plane",
        &[
            "apiserver",
            "auth",
            "cloud-controller-manager",
            "controller-manager",
            "pki",
            "scheduler",
            "schema",
            "store",
        ],
    ),
    ("controller-manager", &["api", "api-client", "pki", "quota"]),
    ("cri", &["cri-api"]),
    ("cri-api", &[]),
    ("hollow", &["api", "pki"]),
    ("image", &["boot-disk", "node-config", "schema"]),
    ("init", &["boot-disk", "node-config"]),
    ("ironctl", &["api-client", "node-api"]),
    ("kube-proxy", &["netfilter"]),
    ("kubelet", &["api", "api-client", "cri-api", "pki"]),
    ("metrics-server", &["api", "api-client", "auth", "pki"]),
    ("netfilter", &[]),
    ("network", &["api", "netfilter"]),
    ("node-api", &["api-client", "boot-disk", "node-config", "pki"]),
    ("node-config", &[]),
    ("pki", &[]),
    ("qemu", &["node-config"]),
    ("quota", &["schema"]),
    ("scheduler", &["api", "api-client"]),
    ("schema", &[]),
    ("store", &[]),
    ("tests", &["boot-disk", "pki"]),
];

/// Crates of the API server's side that must stay free of the typed API and of any client.
const UNTYPED: [&str; 6] = ["apiserver", "auth", "pki", "quota", "schema", "store"];

/// Leaves decide and never act, so they need no runtime.
const PURE: [&str; 6] = ["api", "auth", "node-config", "pki", "quota", "schema"];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo metadata");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let names = |package: &Value| {
        let runtime = |d: &&Value| d["kind"].is_null();
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        dependencies
            .iter()
            .filter(runtime)
            .map(|d| d["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    packages
        .iter()
        .map(|p| (p["name"].as_str().expect("a name").to_owned(), names(p)))
        .collect()
}

#[test]
fn crates_use_only_whom_they_may() {
    let dependencies = dependencies();
    let members: BTreeSet<&String> = dependencies.keys().collect();
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    for (name, uses) in &dependencies {
        let allowed = allowed
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} is not in the table of edges"));
        let siblings = uses.iter().filter(|u| members.contains(u));
        let beyond: Vec<_> = siblings.filter(|u| !allowed.contains(&u.as_str())).collect();
        assert!(beyond.is_empty(), "{name} must not use {beyond:?}");
    }
}

#[test]
fn the_api_server_s_side_knows_no_typed_api() {
    let dependencies = dependencies();
    for name in UNTYPED {
        for banned in ["k8s-openapi", "kube"] {
            assert!(
                !dependencies[name].contains(banned),
                "{name} must not use {banned}"
            );
        }
    }
}

#[test]
fn leaves_do_no_input_or_output() {
    let dependencies = dependencies();
    for name in PURE {
        for banned in ["tokio", "hyper", "axum", "rustix", "nix", "kube"] {
            assert!(
                !dependencies[name].contains(banned),
                "{name} must not use {banned}"
            );
        }
    }
}
