//! The one way to change iptables: whole tables read by iptables-save, changes written by `iptables-restore --noflush`,
//! which takes all of its input or nothing (iptables-restore(8)).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::{Output, Stdio};

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::Family;

#[derive(Debug, Error)]
pub enum IptablesError {
    #[error("cannot run {program}")]
    Spawn {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} failed: {stderr}")]
    Failed { program: &'static str, stderr: String },
}

/// Changes of one table, in the order in which they must be written.
#[derive(Debug, Default)]
pub struct Changes {
    /// Chains to make, or to empty when they are there.
    pub chains: Vec<String>,
    /// Whole lines: `-A CHAIN …`, `-I CHAIN …`, `-D CHAIN …`.
    pub rules: Vec<String>,
    pub deleted: Vec<String>,
}

impl Changes {
    pub fn chain(&mut self, chain: &str, rules: &[String]) {
        self.chains.push(chain.to_owned());
        self.rules
            .extend(rules.iter().map(|rule| format!("-A {chain} {rule}")));
    }

    /// How many lines of rules change.
    pub fn lines(&self) -> usize {
        self.rules.len()
    }

    pub fn render(&self, table: &str) -> String {
        if self.chains.is_empty() && self.rules.is_empty() && self.deleted.is_empty() {
            return String::new();
        }
        let mut out = format!("*{table}\n");
        for chain in self.chains.iter().chain(&self.deleted) {
            let _ = writeln!(out, ":{chain} - [0:0]");
        }
        for rule in &self.rules {
            out.push_str(rule);
            out.push('\n');
        }
        for chain in &self.deleted {
            let _ = writeln!(out, "-X {chain}");
        }
        out.push_str("COMMIT\n");
        out
    }
}

/// A rule of a built-in chain that leads into one of ours.
pub struct Jump<'a> {
    pub chain: &'a str,
    /// Before all other rules, or after them.
    pub first: bool,
    pub rule: &'a [&'a str],
}

/// Applies `input` (iptables-save format), all of it or nothing; other chains stay.
pub async fn restore(family: Family, input: &str) -> Result<(), IptablesError> {
    if input.is_empty() {
        return Ok(());
    }
    let program = match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    };
    let spawn = |source| IptablesError::Spawn { program, source };
    let mut child = Command::new(program)
        .args(["--noflush", "-w", "5"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(spawn)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When it refuses early, what it says matters, not that the pipe broke.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    succeeded(program, &child.wait_with_output().await.map_err(spawn)?)
}

/// Makes sure that `chain` of `table` begins or ends with jumps by `rules`; where they are already, they stay.
pub async fn ensure_jumps(family: Family, table: &str, jumps: &[Jump<'_>]) -> Result<(), IptablesError> {
    let program = match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    };
    let run = async |action: &str, jump: &Jump<'_>| {
        Command::new(program)
            .args(["-w", "5", "-t", table, action, jump.chain])
            .args(jump.rule)
            .output()
            .await
            .map_err(|source| IptablesError::Spawn { program, source })
    };
    for jump in jumps {
        if !run("-C", jump).await?.status.success() {
            let action = if jump.first { "-I" } else { "-A" };
            succeeded(program, &run(action, jump).await?)?;
        }
    }
    Ok(())
}

pub async fn save(family: Family) -> Result<String, IptablesError> {
    let program = match family {
        Family::V4 => "iptables-save",
        Family::V6 => "ip6tables-save",
    };
    let output = Command::new(program).output().await;
    let output = output.map_err(|source| IptablesError::Spawn { program, source })?;
    succeeded(program, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn succeeded(program: &'static str, output: &Output) -> Result<(), IptablesError> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(IptablesError::Failed { program, stderr })
}

/// What iptables-save told.
pub struct Saved<'a> {
    /// Table and chain.
    pub chains: BTreeSet<(&'a str, &'a str)>,
    /// Table, chain and the rest of each rule.
    rules: Vec<(&'a str, &'a str, &'a str)>,
}

impl<'a> Saved<'a> {
    pub fn parse(saved: &'a str) -> Self {
        let mut parsed = Self {
            chains: BTreeSet::new(),
            rules: Vec::new(),
        };
        let mut table = "";
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(':') {
                parsed
                    .chains
                    .extend(chain.split(' ').next().map(|name| (table, name)));
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|r| r.split_once(' ')) {
                parsed.rules.push((table, chain, rule));
            }
        }
        parsed
    }

    pub fn has_jump(&self, (table, chain, rule): &(&str, &str, &str)) -> bool {
        let target = rule.rsplit(' ').next().unwrap_or_default();
        self.rules
            .iter()
            .any(|(t, c, r)| t == table && c == chain && r.rsplit(' ').next() == Some(target))
    }

    /// One number for the rules of each chain.
    pub fn digests(&self) -> impl Iterator<Item = ((&'a str, &'a str), u64)> {
        let mut digests: std::collections::BTreeMap<_, DefaultHasher> = self
            .chains
            .iter()
            .map(|place| (*place, DefaultHasher::new()))
            .collect();
        for (table, chain, rule) in &self.rules {
            if let Some(digest) = digests.get_mut(&(*table, *chain)) {
                rule.hash(digest);
            }
        }
        digests
            .into_iter()
            .map(|(place, digest)| (place, digest.finish()))
    }
}
