//! The real kubectl, as a user would call it.

use crate::layout::Layout;
use anyhow::{Context, bail};
use serde_json::Value;
use std::{
    env,
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    /// `$KUBECTL`, the one in the PATH, or the one qemu/up keeps in the cache.
    pub fn find(layout: &Layout) -> anyhow::Result<Self> {
        let named = env::var_os("KUBECTL")
            .filter(|value| !value.is_empty())
            .map(PathBuf::from);
        let in_path = || {
            env::split_paths(&env::var_os("PATH")?)
                .map(|directory| directory.join("kubectl"))
                .find(|path| path.is_file())
        };
        let cached = || {
            cache_directory()
                .map(|cache| cache.join("bin/kubectl"))
                .filter(|path| path.is_file())
        };
        let program = named.or_else(in_path).or_else(cached);
        let program = program.context("no kubectl in the PATH; qemu/up fetches one, or say KUBECTL=FILE")?;
        Ok(Self {
            program,
            kubeconfig: layout.kubeconfig(),
            cache: layout.kubectl_cache(),
        })
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Runs kubectl with `input` on its standard input and returns what it printed.
    pub fn run(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let mut child = Command::new(&self.program)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .arg("--cache-dir")
            .arg(&self.cache)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A kubectl that failed early no longer reads; its status tells.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let words: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.run(&words, "")?)
            .with_context(|| format!("kubectl {}: not JSON", words.join(" ")))
    }
}

/// `$XDG_CACHE_HOME/ironlet` or `~/.cache/ironlet`.
pub fn cache_directory() -> Option<PathBuf> {
    directory("XDG_CACHE_HOME", ".cache")
}

/// `$XDG_STATE_HOME/ironlet` or `~/.local/state/ironlet`.
pub fn state_directory() -> Option<PathBuf> {
    directory("XDG_STATE_HOME", ".local/state")
}

fn directory(variable: &str, fallback: &str) -> Option<PathBuf> {
    let value = |name: &str| {
        env::var_os(name)
            .filter(|value: &OsString| !value.is_empty())
            .map(PathBuf::from)
    };
    let base = value(variable).or_else(|| value("HOME").map(|home| home.join(fallback)))?;
    Some(base.join("ironlet"))
}
