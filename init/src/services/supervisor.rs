//! When services start, restart and stop, as a pure state machine: events and the time in, actions out.

use super::{Kind, Service};
use crate::sys::process::Exit;
use node_config::machine_state::ServiceState;
use std::time::Duration;

/// The pause before the first restart; it doubles with each failure in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A service that ran this long was healthy: its next failure counts as the first.
const HEALTHY: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Started {
        name: String,
        pid: u32,
    },
    StartFailed {
        name: String,
        error: String,
    },
    Exited {
        pid: u32,
        exit: Exit,
    },
    /// Only time has passed.
    Tick,
    StopAll,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Start(String),
    Terminate(u32),
    Kill(u32),
    Report(String),
    /// Nothing runs any more after a request to stop.
    AllStopped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// For what it comes after.
    Waiting,
    /// A start was asked for and not yet answered.
    Starting,
    Running {
        pid: u32,
        since: Duration,
    },
    BackOff {
        until: Duration,
    },
    Succeeded,
    Stopping {
        pid: u32,
        kill_at: Option<Duration>,
    },
    Stopped,
}

impl State {
    fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::BackOff { .. } => "back-off",
            Self::Succeeded => "done",
            Self::Stopping { .. } => "stopping",
            Self::Stopped => "stopped",
        }
    }
}

struct Entry {
    service: Service,
    state: State,
    /// In a row, for the back-off.
    failures: u32,
    last_end: String,
}

#[derive(Default)]
pub struct Supervisor {
    entries: Vec<Entry>,
    stopping: bool,
    finished: bool,
}

impl Supervisor {
    /// Takes on services that are not known yet; order is start order, its reverse is stop order. One that is known
    /// and does not run at the moment will start as it is described now.
    pub fn add(&mut self, services: Vec<Service>) {
        for service in services {
            match self
                .entries
                .iter_mut()
                .find(|entry| entry.service.name == service.name)
            {
                Some(entry) if matches!(entry.state, State::Waiting | State::BackOff { .. }) => {
                    entry.service = service
                }
                Some(_) => {}
                None => self.entries.push(Entry {
                    service,
                    state: State::Waiting,
                    failures: 0,
                    last_end: String::new(),
                }),
            }
        }
    }

    pub fn service(&self, name: &str) -> Option<&Service> {
        self.entries
            .iter()
            .map(|entry| &entry.service)
            .find(|service| service.name == name)
    }

    /// How each service does, in start order.
    pub fn states(&self, now: Duration) -> Vec<ServiceState> {
        let state = |entry: &Entry| ServiceState {
            name: entry.service.name.clone(),
            state: entry.state.word().to_owned(),
            pid: entry.pid(),
            seconds: match entry.state {
                State::Running { since, .. } => now.saturating_sub(since).as_secs(),
                _ => 0,
            },
            failures: entry.failures,
            last_end: entry.last_end.clone(),
        };
        self.entries.iter().map(state).collect()
    }

    /// When time alone will bring the next change.
    pub fn next_change(&self) -> Option<Duration> {
        self.entries
            .iter()
            .filter_map(|entry| match entry.state {
                State::BackOff { until } if !self.stopping => Some(until),
                State::Stopping { kill_at, .. } => kill_at,
                _ => None,
            })
            .min()
    }

