//! Port-forward over a WebSocket without SPDY inside: two channels a port, data and error (v4.channel.k8s.io).

use super::port_forward;
use super::session::QUEUE;
use super::websocket::Dialect;
use crate::server::Runtime;
use bytes::Bytes;
use cri_api::v1;
use futures::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

fn message(dialect: Dialect, channel: usize, bytes: &[u8]) -> Option<Message> {
    Some(dialect.encode(u8::try_from(channel).ok()?, bytes))
}

/// The ports are those of the request; each channel begins with its port's number, little endian.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(
    runtime: &Runtime,
    request: &v1::PortForwardRequest,
    stream: S,
    dialect: Dialect,
) {
    let netns = match runtime.network_namespace(&request.pod_sandbox_id) {
        Ok(netns) => netns,
        Err(error) => return tracing::warn!(%error, "port-forward"),
    };
    let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
    let (mut sink, mut source) = socket.split();
    let (outgoing, mut queue) = mpsc::channel::<Message>(QUEUE);
    let mut inputs = Vec::new();
    for (index, port) in request.port.iter().enumerate() {
        let (data, error) = (2 * index, 2 * index + 1);
        let Ok(port) = u16::try_from(*port) else { return };
        for channel in [data, error] {
            let Some(hello) = message(dialect, channel, &port.to_le_bytes()) else {
                return;
            };
            if sink.send(hello).await.is_err() {
                return;
            }
        }
        let (input, incoming) = mpsc::channel::<Bytes>(QUEUE);
        inputs.push(input);
        let (netns, sandbox, outgoing) = (netns.clone(), request.pod_sandbox_id.clone(), outgoing.clone());
        tokio::spawn(async move {
            let outlet = outgoing.clone();
            let send = move |bytes: Bytes| {
                let (outlet, message) = (outlet.clone(), message(dialect, data, &bytes));
                async move {
                    match message {
                        Some(message) => outlet.send(message).await.is_ok(),
                        None => false,
                    }
                }
                .boxed()
            };
            if let Err(reason) = port_forward::forward(port, netns, incoming, send).await {
                let text = format!("error forwarding port {port} to pod {sandbox}: {reason}");
                if let Some(message) = message(dialect, error, text.as_bytes()) {
                    let _ = outgoing.send(message).await;
                }
            }
        });
    }
    drop(outgoing);
    let receive = async {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => text.into(),
                Message::Close(_) => return,
                _ => continue,
            };
            let Some((channel, bytes)) = dialect.decode(&bytes) else {
                continue;
            };
            let channel = usize::from(channel);
            if let Some(input) = inputs.get(channel / 2).filter(|_| channel % 2 == 0) {
                let _ = input.send(bytes).await;
            }
        }
    };
    let send = async {
        while let Some(message) = queue.recv().await {
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
    };
    // All ports at their end, or the client gone.
    tokio::select! { () = receive => {}, () = send => {} }
}
