//! Port 53: datagrams and streams in, one reply for each question out.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::DNSClass;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::answer::{Answer, Question, answer};
use crate::forward::Forwarder;
use crate::loops::Probes;
use crate::message::{authoritative, datagram, key, name, reply};
use crate::metrics::Metrics;
use crate::overrides::Overrides;
use crate::records::Records;

const IDLE: Duration = Duration::from_secs(10);
const STREAMS: usize = 256;
/// After a failed accept or receive: out of descriptors passes.
const PAUSE: Duration = Duration::from_millis(50);

pub struct Server {
    /// `None` until the cluster's objects have been read for the first time.
    pub records: RwLock<Option<Arc<Records>>>,
    pub forwarder: Forwarder,
    pub metrics: Metrics,
    pub probes: Probes,
    overrides: RwLock<Arc<Overrides>>,
    turn: AtomicUsize,
}

impl Server {
    pub fn new(forwarder: Forwarder) -> Self {
        Self {
            records: RwLock::default(),
            forwarder,
            metrics: Metrics::default(),
            probes: Probes::default(),
            overrides: RwLock::default(),
            turn: AtomicUsize::new(0),
        }
    }

    pub fn records(&self) -> Option<Arc<Records>> {
        self.records
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set_records(&self, records: Records) {
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(records));
    }

