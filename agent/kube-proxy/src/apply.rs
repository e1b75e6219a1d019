//! Brings the kernel from the rule set it has to the one it should have, by one
//! `iptables-restore --noflush` that names only what changed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Stdio;

use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::ruleset::{Chains, JUMPS, Ruleset, is_per_service};
use crate::service_map::Family;

#[derive(Debug, Error)]
pub enum ApplyError {
    #[error("cannot run {program}")]
    Spawn {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} failed: {stderr}")]
    Failed { program: &'static str, stderr: String },
}

/// The rules of one family in the kernel, as far as this process knows them.
pub struct Applied {
    family: Family,
    known: Option<Ruleset>,
}

impl Applied {
    pub fn new(family: Family) -> Self {
        Self { family, known: None }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Makes the next [`Applied::sync`] read the kernel's state and write everything anew.
    pub fn forget(&mut self) {
        self.known = None;
    }

    pub async fn sync(&mut self, wanted: Ruleset) -> Result<(), ApplyError> {
        let input = match &self.known {
            Some(known) if *known == wanted => return Ok(()),
            Some(known) => incremental(known, &wanted),
            None => full(&self.save().await?, &wanted),
        };
        if let Err(error) = self.restore(&input).await {
            self.forget();
            return Err(error);
        }
        self.known = Some(wanted);
        Ok(())
    }

    /// False when somebody flushed our tables (upstream's canary chain).
    pub async fn canary_lives(&self) -> Result<bool, ApplyError> {
        let program = if self.family == Family::V4 {
            "iptables"
        } else {
            "ip6tables"
        };
        let mut command = Command::new(program);
        command.args(["-w", "5", "-t", "nat", "-S", "KUBE-PROXY-CANARY"]);
        let output = command
            .output()
            .await
            .map_err(|source| ApplyError::Spawn { program, source })?;
        Ok(output.status.success())
    }

    async fn save(&self) -> Result<String, ApplyError> {
        let program = if self.family == Family::V4 {
            "iptables-save"
        } else {
            "ip6tables-save"
        };
        let output = Command::new(program).output().await;
        let output = output.map_err(|source| ApplyError::Spawn { program, source })?;
        succeeded(program, &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn restore(&self, input: &str) -> Result<(), ApplyError> {
        let program = if self.family == Family::V4 {
            "iptables-restore"
        } else {
            "ip6tables-restore"
        };
        let spawn = |source| ApplyError::Spawn { program, source };
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
        succeeded(program, &child.wait_with_output().await.map_err(spawn)?)
    }
}

fn succeeded(program: &'static str, output: &std::process::Output) -> Result<(), ApplyError> {
    if output.status.success() {
        return Ok(());
    }
    Err(ApplyError::Failed {
        program,
        stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

fn incremental(known: &Ruleset, wanted: &Ruleset) -> String {
    let table = |name, known: &Chains, wanted: &Chains| {
        let changed = wanted
            .iter()
            .filter(|(chain, rules)| known.get(*chain) != Some(rules));
        let gone = known.keys().filter(|c| !wanted.contains_key(*c));
        render_table(name, changed, gone.map(String::as_str).collect(), &[])
    };
    table("nat", &known.nat, &wanted.nat) + &table("filter", &known.filter, &wanted.filter)
}

/// `saved` is the output of iptables-save: it tells which jumps are missing and which chains are stale.
fn full(saved: &str, wanted: &Ruleset) -> String {
    let kernel = Saved::parse(saved);
    let table = |name: &'static str, wanted: &Chains| {
        let stale = kernel
            .chains
            .iter()
            .filter(|(t, chain)| *t == name && is_per_service(chain) && !wanted.contains_key(*chain));
        let jumps: Vec<_> = JUMPS
            .iter()
            .filter(|j| j.0 == name && !kernel.has_jump(j))
            .map(|j| (j.1, j.2))
            .collect();
        render_table(
            name,
            wanted.iter(),
            stale.map(|(_, chain)| *chain).collect(),
            &jumps,
        )
    };
    table("nat", &wanted.nat) + &table("filter", &wanted.filter)
}

fn render_table<'a>(
    name: &str,
    written: impl Iterator<Item = (&'a String, &'a Vec<String>)>,
    deleted: Vec<&str>,
    jumps: &[(&str, &str)],
) -> String {
    let written: Vec<_> = written.collect();
    if written.is_empty() && deleted.is_empty() && jumps.is_empty() {
        return String::new();
    }
    let mut out = format!("*{name}\n");
    for chain in written
        .iter()
        .map(|(chain, _)| chain.as_str())
        .chain(deleted.iter().copied())
    {
        let _ = writeln!(out, ":{chain} - [0:0]");
    }
    for (chain, rule) in jumps {
        let _ = writeln!(out, "-I {chain} {rule}");
    }
    for (chain, rules) in written {
        for rule in rules {
            let _ = writeln!(out, "-A {chain} {rule}");
        }
    }
    for chain in deleted {
        let _ = writeln!(out, "-X {chain}");
    }
    out.push_str("COMMIT\n");
    out
}

struct Saved<'a> {
    chains: BTreeSet<(&'a str, &'a str)>,
    /// Table, chain and the rest of each rule.
    rules: Vec<(&'a str, &'a str, &'a str)>,
}

impl<'a> Saved<'a> {
    fn parse(saved: &'a str) -> Self {
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

    fn has_jump(&self, (table, chain, rule): &(&str, &str, &str)) -> bool {
        let target = rule.rsplit(' ').next().unwrap_or_default();
        self.rules
            .iter()
            .any(|(t, c, r)| t == table && c == chain && r.rsplit(' ').next() == Some(target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chains(entries: &[(&str, &[&str])]) -> Chains {
        entries
            .iter()
            .map(|(c, rules)| ((*c).to_owned(), rules.iter().map(|r| (*r).to_owned()).collect()))
            .collect()
    }

    #[test]
    fn a_change_names_only_what_changed() {
        let known = Ruleset {
            nat: chains(&[
                ("KUBE-SVC-A", &["-j KUBE-SEP-1"]),
                ("KUBE-SEP-1", &["x"]),
                ("KUBE-SVC-B", &["y"]),
            ]),
            filter: chains(&[("KUBE-SERVICES", &[])]),
        };
        let wanted = Ruleset {
            nat: chains(&[
                ("KUBE-SVC-A", &["-j KUBE-SEP-2"]),
                ("KUBE-SEP-2", &["x"]),
                ("KUBE-SVC-B", &["y"]),
            ]),
            filter: known.filter.clone(),
        };
        assert_eq!(
            incremental(&known, &wanted),
            "*nat\n:KUBE-SEP-2 - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-1 - [0:0]\n\
             -A KUBE-SEP-2 x\n-A KUBE-SVC-A -j KUBE-SEP-2\n-X KUBE-SEP-1\nCOMMIT\n"
        );
        assert_eq!(incremental(&known, &known), "");
    }

    #[test]
    fn a_full_sync_adds_missing_jumps_and_removes_only_our_stale_chains() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SEP-OLD - [0:0]\n:CNI-X - [0:0]\n\
                     -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";
        let wanted = Ruleset {
            nat: chains(&[("KUBE-SERVICES", &[])]),
            filter: chains(&[]),
        };
        let input = full(saved, &wanted);
        assert!(
            input.contains("-X KUBE-SEP-OLD\n") && !input.contains("CNI-X"),
            "{input}"
        );
        assert!(
            !input.contains("-I PREROUTING") && input.contains("-I OUTPUT -m comment"),
            "{input}"
        );
    }

    /// Real iptables in a network namespace of the test's own (needs root).
    #[test]
    fn the_kernel_takes_every_kind_of_rule() {
        use std::io::Write as _;
        let service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.5", "externalIPs": ["203.0.113.9"],
                "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
                "loadBalancerSourceRanges": ["203.0.113.0/25"],
                "ports": [{"port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}},
        }))
        .unwrap();
        let slice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web-x", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}],
            "endpoints": [{"addresses": ["10.244.0.2"], "nodeName": "n1"}, {"addresses": ["10.244.1.2"], "nodeName": "n2"}],
        }))
        .unwrap();
        let map = crate::service_map::build(Family::V4, "n1", [&service].into_iter(), [&slice].into_iter());
        let wanted = crate::ruleset::render(Family::V4, &map, Some("10.244.0.0/16".parse().unwrap()));
        let mut child = std::process::Command::new("unshare")
            .args(["--net", "sh", "-c", "iptables-restore --noflush && iptables-save"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(full("", &wanted).as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );

        let saved = String::from_utf8_lossy(&output.stdout);
        assert!(
            saved.contains("-j DNAT --to-destination 10.244.0.2:8080"),
            "{saved}"
        );
        assert!(saved.contains("--dport 53 -j REJECT"), "{saved}");
        let again = full(&saved, &wanted);
        assert!(!again.contains("\n-I "), "jumps are there already: {again}");
    }
}
