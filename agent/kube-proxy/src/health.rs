//! What load balancers and people are told: of the proxy as a whole, and of each Service with a health check node port
//! (upstream's ports, paths and shapes: pkg/proxy/healthcheck).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::http::{self, Answer};
use crate::metrics::Metrics;
use crate::tracker::Key;

/// A change that stays unapplied this long makes the proxy unhealthy (upstream's healthTimeout:
/// twice the sync period).
const TIMEOUT: Duration = Duration::from_secs(60);

/// When rules were last applied, since when a change waits to be, and whether the node wants connections.
#[derive(Debug, Default)]
pub struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    updated: Option<Timestamp>,
    pending_since: Option<Instant>,
    unwanted: bool,
}

impl Health {
    pub fn pending(&self) {
        self.lock().pending_since.get_or_insert_with(Instant::now);
    }

    pub fn updated(&self) {
        let mut state = self.lock();
        state.updated = Some(Timestamp::now());
        state.pending_since = None;
    }

    pub fn eligible(&self, eligible: bool) {
        self.lock().unwanted = !eligible;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_healthy(&self) -> bool {
        let state = self.lock();
        state.updated.is_some() && state.pending_since.is_none_or(|t| t.elapsed() < TIMEOUT)
    }

    /// The address for load balancers: `/healthz` knows of the node's fate, `/livez` does not (KEP-3836).
    pub fn answer(&self, path: &str) -> Answer {
        let healthy = self.is_healthy();
        let state = self.lock();
        let mut body = json!({
            "lastUpdated": state.updated.unwrap_or_default().to_string(),
            "currentTime": Timestamp::now().to_string(),
        });
        match path {
            "/healthz" => {
                body["nodeEligible"] = json!(!state.unwanted);
                Answer::json(healthy && !state.unwanted, &body)
            }
            "/livez" => Answer::json(healthy, &body),
            _ => Answer::not_found(),
        }
    }
}

/// The address for people and monitoring.
pub fn metrics_answer(metrics: &Metrics, path: &str) -> Answer {
    match path {
        "/metrics" => {
            let headers = vec![("content-type", "text/plain; version=0.0.4; charset=utf-8".into())];
            Answer {
                headers,
                ..Answer::text(metrics.render())
            }
        }
        "/healthz" => Answer::text("ok"),
        "/proxyMode" => Answer::text("iptables"),
        _ => Answer::not_found(),
    }
}

/// The servers of health check node ports: one for each Service that has one.
pub struct ServicePorts {
    health: Arc<Health>,
    servers: BTreeMap<Key, Server>,
}

struct Server {
    port: u16,
    local_endpoints: Arc<Mutex<usize>>,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl ServicePorts {
    pub fn new(health: Arc<Health>) -> Self {
        Self {
            health,
            servers: BTreeMap::new(),
        }
    }

    /// The Service's port and its ready endpoints on this node, or that it has no such port.
    pub fn set(&mut self, key: &Key, wanted: Option<(u16, usize)>) {
        let Some((port, count)) = wanted else {
            self.servers.remove(key);
            return;
        };
        if self.servers.get(key).is_none_or(|server| server.port != port) {
            self.servers.insert(key.clone(), self.serve(key, port));
        }
        if let Some(server) = self.servers.get(key) {
            *server
                .local_endpoints
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = count;
        }
    }

    fn serve(&self, key: &Key, port: u16) -> Server {
        let local_endpoints = Arc::new(Mutex::new(0));
        let stop = CancellationToken::new();
        let (counter, health, key) = (
            Arc::clone(&local_endpoints),
            Arc::clone(&self.health),
            key.clone(),
        );
        let handler = move |_: &str| {
            let count = *counter.lock().unwrap_or_else(PoisonError::into_inner);
            service_answer(&key, count, health.is_healthy())
        };
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        tokio::spawn(http::serve(address, Arc::new(handler), stop.clone()));
        Server {
            port,
            local_endpoints,
            stop,
        }
    }
}

fn service_answer((namespace, name): &Key, local_endpoints: usize, proxy_healthy: bool) -> Answer {
    let body = json!({
        "service": {"namespace": namespace, "name": name},
        "localEndpoints": local_endpoints,
        "serviceProxyHealthy": proxy_healthy,
    });
    let mut answer = Answer::json(local_endpoints > 0 && proxy_healthy, &body);
    answer
        .headers
        .push(("x-load-balancing-endpoint-weight", local_endpoints.to_string()));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::StatusCode;

    #[test]
    fn healthy_only_after_the_first_sync_and_while_the_node_stays() {
        let health = Health::default();
        assert_eq!(health.answer("/healthz").status, StatusCode::SERVICE_UNAVAILABLE);
        health.updated();
        health.pending();
        assert_eq!(health.answer("/healthz").status, StatusCode::OK);
        health.eligible(false);
        assert_eq!(health.answer("/healthz").status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(health.answer("/livez").status, StatusCode::OK);
        assert_eq!(health.answer("/nope").status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn a_balancer_is_told_of_local_endpoints() {
        let key = ("ns".to_owned(), "web".to_owned());
        for (count, healthy, want) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let answer = service_answer(&key, count, healthy);
            assert_eq!(answer.status.as_u16(), want);
            assert!(
                answer.body.contains(&format!("\"localEndpoints\":{count}")),
                "{}",
                answer.body
            );
        }
    }
}
