//! `/metrics` and the health checks.

use crate::config::Error;
use crate::state::Shared;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// The longest request line and the most headers that are read.
const MAX_LINES: usize = 100;

/// Binds, and returns the task that answers.
pub async fn listen(address: SocketAddr, shared: Arc<Shared>) -> Result<impl Future<Output = ()>, Error> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| Error::Listen { address, source })?;
    Ok(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let shared = shared.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, &shared).await {
                            tracing::debug!(%error, "request on the metrics address failed");
                        }
                    });
                }
                Err(error) => tracing::warn!(%error, "cannot accept on the metrics address"),
            }
        }
    })
}

async fn answer(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let mut header = String::new();
    for _ in 0..MAX_LINES {
        header.clear();
        if stream.read_line(&mut header).await? <= 2 {
            break;
        }
    }
    let path = request
        .strip_prefix("GET ")
        .and_then(|r| r.split([' ', '?']).next());
    let (status, body) = match path {
        Some("/metrics") => ("200 OK", shared.metrics.render(shared.depth())),
        Some("/healthz" | "/livez" | "/readyz") => ("200 OK", "ok".into()),
        Some(_) => ("404 Not Found", "404 page not found\n".into()),
        None => ("405 Method Not Allowed", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
