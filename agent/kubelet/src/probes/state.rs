//! Turns a series of probe outcomes into a verdict, counting against the thresholds.

pub struct ProbeState {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    run: u32,
}

impl ProbeState {
    pub fn new(success_threshold: i32, failure_threshold: i32) -> Self {
        let threshold = |value: i32| u32::try_from(value).unwrap_or(1).max(1);
        Self {
            success_threshold: threshold(success_threshold),
            failure_threshold: threshold(failure_threshold),
            last: None,
            run: 0,
        }
    }

    /// The verdict once enough equal outcomes came in a row.
    pub fn observe(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.run = self.run.saturating_add(1);
        } else {
            self.last = Some(success);
            self.run = 1;
        }
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        (self.run >= threshold).then_some(success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_count_runs() {
        for (success, failure, outcomes, expected) in [
            (1, 3, "ffs", "..s"),
            (1, 3, "fffff", "..fff"),
            (1, 3, "ffsfff", "..s..f"),
            (2, 1, "sfss", ".f.s"),
            (0, 0, "sf", "sf"),
        ] {
            let mut state = ProbeState::new(success, failure);
            let verdicts: String = outcomes
                .chars()
                .map(|outcome| match state.observe(outcome == 's') {
                    Some(true) => 's',
                    Some(false) => 'f',
                    None => '.',
                })
                .collect();
            assert_eq!(verdicts, expected, "{outcomes}");
        }
    }
}
