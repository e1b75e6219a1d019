//! The real kubectl.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::programs::eventually;

#[derive(Clone)]
pub struct Kubectl {
    kubeconfig: PathBuf,
}

impl Kubectl {
    pub fn new(kubeconfig: &Path) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        // Discovery is cached by server address, and the tests' servers share loopback ports.
        command
            .arg("--cache-dir")
            .arg(self.kubeconfig.with_extension("cache"));
        command.args(args);
        command
    }

    /// Standard output, or standard error of a failure.
    pub fn try_run(&self, args: &[&str]) -> Result<String, String> {
        let output = self.command(args).output().expect("kubectl on the PATH");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn run(&self, args: &[&str]) -> String {
        self.try_run(args)
            .unwrap_or_else(|stderr| panic!("kubectl {args:?}: {stderr}"))
    }

    /// What the command complains of; it must fail.
    pub fn fails(&self, args: &[&str]) -> String {
        match self.try_run(args) {
            Ok(stdout) => panic!("kubectl {args:?} should have failed: {stdout}"),
            Err(stderr) => stderr,
        }
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.run(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("kubectl {args:?}: {e}: {text}"))
    }

    pub fn apply(&self, manifest: &str) -> String {
        let mut command = self.command(&["apply", "-f", "-"]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl on the PATH");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(manifest.as_bytes())
            .expect("kubectl to read");
        let output = child.wait_with_output().expect("kubectl to end");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl apply: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until `jsonpath` of the object prints `wanted`.
    pub fn wait_for(&self, object: &[&str], jsonpath: &str, wanted: &str, limit: Duration) {
        let path = format!("jsonpath={jsonpath}");
        let args = [&["get"], object, &["-o", &path]].concat();
        eventually(
            &format!("{object:?} {jsonpath} = {wanted:?}"),
            limit,
            || match self.try_run(&args) {
                Ok(found) if found == wanted => Ok(()),
                Ok(found) => Err(found),
                Err(stderr) => Err(stderr),
            },
        );
    }
}
