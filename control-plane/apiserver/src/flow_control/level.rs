//! One priority level: so many requests at once, the others wait in fair queues or are refused.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::oneshot;

/// As upstream: a quarter of a request's time.
const QUEUE_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queuing {
    pub queues: usize,
    pub hand: usize,
    pub length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Exempt,
    Limited { seats: usize, queuing: Option<Queuing> },
}

impl Limit {
    /// `shares` is the sum over all levels, `total` what they have together.
    pub fn of(level: &Value, shares: u64, total: u64) -> Self {
        let spec = &level["spec"];
        if spec["type"] == "Exempt" {
            return Self::Exempt;
        }
        let limited = &spec["limited"];
        let own = nominal_shares(level);
        let seats = (total * own).div_ceil(shares.max(1));
        let response = &limited["limitResponse"];
        let number = |field: &str, default: u64| {
            let number = response["queuing"][field].as_u64().unwrap_or(default);
            usize::try_from(number).unwrap_or(usize::MAX).max(1)
        };
        let queuing = (response["type"] == "Queue").then(|| {
            let queues = number("queues", 64);
            Queuing {
                queues,
                hand: number("handSize", 8).min(queues),
                length: number("queueLengthLimit", 50),
            }
        });
        Self::Limited {
            seats: usize::try_from(seats).unwrap_or(usize::MAX),
            queuing,
        }
    }
}

pub fn nominal_shares(level: &Value) -> u64 {
    let limited = level["spec"]["limited"]["nominalConcurrencyShares"].as_u64();
    let exempt = level["spec"]["exempt"]["nominalConcurrencyShares"].as_u64();
    if level["spec"]["type"] == "Exempt" {
        exempt.unwrap_or(0)
    } else {
        limited.unwrap_or(30)
    }
}

/// Why a request got no seat; upstream's words in its metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    ConcurrencyLimit,
    QueueFull,
    TimeOut,
}

impl Refusal {
    pub fn reason(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
        }
    }
}

#[derive(Debug)]
struct Seats {
    limit: Limit,
    taken: usize,
    queues: Vec<VecDeque<oneshot::Sender<Permit>>>,
    /// The queue whose turn it is.
    turn: usize,
}

#[derive(Debug)]
pub struct Level {
    pub name: String,
    pub uid: String,
    seats: Mutex<Seats>,
}

/// A seat; dropping it makes room for the next.
#[derive(Debug)]
pub struct Permit(Option<Arc<Level>>);

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(level) = self.0.take() {
            let mut seats = level.lock();
            seats.taken -= 1;
            level.seat_waiting(&mut seats);
        }
    }
}

impl Level {
    pub fn new(name: String, uid: String, limit: Limit) -> Arc<Self> {
        let level = Arc::new(Self {
            name,
            uid,
            seats: Mutex::new(Seats {
                limit: Limit::Exempt,
                taken: 0,
                queues: Vec::new(),
                turn: 0,
            }),
        });
        level.set_limit(limit);
        level
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_limit(self: &Arc<Self>, limit: Limit) {
        let mut seats = self.lock();
        if seats.limit == limit {
            return;
        }
        seats.limit = limit;
        let queues = match limit {
            Limit::Limited {
                queuing: Some(queuing),
                ..
            } => queuing.queues,
            _ => 1,
        };
        let mut waiting = std::mem::take(&mut seats.queues);
        seats.queues.resize_with(queues, VecDeque::new);
        for (place, queue) in waiting.iter_mut().enumerate() {
            seats.queues[place % queues].append(queue);
        }
        seats.turn = 0;
        self.seat_waiting(&mut seats);
    }

    /// Requests being worked on, and waiting.
    pub fn load(&self) -> (usize, usize) {
        let seats = self.lock();
        (seats.taken, seats.queues.iter().map(VecDeque::len).sum())
    }

    /// A seat for a request of the flow with this hash.
    pub async fn seat(self: &Arc<Self>, flow: u64) -> Result<Permit, Refusal> {
        let waiting = {
            let mut seats = self.lock();
            let room = match seats.limit {
                Limit::Exempt => true,
                Limit::Limited { seats: all, .. } => seats.taken < all,
            };
            if room {
                seats.taken += 1;
                return Ok(Permit(Some(self.clone())));
            }
            let Limit::Limited {
                queuing: Some(queuing),
                ..
            } = seats.limit
            else {
                return Err(Refusal::ConcurrencyLimit);
            };
            for queue in &mut seats.queues {
                queue.retain(|waiter| !waiter.is_closed());
            }
            let shortest = hand(flow, queuing)
                .into_iter()
                .min_by_key(|queue| seats.queues[*queue].len())
                .unwrap_or(0);
            if seats.queues[shortest].len() >= queuing.length {
                return Err(Refusal::QueueFull);
            }
            let (sender, receiver) = oneshot::channel();
            seats.queues[shortest].push_back(sender);
            receiver
        };
        match tokio::time::timeout(QUEUE_PATIENCE, waiting).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Refusal::TimeOut),
        }
    }

    /// Gives free seats away, one queue after the other.
    fn seat_waiting(self: &Arc<Self>, seats: &mut Seats) {
        let room = |seats: &Seats| match seats.limit {
            Limit::Exempt => true,
            Limit::Limited { seats: all, .. } => seats.taken < all,
        };
        let mut idle = 0;
        while room(seats) && idle < seats.queues.len() {
            let turn = seats.turn;
            seats.turn = (turn + 1) % seats.queues.len();
            let Some(waiter) = seats.queues[turn].pop_front() else {
                idle += 1;
                continue;
            };
            idle = 0;
            match waiter.send(Permit(Some(self.clone()))) {
                Ok(()) => seats.taken += 1,
                // Its client is gone. The seat was not taken, so it must not be given back.
                Err(mut permit) => permit.0 = None,
            }
        }
    }
}

