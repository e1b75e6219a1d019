//! Every console hears the machine: lines go to a queue, and one thread writes them to all consoles in use.
//!
//! Where there is a screen, it shows them only until a service shows something better there; then they go to its
//! second terminal, and come back when the machine ends.
//!
//! PID 1 must never wait for a terminal, so speaking only queues; when consoles are slower than speakers the
//! oldest lines are dropped and counted.

use crate::sys::screen;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
};
use std::{
    collections::VecDeque,
    fmt::Display,
    fs,
    io::Write,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Lines kept while no console takes them.
const QUEUE_LINES: usize = 4096;

/// How long one line may block on one console before that console is left behind.
const STUCK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// The terminal in the foreground, as a console of the kernel.
const SCREEN: &str = "tty0";
/// Where lines go instead while the screen shows a page.
const LOG_TERMINAL: u8 = 2;

static SCREEN_LEFT: AtomicBool = AtomicBool::new(false);

#[derive(Default)]
struct Queue {
    lines: VecDeque<String>,
    dropped: usize,
    writing: bool,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    lines: VecDeque::new(),
    dropped: 0,
    writing: false,
});
static CHANGED: Condvar = Condvar::new();

/// Says a line of init's own on every console and to the kernel's log.
pub fn say(message: impl Display) {
    let line = format!("ironlet: {message}");
    if let Ok(mut kmsg) = fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // Level 7 keeps the kernel from printing it on the consoles a second time; a full log is no reason to fail.
        let _ = kmsg.write_all(format!("<15>{line}\n").as_bytes());
    }
    push(line);
}

/// Passes a line of a service on to every console.
pub fn relay(service: &str, line: &str) {
    push(format!("{service}: {line}"));
}

/// Whether somebody may look at a screen, rather than at serial lines only.
pub fn has_screen() -> bool {
    active().iter().any(|name| name == SCREEN)
}

/// Leaves the screen to a page, or takes it back.
pub fn leave_screen(left: bool) {
    SCREEN_LEFT.store(left, Ordering::Release);
}

fn push(line: String) {
    let mut queue = lock();
    if queue.lines.len() >= QUEUE_LINES {
        queue.lines.pop_front();
        queue.dropped += 1;
    }
    queue.lines.push_back(line);
    CHANGED.notify_all();
}

fn lock() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until everything said so far is written, or the time is over.
pub fn flush(limit: Duration) {
    let idle = |queue: &mut Queue| !queue.lines.is_empty() || queue.writing;
    drop(CHANGED.wait_timeout_while(lock(), limit, idle));
}

/// Writes the queue to the consoles, for ever. Runs in a thread of its own once /dev and /sys are there.
pub fn write_forever() {
    let mut left = false;
    let mut consoles = open_all(left);
    loop {
        let mut queue = CHANGED
            .wait_while(lock(), |queue| queue.lines.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        if queue.dropped > 0 {
            text = format!(
                "ironlet: {} lines were dropped: the consoles are too slow\r\n",
                std::mem::take(&mut queue.dropped)
            );
        }
        if let Some(line) = queue.lines.pop_front() {
            text.push_str(&printable(&line));
            text.push_str("\r\n");
        }
        queue.writing = true;
        drop(queue);
        if left != SCREEN_LEFT.load(Ordering::Acquire) {
            left = !left;
            consoles = open_all(left);
        }
        for console in &consoles {
            write_bounded(console, text.as_bytes());
        }
        lock().writing = false;
        CHANGED.notify_all();
    }
}

/// Services may print anything; a console must not be steered by it. Colours (CSI sequences) are left out, other
/// control characters shown as question marks.
fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\x1b' && chars.next_if_eq(&'[').is_some() {
            // Parameters, then one final letter.
            while chars.next_if(|c| matches!(c, '\x20'..='\x3f')).is_some() {}
            chars.next();
        } else {
            text.push(if c.is_control() && c != '\t' { '?' } else { c });
        }
    }
    text
}

/// Names of the consoles that the kernel uses: every `console=` that exists.
fn active() -> Vec<String> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    active.split_whitespace().map(str::to_owned).collect()
}

/// The kernel's consoles, or whatever /dev/console is.
fn open_all(screen_left: bool) -> Vec<OwnedFd> {
    let open = |path: String| {
        let flags = OFlags::WRONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).ok()
    };
    let open_console = |name: String| {
        if name != SCREEN {
            return open(format!("/dev/{name}"));
        }
        let terminal = if screen_left { LOG_TERMINAL } else { 0 };
        let console = open(format!("/dev/tty{terminal}"))?;
        if let Err(error) = screen::kernel_messages_to(console.as_fd(), terminal) {
            say(format_args!("the kernel's messages stay on the screen: {error}"));
        }
        Some(console)
    };
    let consoles: Vec<OwnedFd> = active().into_iter().filter_map(open_console).collect();
    if consoles.is_empty() {
        open("/dev/console".to_owned()).into_iter().collect()
    } else {
        consoles
    }
}

fn write_bounded(console: &OwnedFd, mut text: &[u8]) {
    while !text.is_empty() {
        match rustix::io::write(console, text) {
            Ok(written) => text = &text[written..],
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => {
                let mut ready = [PollFd::new(console, PollFlags::OUT)];
                if !matches!(poll(&mut ready, Some(&STUCK)), Ok(1..)) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn services_cannot_steer_the_console() {
        assert_eq!(printable("a\x1b[2J\tb\rc é"), "a\tb?c é");
        assert_eq!(
            printable("\x1b[2m2026\x1b[0m \x1b[38;5;9mERROR\x1b[0m x"),
            "2026 ERROR x"
        );
        for cut in ["\x1b", "\x1b[", "\x1b[3", "x\x1b]0;title\x07"] {
            assert!(!printable(cut).contains(char::is_control), "{cut:?}");
        }
    }
}
