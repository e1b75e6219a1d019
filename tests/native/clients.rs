//! Clients that other people wrote, from their package registries, against `control-plane all`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{ControlPlane, Program, TempDir, output};

#[path = "clients/kube_rs.rs"]
mod kube_rs;

/// Majors that speak our version of the API.
const PYTHON: &str = "kubernetes==37.*";
const JAVASCRIPT: &str = "@kubernetes/client-node@1";
/// Helm 4 as a library; Debian has no helm.
const HELM: &str = "helm-python-sdk==0.2.*";
const PATIENCE: Duration = Duration::from_secs(120);

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("native/clients")
        .join(name)
}

/// Installed once for all runs: `marker` tells that it was done.
fn installed(name: &str, install: impl Fn(&Path)) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let marker = root.join("installed");
    if !marker.exists() {
        fs::create_dir_all(&root).expect("a place for the client");
        install(&root);
        fs::write(&marker, "").expect("the marker");
    }
    root
}

fn cluster(name: &str) -> (TempDir, ControlPlane) {
    let dir = TempDir::new(name);
    let plane = ControlPlane::start(&dir.join("data"), &["--store", "embedded"]);
    plane.kubectl.wait_for(
        &["serviceaccount", "default"],
        "{.metadata.name}",
        "default",
        PATIENCE,
    );
    (dir, plane)
}

fn works(name: &str, client: &mut Command) {
    let (dir, _plane) = cluster(name);
    client.arg(dir.join("data").join("admin.kubeconfig"));
    let mut run = Program::start(client, dir.join("client.log"));
    run.succeeds(PATIENCE);
    assert!(run.output().contains("all of it works"), "{}", run.output());
}

fn works_in_python(name: &str, package: &str, file: &str) {
    let root = installed(&format!("{name}-client"), |root| {
        output(Command::new("python3").args(["-m", "venv"]).arg(root));
        output(Command::new(root.join("bin/pip")).args(["install", "--quiet", package]));
    });
    works(name, Command::new(root.join("bin/python")).arg(script(file)));
}

#[test]
fn the_python_client_works() {
    works_in_python("python", PYTHON, "client.py");
}

#[test]
fn helm_works() {
    works_in_python("helm", HELM, "helm.py");
}

#[tokio::test]
async fn kube_rs_works() {
    let (dir, _plane) = cluster("kube-rs");
    kube_rs::all_of_it(&dir.join("data").join("admin.kubeconfig")).await;
}

#[test]
fn the_javascript_client_works() {
    let root = installed("javascript-client", |root| {
        fs::write(root.join("package.json"), "{}").expect("package.json");
        output(Command::new("npm").current_dir(root).args([
            "install",
            "--no-audit",
            "--no-fund",
            JAVASCRIPT,
        ]));
    });
    // Modules are found beside the script.
    let copy = root.join("client.mjs");
    fs::copy(script("client.mjs"), &copy).expect("the script");
    works("javascript", Command::new("node").arg(copy));
}
