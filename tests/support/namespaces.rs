//! Tests that need root and a network of their own run themselves again inside fresh namespaces.

use std::process::Command;

const INSIDE: &str = "IRONLET_TEST_INSIDE_NAMESPACES";

/// Runs the calling test `name` again in its own network, mount and PID namespaces, where it
/// returns true; outside it returns false once that run has passed.
pub fn in_own_namespaces(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let exe = std::env::current_exe().expect("the path of the running test");
    let status = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        ])
        .arg(exe)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare(1) of util-linux");
    assert!(
        status.success(),
        "{name} inside its namespaces: {status} (does it run as root?)"
    );
    false
}
