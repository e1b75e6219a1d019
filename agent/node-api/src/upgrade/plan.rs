//! What a boot environment means for the system that runs, and what may be changed in it. Pure.

use boot_disk::{Environment, Slot};
use k8s_openapi::api::core::v1::Node;
use thiserror::Error;

use crate::status::ready_condition;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotNow {
    #[error("slot {0} is on trial: it has to be found good, or left, before the next change")]
    OnTrial(String),
    #[error("the system as it was installed runs: upgrade it")]
    AsInstalled,
    #[error("slot {0} has no system to go back to; the boot menu has the system as it was installed")]
    Nothing(Slot),
}

/// What became of the system that was to be tried.
#[derive(Debug, PartialEq, Eq)]
pub enum Trial {
    None,
    /// The next boot tries it.
    Pending(String),
    /// It runs.
    Running(String),
    /// It was tried, and something else runs.
    Failed(String),
}

/// The tries that the boot loader begins with.
const TRIES: u32 = 2;

pub fn trial(environment: &Environment, running: &str) -> Trial {
    match environment.trial() {
        None => Trial::None,
        Some((next, _)) if next == running => Trial::Running(next.to_owned()),
        Some((next, TRIES)) => Trial::Pending(next.to_owned()),
        Some((next, _)) => Trial::Failed(next.to_owned()),
    }
}

/// The slot an upgrade may write.
pub fn idle_slot(environment: &Environment, running: &str) -> Result<Slot, NotNow> {
    match trial(environment, running) {
        Trial::Running(slot) => Err(NotNow::OnTrial(slot)),
        // What the next boot would try may be replaced by something better.
        _ => Ok(Slot::parse(running).map_or(Slot::A, Slot::other)),
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Back {
    /// Have the next boot try it.
    Try(Slot),
    /// Nothing is to be tried any more: the next boot starts the slot of before.
    Leave(String),
}

pub fn back(
    environment: &Environment,
    running: &str,
    is_complete: impl Fn(&str) -> bool,
) -> Result<Back, NotNow> {
    if let Trial::Running(_) | Trial::Pending(_) = trial(environment, running) {
        return Ok(Back::Leave(environment.slot().to_owned()));
    }
    let other = Slot::parse(running).ok_or(NotNow::AsInstalled)?.other();
    if is_complete(&other.to_string()) {
        Ok(Back::Try(other))
    } else {
        Err(NotNow::Nothing(other))
    }
}

/// Why the node of this boot is not Ready yet. A Node object says Ready for a while after its machine has gone, so it
/// has to be this boot's kubelet that says it.
pub fn not_ready(node: &Node, boot_id: &str) -> Option<String> {
    let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
    if info.is_none_or(|info| info.boot_id != boot_id) {
        return Some("the kubelet has not reported since this boot".to_owned());
    }
    match ready_condition(node) {
        Some(ready) if ready.status == "True" => None,
        Some(ready) => Some(format!(
            "the node is not Ready: {}",
            ready.message.as_deref().unwrap_or_default()
        )),
        None => Some("the node has no Ready condition".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(text: &str) -> Environment {
        Environment::parse(text)
    }

    #[test]
    fn the_environment_says_what_became_of_a_trial() {
        for (text, running, expected) in [
            ("", "A", Trial::None),
            ("slot=B\nnext=", "B", Trial::None),
            ("next=B\ntries=2", "A", Trial::Pending("B".into())),
            ("next=B\ntries=1", "B", Trial::Running("B".into())),
            ("next=B\ntries=0", "B", Trial::Running("B".into())),
            ("next=B\ntries=0", "A", Trial::Failed("B".into())),
            ("next=B\ntries=1", "factory", Trial::Failed("B".into())),
            ("next=B\ntries=0", "factory", Trial::Failed("B".into())),
        ] {
            assert_eq!(trial(&environment(text), running), expected, "{text} {running}");
        }
    }

    #[test]
    fn an_upgrade_writes_what_does_not_run() {
        for (text, running, expected) in [
            ("", "A", Ok(Slot::B)),
            ("slot=B", "B", Ok(Slot::A)),
            ("", "factory", Ok(Slot::A)),
            ("next=B\ntries=2", "A", Ok(Slot::B)),
            ("next=B\ntries=0", "A", Ok(Slot::B)),
            ("next=B\ntries=1", "B", Err(NotNow::OnTrial("B".into()))),
        ] {
            assert_eq!(
                idle_slot(&environment(text), running),
                expected,
                "{text} {running}"
            );
        }
    }

    #[test]
    fn back_is_the_other_slot_or_the_end_of_a_trial() {
        let all = |_: &str| true;
        let none = |_: &str| false;
        assert_eq!(back(&environment(""), "A", all), Ok(Back::Try(Slot::B)));
        assert_eq!(back(&environment(""), "A", none), Err(NotNow::Nothing(Slot::B)));
        assert_eq!(back(&environment(""), "factory", all), Err(NotNow::AsInstalled));
        for (text, running) in [("slot=A\nnext=B\ntries=1", "B"), ("slot=A\nnext=B\ntries=2", "A")] {
            assert_eq!(
                back(&environment(text), running, all),
                Ok(Back::Leave("A".into()))
            );
        }
    }

    #[test]
    fn only_this_boots_kubelet_makes_a_node_good() {
        let node = |boot: &str, ready: &str| -> Node {
            serde_json::from_value(serde_json::json!({"metadata": {}, "status": {
                "nodeInfo": {"bootID": boot, "architecture": "", "containerRuntimeVersion": "", "kernelVersion": "",
                    "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                    "systemUUID": ""},
                "conditions": [{"type": "Ready", "status": ready, "message": "no network"}],
            }}))
            .unwrap()
        };
        assert_eq!(not_ready(&node("b2", "True"), "b2"), None);
        let reason = |node: &Node| not_ready(node, "b2").unwrap();
        assert!(reason(&node("b1", "True")).contains("since this boot"));
        assert_eq!(reason(&node("b2", "False")), "the node is not Ready: no network");
        assert!(reason(&Node::default()).contains("since this boot"));
    }
}
