//! `/healthz`, `/livez` and `/proxyMode` for load balancers and people (upstream's ports and shapes).

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A change that stays unapplied this long makes the proxy unhealthy (upstream's healthTimeout:
/// twice the sync period).
const TIMEOUT: Duration = Duration::from_secs(60);

/// When rules were last applied, and since when a change waits to be.
#[derive(Debug, Default)]
pub struct Health(Mutex<Times>);

#[derive(Debug, Default)]
struct Times {
    updated: Option<Timestamp>,
    pending_since: Option<Instant>,
}

impl Health {
    pub fn pending(&self) {
        self.lock().pending_since.get_or_insert_with(Instant::now);
    }

    pub fn updated(&self) {
        *self.lock() = Times {
            updated: Some(Timestamp::now()),
            pending_since: None,
        };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Times> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn answer(&self, path: &str) -> (StatusCode, &'static str, String) {
        let times = self.lock();
        let healthy = times.updated.is_some() && times.pending_since.is_none_or(|t| t.elapsed() < TIMEOUT);
        let status = if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        match path {
            "/healthz" | "/livez" => {
                let now = Timestamp::now();
                let body = json!({
                    "lastUpdated": times.updated.unwrap_or_default().to_string(),
                    "currentTime": now.to_string(),
                    "nodeEligible": true,
                });
                (status, "application/json", body.to_string())
            }
            "/proxyMode" => (StatusCode::OK, "text/plain; charset=utf-8", "iptables".into()),
            _ => (
                StatusCode::NOT_FOUND,
                "text/plain; charset=utf-8",
                "404 page not found\n".into(),
            ),
        }
    }
}

/// Serves until `shutdown`; a port that is taken is tried again.
pub async fn serve(health: Arc<Health>, port: u16, shutdown: CancellationToken) {
    const RETRY: Duration = Duration::from_secs(5);
    let address = SocketAddr::new(IpAddr::from([0u8; 4]), port);
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return accept(&health, listener, &shutdown).await,
            Err(error) => warn!(%address, %error, "cannot serve kube-proxy's health"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn accept(health: &Arc<Health>, listener: TcpListener, shutdown: &CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let health = Arc::clone(health);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let (status, content_type, body) = health.answer(request.uri().path());
                let response = Response::builder()
                    .status(status)
                    .header("content-type", content_type);
                async move { Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).unwrap_or_default()) }
            });
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_only_after_the_first_sync() {
        let health = Health::default();
        assert_eq!(health.answer("/healthz").0, StatusCode::SERVICE_UNAVAILABLE);
        health.updated();
        health.pending();
        assert_eq!(health.answer("/healthz").0, StatusCode::OK);
        assert_eq!(health.answer("/nope").0, StatusCode::NOT_FOUND);
    }
}