/// The queues a flow may use (upstream: `shufflesharding.Dealer`): as many different ones as its hand holds.
fn hand(mut flow: u64, queuing: Queuing) -> Vec<usize> {
    let mut cards: Vec<usize> = Vec::with_capacity(queuing.hand);
    for dealt in 0..queuing.hand {
        let left = (queuing.queues - dealt) as u64;
        let mut card = usize::try_from(flow % left).unwrap_or(0);
        flow /= left;
        let mut sorted = cards.clone();
        sorted.sort_unstable();
        for before in sorted {
            if before <= card {
                card += 1;
            }
        }
        cards.push(card);
    }
    cards
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn level(seats: usize, queuing: Option<Queuing>) -> Arc<Level> {
        Level::new("l".into(), "u".into(), Limit::Limited { seats, queuing })
    }

    const TWO: Option<Queuing> = Some(Queuing {
        queues: 2,
        hand: 1,
        length: 2,
    });

    #[tokio::test]
    async fn the_rejecting_level_rejects_and_recovers() {
        let level = level(1, None);
        let first = level.seat(0).await.unwrap();
        assert_eq!(level.seat(0).await.unwrap_err(), Refusal::ConcurrencyLimit);
        drop(first);
        level.seat(0).await.unwrap();
        assert_eq!(level.load(), (0, 0));
    }

    #[tokio::test]
    async fn a_busy_flow_does_not_keep_another_waiting() {
        let level = level(1, TWO);
        let first = level.seat(0).await.unwrap();
        let mut waiting = Vec::new();
        for flow in [0, 0, 1] {
            let mut seat = Box::pin(level.clone().seat_owned(flow));
            assert!(futures::poll!(seat.as_mut()).is_pending());
            waiting.push(seat);
        }
        assert_eq!(level.seat(0).await.unwrap_err(), Refusal::QueueFull);
        assert_eq!(level.load(), (1, 3));
        drop(first);
        let quiet = waiting.pop().unwrap();
        let busy = waiting.remove(0).await.unwrap();
        drop(busy);
        quiet
            .await
            .expect("its turn is before the busy flow's second request");
    }

    #[tokio::test]
    async fn who_gives_up_leaves_no_seat_behind() {
        let level = level(1, TWO);
        let first = level.seat(0).await.unwrap();
        let mut gone = Box::pin(level.clone().seat_owned(0));
        assert!(futures::poll!(gone.as_mut()).is_pending());
        drop(gone);
        let mut seated = Box::pin(level.clone().seat_owned(0));
        assert!(futures::poll!(seated.as_mut()).is_pending());
        drop(first);
        assert_eq!(level.load().0, 1, "the seat is on its way");
        drop(seated);
        assert_eq!(level.load(), (0, 0));
    }

    impl Level {
        async fn seat_owned(self: Arc<Self>, flow: u64) -> Result<Permit, Refusal> {
            self.seat(flow).await
        }
    }

    #[test]
    fn hands_are_different_queues() {
        let queuing = Queuing {
            queues: 16,
            hand: 6,
            length: 1,
        };
        for flow in [0, 1, 0xdead_beef, u64::MAX] {
            let cards = hand(flow, queuing);
            assert_eq!(cards.iter().collect::<BTreeSet<_>>().len(), 6, "{cards:?}");
            assert!(cards.iter().all(|card| *card < 16));
        }
    }
}
