//! Logs for clients that speak WebSocket, as browsers do: each piece of the log is a message.
//! Upstream: `wsstream.Reader`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    UPGRADE,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::connect::{Body, ConnectResponse};
use crate::status::ApiError;

const BINARY: &str = "binary.k8s.io";
const TEXT: &str = "base64.binary.k8s.io";

/// What a client asks for that wants a WebSocket. Naming no protocol means binary messages.
#[derive(Debug, PartialEq)]
pub struct Wish {
    accept: HeaderValue,
    protocol: Option<&'static str>,
}

pub fn wish(headers: &HeaderMap) -> Result<Option<Wish>, ApiError> {
    let is_socket = headers
        .get(UPGRADE)
        .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"));
    if !is_socket || !super::transport::is_upgrade(headers) {
        return Ok(None);
    }
    let key = headers.get(SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key: required"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(ApiError::internal)?;
    let values = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let offered: Vec<&str> = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let known = |offer: &&str| [BINARY, TEXT].into_iter().find(|known| known == offer);
    let protocol = offered.iter().find_map(known);
    if protocol.is_none() && !offered.is_empty() {
        let message =
            format!("requested protocol(s) are not supported: {offered:?}; supports [{TEXT} {BINARY}]");
        return Err(ApiError::bad_request(message));
    }
    Ok(Some(Wish { accept, protocol }))
}

/// Sends `log` over the connection of `request`; the client's closing ends it.
pub fn answer(wish: Wish, mut request: Request<Incoming>, mut log: Body) -> ConnectResponse {
    let mut response = Response::new(super::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, wish.accept);
    if let Some(protocol) = wish.protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    let message = move |bytes: Bytes| match wish.protocol {
        Some(TEXT) => Message::Text(BASE64.encode(bytes).into()),
        _ => Message::Binary(bytes),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let stream = match upgraded.await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => return tracing::debug!(%error, "the client did not upgrade"),
        };
        let socket = WebSocketStream::from_raw_socket(stream, Role::Server, None).await;
        let (mut sink, mut source) = socket.split();
        let send = async {
            while let Some(Ok(frame)) = log.frame().await {
                let Ok(bytes) = frame.into_data() else { continue };
                if sink.send(message(bytes)).await.is_err() {
                    return;
                }
            }
            let _ = sink.close().await;
            std::future::pending().await
        };
        // Nothing that the client says matters but its end, which also answers ours.
        let receive = async { while let Some(Ok(_)) = source.next().await {} };
        tokio::select! { () = send => {}, () = receive => {} }
    });
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols() {
        let wished = |protocol: Option<&'static str>, upgrade: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
            headers.insert(
                SEC_WEBSOCKET_KEY,
                HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="),
            );
            if let Some(protocol) = protocol {
                headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
            }
            wish(&headers).map(|wish| wish.map(|wish| (wish.accept, wish.protocol)))
        };
        // RFC 6455, section 1.3.
        let accept = HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        for (offered, chosen) in [
            (None, None),
            (Some("binary.k8s.io"), Some(BINARY)),
            (Some("other, base64.binary.k8s.io"), Some(TEXT)),
        ] {
            let given = wished(offered, "WebSocket").ok().flatten();
            assert_eq!(given, Some((accept.clone(), chosen)), "{offered:?}");
        }
        assert!(wished(Some("other"), "websocket").is_err());
        assert!(matches!(wished(None, "SPDY/3.1"), Ok(None)));
    }
}
