//! All names that are not the cluster's: asked of the upstreams, one after the other from the one that answered last,
//! and kept for a short while.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::message::DATAGRAM;

const TRY: Duration = Duration::from_secs(2);
/// Answers are kept for at most this long, whatever their owner allows.
const KEPT: u32 = 30;
const KEPT_ANSWERS: usize = 4096;
/// Questions under way; more are refused at once instead of piling up before a dead upstream.
const UNDER_WAY: usize = 512;

#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("no upstream to ask")]
    NoUpstream,
    #[error("upstream {0} leads back to this name server")]
    Loop(SocketAddr),
    #[error("too many questions under way")]
    Busy,
    #[error("upstream {0}: no answer in time")]
    TimedOut(SocketAddr),
    #[error("upstream {0}: {1}")]
    Io(SocketAddr, io::Error),
    #[error("upstream {0}: answered {1}")]
    Refused(SocketAddr, ResponseCode),
    #[error("question: {0}")]
    Question(String),
}

type Key = (Name, RecordType, bool);

struct Kept {
    message: Message,
    since: Instant,
    seconds: u32,
}

pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    kept: Mutex<HashMap<Key, Kept>>,
    under_way: Semaphore,
    /// Where to begin among the upstreams: a dead one costs every question its time-out.
    first: AtomicUsize,
    loops: RwLock<Vec<SocketAddr>>,
}

/// The `nameserver` lines of a resolv.conf.
pub fn upstreams(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver"))
                .then(|| words.next())
                .flatten()
        })
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

impl Forwarder {
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self {
            upstreams,
            kept: Mutex::default(),
            under_way: Semaphore::new(UNDER_WAY),
            first: AtomicUsize::new(0),
            loops: RwLock::default(),
        }
    }

    pub fn upstreams(&self) -> &[SocketAddr] {
        &self.upstreams
    }

    /// Other servers are asked from now on, so nothing that was learnt from the old ones counts.
    pub fn avoid(&self, loops: Vec<SocketAddr>) {
        *self.loops.write().unwrap_or_else(PoisonError::into_inner) = loops;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// An answer of `servers`, or else of the upstreams, and whether it was kept from before.
    pub async fn ask(
        &self,
        question: &Query,
        dnssec: bool,
        servers: Option<&[SocketAddr]>,
    ) -> Result<(Message, bool), ForwardError> {
        let key = (question.name.to_lowercase(), question.query_type, dnssec);
        if let Some(message) = self.recall(&key) {
            return Ok((message, true));
        }
        let _turn = self.under_way.try_acquire().map_err(|_| ForwardError::Busy)?;
        let mut last = ForwardError::NoUpstream;
        let servers = servers.unwrap_or(&self.upstreams);
        let first = self.first.load(Ordering::Relaxed);
        for index in (first..first + servers.len()).map(|index| index % servers.len()) {
            let upstream = servers[index];
            let loops = self
                .loops
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .contains(&upstream);
            if loops {
                last = ForwardError::Loop(upstream);
                continue;
            }
            match exchange(upstream, question, dnssec).await {
                Ok(message) => match message.metadata.response_code {
                    ResponseCode::NoError | ResponseCode::NXDomain => {
                        self.first.store(index, Ordering::Relaxed);
                        self.keep(key, &message);
                        return Ok((message, false));
                    }
                    code => last = ForwardError::Refused(upstream, code),
                },
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn recall(&self, key: &Key) -> Option<Message> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = kept.get(key)?;
        let age = u32::try_from(entry.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        if age >= entry.seconds {
            return None;
        }
        let mut message = entry.message.clone();
        for section in [
            &mut message.answers,
            &mut message.authorities,
            &mut message.additionals,
        ] {
            for record in section {
                record.ttl = record.ttl.saturating_sub(age);
            }
        }
        Some(message)
    }

    fn keep(&self, key: Key, message: &Message) {
        let seconds = lifetime(message);
        if seconds == 0 {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT_ANSWERS {
            kept.retain(|_, entry| entry.since.elapsed().as_secs() < u64::from(entry.seconds));
        }
        if kept.len() < KEPT_ANSWERS {
            let entry = Kept {
                message: message.clone(),
                since: Instant::now(),
                seconds,
            };
            kept.insert(key, entry);
        }
    }
}

/// Seconds an answer may be kept: its shortest record's, or for a missing name what the authority says.
fn lifetime(message: &Message) -> u32 {
    let positive = message.answers.iter().map(|record| record.ttl).min();
    let negative = || {
        message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        })
    };
    positive.or_else(negative).unwrap_or(0).min(KEPT)
}

/// One question to one server, over TCP when the answer exceeds a datagram.
pub async fn exchange(upstream: SocketAddr, question: &Query, dnssec: bool) -> Result<Message, ForwardError> {
    let mut request = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    request.metadata.recursion_desired = true;
    request.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM)
        .set_version(0)
        .set_dnssec_ok(dnssec);
    request.edns = Some(edns);
    let bytes = request
        .to_vec()
        .map_err(|error| ForwardError::Question(error.to_string()))?;
    let late = |_| ForwardError::TimedOut(upstream);
    let failed = |error| ForwardError::Io(upstream, error);
    let message = timeout(TRY, by_datagram(upstream, &request, &bytes))
        .await
        .map_err(late)?
        .map_err(failed)?;
    if !message.metadata.truncation {
        return Ok(message);
    }
    timeout(TRY, by_stream(upstream, &request, &bytes))
        .await
        .map_err(late)?
        .map_err(failed)
}

/// Whatever is not the answer to our question is somebody's attempt, and does not end the wait.
fn answers(request: &Message, bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let same = message.metadata.id == request.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries == request.queries;
    same.then_some(message)
}

async fn by_datagram(upstream: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(message) = answers(request, &buffer[..length]) {
            return Ok(message);
        }
    }
}

async fn by_stream(upstream: SocketAddr, request: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    answers(request, &buffer).ok_or_else(|| io::Error::other("the answer is not to our question"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_the_nameserver_lines() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver 10.0.2.3\nnameserver fd00::3 \nnameserver x\n";
        let want = ["10.0.2.3:53", "[fd00::3]:53"].map(|address| address.parse().unwrap());
        assert_eq!(upstreams(text), want);
    }
}
