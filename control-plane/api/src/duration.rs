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
            assert_eq!(go_duration(Duration::from_nanos(nanoseconds)), text);
        }
    }
}