    pub fn overrides(&self) -> Arc<Overrides> {
        Arc::clone(&self.overrides.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_overrides(&self, overrides: Overrides) {
        *self.overrides.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(overrides);
    }

    async fn handle(&self, request: &Message) -> Message {
        let message = self.respond(request).await;
        self.metrics.response(message.metadata.response_code);
        message
    }

    async fn respond(&self, request: &Message) -> Message {
        let refuse = |code| reply(request, code);
        if request.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let [question] = request.queries.as_slice() else {
            return refuse(ResponseCode::FormErr);
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        if question.query_class != DNSClass::IN {
            return refuse(ResponseCode::Refused);
        }
        let Some(records) = self.records() else {
            return refuse(ResponseCode::ServFail);
        };
        let asked = Question {
            name: key(&question.name),
            kind: question.query_type,
        };
        if self.probes.returned(&asked.name) {
            return refuse(ResponseCode::Refused);
        }
        let overrides = self.overrides();
        let answer = answer(&records, &overrides.hosts, &asked);
        let dnssec = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let ours = authoritative(request, question, &records.domain, &answer, turn);
        let Ok(mut message) = ours else {
            return refuse(ResponseCode::ServFail);
        };
        let next = match &answer {
            Answer::Forward => question.name.clone(),
            Answer::Continue { name: target, .. } => match name(target) {
                Ok(name) => name,
                Err(_) => return refuse(ResponseCode::ServFail),
            },
            _ => return message,
        };
        let mut further = question.clone();
        further.name = next;
        let servers = overrides.servers_of(&key(&further.name));
        match self.forwarder.ask(&further, dnssec, servers).await {
            Ok((theirs, kept)) => {
                self.metrics.forwarded(kept);
                message.metadata.authoritative = false;
                message.metadata.response_code = theirs.metadata.response_code;
                message.answers.extend(theirs.answers);
                message.authorities = theirs.authorities;
                message.additionals = theirs.additionals;
                message
            }
            Err(error) => {
                self.metrics.failed();
                tracing::warn!(name = %further.name, %error, "cannot forward");
                refuse(ResponseCode::ServFail)
            }
        }
    }
}

/// What can be read of a request; a damaged one is told so when it has an identity at all.
fn request(bytes: &[u8]) -> Result<Message, Option<Vec<u8>>> {
    match Message::from_vec(bytes) {
        Ok(message) if message.metadata.message_type == MessageType::Query => Ok(message),
        // Replies to replies would go round for ever.
        Ok(_) => Err(None),
        Err(_) if bytes.len() >= 12 && bytes[2] & 0x80 == 0 => {
            let id = u16::from_be_bytes([bytes[0], bytes[1]]);
            let error = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            Err(error.to_vec().ok())
        }
        Err(_) => Err(None),
    }
}

pub async fn datagrams(server: Arc<Server>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = [0; 4096];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receive");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let bytes = buffer[..length].to_vec();
        let (server, socket) = (server.clone(), socket.clone());
        tokio::spawn(async move {
            let reply = match request(&bytes) {
                Ok(request) => {
                    let reply = server.handle(&request).await;
                    datagram(&request, &reply).ok()
                }
                Err(reply) => reply,
            };
            if let Some(reply) = reply
                && let Err(error) = socket.send_to(&reply, peer).await
            {
                tracing::debug!(%error, %peer, "send");
            }
        });
    }
}

pub async fn streams(server: Arc<Server>, listener: TcpListener) {
    let limit = Arc::new(Semaphore::new(STREAMS));
    loop {
        let Ok(permit) = limit.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = stream_of(&server, stream).await {
                        tracing::debug!(%error, %peer, "stream");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn stream_of(server: &Server, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let bytes = timeout(IDLE, async {
            let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut bytes).await?;
            io::Result::Ok(bytes)
        })
        .await??;
        let reply = match request(&bytes) {
            Ok(request) => server.handle(&request).await.to_vec().map_err(io::Error::other)?,
            Err(Some(reply)) => reply,
            Err(None) => return Ok(()),
        };
        let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// One port for both transports; on a machine without IPv6, all its addresses are those of IPv4.
pub async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let listener = listen(address).await?;
    let socket = UdpSocket::bind(listener.local_addr()?).await?;
    Ok((socket, listener))
}

pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        listener => listener,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, Query};
    use hickory_proto::rr::RecordType;
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use k8s_openapi::serde_json::{from_value, json};

    const ENDPOINTS: usize = 60;

    fn records() -> Records {
        let headless: Service =
            from_value(json!({"metadata": {"name": "db", "namespace": "a"}, "spec": {"clusterIP": "None"}}))
                .unwrap();
        let endpoints: Vec<_> = (0..ENDPOINTS)
            .map(|n| json!({"addresses": [format!("10.244.1.{n}")]}))
            .collect();
        let slice: EndpointSlice = from_value(json!({
            "metadata": {"name": "db-1", "namespace": "a", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "endpoints": endpoints,
        }))
        .unwrap();
        Records::build("cluster.local", ["a"], [&headless], [&slice])
    }

    async fn serve(server: Server) -> SocketAddr {
        let (socket, listener) = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Arc::new(server);
        tokio::spawn(datagrams(server.clone(), socket));
        tokio::spawn(streams(server, listener));
        address
    }

    fn question(text: &str, payload: Option<u16>) -> Message {
        let mut message = Message::query();
        message.add_query(Query::query(name(text).unwrap(), RecordType::A));
        message.edns = payload.map(|payload| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            edns
        });
        message
    }

    async fn by_datagram(to: SocketAddr, message: &Message) -> (Message, usize) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&message.to_vec().unwrap(), to).await.unwrap();
        let mut buffer = [0; 4096];
        let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
        (Message::from_vec(&buffer[..length]).unwrap(), length)
    }

