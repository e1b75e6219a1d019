//! What the page says, as lines. Pure.

use k8s_openapi::api::core::v1::NodeCondition;

use super::screen::Size;
use crate::v1::{Link, Service, StatusInfo};

const MARGIN: &str = "  ";
const HEADING: usize = 11;
const HINT: &str = "Alt-F2 shows the log, Alt-F1 this page.";

pub struct Facts {
    pub node_name: String,
    pub is_master: bool,
    pub slot: Option<String>,
    /// The node's readiness, in words.
    pub ready: String,
    pub server: Option<String>,
    pub links: Vec<Link>,
    pub services: Vec<Service>,
    pub errors: Vec<String>,
    pub status: StatusInfo,
}

/// Not those that the agent makes for pods.
pub fn is_of_machine(link: &Link) -> bool {
    link.name != "lo" && ["", "bond", "vlan"].contains(&link.kind.as_str())
}

pub fn readiness(condition: Option<&NodeCondition>) -> String {
    match condition {
        Some(ready) if ready.status == "True" => "Ready".to_owned(),
        Some(ready) => format!("NOT Ready: {}", ready.message.as_deref().unwrap_or_default()),
        None => "NOT Ready".to_owned(),
    }
}

/// As much as the screen shows; lines that are too long are cut.
pub fn page(facts: &Facts, size: Size) -> Vec<String> {
    let mut lines = vec![String::new(), title(facts), String::new()];
    for (heading, values) in sections(facts) {
        let mut heading = heading;
        for value in values {
            lines.push(format!("{heading:<HEADING$}{value}"));
            heading = "";
        }
    }
    // A blank line and the hint come last; the last row stays empty, or the terminal would scroll.
    lines.truncate(size.rows.saturating_sub(3));
    lines.extend([String::new(), HINT.to_owned()]);
    let shown = |line: String| {
        let line = format!("{MARGIN}{line}");
        let plain = line.chars().map(|c| if c.is_control() { '?' } else { c });
        plain.take(size.columns).collect::<String>().trim_end().to_owned()
    };
    lines.into_iter().map(shown).collect()
}

fn title(facts: &Facts) -> String {
    let role = if facts.is_master { "master" } else { "worker" };
    let slot = facts.slot.as_deref().map(|slot| format!(", system {slot}"));
    format!(
        "{}   Ironlet {} {role}, Linux {}{}",
        facts.node_name,
        facts.status.version,
        facts.status.kernel,
        slot.unwrap_or_default()
    )
}

fn sections(facts: &Facts) -> Vec<(&'static str, Vec<String>)> {
    let status = &facts.status;
    let joined = match &facts.server {
        Some(server) if server.contains("//127.0.0.1:") => "served by this machine".to_owned(),
        Some(server) => server.clone(),
        None => "none joined yet".to_owned(),
    };
    let link = |link: &Link| {
        let reachable = link
            .addresses
            .iter()
            .filter(|address| !address.starts_with("fe80:"));
        let words: Vec<&str> = [&link.name]
            .into_iter()
            .chain(reachable)
            .map(String::as_str)
            .collect();
        words.join(" ")
    };
    let disk = match status.state_device.as_str() {
        "" => "none: the state is in memory".to_owned(),
        device => format!("{device}, {}", used(status.state_available, status.state_total)),
    };
    vec![
        ("Node", vec![facts.ready.clone()]),
        ("Cluster", vec![joined]),
        ("Addresses", facts.links.iter().map(link).collect()),
        ("Disk", vec![disk]),
        ("Memory", vec![used(status.memory_available, status.memory_total)]),
        ("Services", facts.services.iter().map(service).collect()),
        (
            "Waiting",
            status
                .waiting
                .iter()
                .map(|reason| format!("for {reason}"))
                .collect(),
        ),
        ("Errors", facts.errors.clone()),
    ]
}

fn service(service: &Service) -> String {
    let state = format!("{:<14} {}", service.name, service.state);
    match service.failures {
        0 => state,
        failures => format!("{state}, {failures} failures: {}", service.last_end),
    }
}

/// In steps of five percent: smaller ones are not worth a new page.
fn used(available: u64, total: u64) -> String {
    let percent = (total.saturating_sub(available) * 100)
        .checked_div(total)
        .unwrap_or(0);
    format!("{} % of {} MiB used", percent / 5 * 5, total >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let link = |name: &str, kind: &str| Link {
            name: name.into(),
            kind: kind.into(),
            addresses: vec!["10.0.2.15/24".into(), "fe80::1/64".into()],
            ..Link::default()
        };
        let service = |name: &str, state: &str, failures, last_end: &str| Service {
            name: name.into(),
            state: state.into(),
            failures,
            last_end: last_end.into(),
            ..Service::default()
        };
        Facts {
            node_name: "metal-1".into(),
            is_master: true,
            slot: Some("A".into()),
            ready: readiness(None),
            server: Some("https://10.0.2.15:6443".into()),
            links: vec![link("eth0", "")],
            services: vec![
                service("agent", "running", 0, ""),
                service("etcd", "back-off", 3, "exit status \x1b[2J1"),
            ],
            errors: vec!["ironlet.frob: unknown".into()],
            status: StatusInfo {
                version: "0.1.0".into(),
                kernel: "6.12".into(),
                memory_total: 1 << 30,
                memory_available: 1 << 29,
                state_device: "/dev/vda3".into(),
                waiting: vec!["the time".into()],
                ..StatusInfo::default()
            },
        }
    }

    #[test]
    fn the_page_says_how_the_machine_does() {
        let size = Size {
            columns: 80,
            rows: 25,
        };
        let wanted = "

  metal-1   Ironlet 0.1.0 master, Linux 6.12, system A

  Node       NOT Ready
  Cluster    https://10.0.2.15:6443
  Addresses  eth0 10.0.2.15/24
  Disk       /dev/vda3, 0 % of 0 MiB used
  Memory     50 % of 1024 MiB used
  Services   agent          running
             etcd           back-off, 3 failures: exit status ?[2J1
  Waiting    for the time
  Errors     ironlet.frob: unknown

  Alt-F2 shows the log, Alt-F1 this page.";
        assert_eq!(format!("\n{}", page(&facts(), size).join("\n")), wanted);
    }

    #[test]
    fn a_small_screen_shows_what_fits() {
        let size = Size { columns: 20, rows: 8 };
        let page = page(&facts(), size);
        assert_eq!(page.len(), 7, "the last row stays empty");
        assert!(page.iter().all(|line| line.chars().count() <= 20), "{page:?}");
        assert_eq!(page[6], "  Alt-F2 shows the l");
    }

    #[test]
    fn pods_links_are_left_out() {
        let kind = |name: &str, kind: &str| {
            is_of_machine(&Link {
                name: name.into(),
                kind: kind.into(),
                ..Link::default()
            })
        };
        assert!(kind("eth0", "") && kind("bond0", "bond") && kind("eth0.7", "vlan"));
        assert!(!kind("lo", "") && !kind("veth1", "veth") && !kind("ironlet0", "bridge"));
    }

    #[test]
    fn little_changes_draw_no_new_page() {
        assert_eq!(used(501, 1000), used(510, 1000));
        assert_eq!(used(0, 0), "0 % of 0 MiB used");
    }
}
