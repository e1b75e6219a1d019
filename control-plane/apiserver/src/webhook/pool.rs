//! Connections to a webhook, kept for the next call.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use rustls::ClientConfig;

use crate::connect::{Body, BoxError};
use crate::proxy::target::Target;
use crate::proxy::{dial, transport};

/// More are closed after use (Go's transport keeps as many).
const MOST_IDLE: usize = 25;

#[derive(Default)]
pub struct Pool(Mutex<Vec<Idle>>);

/// An open connection and where it leads.
pub struct Idle {
    host: String,
    port: u16,
    sender: SendRequest<Body>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Pool")
    }
}

impl Pool {
    fn take(&self, target: &Target) -> Option<Idle> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|idle| !idle.sender.is_closed());
        let found = idle.iter().position(|idle| {
            idle.sender.is_ready() && (&idle.host, idle.port) == (&target.host, target.port)
        })?;
        Some(idle.swap_remove(found))
    }

    /// The answer to the last request on it has been read.
    pub fn give_back(&self, used: Idle) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MOST_IDLE && !used.sender.is_closed() {
            idle.push(used);
        }
    }

    /// `tls` is the name in the server's certificate and how to verify it.
    pub async fn send(
        &self,
        target: &Target,
        tls: Option<(&str, &ClientConfig)>,
        mut request: Request<Body>,
    ) -> Result<(Response<Incoming>, Idle), BoxError> {
        while let Some(mut idle) = self.take(target) {
            match idle.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, idle)),
                // The other side hung up meanwhile and has not seen the request.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.into_error().into()),
                },
            }
        }
        let tls = tls.map(|(host, config)| (host, config.clone()));
        let mut sender = transport::open(dial::connect(target, tls), target).await?;
        let response = sender.send_request(request).await?;
        let (host, port) = (target.host.clone(), target.port);
        Ok((response, Idle { host, port, sender }))
    }
}
