//! Cron schedules as upstream's parser (robfig/cron `ParseStandard`) understands them.

use k8s_openapi::jiff::civil::Time;
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// A schedule that never comes due (31 February) is given up after so many years.
const HORIZON_YEARS: i16 = 5;

#[derive(Clone, Debug, PartialEq)]
pub enum Schedule {
    Every(SignedDuration),
    Cron { fields: [Field; 5], zone: TimeZone },
}

/// The values of minute, hour, day of the month, month or day of the week as bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    bits: u64,
    /// Written as `*`, so that the other of the two day fields decides.
    any: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        self.bits >> value & 1 == 1
    }
}

/// Name, lowest and highest value, and names of values from the lowest on.
type Bounds = (&'static str, u32, u32, &'static [&'static str]);
const MONTHS: &[&str] = &[
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const BOUNDS: [Bounds; 5] = [
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of month", 1, 31, &[]),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 6, DAYS),
];
const DESCRIPTORS: &[(&str, &str)] = &[
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("expected exactly 5 fields, found {found}: [{text}]")]
    Fields { found: usize, text: String },
    #[error("failed to parse {name} {text:?}: {reason}")]
    Field {
        name: &'static str,
        text: String,
        reason: &'static str,
    },
    #[error("failed to parse duration {0}")]
    Duration(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
}

impl Schedule {
    pub fn parse(text: &str, zone: TimeZone) -> Result<Self, Error> {
        let text = text.trim();
        if let Some(duration) = text.strip_prefix("@every ") {
            let every = api::duration::parse(duration.trim()).ok_or_else(|| Error::Duration(text.into()))?;
            let seconds = i64::try_from(every.as_secs()).unwrap_or(i64::MAX);
            return Ok(Self::Every(SignedDuration::from_secs(seconds.max(1))));
        }
        let text = match DESCRIPTORS.iter().find(|(name, _)| *name == text) {
            Some((_, fields)) => fields,
            None if text.starts_with('@') => return Err(Error::Descriptor(text.into())),
            None => text,
        };
        let parts: Vec<&str> = text.split_whitespace().collect();
        let parts: [&str; 5] = parts.try_into().map_err(|parts: Vec<&str>| Error::Fields {
            found: parts.len(),
            text: parts.join(" "),
        })?;
        let mut fields = [Field { bits: 0, any: false }; 5];
        for ((field, part), bounds) in fields.iter_mut().zip(parts).zip(BOUNDS) {
            *field = parse_field(part, bounds)?;
        }
        Ok(Self::Cron { fields, zone })
    }

    /// The first time after `after`, if there is one within some years.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let (fields, zone) = match self {
            Self::Every(every) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(*every).ok();
            }
            Self::Cron { fields, zone } => (fields, zone),
        };
        let [minute, hour, day, month, weekday] = *fields;
        let to_minute = 60 - i64::from(after.to_zoned(zone.clone()).second());
        let mut time = Timestamp::from_second(after.as_second() + to_minute)
            .ok()?
            .to_zoned(zone.clone());
        let last = time.year() + HORIZON_YEARS;
        while time.year() <= last {
            let date = time.date();
            let on_day = day.has(date.day());
            let on_weekday = weekday.has(date.weekday().to_sunday_zero_offset());
            let fits = if day.any || weekday.any {
                on_day && on_weekday
            } else {
                on_day || on_weekday
            };
            time = if !month.has(date.month()) {
                midnight(&time, date.first_of_month().checked_add(1.month()).ok()?)?
            } else if !fits {
                midnight(&time, date.tomorrow().ok()?)?
            } else if !hour.has(time.hour()) {
                // In steps of real time: an hour that the clock skips has no minutes, one it repeats has twice as many.
                time.checked_add(SignedDuration::from_mins(60 - i64::from(time.minute())))
                    .ok()?
            } else if !minute.has(time.minute()) {
                time.checked_add(SignedDuration::from_mins(1)).ok()?
            } else {
                return Some(time.timestamp());
            };
        }
        None
    }
}

fn midnight(time: &Zoned, date: k8s_openapi::jiff::civil::Date) -> Option<Zoned> {
    date.to_datetime(Time::midnight())
        .to_zoned(time.time_zone().clone())
        .ok()
}

fn parse_field(text: &str, bounds: Bounds) -> Result<Field, Error> {
    let mut field = Field { bits: 0, any: false };
    for part in text.split(',') {
        let (bits, any) = parse_range(part, bounds).map_err(|reason| Error::Field {
            name: bounds.0,
            text: text.into(),
            reason,
        })?;
        field.bits |= bits;
        field.any |= any;
    }
    Ok(field)
}

