//! The latest changes of a kind, so that watchers can start a little in the past or fall a little behind.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::Revision;

use super::Entry;

/// Changes kept at most; a watcher further behind must list again.
const CAPACITY: usize = 2048;
/// Changes kept however old they are.
const QUIET: usize = 100;
/// How long more than [`QUIET`] changes are kept: what a watcher needs to come back after a broken connection.
pub const FRESH: Duration = Duration::from_secs(75);

#[derive(Debug)]
pub struct Change {
    pub revision: Revision,
    /// None: deleted.
    pub now: Option<Arc<Entry>>,
    pub before: Option<Arc<Entry>>,
    seen: Instant,
    /// What most watchers are sent, encoded by the first of them: added, modified, deleted.
    frames: [OnceLock<Bytes>; 3],
}

impl Change {
    pub fn new(revision: Revision, now: Option<Arc<Entry>>, before: Option<Arc<Entry>>) -> Self {
        Self {
            revision,
            now,
            before,
            seen: Instant::now(),
            frames: Default::default(),
        }
    }

    pub fn frame(&self, slot: usize, encode: impl FnOnce() -> Bytes) -> Bytes {
        self.frames[slot].get_or_init(encode).clone()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct TooOld {
    /// The oldest revision a watch may start from.
    pub oldest: Revision,
}

#[derive(Debug, Default)]
pub struct Window {
    /// All changes after this revision are here.
    start: Revision,
    changes: VecDeque<Arc<Change>>,
}

impl Window {
    pub fn starting_at(revision: Revision) -> Self {
        Self {
            start: revision,
            changes: VecDeque::new(),
        }
    }

    pub fn push(&mut self, change: Change) {
        if self.changes.len() == CAPACITY {
            self.forget_oldest();
        }
        self.changes.push_back(Arc::new(change));
    }

    /// Gives back the memory of what nobody is likely to ask for at `now`.
    pub fn forget_stale(&mut self, now: Instant) {
        let stale = |change: &Arc<Change>| now.saturating_duration_since(change.seen) > FRESH;
        while self.changes.len() > QUIET && self.changes.front().is_some_and(stale) {
            self.forget_oldest();
        }
        self.changes.shrink_to(QUIET);
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = self.changes.pop_front() {
            self.start = oldest.revision;
        }
    }

    pub fn after(&self, revision: Revision) -> Result<Vec<Arc<Change>>, TooOld> {
        if revision < self.start {
            return Err(TooOld { oldest: self.start });
        }
        let first = self.changes.partition_point(|change| change.revision <= revision);
        Ok(self.changes.range(first..).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: Revision) -> Change {
        Change::new(revision, None, None)
    }

    #[test]
    fn a_window_knows_what_it_forgot() {
        let mut window = Window::starting_at(10);
        for revision in 11..11 + CAPACITY as Revision {
            window.push(change(revision));
        }
        assert_eq!(window.after(10).unwrap().len(), CAPACITY);
        assert_eq!(window.after(9).unwrap_err(), TooOld { oldest: 10 });
        window.push(change(50_000));
        assert_eq!(window.after(10).unwrap_err(), TooOld { oldest: 11 });
        let latest = window.after(40_000).unwrap();
        assert_eq!(latest.iter().map(|c| c.revision).collect::<Vec<_>>(), [50_000]);
        assert!(window.after(50_000).unwrap().is_empty());
    }

    #[test]
    fn only_a_few_changes_are_kept_for_long() {
        let mut window = Window::starting_at(0);
        for revision in 1..=150 {
            window.push(change(revision));
        }
        let pushed = Instant::now();
        window.forget_stale(pushed);
        assert_eq!(window.after(0).unwrap().len(), 150);
        window.forget_stale(pushed + FRESH * 2);
        assert_eq!(window.after(0).unwrap_err(), TooOld { oldest: 50 });
        assert_eq!(window.after(50).unwrap().len(), QUIET);
    }
}
