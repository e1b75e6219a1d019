//! SPDY/3.1 as far as Kubernetes uses it: streams that the client opens, without flow control.

use super::spdy_headers::{self, HeaderReader};
use bytes::{BufMut, Bytes, BytesMut};
use std::collections::HashMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const CONTROL_BIT: u8 = 0x80;
const HEADER: usize = 8;
/// Pieces that data is sent in.
const MAX_DATA: usize = 32 * 1024;
const QUEUE: usize = 32;

/// A frame as it lies on the wire.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Control { kind: u16, flags: u8, body: Bytes },
    Data { stream: u32, flags: u8, body: Bytes },
}

/// Takes a whole frame off the buffer.
fn decode(buffer: &mut BytesMut) -> Option<Frame> {
    let header = *buffer.first_chunk::<HEADER>()?;
    let length = usize::from(header[5]) << 16 | usize::from(header[6]) << 8 | usize::from(header[7]);
    if buffer.len() < HEADER + length {
        return None;
    }
    let body = buffer.split_to(HEADER + length).freeze().slice(HEADER..);
    let [a, b, c, d, flags, ..] = header;
    Some(if a & CONTROL_BIT == 0 {
        Frame::Data {
            stream: u32::from_be_bytes([a, b, c, d]),
            flags,
            body,
        }
    } else {
        Frame::Control {
            kind: u16::from_be_bytes([c, d]),
            flags,
            body,
        }
    })
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER + body.len());
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    frame.put_u32(u32::from(flags) << 24 | body.len() as u32);
    frame.put_slice(body);
    frame.freeze()
}

fn data(stream: u32, flags: u8, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER + body.len());
    frame.put_u32(stream);
    frame.put_u32(u32::from(flags) << 24 | body.len() as u32);
    frame.put_slice(body);
    frame.freeze()
}

/// A stream that the client has opened.
pub struct Stream {
    id: u32,
    pub headers: HashMap<String, String>,
    incoming: mpsc::Receiver<Bytes>,
    outgoing: mpsc::Sender<Bytes>,
}

impl Stream {
    /// What the client sends; `None` at the end.
    pub async fn receive(&mut self) -> Option<Bytes> {
        self.incoming.recv().await
    }

    /// What the client sends, apart from this stream; nothing more is received through it.
    pub fn take_incoming(&mut self) -> mpsc::Receiver<Bytes> {
        std::mem::replace(&mut self.incoming, mpsc::channel(1).1)
    }