fn parse_range(part: &str, (_, lowest, highest, names): Bounds) -> Result<(u64, bool), &'static str> {
    let value = |text: &str| {
        let text = text.to_ascii_lowercase();
        let named = names
            .iter()
            .position(|n| *n == text)
            .and_then(|i| u32::try_from(i).ok());
        named
            .map(|i| i + lowest)
            .or_else(|| text.parse().ok())
            .ok_or("not a number")
    };
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(value(step)?)),
        None => (part, None),
    };
    let (first, last, any) = match (range, range.split_once('-')) {
        ("*" | "?", _) => (lowest, highest, step.is_none_or(|s| s <= 1)),
        (_, Some((first, last))) => (value(first)?, value(last)?, false),
        (single, None) if step.is_some() => (value(single)?, highest, false),
        (single, None) => (value(single)?, value(single)?, false),
    };
    match step.unwrap_or(1) {
        0 => Err("step of range should be a positive number"),
        _ if first < lowest => Err("beginning of range below minimum"),
        _ if last > highest => Err("end of range above maximum"),
        _ if first > last => Err("beginning of range beyond end of range"),
        step => {
            let step = usize::try_from(step).unwrap_or(usize::MAX);
            Ok(((first..=last).step_by(step).fold(0, |bits, v| bits | 1 << v), any))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, zone: &str, after: &str) -> Option<String> {
        let zone = TimeZone::get(zone).unwrap();
        let schedule = Schedule::parse(schedule, zone).unwrap();
        Some(schedule.next(after.parse().unwrap())?.to_string())
    }

    #[test]
    fn times_that_come_next() {
        for (schedule, zone, after, expected) in [
            (
                "*/1 * * * ?",
                "UTC",
                "2026-01-01T00:00:00Z",
                "2026-01-01T00:01:00Z",
            ),
            (
                "*/15 * * * *",
                "UTC",
                "2026-01-01T00:15:30Z",
                "2026-01-01T00:30:00Z",
            ),
            (
                "5/20 * * * *",
                "UTC",
                "2026-01-01T00:30:00Z",
                "2026-01-01T00:45:00Z",
            ),
            (
                "0 0 1 feb *",
                "UTC",
                "2026-03-01T00:00:00Z",
                "2027-02-01T00:00:00Z",
            ),
            (
                "30 6-16/4 * * MON-FRI",
                "UTC",
                "2026-01-02T14:30:00Z",
                "2026-01-05T06:30:00Z",
            ),
            // Either day, when both are named; both, when one is a star.
            (
                "0 0 13 * 5",
                "UTC",
                "2026-01-03T00:00:00Z",
                "2026-01-09T00:00:00Z",
            ),
            (
                "0 0 13 * *",
                "UTC",
                "2026-01-03T00:00:00Z",
                "2026-01-13T00:00:00Z",
            ),
            ("@hourly", "UTC", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            (
                "@every 1h30m",
                "UTC",
                "2026-01-01T00:00:01.5Z",
                "2026-01-01T01:30:01Z",
            ),
            (
                "0 9 * * *",
                "America/New_York",
                "2026-01-01T00:00:00Z",
                "2026-01-01T14:00:00Z",
            ),
            (
                "0 9 * * *",
                "America/New_York",
                "2026-07-01T00:00:00Z",
                "2026-07-01T13:00:00Z",
            ),
            // 2:30 does not exist on the day clocks spring forward.
            (
                "30 2 * * *",
                "America/New_York",
                "2026-03-08T05:00:00Z",
                "2026-03-09T06:30:00Z",
            ),
            (
                "0 0 29 2 *",
                "UTC",
                "2026-01-01T00:00:00Z",
                "2028-02-29T00:00:00Z",
            ),
        ] {
            assert_eq!(
                next(schedule, zone, after).as_deref(),
                Some(expected),
                "{schedule} {zone}"
            );
        }
        assert_eq!(next("59 23 31 2 *", "UTC", "2026-01-01T00:00:00Z"), None);
    }

    #[test]
    fn what_is_not_a_schedule_says_why() {
        for (schedule, expected) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            (
                "60 * * * *",
                "failed to parse minute \"60\": end of range above maximum",
            ),
            (
                "* * 0 * *",
                "failed to parse day of month \"0\": beginning of range below minimum",
            ),
            (
                "* * * * 7",
                "failed to parse day of week \"7\": end of range above maximum",
            ),
            ("a * * * *", "failed to parse minute \"a\": not a number"),
            (
                "*/0 * * * *",
                "failed to parse minute \"*/0\": step of range should be a positive number",
            ),
            ("@never", "unrecognized descriptor: @never"),
            ("@every soon", "failed to parse duration @every soon"),
        ] {
            let error = Schedule::parse(schedule, TimeZone::UTC).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
    }
}
