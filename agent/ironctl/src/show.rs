//! Answers as people read them. Pure.

use node_api::v1::{
    DiskList, EtcdMemberList, KernelMessage, LinkList, ServiceList, StatusInfo, TopInfo, VersionInfo,
};

/// Columns as wide as their widest cell; the last one is as long as it likes.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        widest.max(headers[column].len())
    };
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", padded.join("   ").trim_end())
    };
    let mut text = line(&mut headers.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// Names and values, one a line.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let line = |(name, value): &(&str, String)| {
        let name = format!("{name}:");
        format!("{name:<width$}   {value}\n")
    };
    let given = facts.iter().filter(|(_, value)| !value.is_empty());
    given.map(line).collect()
}

pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// As kubectl shows ages.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
        (0, _, _) => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

pub fn version(info: &VersionInfo) -> String {
    facts(&[
        ("Node", info.node.clone()),
        ("Ironlet", info.version.clone()),
        ("Kernel", format!("{} ({})", info.kernel, info.architecture)),
    ])
}

pub fn status(info: &StatusInfo) -> String {
    let ready = match (info.ready.as_str(), info.ready_message.as_str()) {
        ("", _) if !info.api_error.is_empty() => format!("not known: {}", info.api_error),
        ("", _) => "not known: the Node object says nothing".to_owned(),
        (ready, "") => ready.to_owned(),
        (ready, message) => format!("{ready} ({message})"),
    };
    let state = match info.state_device.as_str() {
        "" => "in memory, lost at power-off".to_owned(),
        device => format!(
            "{device}, {} free of {}",
            bytes(info.state_available),
            bytes(info.state_total)
        ),
    };
    let load: Vec<String> = info.load.iter().map(|value| format!("{value:.2}")).collect();
    let mut text = facts(&[
        ("Node", info.node.clone()),
        ("Ready", ready),
        ("Ironlet", info.version.clone()),
        ("Kernel", info.kernel.clone()),
        ("Slot", info.slot.clone()),
        ("Up for", duration(info.uptime_seconds)),
        (
            "Services",
            format!("{} of {} up", info.services_running, info.services_total),
        ),
        (
            "Memory",
            format!(
                "{} available of {}",
                bytes(info.memory_available),
                bytes(info.memory_total)
            ),
        ),
        ("Load", load.join(" ")),
        ("State", state),
    ]);
    if !info.slots.is_empty() {
        text += &format!("\n{}\n", slots(info));
    }
    if let Some(last) = &info.last_upgrade {
        let what = format!(
            "last change of the system: slot {} to {}: {}",
            last.from, last.to, last.outcome
        );
        text += &match last.reason.as_str() {
            "" => format!("{what}\n"),
            reason => format!("{what}: {reason}\n"),
        };
    }
    for reason in &info.waiting {
        text += &format!("waiting for {reason}\n");
    }
    for error in &info.parameter_errors {
        text += &format!("parameter error: {error}\n");
    }
    text
}

fn slots(info: &StatusInfo) -> String {
    let rows: Vec<Vec<String>> = info
        .slots
        .iter()
        .map(|slot| {
            let notes = [
                (slot.running, "running"),
                (slot.chosen, "boots"),
                (slot.on_trial, "on trial"),
                (!slot.complete, "empty"),
            ];
            let notes: Vec<&str> = notes
                .iter()
                .filter(|(is, _)| *is)
                .map(|(_, note)| *note)
                .collect();
            vec![slot.name.clone(), notes.join(", "), slot.version.clone()]
        })
        .collect();
    table(&["SLOT", "STATE", "SYSTEM"], &rows)
}

pub fn etcd_members(list: &EtcdMemberList) -> String {
    let rows: Vec<Vec<String>> = list
        .members
        .iter()
        .map(|member| {
            let role = match (member.leader, member.learner) {
                (true, _) => "leader",
                (_, true) => "learner",
                _ => "follower",
            };
            let size = match member.database_size {
                0 => String::new(),
                size => bytes(size),
            };
            vec![
                member.id.clone(),
                member.name.clone(),
                role.to_owned(),
                member.version.clone(),
                size,
                member.peer_urls.join(" "),
            ]
        })
        .collect();
    table(&["ID", "NAME", "ROLE", "VERSION", "DATABASE", "PEERS"], &rows)
}

pub fn services(list: &ServiceList) -> String {
    let rows: Vec<Vec<String>> = list
        .services
        .iter()
        .map(|service| {
            let running = service.state == "running";
            vec![
                service.name.clone(),
                service.state.clone(),
                if running {
                    service.pid.to_string()
                } else {
                    String::new()
                },
                if running {
                    duration(service.seconds_running)
                } else {
                    String::new()
                },
                if service.memory > 0 {
                    bytes(service.memory)
                } else {
                    String::new()
                },
                service.failures.to_string(),
                service.last_end.clone(),
            ]
        })
        .collect();
    table(
        &["NAME", "STATE", "PID", "FOR", "MEMORY", "FAILURES", "LAST END"],
        &rows,
    )
}

