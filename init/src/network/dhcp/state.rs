//! When a DHCP client sends what (RFC 2131, figure 5), as a pure state machine.

use super::message::{Lease, Reply, Request};
use std::{net::Ipv4Addr, time::Duration};

/// The wait for the first answer; it doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(32);

/// How often an offer is asked for before looking for another.
const SELECT_TRIES: u32 = 4;

/// The shortest wait between requests for more time (RFC 2131, 4.4.5).
const SHORTEST_EXTENSION: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To everybody on the link.
    Broadcast(Request),
    /// To the server that gave the lease.
    Unicast(Request, Ipv4Addr),
    Use(Lease),
    /// Stop using the address.
    Drop(Lease),
    Report(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Looking { tries: u32 },
    Selecting { offer: Lease, tries: u32 },
    Bound { lease: Lease, since: Duration },
}

#[derive(Debug)]
pub struct Machine {
    state: State,
    /// When to act if no answer comes first.
    next: Duration,
}

impl Machine {
    pub fn new(now: Duration) -> Self {
        Self {
            state: State::Looking { tries: 0 },
            next: now,
        }
    }

    pub fn next(&self) -> Duration {
        self.next
    }

    /// An answer from a server.
    pub fn reply(&mut self, reply: Reply, now: Duration) -> Vec<Action> {
        match (&self.state, reply) {
            (State::Looking { .. }, Reply::Offer(offer)) => {
                self.state = State::Selecting { offer, tries: 0 };
                self.next = now;
                self.time(now)
            }
            (State::Selecting { .. } | State::Bound { .. }, Reply::Acknowledge(lease)) => {
                self.bind(lease, now)
            }
            (State::Selecting { offer, .. }, Reply::Refuse) => {
                let report = format!("{} refused {}; looking again", offer.server, offer.address);
                self.look_again(now, vec![Action::Report(report)])
            }
            (State::Bound { lease, .. }, Reply::Refuse) => {
                let report = format!("{} takes {} back; looking again", lease.server, lease.address);
                let drop = Action::Drop(lease.clone());
                self.look_again(now, vec![Action::Report(report), drop])
            }
            _ => vec![],
        }
    }

    /// Time has come to `now` without an answer.
    pub fn time(&mut self, now: Duration) -> Vec<Action> {
        if now < self.next {
            return vec![];
        }
        match &mut self.state {
            State::Looking { tries } => {
                let wait = wait(*tries);
                *tries += 1;
                self.next = now + wait;
                let mut actions = vec![Action::Broadcast(Request::Discover)];
                if *tries > 1 {
                    let report = format!(
                        "no DHCP server answers (try {tries}; next in {} s)",
                        wait.as_secs()
                    );
                    actions.push(Action::Report(report));
                }
                actions
            }
            State::Selecting { offer, tries } if *tries >= SELECT_TRIES => {
                let report = format!(
                    "{} offered {} and then fell silent; looking again",
                    offer.server, offer.address
                );
                self.look_again(now, vec![Action::Report(report)])
            }
            State::Selecting { offer, tries } => {
                self.next = now + wait(*tries);
                *tries += 1;
                vec![Action::Broadcast(Request::Select {
                    address: offer.address,
                    server: offer.server,
                })]
            }
            State::Bound { lease, since } => {
                let age = now.saturating_sub(*since);
                let (request, until) = (
                    Request::Extend {
                        address: lease.address,
                    },
                    *since,
                );
                if age >= lease.duration {
                    let report = format!("the lease of {} has ended; looking again", lease.address);
                    let drop = Action::Drop(lease.clone());
                    return self.look_again(now, vec![Action::Report(report), drop]);
                }
                // Half of what is left until the next stage.
                let (stage_end, action) = if age >= lease.rebind_after {
                    (until + lease.duration, Action::Broadcast(request))
                } else {
                    (until + lease.rebind_after, Action::Unicast(request, lease.server))
                };
                self.next = (now + ((stage_end - now) / 2).max(SHORTEST_EXTENSION)).min(stage_end);
                vec![action]
            }
        }
    }

    fn bind(&mut self, lease: Lease, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        match &self.state {
            State::Bound { lease: old, .. } if old.address == lease.address && old.prefix == lease.prefix => {
            }
            State::Bound { lease: old, .. } => actions.push(Action::Drop(old.clone())),
            _ => actions.push(Action::Report(format!(
                "{}/{} from {} for {} s",
                lease.address,
                lease.prefix,
                lease.server,
                lease.duration.as_secs()
            ))),
        }
        actions.push(Action::Use(lease.clone()));
        self.next = now + lease.renew_after;
        self.state = State::Bound { lease, since: now };
        actions
    }

    fn look_again(&mut self, now: Duration, actions: Vec<Action>) -> Vec<Action> {
        self.state = State::Looking { tries: 0 };
        // Not at once: two servers that disagree must not make us flood the link.
        self.next = now + FIRST_WAIT;
        actions
    }
}

