//! A SPDY/3.1 client with uncompressed header blocks, over an upgraded connection or inside a WebSocket.

use crate::stream_client;
use futures::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

const PATIENCE: Duration = Duration::from_secs(30);

enum Wire {
    Plain(TcpStream),
    Tunnel(Box<stream_client::Socket>),
}

pub struct Client {
    wire: Wire,
    input: Vec<u8>,
    /// What each stream has brought, and whether it has ended.
    streams: HashMap<u32, (Vec<u8>, bool)>,
    opened: bool,
}

pub async fn open(url: &str, protocol: &str) -> Client {
    let (address, path) = url.trim_start_matches("http://").split_once('/').expect("url");
    let mut stream = TcpStream::connect(address).await.expect("connect");
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("request");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("answer"));
    }
    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains(&protocol.to_ascii_lowercase()),
        "{head}"
    );
    Client {
        wire: Wire::Plain(stream),
        input: Vec::new(),
        streams: HashMap::new(),
        opened: false,
    }
}

pub async fn open_tunnel(url: &str, protocol: &str) -> Client {
    let socket = stream_client::connect(url, protocol).await.expect("upgrade");
    Client {
        wire: Wire::Tunnel(Box::new(socket)),
        input: Vec::new(),
        streams: HashMap::new(),
        opened: false,
    }
}

impl Client {
    async fn write(&mut self, bytes: &[u8]) {
        match &mut self.wire {
            Wire::Plain(stream) => stream.write_all(bytes).await.expect("write"),
            Wire::Tunnel(socket) => socket
                .send(Message::Binary(bytes.to_vec().into()))
                .await
                .expect("write"),
        }
    }

    pub async fn open_stream(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend((text.len() as u32).to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut body = [&id.to_be_bytes()[..], &[0; 6]].concat();
        if !std::mem::replace(&mut self.opened, true) {
            body.extend([0x78, 0x01]);
        }
        let length = plain.len() as u16;
        body.push(0);
        body.extend(length.to_le_bytes());
        body.extend((!length).to_le_bytes());
        body.extend(plain);
        let mut frame = vec![0x80, 3, 0, 1];
        frame.extend((body.len() as u32).to_be_bytes());
        frame.extend(body);
        self.write(&frame).await;
    }

    pub async fn send(&mut self, stream: u32, bytes: &[u8], last: bool) {
        let mut frame = stream.to_be_bytes().to_vec();
        frame.extend((u32::from(last) << 24 | bytes.len() as u32).to_be_bytes());
        frame.extend(bytes);
        self.write(&frame).await;
    }

    fn take_frames(&mut self) {
        while let Some(header) = self.input.first_chunk::<8>().copied() {
            let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
            if self.input.len() < 8 + length {
                return;
            }
            let frame: Vec<u8> = self.input.drain(..8 + length).collect();
            if header[0] & 0x80 == 0 {
                let id = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
                let stream = self.streams.entry(id).or_default();
                stream.0.extend(&frame[8..]);
                stream.1 |= header[4] & 1 == 1;
            }
        }
    }

    /// Everything of a stream; panics when the connection ends first.
    pub async fn read_to_end(&mut self, stream: u32) -> Vec<u8> {
        loop {
            self.take_frames();
            if let Some((bytes, true)) = self.streams.get(&stream) {
                return bytes.clone();
            }
            let more = async {
                match &mut self.wire {
                    Wire::Plain(socket) => socket.read_buf(&mut self.input).await.expect("read") > 0,
                    Wire::Tunnel(socket) => match socket.next().await {
                        Some(Ok(Message::Binary(bytes))) => {
                            self.input.extend(&bytes[..]);
                            true
                        }
                        Some(Ok(Message::Close(_))) | None => false,
                        Some(other) => other.is_ok(),
                    },
                }
            };
            assert!(
                tokio::time::timeout(PATIENCE, more).await.expect("in time"),
                "the connection ended"
            );
        }
    }
}