pub fn kernel_message(message: &KernelMessage) -> String {
    let (seconds, rest) = (message.microseconds / 1_000_000, message.microseconds % 1_000_000);
    format!("[{seconds:>5}.{rest:06}] {}\n", message.text)
}

pub fn top(info: &TopInfo, limit: usize) -> String {
    let load: Vec<String> = info.load.iter().map(|value| format!("{value:.2}")).collect();
    let head = format!(
        "{} CPUs, {:.0} % of one in use; load {}; {} of memory available of {}\n\n",
        info.cpus,
        info.cpu_percent,
        load.join(" "),
        bytes(info.memory_available),
        bytes(info.memory_total)
    );
    let rows: Vec<Vec<String>> = info
        .processes
        .iter()
        .take(limit)
        .map(|process| {
            vec![
                process.pid.to_string(),
                format!("{:.1}", process.cpu_percent),
                bytes(process.memory),
                process.threads.to_string(),
                process.command.clone(),
                process.cgroup.clone(),
            ]
        })
        .collect();
    head + &table(&["PID", "CPU%", "MEMORY", "THREADS", "COMMAND", "CGROUP"], &rows)
}

pub fn disks(list: &DiskList) -> String {
    let mut rows = Vec::new();
    for disk in &list.disks {
        let kind = match disk.read_only {
            true => format!("{}, read-only", disk.kind),
            false => disk.kind.clone(),
        };
        rows.push(vec![
            disk.device.clone(),
            bytes(disk.size),
            kind,
            disk.model.clone(),
            disk.mount_point.clone(),
        ]);
        for partition in &disk.partitions {
            let mounted = match partition.mount_point.as_str() {
                "" => String::new(),
                target => format!("{target}, {} free", bytes(partition.available)),
            };
            rows.push(vec![
                format!("  {}", partition.device),
                bytes(partition.size),
                String::new(),
                partition.name.clone(),
                mounted,
            ]);
        }
    }
    table(&["DEVICE", "SIZE", "KIND", "NAME", "MOUNTED AT"], &rows)
}

pub fn links(list: &LinkList) -> String {
    let rows: Vec<Vec<String>> = list
        .links
        .iter()
        .map(|link| {
            vec![
                link.name.clone(),
                link.state.clone(),
                link.kind.clone(),
                link.mtu.to_string(),
                link.mac.clone(),
                bytes(link.received_bytes),
                bytes(link.sent_bytes),
                link.errors.to_string(),
                link.addresses.join(" "),
            ]
        })
        .collect();
    let headers = [
        "NAME",
        "STATE",
        "KIND",
        "MTU",
        "MAC",
        "RECEIVED",
        "SENT",
        "ERRORS",
        "ADDRESSES",
    ];
    table(&headers, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_api::v1::{Disk, Partition, Service};

    #[test]
    fn figures() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            (3 << 40, "3.0 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        for (seconds, text) in [(5, "5s"), (65, "1m5s"), (3700, "1h1m"), (90_000, "1d1h")] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let list = ServiceList {
            services: vec![
                Service {
                    name: "control-plane".into(),
                    state: "running".into(),
                    pid: 71,
                    seconds_running: 65,
                    memory: 96 << 20,
                    ..Service::default()
                },
                Service {
                    name: "agent".into(),
                    state: "back-off".into(),
                    failures: 3,
                    last_end: "exit status 1".into(),
                    ..Service::default()
                },
            ],
        };
        assert_eq!(
            services(&list),
            "NAME            STATE      PID   FOR    MEMORY     FAILURES   LAST END\n\
             control-plane   running    71    1m5s   96.0 MiB   0\n\
             agent           back-off                           3          exit status 1\n"
        );
    }

    #[test]
    fn a_disk_shows_its_partitions() {
        let list = DiskList {
            disks: vec![Disk {
                device: "/dev/sda".into(),
                size: 4 << 30,
                model: "QEMU".into(),
                kind: "hdd".into(),
                partitions: vec![Partition {
                    device: "/dev/sda3".into(),
                    name: "IRONLET-STATE".into(),
                    size: 3 << 30,
                    mount_point: "/var".into(),
                    available: 2 << 30,
                }],
                ..Disk::default()
            }],
        };
        assert_eq!(
            disks(&list),
            "DEVICE        SIZE      KIND   NAME            MOUNTED AT\n\
             /dev/sda      4.0 GiB   hdd    QEMU\n\
             \x20 /dev/sda3   3.0 GiB          IRONLET-STATE   /var, 2.0 GiB free\n"
        );
    }

    #[test]
    fn an_unknown_readiness_says_why() {
        let info = StatusInfo {
            node: "n1".into(),
            api_error: "connection refused".into(),
            waiting: vec!["the time".into()],
            ..StatusInfo::default()
        };
        let text = status(&info);
        assert!(
            text.starts_with("Node:       n1\nReady:      not known: connection refused\n"),
            "{text}"
        );
        assert!(
            text.ends_with("State:      in memory, lost at power-off\nwaiting for the time\n"),
            "{text}"
        );
    }
}