fn wait(tries: u32) -> Duration {
    (FIRST_WAIT * 2_u32.pow(tries.min(8))).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(address: [u8; 4]) -> Lease {
        Lease {
            address: address.into(),
            prefix: 24,
            server: [10, 0, 2, 2].into(),
            routes: vec![],
            nameservers: vec![],
            ntp: vec![],
            hostname: None,
            domain: None,
            mtu: None,
            duration: at(1000),
            renew_after: at(500),
            rebind_after: at(875),
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const ADDRESS: [u8; 4] = [10, 0, 2, 15];

    fn bound() -> Machine {
        let mut machine = Machine::new(at(0));
        machine.time(at(0));
        machine.reply(Reply::Offer(lease(ADDRESS)), at(1));
        machine.reply(Reply::Acknowledge(lease(ADDRESS)), at(2));
        machine
    }

    #[test]
    fn discover_offer_request_acknowledge() {
        let mut machine = Machine::new(at(0));
        assert_eq!(machine.time(at(0)), [Action::Broadcast(Request::Discover)]);
        let request = Request::Select {
            address: ADDRESS.into(),
            server: [10, 0, 2, 2].into(),
        };
        assert_eq!(
            machine.reply(Reply::Offer(lease(ADDRESS)), at(1)),
            [Action::Broadcast(request)]
        );
        assert_eq!(
            machine.reply(Reply::Offer(lease([10, 0, 2, 99])), at(1)),
            [],
            "the first offer is taken"
        );
        let actions = machine.reply(Reply::Acknowledge(lease(ADDRESS)), at(2));
        assert_eq!(actions.last(), Some(&Action::Use(lease(ADDRESS))));
        assert_eq!(machine.next(), at(502));
    }

    #[test]
    fn silence_is_met_with_ever_longer_waits_and_told() {
        let mut machine = Machine::new(at(0));
        let mut waits = vec![];
        for try_number in 1..=8 {
            let now = machine.next();
            let actions = machine.time(now);
            assert_eq!(actions[0], Action::Broadcast(Request::Discover));
            let told = matches!(actions.get(1), Some(Action::Report(text)) if text.contains("no DHCP server answers"));
            assert_eq!(told, try_number > 1, "the first try may yet be answered");
            waits.push((machine.next() - now).as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 32, 32, 32]);
    }

    #[test]
    fn nothing_is_sent_before_its_time() {
        let mut machine = bound();
        assert_eq!(machine.time(at(501)), []);
    }

    #[test]
    fn a_lease_is_renewed_then_rebound_then_given_up() {
        let mut machine = bound();
        let extend = Request::Extend {
            address: ADDRESS.into(),
        };
        assert_eq!(
            machine.time(at(502)),
            [Action::Unicast(extend.clone(), [10, 0, 2, 2].into())]
        );
        let mut now = machine.next();
        while now < at(877) {
            assert!(matches!(machine.time(now)[..], [Action::Unicast(..)]), "{now:?}");
            now = machine.next();
        }
        assert_eq!(now, at(877), "rebinding begins at T2 exactly");
        assert_eq!(machine.time(now), [Action::Broadcast(extend)]);
        while machine.next() < at(1002) {
            let now = machine.next();
            assert!(
                matches!(machine.time(now)[..], [Action::Broadcast(..)]),
                "{now:?}"
            );
        }
        let actions = machine.time(at(1002));
        assert_eq!(actions.last(), Some(&Action::Drop(lease(ADDRESS))));
        let now = machine.next();
        assert_eq!(machine.time(now), [Action::Broadcast(Request::Discover)]);
    }

    #[test]
    fn a_renewed_lease_begins_again_and_a_new_address_replaces_the_old() {
        let mut machine = bound();
        machine.time(at(502));
        assert_eq!(
            machine.reply(Reply::Acknowledge(lease(ADDRESS)), at(503)),
            [Action::Use(lease(ADDRESS))]
        );
        assert_eq!(machine.next(), at(1003));
        machine.time(at(1003));
        let other = lease([10, 0, 2, 16]);
        assert_eq!(
            machine.reply(Reply::Acknowledge(other.clone()), at(1004)),
            [Action::Drop(lease(ADDRESS)), Action::Use(other)]
        );
    }

    #[test]
    fn a_refusal_starts_over_after_a_pause() {
        let mut machine = bound();
        machine.time(at(502));
        let actions = machine.reply(Reply::Refuse, at(503));
        assert_eq!(actions.last(), Some(&Action::Drop(lease(ADDRESS))));
        assert_eq!(machine.next(), at(505));

        let mut machine = Machine::new(at(0));
        machine.time(at(0));
        machine.reply(Reply::Offer(lease(ADDRESS)), at(1));
        assert!(matches!(
            machine.reply(Reply::Refuse, at(1))[..],
            [Action::Report(_)]
        ));
        assert_eq!(machine.time(at(3)), [Action::Broadcast(Request::Discover)]);
    }

    #[test]
    fn a_server_that_offers_and_falls_silent_is_left() {
        let mut machine = Machine::new(at(0));
        machine.time(at(0));
        machine.reply(Reply::Offer(lease(ADDRESS)), at(1));
        for _ in 1..SELECT_TRIES {
            let now = machine.next();
            assert!(matches!(
                machine.time(now)[..],
                [Action::Broadcast(Request::Select { .. })]
            ));
        }
        let now = machine.next();
        assert!(matches!(&machine.time(now)[..], [Action::Report(text)] if text.contains("fell silent")));
        let now = machine.next();
        assert_eq!(machine.time(now), [Action::Broadcast(Request::Discover)]);
    }
}
