//! Kubernetes' channels over WebSocket: the first byte of a message names its stream.

use super::Work;
use super::session::{self, FromClient, QUEUE, ToClient};
use crate::server::Runtime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// From version 5 on: the next byte names a stream that the client closes.
const CLOSE: u8 = 255;
const TUNNEL_BUFFER: usize = 64 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// A channel protocol, by its name on the wire; clients may name none.
#[derive(Debug, Clone, Copy)]
pub struct Dialect(pub &'static str);

impl Dialect {
    fn can_close(self) -> bool {
        self.0.starts_with("v5.")
    }

    /// Before version 4, success is silence and failure a sentence.
    fn ending(self, status: &Value) -> String {
        if self.0.starts_with('v') {
            return status.to_string();
        }
        let failure = status["message"]
            .as_str()
            .filter(|_| status["status"] != "Success");
        failure.unwrap_or_default().to_owned()
    }

    fn base64(self) -> bool {
        self.0.contains("base64.")
    }

    pub fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64() {
            let text = format!("{}{}", char::from(b'0' + channel), BASE64.encode(bytes));
            return Message::Text(text.into());
        }
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(channel);
        message.put_slice(bytes);
        Message::Binary(message.freeze())
    }

    /// The channel's number and what it carries.
    pub fn decode(self, message: &[u8]) -> Option<(u8, Bytes)> {
        let (channel, bytes) = message.split_first()?;
        if self.base64() {
            return Some((channel.checked_sub(b'0')?, BASE64.decode(bytes).ok()?.into()));
        }
        Some((*channel, Bytes::copy_from_slice(bytes)))
    }
}

/// What a client's message means; `None` when it means nothing here.
fn understand(message: &[u8], dialect: Dialect) -> Option<FromClient> {
    let (channel, bytes) = dialect.decode(message)?;
    match channel {
        // Some clients open with an empty message, to try the stream.
        STDIN if bytes.is_empty() => None,
        STDIN => Some(FromClient::Stdin(bytes)),
        RESIZE => {
            let size: Size = serde_json::from_slice(&bytes).ok()?;
            Some(FromClient::Resize {
                columns: size.width,
                rows: size.height,
            })
        }
        CLOSE if dialect.can_close() && bytes[..] == [STDIN] => Some(FromClient::StdinEnd),
        _ => None,
    }
}

/// Runs an exec or attach over a WebSocket.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(
    runtime: &Runtime,
    work: &Work,
    stream: S,
    dialect: Dialect,
) {
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let (to_work, input) = mpsc::channel(QUEUE);
    let (output, mut from_work) = mpsc::channel(QUEUE);
    let streams = work.streams();
    let receive = async {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
                Message::Close(_) => break,
                _ => continue,
            };
            let Some(message) = understand(&bytes, dialect) else {
                continue;
            };
            let wanted = streams.stdin || !matches!(message, FromClient::Stdin(_));
            if wanted && to_work.send(message).await.is_err() {
                break;
            }
        }
        drop(to_work);
    };
    let work = session::run(runtime, work, input, output);
    let send = async {
        // Upstream's servers open every output stream with an empty message.
        let opened = [
            (streams.stdout, STDOUT),
            (streams.stderr && !streams.tty, STDERR),
            (true, ERROR),
        ];
        for (_, stream) in opened.into_iter().filter(|(open, _)| *open) {
            if sink.send(dialect.encode(stream, b"")).await.is_err() {
                return;
            }
        }
        while let Some(message) = from_work.recv().await {
            let message = match message {
                ToClient::Stdout(bytes) if streams.stdout => dialect.encode(STDOUT, &bytes),
                ToClient::Stderr(bytes) if streams.stderr => dialect.encode(STDERR, &bytes),
                _ => continue,
            };
            if sink.send(message).await.is_err() {
                break;
            }
        }
        // Nobody listens: dropping the queue tells the work.
        drop(from_work);
    };
    let status = {
        let talk = async { tokio::join!(work, send).0 };
        tokio::pin!(talk, receive);
        tokio::select! {
            status = &mut talk => status,
            // The client left: what it started goes on only as far as it needs no client.
            () = &mut receive => return,
        }
    };
    let ending = dialect.ending(&status);
    if !ending.is_empty() {
        let _ = sink.send(dialect.encode(ERROR, ending.as_bytes())).await;
    }
    let _ = sink
        .send(Message::Close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        })))
        .await;
    // The other side answers a close with its own; then nothing of ours is lost in the socket.
    while let Some(Ok(_)) = source.next().await {}
}

/// A WebSocket whose messages are pieces of one byte stream (SPDY inside).
pub async fn tunnel<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> DuplexStream {
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (inner, outer) = tokio::io::duplex(TUNNEL_BUFFER);
    let (mut sink, mut source) = socket.split();
    let (mut reader, mut writer) = tokio::io::split(outer);
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            if let Message::Binary(bytes) = message
                && writer.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0u8; 32 * 1024];
        while let Ok(n) = reader.read(&mut buffer).await {
            if n == 0
                || sink
                    .send(Message::Binary(Bytes::copy_from_slice(&buffer[..n])))
                    .await
                    .is_err()
            {
                break;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    });
    inner
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn channels_are_understood() {
        let [v5, v4, words, base64] = [
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
            "channel.k8s.io",
            "base64.channel.k8s.io",
        ]
        .map(Dialect);
        assert!(matches!(understand(b"\0abc", v5), Some(FromClient::Stdin(bytes)) if &bytes[..] == b"abc"));
        assert!(
            matches!(understand(b"0YWJj", base64), Some(FromClient::Stdin(bytes)) if &bytes[..] == b"abc")
        );
        assert!(understand(b"\0", v5).is_none());
        let resize = understand(b"\x04{\"Width\":80,\"Height\":24}", v5);
        assert!(matches!(
            resize,
            Some(FromClient::Resize {
                columns: 80,
                rows: 24
            })
        ));
        assert!(matches!(understand(&[255, 0], v5), Some(FromClient::StdinEnd)));
        assert!(understand(&[255, 0], v4).is_none());
        assert!(understand(&[255, 1], v5).is_none());
        assert!(understand(b"", v5).is_none());
        assert_eq!(base64.encode(STDOUT, b"abc"), Message::Text("1YWJj".into()));
        assert_eq!(words.encode(STDOUT, b"abc"), Message::Binary("\u{1}abc".into()));

        let (good, bad) = (
            json!({"status": "Success"}),
            json!({"status": "Failure", "message": "no"}),
        );
        assert_eq!(v4.ending(&good), good.to_string());
        assert_eq!([words.ending(&good), words.ending(&bad)], ["", "no"]);
    }
}
