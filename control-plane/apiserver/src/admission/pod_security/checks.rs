//! The checks of the Pod Security Standards, in the order upstream tells of them: a table, and a function each.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::{items, text};
use super::policy::{Level, Standard};

/// Why a pod is refused: in short, and in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.detail.is_empty() {
            return f.write_str(&self.reason);
        }
        write!(f, "{} ({})", self.reason, self.detail)
    }
}

fn violation(reason: &str, detail: String) -> Option<Violation> {
    let reason = reason.to_owned();
    Some(Violation { reason, detail })
}

/// The pod (or a template), and the minor version of the standard.
struct Subject<'a> {
    metadata: &'a Value,
    spec: &'a Value,
    minor: u32,
}

struct Check {
    level: Level,
    /// Minor version it came with.
    since: u32,
    run: fn(&Subject<'_>) -> Option<Violation>,
    /// A stricter check stands for it in the restricted level, from that minor version on.
    overridden: Option<u32>,
}

const fn baseline(since: u32, run: fn(&Subject<'_>) -> Option<Violation>) -> Check {
    Check {
        level: Level::Baseline,
        since,
        run,
        overridden: None,
    }
}

const fn restricted(since: u32, run: fn(&Subject<'_>) -> Option<Violation>) -> Check {
    Check {
        level: Level::Restricted,
        since,
        run,
        overridden: None,
    }
}

const fn overridden(minor: u32, check: Check) -> Check {
    Check {
        overridden: Some(minor),
        ..check
    }
}

const CHECKS: &[Check] = &[
    baseline(0, app_armor_profile),
    overridden(22, baseline(0, baseline_capabilities)),
    baseline(0, host_namespaces),
    overridden(0, baseline(0, host_path_volumes)),
    baseline(0, host_ports),
    baseline(34, host_probes_and_lifecycle),
    baseline(0, privileged),
    baseline(0, proc_mount),
    baseline(0, se_linux_options),
    overridden(19, baseline(0, baseline_seccomp_profile)),
    baseline(0, sysctls),
    baseline(0, windows_host_process),
    restricted(8, allow_privilege_escalation),
    restricted(22, restricted_capabilities),
    restricted(0, restricted_volumes),
    restricted(0, run_as_non_root),
    restricted(23, run_as_user),
    restricted(19, restricted_seccomp_profile),
];

const CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// With the minor version since when each is harmless.
const SYSCTLS: &[(&str, u32)] = &[
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

const SE_LINUX_TYPES: &[(&str, u32)] = &[
    ("", 0),
    ("container_t", 0),
    ("container_init_t", 0),
    ("container_kvm_t", 0),
    ("container_engine_t", 31),
];

const VOLUMES: &[&str] = &[
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Restricted volume types that have a name in messages.
const NAMED_VOLUMES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "nfs",
    "iscsi",
    "glusterfs",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "fc",
    "azureFile",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "portworxVolume",
    "scaleIO",
    "storageos",
];

/// Everything the standard holds against a pod.
pub fn violations(standard: Standard, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let minor = standard.minor.unwrap_or(u32::MAX);
    let subject = Subject {
        metadata,
        spec,
        minor,
    };
    let replaced = |check: &Check| {
        standard.level == Level::Restricted && check.overridden.is_some_and(|since| minor >= since)
    };
    CHECKS
        .iter()
        .filter(|check| check.level <= standard.level && minor >= check.since && !replaced(check))
        .filter_map(|check| (check.run)(&subject))
        .collect()
}

impl Subject<'_> {
    fn containers(&self) -> impl Iterator<Item = &Value> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|list| items(&self.spec[list]))
    }

    /// Names of the containers for which `bad` holds.
    fn named(&self, mut bad: impl FnMut(&Value) -> bool) -> Vec<&str> {
        self.containers()
            .filter(|container| bad(container))
            .map(|container| text(&container["name"]))
            .collect()
    }

    /// `pod and container "a"`: whose security context is bad; nothing when all are fine.
    fn setters(&self, mut bad: impl FnMut(&Value) -> bool) -> Option<String> {
        let mut setters = Vec::new();
        if bad(&self.spec["securityContext"]) {
            setters.push("pod".to_owned());
        }
        let named = self.named(|container| bad(&container["securityContext"]));
        if !named.is_empty() {
            setters.push(containers(&named));
        }
        (!setters.is_empty()).then(|| setters.join(" and "))
    }

    fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }

    /// In a user namespace of its own, root is nobody outside (KEP-127).
    fn is_in_user_namespace(&self) -> bool {
        self.minor >= 35 && self.spec["hostUsers"] == false
    }
}

fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", names.len()), quoted(names))
}

fn plural(word: &str, count: usize) -> String {
    format!("{word}{}", if count == 1 { "" } else { "s" })
}

fn quoted<S: AsRef<str>>(values: impl IntoIterator<Item = S>) -> String {
    let values: Vec<String> = values
        .into_iter()
        .map(|value| format!("\"{}\"", value.as_ref()))
        .collect();
    values.join(", ")
}

fn app_armor_profile(pod: &Subject<'_>) -> Option<Violation> {
    let mut values = BTreeSet::new();
    let setters = pod.setters(|context| {
        let kind = &context["appArmorProfile"]["type"];
        let bad = !kind.is_null() && kind != "RuntimeDefault" && kind != "Localhost";
        values.extend(bad.then(|| text(kind).to_owned()));
        bad
    });
    let annotations: Vec<String> = pod.metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| key.starts_with("container.apparmor.security.beta.kubernetes.io/"))
        .map(|(key, value)| (key, text(value)))
        .filter(|(_, value)| {
            !value.is_empty() && *value != "runtime/default" && !value.starts_with("localhost/")
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut setters: Vec<String> = setters.into_iter().collect();
    if !annotations.is_empty() {
        setters.push(plural("annotation", annotations.len()));
    }
    if setters.is_empty() {
        return None;
    }
    let values: Vec<String> = values.into_iter().chain(annotations).collect();
    violation(
        &plural("forbidden AppArmor profile", values.len()),
        format!(
            "{} must not set AppArmor profile type to {}",
            setters.join(" and "),
            quoted(&values)
        ),
    )
}

/// Containers that add capabilities not in `allowed`, and those capabilities.
fn added<'a>(pod: &'a Subject<'_>, allowed: &[&str]) -> (Vec<&'a str>, BTreeSet<String>) {
    let mut capabilities = BTreeSet::new();
    let named = pod.named(|container| {
        let bad = items(&container["securityContext"]["capabilities"]["add"])
            .iter()
            .map(text)
            .filter(|capability| !allowed.contains(capability));
        let before = bad.clone().count();
        capabilities.extend(bad.map(str::to_owned));
        before > 0
    });
    (named, capabilities)
}

fn adding(named: &[&str], capabilities: &BTreeSet<String>) -> String {
    let (who, what) = (containers(named), quoted(capabilities));
    format!("{who} must not include {what} in securityContext.capabilities.add")
}

fn baseline_capabilities(pod: &Subject<'_>) -> Option<Violation> {
    let (named, capabilities) = added(pod, CAPABILITIES);
    if named.is_empty() {
        return None;
    }
    violation("non-default capabilities", adding(&named, &capabilities))
}

fn restricted_capabilities(pod: &Subject<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let keeping = pod.named(|container| {
        !items(&container["securityContext"]["capabilities"]["drop"])
            .iter()
            .any(|capability| capability == "ALL")
    });
    let (named, capabilities) = added(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        let who = containers(&keeping);
        details.push(format!(
            r#"{who} must set securityContext.capabilities.drop=["ALL"]"#
        ));
    }
    if !named.is_empty() {
        details.push(adding(&named, &capabilities));
    }
    if details.is_empty() {
        return None;
    }
    violation("unrestricted capabilities", details.join("; "))
}

fn host_namespaces(pod: &Subject<'_>) -> Option<Violation> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec[field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    if shared.is_empty() {
        return None;
    }
    violation("host namespaces", shared.join(", "))
}

fn host_path_volumes(pod: &Subject<'_>) -> Option<Violation> {
    let volumes: Vec<&str> = items(&pod.spec["volumes"])
        .iter()
        .filter(|volume| volume["hostPath"].is_object())
        .map(|volume| text(&volume["name"]))
        .collect();
    if volumes.is_empty() {
        return None;
    }
    let detail = format!("{} {}", plural("volume", volumes.len()), quoted(&volumes));
    violation("hostPath volumes", detail)
}

fn host_ports(pod: &Subject<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let named = pod.named(|container| {
        let bad: Vec<String> = items(&container["ports"])
            .iter()
            .filter_map(|port| port["hostPort"].as_i64())
            .filter(|port| *port != 0)
            .map(|port| port.to_string())
            .collect();
        let any = !bad.is_empty();
        ports.extend(bad);
        any
    });
    if named.is_empty() {
        return None;
    }
    let list: Vec<String> = ports.into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&named),
        if named.len() == 1 { "uses" } else { "use" },
        plural("hostPort", list.len()),
        list.join(", ")
    );
    violation("hostPort", detail)
}

