//! Threads of PID 1: named, told about when they panic, and started again.

use crate::console;
use std::{
    panic::{self, AssertUnwindSafe},
    thread,
    time::Duration,
};

/// Makes every panic a line on the consoles instead of text on a stderr that nobody reads.
pub fn report_panics() {
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        console::say(format_args!(
            "thread {} panicked: {info}",
            thread.name().unwrap_or("?")
        ));
    }));
}

/// Runs `body` in a thread; a panic is told and `body` starts again after a pause. Returning ends the thread.
pub fn keep(name: &str, mut body: impl FnMut() + Send + 'static) {
    let watched = move || {
        while panic::catch_unwind(AssertUnwindSafe(&mut body)).is_err() {
            thread::sleep(Duration::from_secs(1));
        }
    };
    if let Err(error) = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(512 * 1024)
        .spawn(watched)
    {
        console::say(format_args!("thread {name} could not start: {error}"));
    }
}
