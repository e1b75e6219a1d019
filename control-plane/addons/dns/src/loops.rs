//! Finds upstreams that lead back to us: a question that nobody else can know of is sent to each, and if it comes in
//! at our own port, all forwarding to that upstream would go round for ever.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::Query;
use hickory_proto::rr::RecordType;
use tokio::sync::Notify;

use crate::forward::exchange;
use crate::message::name;
use crate::server::Server;

/// Another replica may stand between the upstream and us, so once is not enough.
const PROBES: usize = 3;
const WAIT: Duration = Duration::from_secs(2);

/// Questions on their way; those that came back say so.
#[derive(Default)]
pub struct Probes(Mutex<HashMap<String, Arc<Notify>>>);

impl Probes {
    /// Whether `name` is one of our own probes.
    pub fn returned(&self, name: &str) -> bool {
        let probes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let probe = probes.get(name);
        probe.inspect(|probe| probe.notify_one()).is_some()
    }
}

/// The upstreams among `servers` that lead back to us.
pub async fn find(server: &Server, servers: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut loops = Vec::new();
    for upstream in servers {
        for _ in 0..PROBES {
            if returns(server, upstream).await {
                loops.push(upstream);
                break;
            }
        }
    }
    loops
}

async fn returns(server: &Server, upstream: SocketAddr) -> bool {
    let label = format!("{:x}.{:x}", rand::random::<u64>(), rand::random::<u64>());
    let Ok(question) = name(&label).map(|name| Query::query(name, RecordType::HINFO)) else {
        return false;
    };
    let came_back = Arc::new(Notify::new());
    let lock = || server.probes.0.lock().unwrap_or_else(PoisonError::into_inner);
    lock().insert(label.clone(), Arc::clone(&came_back));
    let returned = tokio::select! {
        biased;
        () = came_back.notified() => true,
        // An answer that arrives without the question having come by ends the wait.
        _ = exchange(upstream, &question, false) => false,
        () = tokio::time::sleep(WAIT) => false,
    };
    lock().remove(&label);
    returned
}
