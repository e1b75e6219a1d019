//! Brings the kernel's sets and chains to what the rules say: sets grow first, chains change in one step, sets that
//! nobody uses any more go last. Only differences are written.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Stdio;

use netfilter::Family;
use netfilter::iptables::{self, Changes, IptablesError, Jump, Saved};
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::rules::{CHAIN, POD_CHAINS, Rules, Set, set_prefix};

#[derive(Debug, Error)]
pub enum ApplyError {
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    #[error("cannot run ipset: {0}")]
    Spawn(#[source] std::io::Error),
    #[error("ipset refused: {0}")]
    Refused(String),
}

/// The kernel's state as far as this process knows it.
pub struct Applied {
    family: Family,
    known: Option<Rules>,
}

impl Applied {
    pub fn new(family: Family) -> Self {
        Self { family, known: None }
    }

    /// Makes the next sync write everything anew.
    pub fn forget(&mut self) {
        self.known = None;
    }

    /// True when something had to be written.
    pub async fn sync(&mut self, rules: Rules) -> Result<bool, ApplyError> {
        if self.known.as_ref() == Some(&rules) {
            return Ok(false);
        }
        let outcome = match &self.known {
            Some(known) => self.change(known, &rules).await,
            None => self.write_all(&rules).await,
        };
        self.known = outcome.is_ok().then_some(rules);
        outcome.map(|()| true)
    }

    async fn change(&self, known: &Rules, rules: &Rules) -> Result<(), ApplyError> {
        let mut sets = String::new();
        for (name, set) in &rules.sets {
            match known.sets.get(name).filter(|old| old.kind == set.kind) {
                Some(old) => difference(&mut sets, name, old, set),
                None => whole(&mut sets, self.family, name, set),
            }
        }
        ipset(&sets).await?;
        let mut changes = Changes::default();
        for (chain, lines) in rules
            .chains
            .iter()
            .filter(|(chain, lines)| known.chains.get(*chain) != Some(lines))
        {
            changes.chain(chain, lines);
        }
        let gone = known
            .chains
            .keys()
            .filter(|chain| !rules.chains.contains_key(*chain));
        changes.deleted.extend(gone.cloned());
        iptables::restore(self.family, &changes.render("mangle")).await?;
        let unused = known.sets.keys().filter(|name| !rules.sets.contains_key(*name));
        ipset(&destroy(unused.map(String::as_str))).await
    }

    /// Whatever an earlier process or somebody else left.
    async fn write_all(&self, rules: &Rules) -> Result<(), ApplyError> {
        let mut sets = String::new();
        for (name, set) in &rules.sets {
            whole(&mut sets, self.family, name, set);
        }
        ipset(&sets).await?;
        let saved = iptables::save(self.family).await?;
        let mut changes = Changes::default();
        for (chain, lines) in &rules.chains {
            changes.chain(chain, lines);
        }
        let kernel = Saved::parse(&saved);
        let stale = kernel.chains.iter().filter(|(table, chain)| {
            *table == "mangle" && chain.starts_with(POD_CHAINS) && !rules.chains.contains_key(*chain)
        });
        changes
            .deleted
            .extend(stale.map(|(_, chain)| (*chain).to_owned()));
        iptables::restore(self.family, &changes.render("mangle")).await?;
        ensure_jumps(self.family).await?;
        let listed = match saved.contains("-m set ") || !rules.sets.is_empty() {
            true => list().await?,
            false => return Ok(()),
        };
        let ours = listed
            .lines()
            .filter(|name| name.starts_with(set_prefix(self.family)));
        let unused: BTreeSet<&str> = ours.filter(|name| !rules.sets.contains_key(*name)).collect();
        ipset(&destroy(unused.into_iter())).await
    }
}

/// Until the policies are known, a machine that has just started lets no pod speak: a process that comes later finds
/// the chain in place and leaves it. True when it had to be closed.
pub async fn close_until_known(family: Family, bridge: &str) -> Result<bool, ApplyError> {
    let saved = iptables::save(family).await?;
    if Saved::parse(&saved).chains.contains(&("mangle", CHAIN)) {
        return Ok(false);
    }
    let closed = [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        &format!("-i {bridge} -j DROP"),
        &format!("-o {bridge} -j DROP"),
    ];
    let mut changes = Changes::default();
    changes.chain(CHAIN, &closed.map(str::to_owned));
    iptables::restore(family, &changes.render("mangle")).await?;
    ensure_jumps(family).await?;
    Ok(true)
}

async fn ensure_jumps(family: Family) -> Result<(), ApplyError> {
    let rule = ["-j", CHAIN];
    let into = |chain| Jump {
        chain,
        first: true,
        rule: &rule,
    };
    Ok(iptables::ensure_jumps(family, "mangle", &[into("FORWARD"), into("INPUT")]).await?)
}

/// The set with just these members, also where one of this name is in use: it is exchanged in one step.
fn whole(out: &mut String, family: Family, name: &str, set: &Set) {
    let inet = if family == Family::V4 { "inet" } else { "inet6" };
    let options = format!("{} family {inet} maxelem 1048576", set.kind);
    let _ = writeln!(
        out,
        "create {name} {options} -exist\ncreate {name}-tmp {options} -exist\nflush {name}-tmp"
    );
    for member in &set.members {
        let _ = writeln!(out, "add {name}-tmp {member} -exist");
    }
    let _ = writeln!(out, "swap {name}-tmp {name}\ndestroy {name}-tmp");
}

fn difference(out: &mut String, name: &str, old: &Set, new: &Set) {
    for member in old.members.difference(&new.members) {
        let plain = member.trim_end_matches(" nomatch");
        let _ = writeln!(out, "del {name} {plain} -exist");
    }
    for member in new.members.difference(&old.members) {
        let _ = writeln!(out, "add {name} {member} -exist");
    }
}

fn destroy<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.fold(String::new(), |mut out, name| {
        let _ = writeln!(out, "destroy {name}");
        out
    })
}

async fn ipset(input: &str) -> Result<(), ApplyError> {
    if input.is_empty() {
        return Ok(());
    }
    let mut child = Command::new("ipset")
        .arg("restore")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(ApplyError::Spawn)?;
    if let Some(mut stdin) = child.stdin.take() {
        // When it refuses early, what it says matters, not that the pipe broke.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(ApplyError::Spawn)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(ApplyError::Refused(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

async fn list() -> Result<String, ApplyError> {
    let output = Command::new("ipset")
        .args(["list", "-name"])
        .output()
        .await
        .map_err(ApplyError::Spawn)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
