//! CRI log lines (`TIME STREAM TAG TEXT`) filtered and printed as `kubectl logs` asks.

use jiff::Timestamp;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub since: Option<Timestamp>,
    pub tail: Option<usize>,
    pub limit_bytes: Option<usize>,
    /// `stdout` or `stderr` alone.
    pub stream: Option<String>,
}

impl LogOptions {
    /// Reads the query of a log request; the error names the parameter.
    pub fn parse(query: &[(String, String)], now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in query {
            let invalid = || format!("invalid {key}: {value:?}");
            let flag = || value.parse::<bool>().map_err(|_| invalid());
            let count = || value.parse::<usize>().map_err(|_| invalid());
            match key.as_str() {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(count()?),
                "limitBytes" => options.limit_bytes = Some(count()?),
                "sinceTime" => options.since = Some(value.parse().map_err(|_| invalid())?),
                "sinceSeconds" => {
                    let seconds = i64::try_from(count()?).map_err(|_| invalid())?;
                    options.since = now.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok();
                }
                "stream" => match value.as_str() {
                    "All" => {}
                    "Stdout" => options.stream = Some("stdout".into()),
                    "Stderr" => options.stream = Some("stderr".into()),
                    _ => return Err(invalid()),
                },
                _ => {}
            }
        }
        Ok(options)
    }
}

struct Line<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    Some(Line {
        time,
        stream,
        partial: tag.starts_with(b"P"),
        text,
    })
}

/// Prints complete log lines; what is not in CRI's format is skipped, as upstream does.
pub struct Printer {
    options: LogOptions,
    left: usize,
    /// The last fragment printed was partial: the next continues its line.
    continuing: bool,
}

impl Printer {
    pub fn new(options: LogOptions) -> Self {
        let left = options.limit_bytes.unwrap_or(usize::MAX);
        Self {
            options,
            left,
            continuing: false,
        }
    }

    pub fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// The output for a block of whole lines.
    pub fn print(&mut self, block: &[u8]) -> Vec<u8> {
        let mut output = Vec::with_capacity(block.len());
        for raw in block.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Some(line) = parse(raw) else { continue };
            if self
                .options
                .stream
                .as_deref()
                .is_some_and(|stream| stream != line.stream)
            {
                continue;
            }
            let older = |since: Timestamp| line.time.parse::<Timestamp>().is_ok_and(|time| time < since);
            if self.options.since.is_some_and(older) {
                continue;
            }
            if self.options.timestamps && !self.continuing {
                output.extend_from_slice(line.time.as_bytes());
                output.push(b' ');
            }
            output.extend_from_slice(line.text);
            if !line.partial {
                output.push(b'\n');
            }
            self.continuing = line.partial;
        }
        output.truncate(self.left);
        self.left -= output.len();
        output
    }
}

/// Where the last `count` full lines of `log` begin.
pub fn tail_offset(log: &[u8], count: usize) -> usize {
    let mut wanted = count;
    let mut end = log.len();
    while end > 0 {
        let start = log[..end - 1]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let full = parse(log[start..end].strip_suffix(b"\n").unwrap_or(&log[start..end]))
            .is_some_and(|l| !l.partial);
        if full {
            if wanted == 0 {
                return end;
            }
            wanted -= 1;
        }
        end = start;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:00.5Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n\
        2026-01-01T00:00:02Z stdout P thr\n2026-01-01T00:00:03Z stdout F ee\ngarbage\n";

    fn print(options: LogOptions) -> String {
        String::from_utf8(Printer::new(options).print(LOG)).unwrap()
    }

    #[test]
    fn printing() {
        assert_eq!(print(LogOptions::default()), "one\ntwo\nthree\n");
        let stamped = print(LogOptions {
            timestamps: true,
            ..Default::default()
        });
        assert_eq!(
            stamped,
            "2026-01-01T00:00:00.5Z one\n2026-01-01T00:00:01Z two\n2026-01-01T00:00:02Z three\n"
        );
        let since = Some("2026-01-01T00:00:01Z".parse().unwrap());
        assert_eq!(
            print(LogOptions {
                since,
                ..Default::default()
            }),
            "two\nthree\n"
        );
        assert_eq!(
            print(LogOptions {
                limit_bytes: Some(5),
                ..Default::default()
            }),
            "one\nt"
        );
        assert_eq!(
            print(LogOptions {
                stream: Some("stderr".into()),
                ..Default::default()
            }),
            "two\n"
        );
    }

    #[test]
    fn tails_count_whole_lines() {
        let tail = |count| {
            let at = tail_offset(LOG, count);
            String::from_utf8(Printer::new(LogOptions::default()).print(&LOG[at..])).unwrap()
        };
        assert_eq!(
            [tail(0), tail(1), tail(2), tail(9)],
            ["", "three\n", "two\nthree\n", "one\ntwo\nthree\n"]
        );
    }

    #[test]
    fn queries() {
        let pairs = |text: &str| crate::server::query(Some(text));
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let options = LogOptions::parse(&pairs("follow=true&tailLines=5&sinceSeconds=60"), now).unwrap();
        assert_eq!((options.follow, options.tail), (true, Some(5)));
        assert_eq!(options.since, Some("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(
            LogOptions::parse(&pairs("tailLines=x"), now),
            Err("invalid tailLines: \"x\"".into())
        );
    }
}