fn host_probes_and_lifecycle(pod: &Subject<'_>) -> Option<Violation> {
    let (mut named, mut hosts) = (BTreeSet::new(), BTreeSet::new());
    for container in pod.containers() {
        let lifecycle = &container["lifecycle"];
        let handlers = [
            &container["livenessProbe"],
            &container["readinessProbe"],
            &container["startupProbe"],
            &lifecycle["postStart"],
            &lifecycle["preStop"],
        ];
        for handler in handlers {
            for host in [&handler["httpGet"]["host"], &handler["tcpSocket"]["host"]] {
                if !text(host).is_empty() {
                    named.insert(text(&container["name"]));
                    hosts.insert(text(host));
                }
            }
        }
    }
    if named.is_empty() {
        return None;
    }
    let named: Vec<&str> = named.into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&named),
        if named.len() == 1 { "uses" } else { "use" },
        plural("probe or lifecycle host", hosts.len()),
        quoted(&hosts)
    );
    violation("probe or lifecycle host", detail)
}

fn privileged(pod: &Subject<'_>) -> Option<Violation> {
    let named = pod.named(|container| container["securityContext"]["privileged"] == true);
    if named.is_empty() {
        return None;
    }
    let who = containers(&named);
    violation(
        "privileged",
        format!("{who} must not set securityContext.privileged=true"),
    )
}

fn proc_mount(pod: &Subject<'_>) -> Option<Violation> {
    if pod.is_in_user_namespace() {
        return None;
    }
    let mut kinds = BTreeSet::new();
    let named = pod.named(|container| {
        let kind = &container["securityContext"]["procMount"];
        let bad = !kind.is_null() && kind != "Default";
        kinds.extend(bad.then(|| text(kind).to_owned()));
        bad
    });
    if named.is_empty() {
        return None;
    }
    let (who, what) = (containers(&named), quoted(&kinds));
    violation(
        "procMount",
        format!("{who} must not set securityContext.procMount to {what}"),
    )
}

fn se_linux_options(pod: &Subject<'_>) -> Option<Violation> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let setters = pod.setters(|context| {
        let options = &context["seLinuxOptions"];
        let kind = text(&options["type"]);
        let bad_type = !SE_LINUX_TYPES
            .iter()
            .any(|(known, since)| *known == kind && pod.minor >= *since);
        types.extend(bad_type.then(|| kind.to_owned()));
        let (has_user, has_role) = (
            !text(&options["user"]).is_empty(),
            !text(&options["role"]).is_empty(),
        );
        user |= has_user;
        role |= has_role;
        bad_type || has_user || has_role
    })?;
    let mut details = Vec::new();
    if !types.is_empty() {
        details.push(format!("{} {}", plural("type", types.len()), quoted(&types)));
    }
    details.extend(user.then(|| "user may not be set".to_owned()));
    details.extend(role.then(|| "role may not be set".to_owned()));
    let details = details.join("; ");
    violation(
        "seLinuxOptions",
        format!("{setters} set forbidden securityContext.seLinuxOptions: {details}"),
    )
}

fn is_good_seccomp(context: &Value) -> bool {
    let kind = &context["seccompProfile"]["type"];
    kind == "RuntimeDefault" || kind == "Localhost"
}

/// Those that set a bad profile; the field came with 1.19.
fn bad_seccomp(pod: &Subject<'_>) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let setters = pod.setters(|context| {
        let bad = context["seccompProfile"].is_object() && !is_good_seccomp(context);
        kinds.extend(bad.then(|| text(&context["seccompProfile"]["type"]).to_owned()));
        bad
    })?;
    let kinds = quoted(&kinds);
    violation(
        "seccompProfile",
        format!("{setters} must not set securityContext.seccompProfile.type to {kinds}"),
    )
}

