//! The proxy's small HTTP servers: one function from a path to an answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

const RETRY: Duration = Duration::from_secs(5);
const PLAIN: &str = "text/plain; charset=utf-8";

pub struct Answer {
    pub status: StatusCode,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Answer {
    pub fn text(body: impl Into<String>) -> Self {
        Self {
            status: StatusCode::OK,
            headers: vec![("content-type", PLAIN.into())],
            body: body.into(),
        }
    }

    pub fn json(healthy: bool, body: &serde_json::Value) -> Self {
        let status = if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        let headers = vec![
            ("content-type", "application/json".into()),
            ("x-content-type-options", "nosniff".into()),
        ];
        Self {
            status,
            headers,
            body: body.to_string(),
        }
    }

    pub fn not_found() -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            ..Self::text("404 page not found\n")
        }
    }
}

pub type Handler = Arc<dyn Fn(&str) -> Answer + Send + Sync>;

/// Serves until `shutdown`; a port that is taken is tried again.
pub async fn serve(address: SocketAddr, handler: Handler, shutdown: CancellationToken) {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return accept(listener, handler, &shutdown).await,
            Err(error) => warn!(%address, %error, "cannot listen"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn accept(listener: TcpListener, handler: Handler, shutdown: &CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let answer = handler(request.uri().path());
                let mut response = Response::builder().status(answer.status);
                for (name, value) in &answer.headers {
                    response = response.header(*name, value);
                }
                let response = response.body(Full::new(Bytes::from(answer.body)));
                async move { Ok::<_, Infallible>(response.unwrap_or_default()) }
            });
            // A client that goes away in the middle is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
