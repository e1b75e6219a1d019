//! The machine's clocks: since kernel start, of the calendar, and the battery's.
#![allow(unsafe_code)]

use rustix::{
    fd::AsRawFd,
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};
use std::{fs::File, io, path::Path, time::Duration};

/// Time since the kernel started, sleep included.
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The calendar, as time since 1970.
pub fn calendar() -> Duration {
    let now = clock_gettime(ClockId::Realtime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Sets the calendar at once.
pub fn set_calendar(time: Duration) -> io::Result<()> {
    let seconds = i64::try_from(time.as_secs()).map_err(io::Error::other)?;
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: time.subsec_nanos().into(),
    };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

/// Moves the calendar by a small amount without a jump (adjtime(3)).
pub fn slew_calendar(seconds: f64) -> io::Result<()> {
    let whole = seconds.floor();
    let delta = libc::timeval {
        tv_sec: whole as i64,
        tv_usec: ((seconds - whole) * 1e6) as i64,
    };
    // SAFETY: `delta` lives through the call and the second argument may be null.
    let result = unsafe { libc::adjtime(&delta, std::ptr::null_mut()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct rtc_time` of linux/rtc.h.
#[repr(C)]
#[derive(Default)]
struct RtcTime {
    sec: i32,
    min: i32,
    hour: i32,
    mday: i32,
    mon: i32,
    year: i32,
    wday: i32,
    yday: i32,
    isdst: i32,
}

const RTC_RD_TIME: libc::Ioctl = 0x8024_7009;
const RTC_SET_TIME: libc::Ioctl = 0x4024_700a;

/// The hardware clock, taken as UTC.
pub fn read_rtc(device: &Path) -> io::Result<Duration> {
    let file = File::open(device)?;
    let mut rtc = RtcTime::default();
    // SAFETY: RTC_RD_TIME fills one `struct rtc_time`, which `rtc` is.
    if unsafe { libc::ioctl(file.as_raw_fd(), RTC_RD_TIME, &mut rtc) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let days = days_from_civil(
        i64::from(rtc.year) + 1900,
        i64::from(rtc.mon) + 1,
        i64::from(rtc.mday),
    );
    let seconds = days * 86_400 + i64::from(rtc.hour) * 3600 + i64::from(rtc.min) * 60 + i64::from(rtc.sec);
    u64::try_from(seconds)
        .map(Duration::from_secs)
        .map_err(io::Error::other)
}

/// Sets the hardware clock, in UTC.
pub fn write_rtc(device: &Path, time: Duration) -> io::Result<()> {
    let file = File::open(device)?;
    let seconds = i64::try_from(time.as_secs()).map_err(io::Error::other)?;
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let second_of_day = seconds.rem_euclid(86_400);
    let rtc = RtcTime {
        sec: (second_of_day % 60) as i32,
        min: (second_of_day / 60 % 60) as i32,
        hour: (second_of_day / 3600) as i32,
        mday: day as i32,
        mon: month as i32 - 1,
        year: year as i32 - 1900,
        ..RtcTime::default()
    };
    // SAFETY: RTC_SET_TIME reads one `struct rtc_time`, which `rtc` is.
    if unsafe { libc::ioctl(file.as_raw_fd(), RTC_SET_TIME, &rtc) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Days since 1970-01-01 of a date of the Gregorian calendar, counted in 400-year eras that begin in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_day_numbers_agree_both_ways() {
        for (date, days) in [
            ((1970, 1, 1), 0),
            ((1999, 12, 31), 10_956),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2026, 11, 22), 20_779),
            ((2100, 2, 28), 47_540),
            ((2100, 3, 1), 47_541),
        ] {
            assert_eq!(days_from_civil(date.0, date.1, date.2), days, "{date:?}");
            assert_eq!(civil_from_days(days), date, "{days}");
        }
    }
}