    /// Takes an event and says what is to be done now.
    pub fn step(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Started { name, pid } => {
                if let Some(entry) = self.entries.iter_mut().find(|entry| entry.service.name == name) {
                    entry.state = State::Running { pid, since: now };
                }
            }
            Event::StartFailed { name, error } => {
                if let Some(entry) = self.entries.iter_mut().find(|entry| entry.service.name == name) {
                    actions.push(entry.failed(&format!("could not start: {error}"), Duration::ZERO, now));
                }
            }
            Event::Exited { pid, exit } => actions.extend(self.exited(pid, exit, now)),
            Event::Tick => {}
            Event::StopAll => self.stopping = true,
        }
        if self.stopping {
            self.stop_next(now, &mut actions)
        } else {
            self.start_due(now, &mut actions)
        }
        actions
    }

    fn exited(&mut self, pid: u32, exit: Exit, now: Duration) -> Option<Action> {
        let entry = self.entries.iter_mut().find(|entry| entry.pid() == Some(pid))?;
        match entry.state {
            State::Running { .. } if entry.service.kind == Kind::Oneshot && exit.success() => {
                entry.state = State::Succeeded;
                Some(Action::Report(format!("{}: done", entry.service.name)))
            }
            State::Running { since, .. } => {
                Some(entry.failed(&exit.to_string(), now.saturating_sub(since), now))
            }
            _ => {
                entry.state = State::Stopped;
                Some(Action::Report(format!("{}: stopped", entry.service.name)))
            }
        }
    }

    fn start_due(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for index in 0..self.entries.len() {
            let due = match self.entries[index].state {
                State::Waiting => self.entries[index]
                    .service
                    .after
                    .iter()
                    .all(|name| self.is_up(name)),
                State::BackOff { until } => until <= now,
                _ => false,
            };
            if due {
                self.entries[index].state = State::Starting;
                actions.push(Action::Start(self.entries[index].service.name.clone()));
            }
        }
    }

    fn is_up(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| {
            entry.service.name == name
                && match entry.service.kind {
                    Kind::Oneshot => entry.state == State::Succeeded,
                    Kind::Daemon => matches!(entry.state, State::Running { .. }),
                }
        })
    }

    /// Stops the last service that is alive, and the one before it when that one has ended.
    fn stop_next(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for entry in self.entries.iter_mut().rev() {
            match entry.state {
                State::Running { pid, .. } => {
                    entry.state = State::Stopping {
                        pid,
                        kill_at: Some(now + entry.service.stop_deadline),
                    };
                    actions.push(Action::Report(format!("{}: stopping", entry.service.name)));
                    actions.push(Action::Terminate(pid));
                    return;
                }
                State::Stopping {
                    pid,
                    kill_at: Some(kill_at),
                } if kill_at <= now => {
                    entry.state = State::Stopping { pid, kill_at: None };
                    let deadline = entry.service.stop_deadline.as_secs();
                    actions.push(Action::Report(format!(
                        "{}: not stopped after {deadline} s: killed",
                        entry.service.name
                    )));
                    actions.push(Action::Kill(pid));
                    return;
                }
                State::Starting | State::Stopping { .. } => return,
                State::Waiting | State::BackOff { .. } => entry.state = State::Stopped,
                State::Succeeded | State::Stopped => {}
            }
        }
        if !self.finished {
            self.finished = true;
            actions.push(Action::AllStopped);
        }
    }
}

impl Entry {
    fn pid(&self) -> Option<u32> {
        match self.state {
            State::Running { pid, .. } | State::Stopping { pid, .. } => Some(pid),
            _ => None,
        }
    }

    fn failed(&mut self, reason: &str, ran: Duration, now: Duration) -> Action {
        self.failures = if ran >= HEALTHY {
            1
        } else {
            self.failures.saturating_add(1)
        };
        let pause = back_off(self.failures);
        reason.clone_into(&mut self.last_end);
        self.state = State::BackOff { until: now + pause };
        Action::Report(format!(
            "{}: {reason}; starting again in {:.1} s (failure {})",
            self.service.name,
            pause.as_secs_f64(),
            self.failures
        ))
    }
}

