//! A container's capabilities: the default set, with what the pod adds and drops.

use cri_api::v1;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// In kernel order: the position is the capability's number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when the pod says nothing (as containerd grants).
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {0:?}")]
pub struct UnknownCapability(String);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub granted: BTreeSet<&'static str>,
    pub ambient: BTreeSet<&'static str>,
}

impl Capabilities {
    /// `available` has a bit for each capability that this process can hand on.
    pub fn choose(
        privileged: bool,
        asked: Option<&v1::Capability>,
        available: u64,
    ) -> Result<Self, UnknownCapability> {
        let known: BTreeSet<&'static str> = ALL
            .into_iter()
            .enumerate()
            .filter(|(number, _)| available >> number & 1 == 1)
            .map(|(_, name)| name)
            .collect();
        if privileged {
            return Ok(Self {
                granted: known,
                ambient: BTreeSet::new(),
            });
        }
        let granted = DEFAULT.into_iter().filter(|name| known.contains(name)).collect();
        let mut chosen = Self {
            granted,
            ambient: BTreeSet::new(),
        };
        let Some(asked) = asked else { return Ok(chosen) };
        let (add, drop) = (&asked.add_capabilities, &asked.drop_capabilities);
        // ALL first, single names after it, so that "ALL except" works both ways.
        if add.iter().any(|name| is_all(name)) {
            chosen.granted = known.clone();
        }
        if drop.iter().any(|name| is_all(name)) {
            chosen.granted.clear();
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            chosen.granted.extend(known.get(lookup(name)?));
        }
        for name in asked.add_ambient_capabilities.iter().filter(|name| !is_all(name)) {
            let found = known.get(lookup(name)?);
            chosen.granted.extend(found);
            chosen.ambient.extend(found);
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            let name = lookup(name)?;
            chosen.granted.remove(name);
            chosen.ambient.remove(name);
        }
        Ok(chosen)
    }

    pub fn has(&self, name: &str) -> bool {
        self.granted.contains(name)
    }

    /// `process.capabilities` of the OCI runtime spec.
    pub fn to_json(&self) -> Value {
        let names = |set: &BTreeSet<&str>| set.iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>();
        let granted = names(&self.granted);
        json!({
            "bounding": granted, "effective": granted, "permitted": granted,
            "inheritable": names(&self.ambient), "ambient": names(&self.ambient),
        })
    }
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

fn lookup(name: &str) -> Result<&'static str, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL.into_iter()
        .find(|known| *known == short)
        .ok_or_else(|| UnknownCapability(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let asked = v1::Capability {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            ..Default::default()
        };
        Capabilities::choose(false, Some(&asked), u64::MAX)
            .unwrap()
            .granted
            .into_iter()
            .collect()
    }

    #[test]
    fn additions_and_drops_apply_in_upstreams_order() {
        assert_eq!(chosen(&[], &["ALL"]), Vec::<&str>::new());
        assert_eq!(chosen(&["NET_ADMIN"], &["ALL"]), ["NET_ADMIN"]);
        assert_eq!(chosen(&["cap_net_admin"], &["all"]), ["NET_ADMIN"]);
        assert_eq!(chosen(&["ALL"], &["SYS_ADMIN"]).len(), 40);
        assert!(!chosen(&["ALL"], &["SYS_ADMIN"]).contains(&"SYS_ADMIN"));
        assert_eq!(chosen(&[], &[]).len(), DEFAULT.len());
        assert_eq!(
            Capabilities::choose(true, None, (1 << 38) - 1)
                .unwrap()
                .granted
                .len(),
            38
        );
        let bad = v1::Capability {
            add_capabilities: vec!["NOPE".into()],
            ..Default::default()
        };
        assert!(Capabilities::choose(false, Some(&bad), u64::MAX).is_err());
    }
}
