//! The end of a container's cgroup: whether memory ran out, who is left, and its removal.

use std::fs;
use std::io;
use std::path::Path;

/// Whether the kernel killed a process of this cgroup for memory (`memory.events`).
pub fn oom_killed(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("memory.events")).is_ok_and(|text| parse_oom_kills(&text) > 0)
}

fn parse_oom_kills(events: &str) -> u64 {
    events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Kills every process left in it.
pub fn kill(cgroup: &Path) {
    if let Err(error) = fs::write(cgroup.join("cgroup.kill"), "1")
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(cgroup = %cgroup.display(), %error, "cannot kill the processes of a cgroup");
    }
}

/// Removes it, with cgroups that the container made below. `Ok(false)`: someone still dies there.
pub fn remove(cgroup: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove(&entry.path())? {
            return Ok(false);
        }
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        other => other.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_events_tell_of_kills() {
        for (text, kills) in [
            ("low 0\noom 1\noom_kill 2\noom_group_kill 0\n", 2),
            ("oom_kill 0\n", 0),
            ("", 0),
        ] {
            assert_eq!(parse_oom_kills(text), kills, "{text:?}");
        }
    }
}
