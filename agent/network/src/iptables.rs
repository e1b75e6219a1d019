//! The one way this crate changes iptables: a whole chain at a time through `iptables-restore
//! --noflush`, which applies all of it or nothing (iptables-restore(8)).

use std::net::IpAddr;
use std::process::Stdio;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

#[derive(Debug, Error)]
pub enum IptablesError {
    #[error("cannot run {program}")]
    Spawn {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} refused the rules: {stderr}")]
    Refused { program: &'static str, stderr: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn restore(self) -> &'static str {
        match self {
            Self::V4 => "iptables-restore",
            Self::V6 => "ip6tables-restore",
        }
    }

    fn iptables(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

/// Replaces the content of the chains that `input` (iptables-save format) declares.
pub async fn restore(family: Family, input: &str) -> Result<(), IptablesError> {
    let program = family.restore();
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
        stdin.write_all(input.as_bytes()).await.map_err(spawn)?;
    }
    let output = child.wait_with_output().await.map_err(spawn)?;
    refused(program, &output)
}

/// Makes sure that `chain` of the nat table jumps by `rule`; existing rules stay where they are.
pub async fn ensure_jump(family: Family, chain: &str, rule: &[&str]) -> Result<(), IptablesError> {
    if nat(family, "-C", chain, rule).await?.status.success() {
        return Ok(());
    }
    refused(family.iptables(), &nat(family, "-A", chain, rule).await?)
}

async fn nat(
    family: Family,
    action: &str,
    chain: &str,
    rule: &[&str],
) -> Result<std::process::Output, IptablesError> {
    let program = family.iptables();
    Command::new(program)
        .args(["-w", "5", "-t", "nat", action, chain])
        .args(rule)
        .output()
        .await
        .map_err(|source| IptablesError::Spawn { program, source })
}

fn refused(program: &'static str, output: &std::process::Output) -> Result<(), IptablesError> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(IptablesError::Refused { program, stderr })
}
