//! A WebSocket client of the streaming server, as kubectl would be one.

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

pub type Socket = WebSocketStream<TcpStream>;

const PATIENCE: Duration = Duration::from_secs(30);

pub async fn connect(url: &str, protocol: &str) -> Result<Socket, Error> {
    let mut request = url.replace("http://", "ws://").into_client_request()?;
    request
        .headers_mut()
        .insert("sec-websocket-protocol", protocol.parse().expect("protocol"));
    let stream = TcpStream::connect(request.uri().authority().expect("address").as_str()).await?;
    Ok(client_async(request, stream).await?.0)
}

pub struct Client {
    socket: Socket,
    ended: Ended,
}

#[derive(Default)]
pub struct Ended {
    pub stdout: String,
    pub stderr: String,
    pub status: Value,
}

pub async fn try_open(url: &str, protocol: &str) -> Result<Client, Error> {
    Ok(Client {
        socket: connect(url, protocol).await?,
        ended: Ended::default(),
    })
}

pub async fn open(url: &str, protocol: &str) -> Client {
    try_open(url, protocol).await.expect("upgrade")
}

impl Client {
    async fn send(&mut self, message: Vec<u8>) {
        self.socket
            .send(Message::Binary(message.into()))
            .await
            .expect("send");
    }

    pub async fn stdin(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(16 * 1024) {
            self.send([&[0], piece].concat()).await;
            // A full pipe both ways would stop a client that only writes.
            while let Ok(message) = tokio::time::timeout(Duration::from_millis(1), self.socket.next()).await {
                if !message.is_some_and(|message| self.take(message.expect("message"))) {
                    return;
                }
            }
        }
    }

    pub async fn close_stdin(&mut self) {
        self.send(vec![255, 0]).await;
    }

    pub async fn resize(&mut self, width: u16, height: u16) {
        self.send(format!("\u{4}{{\"Width\":{width},\"Height\":{height}}}").into_bytes())
            .await;
    }

    fn take(&mut self, message: Message) -> bool {
        let Message::Binary(bytes) = message else {
            return !matches!(message, Message::Close(_));
        };
        let text = String::from_utf8_lossy(&bytes[1..]).into_owned();
        match bytes[0] {
            1 => self.ended.stdout += &text,
            2 => self.ended.stderr += &text,
            // Words before version 4.
            3 if !text.is_empty() => {
                self.ended.status = serde_json::from_str(&text).unwrap_or_else(|_| text.clone().into());
            }
            _ => {}
        }
        true
    }

    async fn next(&mut self) -> bool {
        let message = tokio::time::timeout(PATIENCE, self.socket.next())
            .await
            .expect("in time");
        message.is_some_and(|message| self.take(message.expect("message")))
    }

    pub async fn until(&mut self, text: &str) {
        while !self.ended.stdout.contains(text) {
            assert!(self.next().await, "ended before {text:?}: {}", self.ended.stdout);
        }
    }

    pub async fn finish(mut self) -> Ended {
        while self.next().await {}
        self.ended
    }
}
