//! Requests to end: signals, Ctrl-Alt-Del and the power button.

use crate::{console, sys::signals, thread::keep};
use std::{
    collections::HashSet,
    fs::{self, File},
    io::Read,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    PowerOff,
    Reboot,
    /// Reboot, with the state disk emptied on the way.
    Reset,
}

/// linux/input-event-codes.h
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// `struct input_event` on 64-bit machines: time (16 bytes), type, code, value.
const INPUT_EVENT: usize = 24;

/// How often new input devices are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// Passes requests on, for ever, from threads of its own.
pub fn start(request: impl Fn(Request) + Send + Sync + 'static) {
    let request: Arc<dyn Fn(Request) + Send + Sync> = Arc::new(request);
    let from_signals = request.clone();
    keep("signals", move || {
        loop {
            match signals::wait() {
                Ok(signal) => from_signals(meaning(signal)),
                Err(error) => {
                    console::say(format_args!("waiting for signals: {error}"));
                    thread::sleep(LOOK);
                }
            }
        }
    });
    let watched: Arc<Mutex<HashSet<PathBuf>>> = Arc::default();
    keep("buttons", move || {
        loop {
            for device in power_buttons() {
                if watched
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(device.clone())
                {
                    watch(device, request.clone(), watched.clone());
                }
            }
            thread::sleep(LOOK);
        }
    });
}

/// Ctrl-Alt-Del arrives as SIGINT; systemd's, busybox' and sysvinit's callers use the others.
fn meaning(signal: i32) -> Request {
    if signal == libc::SIGINT {
        Request::Reboot
    } else {
        Request::PowerOff
    }
}

/// Input devices that have a power key.
fn power_buttons() -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/class/input").into_iter().flatten().flatten();
    devices
        .filter(|device| device.file_name().to_string_lossy().starts_with("event"))
        .filter(|device| {
            let keys = fs::read_to_string(device.path().join("device/capabilities/key")).unwrap_or_default();
            has_key(&keys, KEY_POWER)
        })
        .map(|device| PathBuf::from("/dev/input").join(device.file_name()))
        .collect()
}

/// sysfs prints the key bitmap as 64-bit words in hexadecimal, highest first.
fn has_key(bitmap: &str, key: u16) -> bool {
    let word = bitmap.split_whitespace().rev().nth(usize::from(key / 64));
    word.and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|word| word >> (key % 64) & 1 == 1)
}

fn watch(path: PathBuf, request: Arc<dyn Fn(Request) + Send + Sync>, watched: Arc<Mutex<HashSet<PathBuf>>>) {
    keep("button", move || {
        if let Ok(mut device) = File::open(&path) {
            let mut event = [0; INPUT_EVENT];
            while device.read_exact(&mut event).is_ok() {
                if is_power_key(&event) {
                    request(Request::PowerOff);
                }
            }
        }
        // Gone: if it comes back, it is a new one.
        watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&path);
    });
}

fn is_power_key(event: &[u8; INPUT_EVENT]) -> bool {
    let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
    let pressed = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]) == 1;
    half(16) == EV_KEY && half(18) == KEY_POWER && pressed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_key_is_found_in_the_bitmap() {
        // A PC's ACPI power button, and a mouse.
        assert!(has_key("10000000000000 0\n", KEY_POWER));
        assert!(!has_key("1f0000 0 0 0 0", KEY_POWER));
        assert!(!has_key("", KEY_POWER));
        assert!(!has_key("fffffffffffffffe", KEY_POWER));
    }

    #[test]
    fn only_its_press_counts() {
        let mut event = [0; INPUT_EVENT];
        event[16..18].copy_from_slice(&EV_KEY.to_ne_bytes());
        event[18..20].copy_from_slice(&KEY_POWER.to_ne_bytes());
        assert!(!is_power_key(&event), "a release");
        event[20] = 1;
        assert!(is_power_key(&event));
        event[18] = 30;
        assert!(!is_power_key(&event), "another key");
    }

    #[test]
    fn ctrl_alt_del_reboots_and_other_signals_power_off() {
        assert_eq!(meaning(libc::SIGINT), Request::Reboot);
        assert_eq!(meaning(libc::SIGTERM), Request::PowerOff);
        assert_eq!(meaning(libc::SIGUSR2), Request::PowerOff);
    }
}
