//! Stages of a long command, each printed with its time.

use std::time::{Duration, Instant};

pub struct Stages {
    start: Instant,
    last: Instant,
}

impl Stages {
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            start: now,
            last: now,
        }
    }

    /// A stage is over: prints what it was and how long it took.
    pub fn done(&mut self, what: &str) {
        let now = Instant::now();
        println!("  {:>6.1} s  {what}", (now - self.last).as_secs_f64());
        self.last = now;
    }

    pub fn total(&self) -> Duration {
        self.start.elapsed()
    }
}
