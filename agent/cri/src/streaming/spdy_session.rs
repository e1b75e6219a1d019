//! Exec and attach over SPDY: one stream each for input, output, error and terminal size.

use super::Work;
use super::session::{self, FromClient, QUEUE, ToClient};
use super::spdy::{self, Stream};
use crate::server::Runtime;
use serde::Deserialize;
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// How long the client may take to open its streams (upstream's default).
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

pub async fn serve<S: AsyncRead + AsyncWrite + Send + 'static>(runtime: &Runtime, work: &Work, stream: S) {
    let wanted = work.streams();
    let expected = 1 + [
        wanted.stdin,
        wanted.stdout,
        wanted.stderr && !wanted.tty,
        wanted.tty,
    ]
    .into_iter()
    .filter(|w| *w)
    .count();
    let mut opened = spdy::accept(stream, false);
    let mut streams: HashMap<String, Stream> = HashMap::new();
    let collect = async {
        while streams.len() < expected {
            let Some(stream) = opened.recv().await else {
                return false;
            };
            streams.insert(stream.header("streamtype").to_owned(), stream);
        }
        true
    };
    if !matches!(tokio::time::timeout(CREATION_TIMEOUT, collect).await, Ok(true)) {
        tracing::debug!("the client did not open its streams in time");
        return;
    }
    let Some(error) = streams.remove("error") else {
        return;
    };
    let (to_work, input) = mpsc::channel(QUEUE);
    let (output, mut from_work) = mpsc::channel(QUEUE);
    let (stdin, resize) = (streams.remove("stdin"), streams.remove("resize"));
    let (stdout, stderr) = (streams.remove("stdout"), streams.remove("stderr"));
    let feed = async {
        if let Some(mut stdin) = stdin {
            while let Some(bytes) = stdin.receive().await {
                if to_work.send(FromClient::Stdin(bytes)).await.is_err() {
                    return;
                }
            }
            let _ = to_work.send(FromClient::StdinEnd).await;
        }
    };
    let sizes = async {
        let Some(mut resize) = resize else { return };
        let mut text = Vec::new();
        while let Some(bytes) = resize.receive().await {
            text.extend_from_slice(&bytes);
            let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<Size>();
            let mut used = 0;
            while let Some(Ok(size)) = values.next() {
                used = values.byte_offset();
                let message = FromClient::Resize {
                    columns: size.width,
                    rows: size.height,
                };
                if to_work.send(message).await.is_err() {
                    return;
                }
            }
            text.drain(..used);
        }
    };
    let send = async {
        while let Some(message) = from_work.recv().await {
            let (stream, bytes) = match message {
                ToClient::Stdout(bytes) => (&stdout, bytes),
                ToClient::Stderr(bytes) => (&stderr, bytes),
            };
            if let Some(stream) = stream
                && !stream.send(&bytes).await
            {
                break;
            }
        }
        drop(from_work);
    };
    let work = async { tokio::join!(session::run(runtime, work, input, output), send).0 };
    let status = tokio::select! {
        status = work => status,
        () = async { tokio::join!(feed, sizes); std::future::pending().await } => return,
    };
    if status["status"] != "Success" {
        error.send(status.to_string().as_bytes()).await;
    } else {
        error.send(br#"{"metadata":{},"status":"Success"}"#).await;
    }
    for stream in [stdout, stderr, Some(error)].iter().flatten() {
        stream.finish().await;
    }
}
