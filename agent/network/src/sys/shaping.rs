//! Token bucket filters over rtnetlink (linux/pkt_sched.h).

use std::io;

use futures::StreamExt;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use crate::bandwidth::Bucket;

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// With a link layer named, the kernel wants no table of rates.
const TC_LINKLAYER_ETHERNET: u8 = 1;

/// Lets `link` send no faster than the bucket fills.
pub async fn limit(handle: &Handle, link: u32, bucket: Bucket) -> io::Result<()> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(link).map_err(io::Error::other)?;
    message.header.parent = TcHandle::ROOT;
    message.header.handle = TcHandle { major: 1, minor: 0 };
    message.attributes = vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(options(bucket)),
    ];
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut answers = handle.clone().request(request).map_err(io::Error::other)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload {
            return Err(error.to_io());
        }
    }
    Ok(())
}

fn options(bucket: Bucket) -> Vec<TcOption> {
    let Bucket { rate, burst, limit } = bucket;
    let attribute = |kind, bytes: &[u8]| TcOption::Other(DefaultNla::new(kind, bytes.to_vec()));
    vec![
        attribute(TCA_TBF_PARMS, &parameters(rate, limit)),
        attribute(TCA_TBF_RATE64, &rate.to_ne_bytes()),
        attribute(TCA_TBF_BURST, &burst.to_ne_bytes()),
    ]
}

/// `struct tc_tbf_qopt`: two `struct tc_ratespec` (rate, no peak rate), limit, and what the attributes after it say.
fn parameters(rate: u64, limit: u32) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[1] = TC_LINKLAYER_ETHERNET;
    bytes[8..12].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    bytes[24..28].copy_from_slice(&limit.to_ne_bytes());
    bytes
}