    async fn by_stream(to: SocketAddr, message: &Message) -> Message {
        let mut stream = TcpStream::connect(to).await.unwrap();
        let bytes = message.to_vec().unwrap();
        stream
            .write_u16(u16::try_from(bytes.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut buffer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut buffer).await.unwrap();
        Message::from_vec(&buffer).unwrap()
    }

    #[tokio::test]
    async fn what_exceeds_a_datagram_is_told_over_tcp() {
        let server = Server::new(Forwarder::new(Vec::new()));
        server.set_records(records());
        let to = serve(server).await;
        for (payload, whole) in [(None, false), (Some(600), false), (Some(4096), true)] {
            let (reply, length) = by_datagram(to, &question("db.a.svc.cluster.local", payload)).await;
            assert_eq!(!reply.metadata.truncation, whole, "{payload:?}");
            assert_eq!(reply.answers.len(), if whole { ENDPOINTS } else { 0 });
            assert!(length <= usize::from(payload.unwrap_or(512)));
        }
        let reply = by_stream(to, &question("db.a.svc.cluster.local", None)).await;
        assert_eq!(reply.answers.len(), ENDPOINTS);
        assert!(reply.metadata.authoritative && !reply.metadata.truncation);
        assert!(
            reply
                .answers
                .iter()
                .all(|record| record.ttl == crate::message::TTL)
        );
    }

    #[tokio::test]
    async fn codes_say_what_is_known() {
        let to = serve(Server::new(Forwarder::new(Vec::new()))).await;
        let (reply, _) = by_datagram(to, &question("a.svc.cluster.local", None)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);

        let server = Server::new(Forwarder::new(vec![to]));
        server.set_records(records());
        let to = serve(server).await;
        for (text, code, authorities) in [
            ("nobody.a.svc.cluster.local", ResponseCode::NXDomain, 1),
            ("a.svc.cluster.local", ResponseCode::NoError, 1),
            // Its upstream knows nothing yet.
            ("example.org", ResponseCode::ServFail, 0),
        ] {
            let (reply, _) = by_datagram(to, &question(text, None)).await;
            assert_eq!(reply.metadata.response_code, code, "{text}");
            assert_eq!(reply.authorities.len(), authorities, "{text}");
        }
    }

    #[tokio::test]
    async fn other_names_are_forwarded_and_kept() {
        let upstream = Server::new(Forwarder::new(Vec::new()));
        upstream.set_records(records());
        let upstream = serve(upstream).await;
        let server = Server::new(Forwarder::new(vec![upstream]));
        server.set_records(Records::build("other.domain", [], [], []));
        let server = Arc::new(server);
        let request = question("db.a.svc.cluster.local", None);
        for _ in 0..2 {
            let reply = server.handle(&request).await;
            // The datagram between the two is too small for it: this came over TCP.
            assert_eq!(reply.answers.len(), ENDPOINTS);
            assert!(!reply.metadata.authoritative);
        }
        let text = server.metrics.render(0);
        assert!(
            text.contains("cluster_dns_forwarded_total{cached=\"false\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("cluster_dns_forwarded_total{cached=\"true\"} 1"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn stub_domains_go_to_their_own_servers_and_hosts_to_nobody() {
        let stub = Server::new(Forwarder::new(Vec::new()));
        stub.set_records(records());
        let stub = serve(stub).await;
        let server = Server::new(Forwarder::new(Vec::new()));
        server.set_records(Records::build("other.domain", [], [], []));
        let data = [
            (
                "stubDomains".to_owned(),
                format!(r#"{{"cluster.local": ["{stub}"]}}"#),
            ),
            ("hosts".to_owned(), "10.0.0.5 printer.lan".to_owned()),
        ];
        server.set_overrides(Overrides::parse(&data.into()).unwrap());
        let to = serve(server).await;
        for (text, code, answers) in [
            ("db.a.svc.cluster.local", ResponseCode::NoError, ENDPOINTS),
            ("printer.lan", ResponseCode::NoError, 1),
            ("example.org", ResponseCode::ServFail, 0),
        ] {
            let reply = by_stream(to, &question(text, None)).await;
            assert_eq!(
                (reply.metadata.response_code, reply.answers.len()),
                (code, answers),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn an_upstream_that_leads_back_is_found() {
        let (socket, listener) = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let own = listener.local_addr().unwrap();
        // A replica in between forwards to us.
        let between = Server::new(Forwarder::new(vec![own]));
        between.set_records(records());
        let between = serve(between).await;
        let honest = Server::new(Forwarder::new(Vec::new()));
        honest.set_records(records());
        let honest = serve(honest).await;
        let server = Arc::new(Server::new(Forwarder::new(vec![between, honest])));
        server.set_records(records());
        tokio::spawn(datagrams(server.clone(), socket));
        tokio::spawn(streams(server.clone(), listener));
        assert_eq!(
            crate::loops::find(&server, vec![between, honest]).await,
            [between]
        );
    }
}