/// The pause before the restart that follows the given number of failures in a row.
fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, kind: Kind, after: &[&str]) -> Service {
        Service {
            name: name.to_owned(),
            program: "/usr/bin/true".to_owned(),
            args: vec![],
            kind,
            after: after.iter().map(|&name| name.to_owned()).collect(),
            stop_deadline: Duration::from_secs(10),
            memory_min: 0,
            oom_score_adj: 0,
        }
    }

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn started(name: &str, pid: u32) -> Event {
        Event::Started {
            name: name.to_owned(),
            pid,
        }
    }

    fn starts(actions: &[Action]) -> Vec<&str> {
        actions
            .iter()
            .filter_map(|action| {
                if let Action::Start(name) = action {
                    Some(name.as_str())
                } else {
                    None
                }
            })
            .collect()
    }

    fn master() -> Supervisor {
        let mut supervisor = Supervisor::default();
        supervisor.add(vec![
            service("found", Kind::Oneshot, &[]),
            service("etcd", Kind::Daemon, &["found"]),
            service("control-plane", Kind::Daemon, &["etcd"]),
        ]);
        supervisor
    }

    #[test]
    fn services_start_when_what_they_come_after_is_up() {
        let mut supervisor = master();
        assert_eq!(starts(&supervisor.step(Event::Tick, at(0.0))), ["found"]);
        assert_eq!(
            starts(&supervisor.step(started("found", 10), at(0.0))),
            [""; 0],
            "a running oneshot is not up"
        );
        let done = Event::Exited {
            pid: 10,
            exit: Exit::Code(0),
        };
        assert_eq!(starts(&supervisor.step(done, at(1.0))), ["etcd"]);
        assert_eq!(
            starts(&supervisor.step(started("etcd", 11), at(1.0))),
            ["control-plane"]
        );
        assert_eq!(
            supervisor.step(started("control-plane", 12), at(1.0)),
            [],
            "a converged machine needs nothing"
        );
        assert_eq!(supervisor.step(Event::Tick, at(100.0)), []);
        assert_eq!(supervisor.next_change(), None);
    }

    #[test]
    fn a_failed_oneshot_runs_again_and_holds_its_followers() {
        let mut supervisor = master();
        supervisor.step(Event::Tick, at(0.0));
        supervisor.step(started("found", 10), at(0.0));
        let actions = supervisor.step(
            Event::Exited {
                pid: 10,
                exit: Exit::Code(1),
            },
            at(0.1),
        );
        assert_eq!(
            actions,
            [Action::Report(
                "found: exited with status 1; starting again in 0.5 s (failure 1)".to_owned()
            )]
        );
        assert_eq!(supervisor.next_change(), Some(at(0.6)));
        assert_eq!(starts(&supervisor.step(Event::Tick, at(0.6))), ["found"]);
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_health_resets_them() {
        let pauses: Vec<f64> = (1..=8).map(|failures| back_off(failures).as_secs_f64()).collect();
        assert_eq!(pauses, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]);
        assert_eq!(back_off(u32::MAX), LONGEST_PAUSE);

        let mut supervisor = Supervisor::default();
        supervisor.add(vec![service("agent", Kind::Daemon, &[])]);
        let mut now = at(0.0);
        for (ran, pause) in [(1.0, 0.5), (1.0, 1.0), (1.0, 2.0), (60.0, 0.5), (59.0, 1.0)] {
            assert_eq!(starts(&supervisor.step(Event::Tick, now)), ["agent"]);
            supervisor.step(started("agent", 7), now);
            now += at(ran);
            supervisor.step(
                Event::Exited {
                    pid: 7,
                    exit: Exit::Code(0),
                },
                now,
            );
            now += at(pause);
            assert_eq!(supervisor.next_change(), Some(now));
        }
    }

    #[test]
    fn a_program_that_is_missing_is_a_failure_like_others() {
        let mut supervisor = Supervisor::default();
        supervisor.add(vec![service("agent", Kind::Daemon, &[])]);
        supervisor.step(Event::Tick, at(0.0));
        let failed = Event::StartFailed {
            name: "agent".to_owned(),
            error: "no such file".to_owned(),
        };
        let actions = supervisor.step(failed, at(0.0));
        let [Action::Report(report)] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert!(
            report.contains("agent: could not start: no such file"),
            "{report}"
        );
        assert_eq!(starts(&supervisor.step(Event::Tick, at(0.5))), ["agent"]);
    }

    #[test]
    fn a_service_starts_as_it_is_described_at_that_moment() {
        let mut supervisor = master();
        supervisor.step(Event::Tick, at(0.0));
        supervisor.step(started("found", 10), at(0.0));
        let changed = |name| Service {
            args: vec!["--more".to_owned()],
            ..service(name, Kind::Daemon, &["found"])
        };
        supervisor.add(vec![changed("found"), changed("etcd")]);
        assert_eq!(supervisor.service("etcd").unwrap().args, ["--more"]);
        assert_eq!(
            supervisor.service("found").unwrap().kind,
            Kind::Oneshot,
            "what runs stays what it is"
        );
        assert_eq!(
            starts(&supervisor.step(
                Event::Exited {
                    pid: 10,
                    exit: Exit::Code(0)
                },
                at(1.0)
            )),
            ["etcd"]
        );
    }

    #[test]
    fn the_end_of_an_unknown_process_changes_nothing() {
        let mut supervisor = master();
        supervisor.step(Event::Tick, at(0.0));
        assert_eq!(
            supervisor.step(
                Event::Exited {
                    pid: 999,
                    exit: Exit::Signal(9)
                },
                at(1.0)
            ),
            []
        );
    }

    #[test]
    fn stopping_goes_backwards_one_at_a_time_and_kills_at_the_deadline() {
        let mut supervisor = master();
        supervisor.step(Event::Tick, at(0.0));
        supervisor.step(started("found", 10), at(0.0));
        supervisor.step(
            Event::Exited {
                pid: 10,
                exit: Exit::Code(0),
            },
            at(1.0),
        );
        supervisor.step(started("etcd", 11), at(1.0));
        supervisor.step(started("control-plane", 12), at(1.0));

        assert!(
            supervisor
                .step(Event::StopAll, at(2.0))
                .contains(&Action::Terminate(12))
        );
        assert_eq!(
            supervisor.step(Event::Tick, at(3.0)),
            [],
            "etcd is not stopped before the control plane is"
        );
        let actions = supervisor.step(
            Event::Exited {
                pid: 12,
                exit: Exit::Code(0),
            },
            at(4.0),
        );
        assert!(actions.contains(&Action::Terminate(11)), "{actions:?}");
        assert_eq!(supervisor.next_change(), Some(at(14.0)));
        assert!(supervisor.step(Event::Tick, at(14.0)).contains(&Action::Kill(11)));
        assert_eq!(supervisor.step(Event::Tick, at(15.0)), [], "killed once");
        let actions = supervisor.step(
            Event::Exited {
                pid: 11,
                exit: Exit::Signal(9),
            },
            at(15.0),
        );
        assert_eq!(actions.last(), Some(&Action::AllStopped));
        assert_eq!(supervisor.step(Event::Tick, at(16.0)), [], "said once");
    }

    #[test]
    fn a_start_in_flight_is_stopped_when_it_arrives() {
        let mut supervisor = master();
        supervisor.step(Event::Tick, at(0.0));
        assert_eq!(supervisor.step(Event::StopAll, at(0.0)), []);
        assert!(
            supervisor
                .step(started("found", 10), at(0.1))
                .contains(&Action::Terminate(10))
        );
    }

    #[test]
    fn nothing_running_stops_at_once_even_in_back_off() {
        let mut supervisor = master();
        supervisor.step(Event::Tick, at(0.0));
        supervisor.step(
            Event::StartFailed {
                name: "found".to_owned(),
                error: String::new(),
            },
            at(0.0),
        );
        assert_eq!(supervisor.step(Event::StopAll, at(0.1)), [Action::AllStopped]);
    }
}
