//! Completion indexes: on pods, as the compact text of `status.completedIndexes` ("1,3-5,7"), and in success policies.

use k8s_openapi::api::batch::v1::SuccessPolicy;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;

pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub fn of(pod: &Pod) -> Option<i32> {
    pod.metadata
        .annotations
        .as_ref()?
        .get(COMPLETION_INDEX)?
        .parse()
        .ok()
}

/// Indexes below `completions`; what isn't understood is skipped.
pub fn parse(text: &str, completions: i32) -> BTreeSet<i32> {
    let ranges = text.split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse::<i32>().ok()?, last.parse::<i32>().ok()?))
    });
    ranges
        .flat_map(|(first, last)| first..=last.min(completions - 1))
        .collect()
}

pub fn render(indexes: &BTreeSet<i32>) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let parts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

/// The number of the first rule that the succeeded indexes fulfil.
pub fn fulfilled(policy: &SuccessPolicy, succeeded: &BTreeSet<i32>, completions: i32) -> Option<usize> {
    let enough =
        |count: Option<i32>, n: usize| count.is_some_and(|c| usize::try_from(c).is_ok_and(|c| n >= c));
    policy
        .rules
        .iter()
        .position(|rule| match &rule.succeeded_indexes {
            Some(text) => {
                let required = parse(text, completions);
                enough(rule.succeeded_count, required.intersection(succeeded).count())
                    || required.is_subset(succeeded)
            }
            None => enough(rule.succeeded_count, succeeded.len()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    #[test]
    fn success_policies_need_all_of_the_named_or_as_many_as_said() {
        for (rules, expected) in [
            (json!([{"succeededIndexes": "0-2"}]), None),
            (json!([{"succeededIndexes": "0-2", "succeededCount": 2}]), Some(0)),
            (
                json!([{"succeededIndexes": "4"}, {"succeededIndexes": "0,2"}]),
                Some(1),
            ),
            (json!([{"succeededCount": 3}]), None),
            (json!([{"succeededCount": 2}]), Some(0)),
        ] {
            let policy: SuccessPolicy = from_value(json!({"rules": rules})).unwrap();
            assert_eq!(
                fulfilled(&policy, &BTreeSet::from([0, 2]), 5),
                expected,
                "{rules}"
            );
        }
    }

    #[test]
    fn text_and_back() {
        for (indexes, text) in [
            (&[][..], ""),
            (&[1], "1"),
            (&[0, 1], "0,1"),
            (&[1, 3, 4, 5, 7], "1,3-5,7"),
        ] {
            let set: BTreeSet<i32> = indexes.iter().copied().collect();
            assert_eq!(render(&set), text);
            assert_eq!(parse(text, 10), set);
        }
        assert_eq!(parse("0-9", 3).len(), 3);
    }
}