fn baseline_seccomp_profile(pod: &Subject<'_>) -> Option<Violation> {
    if pod.minor >= 19 {
        return bad_seccomp(pod);
    }
    let own = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned());
    let of_containers = pod.containers().map(|container| {
        let name = text(&container["name"]);
        format!("container.seccomp.security.alpha.kubernetes.io/{name}")
    });
    let bad: BTreeSet<String> = own
        .chain(of_containers)
        .filter_map(|key| {
            let value = pod.metadata["annotations"][&key].as_str()?;
            let good =
                matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
            (!good).then(|| format!("{key}={value:?}"))
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    let list: Vec<String> = bad.into_iter().collect();
    let word = plural("annotation", list.len());
    violation("seccompProfile", format!("forbidden {word} {}", list.join(", ")))
}

fn restricted_seccomp_profile(pod: &Subject<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    if let Some(bad) = bad_seccomp(pod) {
        return Some(bad);
    }
    if is_good_seccomp(&pod.spec["securityContext"]) {
        return None;
    }
    let silent = pod.named(|container| !container["securityContext"]["seccompProfile"].is_object());
    if silent.is_empty() {
        return None;
    }
    let who = containers(&silent);
    violation(
        "seccompProfile",
        format!(
            r#"pod or {who} must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost""#
        ),
    )
}

fn sysctls(pod: &Subject<'_>) -> Option<Violation> {
    let bad: Vec<&str> = items(&pod.spec["securityContext"]["sysctls"])
        .iter()
        .map(|sysctl| text(&sysctl["name"]))
        .filter(|name| {
            !SYSCTLS
                .iter()
                .any(|(known, since)| known == name && pod.minor >= *since)
        })
        .collect();
    if bad.is_empty() {
        return None;
    }
    violation("forbidden sysctls", bad.join(", "))
}

fn windows_host_process(pod: &Subject<'_>) -> Option<Violation> {
    let setters = pod.setters(|context| context["windowsOptions"]["hostProcess"] == true)?;
    violation(
        "hostProcess",
        format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    )
}

fn allow_privilege_escalation(pod: &Subject<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let named = pod.named(|container| container["securityContext"]["allowPrivilegeEscalation"] != false);
    if named.is_empty() {
        return None;
    }
    let who = containers(&named);
    violation(
        "allowPrivilegeEscalation != false",
        format!("{who} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

fn restricted_volumes(pod: &Subject<'_>) -> Option<Violation> {
    let (mut volumes, mut types) = (Vec::new(), BTreeSet::new());
    for volume in items(&pod.spec["volumes"]) {
        let has = |names: &[&'static str]| names.iter().copied().find(|name| volume[*name].is_object());
        if has(VOLUMES).is_none() {
            volumes.push(text(&volume["name"]));
            types.insert(has(NAMED_VOLUMES).unwrap_or("unknown"));
        }
    }
    if volumes.is_empty() {
        return None;
    }
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", volumes.len()),
        quoted(&volumes),
        if volumes.len() == 1 { "uses" } else { "use" },
        plural("restricted volume type", types.len()),
        quoted(&types)
    );
    violation("restricted volume types", detail)
}

fn run_as_non_root(pod: &Subject<'_>) -> Option<Violation> {
    if pod.is_in_user_namespace() {
        return None;
    }
    let reason = "runAsNonRoot != true";
    if let Some(setters) = pod.setters(|context| context["runAsNonRoot"] == false) {
        return violation(
            reason,
            format!("{setters} must not set securityContext.runAsNonRoot=false"),
        );
    }
    if pod.spec["securityContext"]["runAsNonRoot"] == true {
        return None;
    }
    let silent = pod.named(|container| container["securityContext"]["runAsNonRoot"].is_null());
    if silent.is_empty() {
        return None;
    }
    let who = containers(&silent);
    violation(
        reason,
        format!("pod or {who} must set securityContext.runAsNonRoot=true"),
    )
}

fn run_as_user(pod: &Subject<'_>) -> Option<Violation> {
    if pod.is_in_user_namespace() {
        return None;
    }
    let setters = pod.setters(|context| context["runAsUser"] == 0)?;
    violation("runAsUser=0", format!("{setters} must not set runAsUser=0"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(level: Level, minor: Option<u32>, metadata: Value, spec: Value) -> Vec<String> {
        violations(Standard { level, minor }, &metadata, &spec)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    /// A pod that is fine everywhere, with fields of its container and of its spec replaced.
    fn pod(container: Value, spec: Value) -> Value {
        let mut base = json!({"name": "c", "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
        }});
        let merge = |into: &mut Value, from: Value| {
            for (key, value) in from.as_object().unwrap() {
                into[key] = value.clone();
            }
        };
        let context = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
        merge(&mut base, container);
        let mut whole = json!({"containers": [base], "securityContext": context});
        merge(&mut whole, spec);
        whole
    }

    #[test]
    fn a_careful_pod_is_welcome_and_a_careless_one_is_not() {
        let careful = pod(json!({}), json!({}));
        assert!(told(Level::Restricted, None, json!({}), careful).is_empty());
        let careless = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert!(told(Level::Baseline, None, json!({}), careless.clone()).is_empty());
        assert_eq!(
            told(Level::Restricted, None, json!({}), careless.clone()),
            [
                r#"allowPrivilegeEscalation != false (containers "a", "b" must set securityContext.allowPrivilegeEscalation=false)"#,
                r#"unrestricted capabilities (containers "a", "b" must set securityContext.capabilities.drop=["ALL"])"#,
                r#"runAsNonRoot != true (pod or containers "a", "b" must set securityContext.runAsNonRoot=true)"#,
                r#"seccompProfile (pod or containers "a", "b" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#,
            ]
        );
        assert_eq!(
            told(Level::Restricted, Some(7), json!({}), careless).len(),
            1,
            "only runAsNonRoot then"
        );
    }

    #[test]
    fn baseline_violations_are_told_as_upstream_does() {
        let context = |context: Value| pod(json!({"securityContext": context}), json!({}));
        let of_pod = |field: &str, value: Value| pod(json!({}), json!({field: value}));
        let in_context = |context: Value| of_pod("securityContext", context);
        for (spec, expected) in [
            (
                of_pod("hostNetwork", json!(true)),
                "host namespaces (hostNetwork=true)",
            ),
            (
                context(json!({"privileged": true})),
                r#"privileged (container "c" must not set securityContext.privileged=true)"#,
            ),
            (
                context(json!({"capabilities": {"add": ["NET_RAW", "SYS_ADMIN", "CHOWN"]}})),
                r#"non-default capabilities (container "c" must not include "NET_RAW", "SYS_ADMIN" in securityContext.capabilities.add)"#,
            ),
            (
                of_pod("volumes", json!([{"name": "v", "hostPath": {"path": "/"}}])),
                r#"hostPath volumes (volume "v")"#,
            ),
            (
                pod(
                    json!({"ports": [{"hostPort": 80}, {"hostPort": 443}, {"containerPort": 1}]}),
                    json!({}),
                ),
                r#"hostPort (container "c" uses hostPorts 443, 80)"#,
            ),
            (
                pod(json!({"livenessProbe": {"httpGet": {"host": "h"}}}), json!({})),
                r#"probe or lifecycle host (container "c" uses probe or lifecycle host "h")"#,
            ),
            (
                context(json!({"procMount": "Unmasked"})),
                r#"procMount (container "c" must not set securityContext.procMount to "Unmasked")"#,
            ),
            (
                in_context(json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}})),
                r#"seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type "spc_t"; user may not be set)"#,
            ),
            (
                in_context(json!({"seccompProfile": {"type": "Unconfined"}})),
                r#"seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")"#,
            ),
            (
                in_context(json!({"sysctls": [{"name": "kernel.msgmax"}]})),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                in_context(json!({"windowsOptions": {"hostProcess": true}})),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                context(json!({"appArmorProfile": {"type": "Unconfined"}})),
                r#"forbidden AppArmor profile (container "c" must not set AppArmor profile type to "Unconfined")"#,
            ),
        ] {
            assert_eq!(
                told(Level::Baseline, None, json!({}), spec.clone()),
                [expected],
                "{spec}"
            );
        }
    }

    #[test]
    fn stricter_checks_stand_for_weaker_ones() {
        let mounts_host = pod(
            json!({}),
            json!({"volumes": [{"name": "v", "hostPath": {}}, {"name": "w", "nfs": {}}, {"name": "e", "emptyDir": {}}]}),
        );
        assert_eq!(
            told(Level::Restricted, None, json!({}), mounts_host),
            [r#"restricted volume types (volumes "v", "w" use restricted volume types "hostPath", "nfs")"#]
        );
        let root = pod(
            json!({"securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}}}),
            json!({}),
        );
        assert_eq!(
            told(Level::Restricted, None, json!({}), root),
            [
                r#"unrestricted capabilities (container "c" must not include "NET_RAW" in securityContext.capabilities.add)"#,
                r#"runAsUser=0 (container "c" must not set runAsUser=0)"#,
            ]
        );
    }

    #[test]
    fn versions_matter() {
        let keepalive = pod(
            json!({}),
            json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_keepalive_time"}]}}),
        );
        assert!(told(Level::Baseline, Some(29), json!({}), keepalive.clone()).is_empty());
        assert_eq!(told(Level::Baseline, Some(28), json!({}), keepalive).len(), 1);
        let annotated = json!({"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}});
        let plain = pod(json!({}), json!({}));
        assert_eq!(
            told(Level::Baseline, Some(18), annotated.clone(), plain.clone()),
            [
                r#"seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod="unconfined")"#
            ]
        );
        assert!(told(Level::Baseline, Some(19), annotated, plain).is_empty());
    }
}
