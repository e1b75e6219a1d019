//! What a kubelet's `/metrics/resource` says, read from Prometheus' text format.

use std::collections::BTreeMap;

/// One measurement of a node or container; times in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    pub start: i128,
    pub at: i128,
    /// Nanoseconds of CPU since the start.
    pub cpu: u64,
    /// Bytes of the working set.
    pub memory: u64,
    pub swap: u64,
}

impl Point {
    fn is_complete(&self) -> bool {
        self.at != 0 && self.cpu != 0 && self.memory != 0
    }
}

/// Namespace and name.
pub type PodName = (String, String);

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape {
    pub node: Option<Point>,
    /// Containers by name.
    pub pods: BTreeMap<PodName, BTreeMap<String, Point>>,
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("line {0} is not a sample: {1:?}")]
pub struct Malformed(usize, String);

const NANOS: f64 = 1e9;

/// Samples without a time of their own were taken at `now`. Pods with a container that is only half described are left
/// out, as upstream does.
pub fn parse(text: &str, now: i128) -> Result<Scrape, Malformed> {
    let mut node = Point::default();
    let mut pods: BTreeMap<PodName, BTreeMap<String, Point>> = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let sample = sample(line).ok_or_else(|| Malformed(number + 1, line.to_owned()))?;
        let at = sample.milliseconds.map_or(now, |at| i128::from(at) * 1_000_000);
        let (of_node, family) = match sample.family.split_once('_') {
            Some(("node", family)) => (true, family),
            Some(("container", family)) => (false, family),
            _ => continue,
        };
        let point = if of_node {
            &mut node
        } else {
            let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
            let containers = pods.entry((label("namespace"), label("pod"))).or_default();
            containers.entry(label("container")).or_default()
        };
        // Casts saturate; what is negative or no number counts as nothing.
        match family {
            "cpu_usage_seconds_total" => (point.cpu, point.at) = ((sample.value * NANOS).round() as u64, at),
            "memory_working_set_bytes" => (point.memory, point.at) = (sample.value as u64, at),
            "swap_usage_bytes" => point.swap = sample.value as u64,
            "start_time_seconds" => point.start = (sample.value * NANOS) as i128,
            _ => {}
        }
    }
    pods.retain(|_, containers| containers.values().all(Point::is_complete));
    Ok(Scrape {
        node: node.is_complete().then_some(node),
        pods,
    })
}

struct Sample<'a> {
    family: &'a str,
    labels: BTreeMap<&'a str, String>,
    value: f64,
    milliseconds: Option<i64>,
}

/// `family{label="value",…} value [milliseconds]`
fn sample(line: &str) -> Option<Sample<'_>> {
    let name_end = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (family, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner.trim_start();
        while !rest.starts_with('}') {
            let (name, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(name.trim(), value);
            let after = after.trim_start();
            rest = after.strip_prefix(',').unwrap_or(after).trim_start();
        }
        rest = &rest[1..];
    }
    let mut fields = rest.split_whitespace();
    let value = fields.next()?.parse().ok()?;
    let milliseconds = fields.next().map(str::parse).transpose().ok()?;
    fields.next().is_none().then_some(Sample {
        family,
        labels,
        value,
        milliseconds,
    })
}

/// The text up to the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelets_page_is_read() {
        let text = r#"
# TYPE container_cpu_usage_seconds_total counter
container_cpu_usage_seconds_total{container="c",namespace="n",pod="p"} 1.5 1700000000000
container_memory_working_set_bytes{container="c",namespace="n",pod="p"} 4096 1700000000000
container_start_time_seconds{container="c",namespace="n",pod="p"} 1.7e9
container_swap_usage_bytes{container="c",namespace="n",pod="p"} 7
container_cpu_usage_seconds_total{container="half",namespace="n",pod="q"} 1
container_cpu_usage_seconds_total{container="c",namespace="n",pod="odd\"\\",} 2
container_memory_working_set_bytes{container="c",namespace="n",pod="odd\"\\",} 3
pod_cpu_usage_seconds_total{namespace="n",pod="p"} 9
node_cpu_usage_seconds_total 100
node_memory_working_set_bytes 1e+06
resource_scrape_error 0
"#;
        let scrape = parse(text, 5).unwrap();
        let node = Point {
            at: 5,
            cpu: 100_000_000_000,
            memory: 1_000_000,
            ..Point::default()
        };
        assert_eq!(scrape.node, Some(node));
        let names: Vec<_> = scrape.pods.keys().map(|(_, pod)| pod.as_str()).collect();
        assert_eq!(names, ["odd\"\\", "p"]);
        let container = Point {
            start: 1_700_000_000_000_000_000,
            at: 1_700_000_000_000_000_000,
            cpu: 1_500_000_000,
            memory: 4096,
            swap: 7,
        };
        assert_eq!(scrape.pods[&("n".into(), "p".into())]["c"], container);
    }

    #[test]
    fn what_is_no_sample_is_named() {
        for line in ["a", "a{", "a{b=\"", "a{b=\"c\"} x", "a 1 2 3", "a{b} 1"] {
            assert_eq!(parse(line, 0), Err(Malformed(1, line.into())));
        }
    }
}
