//! From answers to messages: the records on the wire, authority, sizes.

use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};

use crate::answer::{Answer, Held};
use crate::records::Data;

/// What we are ready to receive and to send in one datagram: no path fragments this.
pub const DATAGRAM: u16 = 1232;
const PLAIN_DATAGRAM: u16 = 512;
/// Seconds our records may be kept.
pub const TTL: u32 = 5;

/// The reply to `request` without records yet.
pub fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, OpCode::Query);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.queries = request.queries.clone();
    if let Some(theirs) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM)
            .set_version(0)
            .set_dnssec_ok(theirs.flags().dnssec_ok);
        reply.edns = Some(edns);
    }
    reply
}

/// The reply that one of our own answers makes; `turn` rotates the addresses, so that clients spread over them.
pub fn authoritative(
    request: &Message,
    question: &Query,
    domain: &str,
    answer: &Answer,
    turn: usize,
) -> Result<Message, ProtoError> {
    let mut message = reply(request, ResponseCode::NoError);
    message.metadata.authoritative = true;
    match answer {
        Answer::Found { answers, additionals } => {
            message.answers = records(answers, question)?;
            if message.answers.iter().all(|record| record.name == question.name) {
                let count = message.answers.len().max(1);
                message.answers.rotate_left(turn % count);
            }
            message.additionals = records(additionals, question)?;
        }
        Answer::Continue { aliases, .. } => message.answers = records(aliases, question)?,
        Answer::Authority => message.answers = vec![authority(domain)?],
        Answer::NameServers => {
            let server = RData::NS(NS(name(&format!("ns.dns.{domain}"))?));
            message.answers = vec![Record::from_rdata(name(domain)?, TTL, server)];
        }
        Answer::NoData => message.authorities = vec![authority(domain)?],
        Answer::NoName => {
            message.metadata.response_code = ResponseCode::NXDomain;
            message.authorities = vec![authority(domain)?];
        }
        Answer::Forward => {}
    }
    Ok(message)
}

pub fn name(text: &str) -> Result<Name, ProtoError> {
    Name::from_ascii(format!("{text}."))
}

/// Lower case, without the final dot: how the records name things.
pub fn key(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn records(held: &[Held], question: &Query) -> Result<Vec<Record>, ProtoError> {
    let record = |(owner, data): &Held| {
        let data = match data {
            Data::Address(IpAddr::V4(address)) => RData::A(A(*address)),
            Data::Address(IpAddr::V6(address)) => RData::AAAA(AAAA(*address)),
            Data::Service { port, target } => RData::SRV(SRV::new(0, 100, *port, name(target)?)),
            Data::Alias(target) => RData::CNAME(CNAME(name(target)?)),
            Data::Pointer(target) => RData::PTR(PTR(name(target)?)),
            Data::Text(text) => RData::TXT(TXT::new(vec![text.clone()])),
        };
        // Clients that mix cases to detect forged answers want theirs back.
        let owner = if *owner == key(&question.name) {
            question.name.clone()
        } else {
            name(owner)?
        };
        Ok(Record::from_rdata(owner, TTL, data))
    };
    held.iter().map(record).collect()
}

/// Its last number is how long "there is no such name" may be kept.
fn authority(domain: &str) -> Result<Record, ProtoError> {
    let server = name(&format!("ns.dns.{domain}"))?;
    let contact = name(&format!("hostmaster.{domain}"))?;
    let data = SOA::new(server, contact, 1, 7200, 1800, 86_400, TTL);
    Ok(Record::from_rdata(name(domain)?, TTL, RData::SOA(data)))
}

/// The bytes, cut to what the client can take in one datagram: then it comes back over TCP.
pub fn datagram(request: &Message, reply: &Message) -> Result<Vec<u8>, ProtoError> {
    let theirs = request
        .edns
        .as_ref()
        .map_or(PLAIN_DATAGRAM, |edns| edns.max_payload());
    let limit = usize::from(theirs.clamp(PLAIN_DATAGRAM, DATAGRAM));
    let bytes = reply.to_vec()?;
    if bytes.len() <= limit {
        return Ok(bytes);
    }
    reply.truncate().to_vec()
}
