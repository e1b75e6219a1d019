//! Who uses the processors and the memory, between two looks at /proc.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use crate::status::{load, memory};
use crate::v1::{Process, TopInfo};

const INTERVAL: Duration = Duration::from_secs(1);
/// USER_HZ, the unit of times in /proc: 100 on every Linux.
const TICKS: f64 = 100.0;
/// Of x86-64.
const PAGE: u64 = 4096;

/// What /proc/PID/stat says, as far as it is shown.
#[derive(Debug, PartialEq)]
struct Sample {
    command: String,
    ticks: u64,
    threads: u32,
    memory: u64,
    /// With its number it tells a process from another that got the number later.
    started: u64,
}

/// proc_pid_stat(5); the command stands in parentheses and may hold any character.
fn parse(stat: &str) -> Option<(u32, Sample)> {
    let (pid, rest) = stat.split_once(" (")?;
    let (command, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // The first field after the command is the third of the manual page.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let sample = Sample {
        command: command.to_owned(),
        ticks: field(14)? + field(15)?,
        threads: field(20)? as u32,
        started: field(22)?,
        memory: field(24)? * PAGE,
    };
    Some((pid.parse().ok()?, sample))
}

fn samples() -> HashMap<u32, Sample> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
        .filter_map(|entry| parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
        .collect()
}

/// Who is alive now, by use of processors and then of memory.
fn compare(before: &HashMap<u32, Sample>, now: HashMap<u32, Sample>, seconds: f64) -> Vec<Process> {
    let mut processes: Vec<Process> = now
        .into_iter()
        .map(|(pid, sample)| {
            let earlier = before
                .get(&pid)
                .filter(|earlier| earlier.started == sample.started);
            let ticks = sample
                .ticks
                .saturating_sub(earlier.map_or(0, |earlier| earlier.ticks));
            Process {
                pid,
                command: sample.command,
                cpu_percent: ticks as f64 / TICKS / seconds * 100.0,
                memory: sample.memory,
                threads: sample.threads,
                cgroup: String::new(),
            }
        })
        .collect();
    processes.sort_by(|a, b| {
        let key = |process: &Process| (process.cpu_percent, process.memory as f64);
        key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal)
    });
    processes
}

fn cgroup(pid: u32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    unified.unwrap_or_default().to_owned()
}

pub async fn top() -> TopInfo {
    let before = samples();
    let started = tokio::time::Instant::now();
    tokio::time::sleep(INTERVAL).await;
    let mut processes = compare(&before, samples(), started.elapsed().as_secs_f64());
    for process in &mut processes {
        process.cgroup = cgroup(process.pid);
    }
    let (memory_total, memory_available) = memory();
    TopInfo {
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        cpu_percent: processes.iter().map(|process| process.cpu_percent).sum(),
        memory_total,
        memory_available,
        load: load(),
        processes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: u32, command: &str, ticks: u64, started: u64, pages: u64) -> String {
        format!(
            "{pid} ({command}) S 1 1 1 0 -1 4194560 1 2 3 4 {ticks} 0 0 0 20 0 7 0 {started} 99999 {pages} 18446744073709551615"
        )
    }

    #[test]
    fn use_is_what_came_since_the_last_look() {
        let sample = |lines: &[String]| {
            lines
                .iter()
                .filter_map(|line| parse(line))
                .collect::<HashMap<_, _>>()
        };
        let before = sample(&[
            stat(1, "init", 50, 1, 10),
            stat(9, "a) (b", 100, 5, 3),
            stat(12, "old", 900, 2, 1),
        ]);
        let now = sample(&[
            stat(1, "init", 50, 1, 10),
            stat(9, "a) (b", 150, 5, 3),
            stat(12, "new", 10, 77, 1),
        ]);
        let processes = compare(&before, now, 2.0);
        let shown: Vec<_> = processes
            .iter()
            .map(|process| {
                (
                    process.pid,
                    process.command.as_str(),
                    process.cpu_percent,
                    process.memory,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (9, "a) (b", 25.0, 12_288),
                (12, "new", 5.0, 4096),
                (1, "init", 0.0, 40_960)
            ]
        );
        assert_eq!(processes[0].threads, 7);
        assert_eq!(parse("12 (cut off"), None);
    }
}
