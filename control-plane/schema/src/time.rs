//! Times and durations as the API writes them.

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;

fn parse(text: &str) -> Result<Timestamp, String> {
    let rfc3339 = text.len() >= 20 && text.as_bytes()[10] == b'T';
    text.parse().ok().filter(|_| rfc3339).ok_or_else(|| {
        format!(
            "parsing time \"{text}\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"{text}\" as \"2006\""
        )
    })
}

/// Whole seconds, UTC.
pub(crate) fn canonical(text: &str) -> Result<String, String> {
    parse(text).map(|time| format_seconds(time.as_second()))
}

/// Six digits of fraction, UTC.
pub(crate) fn canonical_micro(text: &str) -> Result<String, String> {
    parse(text).map(format_micro)
}

pub(crate) fn format_seconds(seconds: i64) -> String {
    let time = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    DateTimePrinter::new()
        .precision(Some(0))
        .timestamp_to_string(&time)
}

pub(crate) fn format_micro(time: Timestamp) -> String {
    DateTimePrinter::new()
        .precision(Some(6))
        .timestamp_to_string(&time)
}

/// Seconds and nanoseconds of RFC 3339 text.
pub(crate) fn split(text: &str) -> Result<(i64, i32), String> {
    parse(text).map(|time| (time.as_second(), time.subsec_nanosecond()))
}

const UNITS: &[(&str, i64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Go's `time.ParseDuration`, in nanoseconds.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration \"{text}\"");
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0_f64;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(|| format!("time: missing unit in duration \"{text}\""))?;
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        let unit_end = rest[end..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |index| end + index);
        let unit = &rest[end..unit_end];
        let scale = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| format!("time: unknown unit \"{unit}\" in duration \"{text}\""))?
            .1;
        total += number * scale as f64;
        rest = &rest[unit_end..];
    }
    Ok(if negative { -total } else { total } as i64)
}

/// Go's `Duration.String`.
pub(crate) fn format_duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    if total == 0 {
        return "0s".to_owned();
    }
    let fraction = |value: u64, unit: u64| {
        let text = format!("{}.{:09}", value / unit, (value % unit) * (1_000_000_000 / unit));
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match total {
        0..1_000 => format!("{sign}{total}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", fraction(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", fraction(total, 1_000_000)),
        _ => {
            let minutes = total / 60_000_000_000;
            let seconds = fraction(total % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_utc() {
        assert_eq!(
            canonical("2026-01-02T03:04:05.999+02:00").as_deref(),
            Ok("2026-01-02T01:04:05Z")
        );
        assert_eq!(
            canonical_micro("2026-01-02T03:04:05.5Z").as_deref(),
            Ok("2026-01-02T03:04:05.500000Z")
        );
        assert!(
            canonical("2026-01-02")
                .unwrap_err()
                .starts_with("parsing time \"2026-01-02\"")
        );
    }

    #[test]
    fn durations_round_trip() {
        for (text, nanoseconds, written) in [
            ("1h", 3_600_000_000_000, "1h0m0s"),
            ("90s", 90_000_000_000, "1m30s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            ("250ms", 250_000_000, "250ms"),
            ("0", 0, "0s"),
            ("-2m", -120_000_000_000, "-2m0s"),
            ("2us", 2_000, "2µs"),
        ] {
            assert_eq!(parse_duration(text), Ok(nanoseconds), "{text}");
            assert_eq!(format_duration(nanoseconds), written);
        }
        assert_eq!(
            parse_duration("5"),
            Err("time: missing unit in duration \"5\"".into())
        );
        assert_eq!(
            parse_duration("5y"),
            Err("time: unknown unit \"y\" in duration \"5y\"".into())
        );
    }
}