    /// `false` when the connection is gone.
    pub async fn send(&self, bytes: &[u8]) -> bool {
        for piece in bytes.chunks(MAX_DATA) {
            if self.outgoing.send(data(self.id, 0, piece)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Says that nothing more comes.
    pub async fn finish(&self) {
        let _ = self.outgoing.send(data(self.id, FLAG_FIN, b"")).await;
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// Serves a connection in the background; the streams come as the client opens them.
/// The connection closes when all its streams have been dropped, or, if it `lingers`, when the client says so.
pub fn accept<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    lingers: bool,
) -> mpsc::Receiver<Stream> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (opened, streams) = mpsc::channel(QUEUE);
    let (outgoing, mut queue) = mpsc::channel::<Bytes>(QUEUE);
    tokio::spawn(async move {
        while let Some(frame) = queue.recv().await {
            if writer.write_all(&frame).await.is_err() || (queue.is_empty() && writer.flush().await.is_err())
            {
                return;
            }
        }
        let _ = writer.write_all(&control(GOAWAY, 0, &[0; 8])).await;
        let _ = writer.shutdown().await;
    });
    // Weak, so that this reader does not keep the connection open by itself.
    let outgoing_weak = outgoing.downgrade();
    tokio::spawn(async move {
        let mut connection = Reader {
            opened,
            outgoing: outgoing_weak,
            streams: HashMap::new(),
            headers: HeaderReader::new(),
            replied: false,
        };
        let _open = lingers.then(|| outgoing.clone());
        let mut first = Some(outgoing);
        let mut buffer = BytesMut::new();
        loop {
            while let Some(frame) = decode(&mut buffer) {
                if !connection.take(frame, &mut first).await {
                    return;
                }
            }
            match reader.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    });
    streams
}

struct Reader {
    opened: mpsc::Sender<Stream>,
    outgoing: mpsc::WeakSender<Bytes>,
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    headers: HeaderReader,
    replied: bool,
}

impl Reader {
    /// `first` is the queue's only strong handle until a stream has one.
    async fn take(&mut self, frame: Frame, first: &mut Option<mpsc::Sender<Bytes>>) -> bool {
        match frame {
            Frame::Data { stream, flags, body } => {
                if let Some(receiver) = self.streams.get(&stream).filter(|_| !body.is_empty()) {
                    // A stream nobody reads any more swallows its data.
                    let _ = receiver.send(body).await;
                }
                if flags & FLAG_FIN != 0 {
                    self.streams.remove(&stream);
                }
                true
            }
            Frame::Control {
                kind: SYN_STREAM,
                flags,
                body,
            } => self.open(flags, &body, first).await,
            Frame::Control {
                kind: RST_STREAM,
                body,
                ..
            } => {
                if let Some(id) = body.first_chunk::<4>() {
                    self.streams.remove(&u32::from_be_bytes(*id));
                }
                true
            }
            Frame::Control { kind: PING, body, .. } => {
                // Odd numbers are the client's: they are sent back.
                if body.last().is_some_and(|last| last & 1 == 1)
                    && let Some(outgoing) = self.outgoing.upgrade()
                {
                    return outgoing.send(control(PING, 0, &body)).await.is_ok();
                }
                true
            }
            Frame::Control { .. } => true,
        }
    }

    async fn open(&mut self, flags: u8, body: &Bytes, first: &mut Option<mpsc::Sender<Bytes>>) -> bool {
        let Some(id) = body
            .first_chunk::<4>()
            .map(|id| u32::from_be_bytes(*id) & 0x7fff_ffff)
        else {
            return false;
        };
        // The stream it belongs to, priority and slot lie between.
        let Some(headers) = body.get(10..).and_then(|block| self.headers.read(block)) else {
            return false;
        };
        let Some(outgoing) = first.take().or_else(|| self.outgoing.upgrade()) else {
            return false;
        };
        let (sender, incoming) = mpsc::channel(QUEUE);
        if flags & FLAG_FIN == 0 {
            self.streams.insert(id, sender);
        }
        let mut reply = id.to_be_bytes().to_vec();
        reply.extend(spdy_headers::empty_block(!std::mem::replace(
            &mut self.replied,
            true,
        )));
        if outgoing.send(control(SYN_REPLY, 0, &reply)).await.is_err() {
            return false;
        }
        self.opened
            .send(Stream {
                id,
                headers,
                incoming,
                outgoing,
            })
            .await
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole() {
        let mut wire = BytesMut::new();
        wire.put_slice(&control(PING, 0, &[0, 0, 0, 1]));
        wire.put_slice(&data(5, FLAG_FIN, b"abc"));
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in wire {
            buffer.put_u8(byte);
            frames.extend(decode(&mut buffer));
        }
        assert_eq!(
            frames,
            [
                Frame::Control {
                    kind: PING,
                    flags: 0,
                    body: Bytes::from_static(&[0, 0, 0, 1])
                },
                Frame::Data {
                    stream: 5,
                    flags: FLAG_FIN,
                    body: Bytes::from_static(b"abc")
                },
            ]
        );
    }

    #[tokio::test]
    async fn a_stream_carries_data_both_ways() {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let mut streams = accept(server, false);
        let mut open = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        open.extend(spdy_headers::block(&[("streamtype", "data"), ("port", "80")]));
        client.write_all(&control(SYN_STREAM, 0, &open)).await.unwrap();
        client.write_all(&data(1, FLAG_FIN, b"ping")).await.unwrap();
        let mut stream = streams.recv().await.unwrap();
        assert_eq!(
            (stream.header("streamtype"), stream.header("port")),
            ("data", "80")
        );
        assert_eq!(stream.receive().await.unwrap(), "ping");
        assert!(stream.receive().await.is_none());
        assert!(stream.send(b"pong").await);
        stream.finish().await;
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        while got.len() < 3 {
            client.read_buf(&mut buffer).await.unwrap();
            got.extend(std::iter::from_fn(|| decode(&mut buffer)));
        }
        assert!(matches!(&got[0], Frame::Control { kind: SYN_REPLY, .. }));
        assert_eq!(
            got[1],
            Frame::Data {
                stream: 1,
                flags: 0,
                body: "pong".into()
            }
        );
        assert_eq!(
            got[2],
            Frame::Data {
                stream: 1,
                flags: FLAG_FIN,
                body: Bytes::new()
            }
        );
    }
}
