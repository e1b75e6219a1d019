//! The calendar: from the battery clock at start, then from the time servers that the network names (SNTP, RFC 4330).

mod sntp;

use crate::{console, sys::clock, thread::keep};
use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

const RTC: &str = "/dev/rtc0";

/// Larger errors are corrected at once, smaller ones by running a little faster or slower.
const STEP: f64 = 0.128;

const AFTER_SUCCESS: Duration = Duration::from_secs(2048);
const AFTER_FAILURE: Duration = Duration::from_secs(15);

/// Takes the battery's time, where the kernel has not done so: a calendar before 2025 is no calendar.
pub fn from_battery() -> Result<(), std::io::Error> {
    const START_OF_2025: Duration = Duration::from_secs(1_735_689_600);
    if clock::calendar() > START_OF_2025 || !Path::new(RTC).exists() {
        return Ok(());
    }
    clock::set_calendar(clock::read_rtc(Path::new(RTC))?)
}

/// Never lets the calendar run behind a time this machine is known to have seen.
pub fn not_before(known: Duration) -> Result<(), std::io::Error> {
    if clock::calendar() < known {
        clock::set_calendar(known)
    } else {
        Ok(())
    }
}

/// Keeps the calendar right, for ever, in a thread of its own. Server lists come through the channel; `set` is
/// called after each success.
pub fn follow(servers: mpsc::Receiver<Vec<IpAddr>>, set: impl Fn() + Send + 'static) {
    let servers = Mutex::new(servers);
    keep("time", move || {
        let receiver = servers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<IpAddr> = vec![];
        let mut told = false;
        loop {
            let pause = if list.is_empty() {
                AFTER_SUCCESS
            } else if ask_all(&list, &mut told) {
                set();
                AFTER_SUCCESS
            } else {
                AFTER_FAILURE
            };
            match receiver.recv_timeout(pause) {
                Ok(servers) => list = servers,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => thread::sleep(pause),
            }
        }
    });
}

/// Asks one server after the other until one answers. Failure is told once until a success.
fn ask_all(servers: &[IpAddr], told: &mut bool) -> bool {
    let mut reasons = Vec::new();
    for server in servers {
        match sntp::ask(SocketAddr::new(*server, sntp::PORT))
            .and_then(|offset| correct(offset).map(|()| offset))
        {
            Ok(offset) => {
                console::say(format_args!("time: {offset:+.3} s from {server}"));
                *told = false;
                return true;
            }
            Err(error) => reasons.push(format!("{server}: {error}")),
        }
    }
    if !*told {
        console::say(format_args!(
            "time: no server answers ({}); trying on",
            reasons.join("; ")
        ));
        *told = true;
    }
    false
}

fn correct(offset: f64) -> Result<(), std::io::Error> {
    if offset.abs() < STEP {
        clock::slew_calendar(offset)?;
    } else {
        let now = clock::calendar();
        let target = if offset > 0.0 {
            now + Duration::from_secs_f64(offset)
        } else {
            now.saturating_sub(Duration::from_secs_f64(-offset))
        };
        clock::set_calendar(target)?;
    }
    if Path::new(RTC).exists() {
        clock::write_rtc(Path::new(RTC), clock::calendar())?;
    }
    Ok(())
}
