//! Go's `time.Duration` as text, which upstream's messages and objects carry.

use std::time::Duration;

const NANOS: u32 = 1_000_000_000;

/// `Duration.String`: `0s`, `1.5ms`, `15.02s`, `2m40s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let fraction = |whole: u64, nanos: u32, unit: u32| {
        let digits = unit.ilog10() as usize;
        let text = format!("{whole}.{nanos:0digits$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    if seconds > 0 || nanos == 0 {
        let rest = format!("{}s", fraction(seconds % 60, nanos, NANOS));
        return match (seconds / 3600, seconds / 60 % 60) {
            (0, 0) => rest,
            (0, minutes) => format!("{minutes}m{rest}"),
            (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
        };
    }
    let (unit, name) = match nanos {
        1_000_000.. => (1_000_000, "ms"),
        1_000.. => (1_000, "µs"),
        _ => return format!("{nanos}ns"),
    };
    format!("{}{name}", fraction(u64::from(nanos / unit), nanos % unit, unit))
}

/// Whole and broken units, as Go writes them: `1h30m`, `1.5h`, `15.02s`.
pub fn parse(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text, 0.0);
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let units = &rest[digits..];
        let end = units
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(units.len());
        total += number
            * match &units[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &units[end..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_like_go() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (17, "17ns"),
            (1_500, "1.5µs"),
            (15_020_000, "15.02ms"),
            (10_000_000_000, "10s"),
            (15_020_000_000, "15.02s"),
            (160_000_000_000, "2m40s"),
            (300_000_000_000, "5m0s"),
            (3_661_000_000_001, "1h1m1.000000001s"),
        ] {
            let duration = Duration::from_nanos(nanoseconds);
            assert_eq!(go_duration(duration), text);
            let parsed = parse(text).unwrap_or_else(|| panic!("{text}"));
            assert!(parsed.abs_diff(duration) < Duration::from_nanos(2), "{text}");
        }
        for text in ["", "1", "s", "1x", "1.2.3s"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
