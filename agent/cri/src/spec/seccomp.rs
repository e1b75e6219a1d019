//! The RuntimeDefault seccomp profile, from a table, and profiles from files.

use super::capabilities::Capabilities;
use serde_json::{Map, Value, json};

/// Lines of `capability…: system call…`; an empty left side means "always".
const TABLE: &str = include_str!("seccomp.table");

/// Socket families that would let a container reach the hypervisor.
const AF_VSOCK: u64 = 40;
/// clone(2) flags that make new namespaces, and the mask for the personalities that are harmless.
const CLONE_NEW_NAMESPACES: u64 = 0x7e02_0000;
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x20000, 0x20008, 0xffff_ffff];
const ENOSYS: u32 = 38;

/// The profile for a container with these capabilities.
pub fn runtime_default(capabilities: &Capabilities) -> Value {
    let mut rules = Vec::new();
    for line in TABLE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let Some((condition, names)) = line.split_once(':') else {
            continue;
        };
        let condition: Vec<&str> = condition.split_whitespace().collect();
        if condition.is_empty() || condition.iter().any(|name| capabilities.has(name)) {
            let names: Vec<&str> = names.split_whitespace().collect();
            rules.push(json!({"names": names, "action": "SCMP_ACT_ALLOW"}));
        }
    }
    let compare = |index: u32, value: u64, op: &str| json!({"index": index, "value": value, "op": op});
    rules.push(json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [compare(0, AF_VSOCK, "SCMP_CMP_NE")]}));
    for personality in PERSONALITIES {
        rules.push(json!({
            "names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [compare(0, personality, "SCMP_CMP_EQ")],
        }));
    }
    if !capabilities.has("SYS_ADMIN") {
        rules.push(json!({
            "names": ["clone"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": CLONE_NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
        }));
        // Its flags lie in memory that a filter cannot read: C libraries fall back to clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

fn architectures() -> Vec<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => vec!["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => vec!["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => vec!["SCMP_ARCH_NATIVE"],
    }
}

/// A profile file: OCI's fields are kept; rules that Docker's format bounds to
/// capabilities or architectures are taken when this container fulfils them.
pub fn from_file(text: &str, capabilities: &Capabilities) -> Result<Value, serde_json::Error> {
    let profile: Map<String, Value> = serde_json::from_str(text)?;
    let mut out = Map::new();
    for key in [
        "defaultAction",
        "defaultErrnoRet",
        "architectures",
        "flags",
        "listenerPath",
        "listenerMetadata",
    ] {
        if let Some(value) = profile.get(key) {
            out.insert(key.into(), value.clone());
        }
    }
    if !out.contains_key("architectures") {
        out.insert("architectures".into(), json!(architectures()));
    }
    let rules = profile
        .get("syscalls")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let rules = rules
        .into_iter()
        .filter(|rule| applies(rule, capabilities))
        .map(|rule| {
            let kept = ["names", "action", "args", "errnoRet"];
            let args_are_empty = rule["args"].as_array().is_none_or(Vec::is_empty);
            let fields = kept.into_iter().filter(|key| *key != "args" || !args_are_empty);
            Value::Object(
                fields
                    .filter_map(|key| Some((key.to_owned(), rule.get(key)?.clone())))
                    .collect(),
            )
        });
    out.insert("syscalls".into(), rules.collect());
    Ok(Value::Object(out))
}

fn applies(rule: &Value, capabilities: &Capabilities) -> bool {
    let named = |list: &Value, matches: &dyn Fn(&str) -> bool| {
        list.as_array()
            .filter(|list| !list.is_empty())
            .map(|list| list.iter().filter_map(Value::as_str).any(matches))
    };
    let has_capability = |name: &str| capabilities.has(name.trim_start_matches("CAP_"));
    let is_architecture =
        |name: &str| name == crate::image::manifest::architecture() || name == "x32" || name == "x86";
    let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
    named(&includes["caps"], &has_capability).unwrap_or(true)
        && named(&includes["arches"], &is_architecture).unwrap_or(true)
        && !named(&excludes["caps"], &has_capability).unwrap_or(false)
        && !named(&excludes["arches"], &is_architecture).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(profile: &Value, name: &str) -> bool {
        profile["syscalls"].as_array().unwrap().iter().any(|rule| {
            rule["action"] == "SCMP_ACT_ALLOW" && rule["names"].as_array().unwrap().contains(&json!(name))
        })
    }

    #[test]
    fn the_default_profile_depends_on_capabilities() {
        let none = runtime_default(&Capabilities::default());
        let admin = runtime_default(&Capabilities {
            granted: ["SYS_ADMIN"].into(),
            ambient: [].into(),
        });
        for name in ["read", "execve", "futex", "clone", "socket"] {
            assert!(allowed(&none, name), "{name}");
        }
        for name in ["mount", "setns", "unshare", "bpf"] {
            assert!(!allowed(&none, name) && allowed(&admin, name), "{name}");
        }
        for name in ["kexec_load", "keyctl", "init_module"] {
            assert!(!allowed(&none, name) && !allowed(&admin, name), "{name}");
        }
    }

    #[test]
    fn rules_of_a_file_apply_by_capability() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[],"syscalls":[
            {"names":["read"],"action":"SCMP_ACT_ALLOW","args":[],"comment":""},
            {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let profile = from_file(text, &Capabilities::default()).unwrap();
        assert_eq!(
            profile["syscalls"],
            json!([{"names": ["read"], "action": "SCMP_ACT_ALLOW"}])
        );
        assert!(from_file("nonsense", &Capabilities::default()).is_err());
    }
}
