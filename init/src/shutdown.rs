//! The end: whatever still runs is stopped, what was written is on the disk, and the power goes.

use crate::{
    console, disk,
    power::Request,
    sys::{block, clock, process},
};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount_remount, unmount},
    system::{RebootCommand, reboot},
};
use std::{fs, path::Path, thread, time::Duration};

/// What containers get between the request and the kill.
const TERM_WITHIN: Duration = Duration::from_secs(5);
const KILL_WITHIN: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(50);
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Ends the machine. All services are stopped already.
pub fn finish(request: Request) {
    console::say("stopping what still runs");
    for (signal, limit) in [(libc::SIGTERM, TERM_WITHIN), (libc::SIGKILL, KILL_WITHIN)] {
        process::signal_all(signal);
        let deadline = clock::since_boot() + limit;
        while clock::since_boot() < deadline && others_run() {
            thread::sleep(LOOK);
        }
    }
    rustix::fs::sync();
    let state = mounted_from(&mounts(), disk::MOUNT_POINT);
    release_state();
    if request == Request::Reset {
        match state.map(|device| (block::erase_start(Path::new(&device)), device)) {
            Some((Ok(()), device)) => console::say(format_args!("{device}: emptied")),
            Some((Err(error), device)) => console::say(format_args!("{device}: NOT emptied: {error}")),
            None => console::say("the state was in memory: nothing to empty"),
        }
    }
    let command = match request {
        Request::PowerOff => RebootCommand::PowerOff,
        Request::Reboot | Request::Reset => RebootCommand::Restart,
    };
    console::say(match request {
        Request::PowerOff => "power off",
        Request::Reboot | Request::Reset => "reboot",
    });
    console::flush(FLUSH_WITHIN);
    if let Err(error) = reboot(command) {
        console::say(format_args!("the kernel refuses: {error}"));
    }
}

/// Whether any process but this one runs. Kernel threads have no command line, and neither have zombies.
fn others_run() -> bool {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .parse::<u32>()
                .is_ok_and(|pid| pid != 1)
        })
        .any(|entry| fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty()))
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// The block device mounted at a directory (proc_pid_mountinfo(5): what follows the lone hyphen is type and source).
fn mounted_from(mountinfo: &str, dir: &str) -> Option<String> {
    let line = mountinfo
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some(dir))?;
    let source = line.split_once(" - ")?.1.split(' ').nth(1)?;
    source.starts_with("/dev/").then(|| source.to_owned())
}

/// Unmounts everything in and of the state disk, innermost first; what stays busy becomes read-only.
fn release_state() {
    for target in within(&mounts(), disk::MOUNT_POINT) {
        if unmount(target.as_str(), UnmountFlags::empty()).is_ok() {
            continue;
        }
        if target == disk::MOUNT_POINT {
            console::say(format_args!("{target} is still in use: made read-only"));
            if let Err(error) = mount_remount(target.as_str(), MountFlags::RDONLY, c"") {
                console::say(format_args!("{target}: {error}"));
            }
        } else if let Err(error) = unmount(target.as_str(), UnmountFlags::DETACH) {
            console::say(format_args!("{target}: {error}"));
        }
    }
    rustix::fs::sync();
}

/// The mount points at and below a directory, last mounted first (proc_pid_mountinfo(5)).
fn within(mountinfo: &str, dir: &str) -> Vec<String> {
    let targets = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    let mut targets: Vec<String> = targets
        .filter(|target| Path::new(target).starts_with(dir))
        .collect();
    targets.reverse();
    targets
}

/// Undoes the kernel's octal escapes of white space and backslashes.
fn unescape(field: &str) -> String {
    let mut text = String::new();
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => text.push(code.into()),
            None => text.push('\\'),
        }
        rest = &rest[at + if code.is_some() { 4 } else { 1 }..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_state_disk_goes_before_it() {
        let mountinfo = "\
22 1 0:20 / / rw - overlay overlay rw
30 22 254:0 / /var rw - ext4 /dev/vda rw
31 22 0:30 / /variable rw - tmpfs tmpfs rw
32 30 0:31 / /var/lib/a\\040b rw - overlay overlay rw
33 32 0:32 / /var/lib/a\\040b/proc rw - proc proc rw
";
        assert_eq!(
            within(mountinfo, "/var"),
            ["/var/lib/a b/proc", "/var/lib/a b", "/var"]
        );
        assert_eq!(mounted_from(mountinfo, "/var").as_deref(), Some("/dev/vda"));
        assert_eq!(mounted_from(mountinfo, "/variable"), None);
    }

    #[test]
    fn escapes_are_undone_and_others_kept() {
        assert_eq!(unescape("a\\040b\\134c\\x"), "a b\\c\\x");
        assert_eq!(unescape("\\04"), "\\04");
    }
}
