//! Which tracked connections go on to an endpoint that is no more: datagrams have no end, so their entries would lead
//! astray for as long as a client keeps sending (upstream: pkg/proxy/conntrack, CleanStaleEntries).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netfilter::Family;
use netfilter::conntrack::{self, Flow};
use tracing::{debug, warn};

use crate::service_map::{PortName, Ports, Protocol, ServicePort};

/// Destinations of one port of a Service, and the endpoints that may answer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frontend {
    protocol: u8,
    addresses: Vec<IpAddr>,
    port: u16,
    node_port: Option<u16>,
    serving: BTreeSet<IpAddr>,
}

/// Who answered for the datagram ports of a Service.
pub type Served = BTreeMap<PortName, BTreeSet<IpAddr>>;

/// The frontends whose entries may be stale now. Nobody can answer in place of an endpoint when there is none left.
pub fn suspects(before: Option<&Served>, now: &Ports) -> Vec<Frontend> {
    let changed = |(name, port): &(&PortName, &ServicePort)| {
        name.protocol != Protocol::Tcp
            && !port.endpoints.serving.is_empty()
            && before.and_then(|b| b.get(name)) != Some(&port.endpoints.serving)
    };
    now.iter()
        .filter(changed)
        .map(|(name, port)| frontend(name, port))
        .collect()
}

pub fn served(ports: &Ports) -> Served {
    let datagrams = ports.iter().filter(|(name, _)| name.protocol != Protocol::Tcp);
    datagrams
        .map(|(name, port)| (name.clone(), port.endpoints.serving.clone()))
        .collect()
}

fn frontend(name: &PortName, port: &ServicePort) -> Frontend {
    let mut addresses = vec![port.cluster_ip];
    addresses.extend(port.external_ips.iter().chain(&port.load_balancer_ips));
    Frontend {
        protocol: name.protocol.number(),
        addresses,
        port: port.port,
        node_port: port.node_port,
        serving: port.endpoints.serving.clone(),
    }
}

fn stale(flows: Vec<Flow>, frontends: &[Frontend]) -> Vec<Flow> {
    let leads_astray = |flow: &Flow| {
        frontends.iter().any(|frontend| {
            let at_address =
                flow.destination_port == frontend.port && frontend.addresses.contains(&flow.destination);
            let at_node = frontend.node_port == Some(flow.destination_port);
            flow.protocol == frontend.protocol
                && (at_address || at_node)
                && !frontend.serving.contains(&flow.reply_source)
        })
    };
    flows.into_iter().filter(leads_astray).collect()
}

/// Deletes the stale entries of `frontends`; returns how many.
pub async fn clean(family: Family, frontends: Vec<Frontend>) -> usize {
    if frontends.is_empty() {
        return 0;
    }
    let work = move || {
        let flows = stale(conntrack::list(family)?, &frontends);
        conntrack::delete(family, &flows)?;
        Ok::<_, std::io::Error>(flows.len())
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(count)) => {
            debug!(?family, count, "stale connections forgotten");
            count
        }
        Ok(Err(error)) => {
            warn!(?family, %error, "cannot forget connections to endpoints that are gone");
            0
        }
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_endpoints_that_serve_and_of_others_stay() {
        let frontend = Frontend {
            protocol: 17,
            addresses: vec!["10.96.0.5".parse().unwrap()],
            port: 53,
            node_port: Some(30053),
            serving: BTreeSet::from(["10.244.0.2".parse().unwrap()]),
        };
        for (protocol, destination, port, reply_source, want) in [
            (17, "10.96.0.5", 53, "10.244.0.2", false),
            (17, "10.96.0.5", 53, "10.244.0.9", true),
            // Sent before there was any endpoint: nobody translated it.
            (17, "10.96.0.5", 53, "10.96.0.5", true),
            (6, "10.96.0.5", 53, "10.244.0.9", false),
            (17, "10.96.0.5", 54, "10.244.0.9", false),
            (17, "10.96.0.6", 53, "10.244.0.9", false),
            (17, "192.168.76.11", 30053, "10.244.0.9", true),
            (17, "192.168.76.11", 30053, "10.244.0.2", false),
        ] {
            let destination = (destination.parse().unwrap(), port);
            let flow = Flow::imagined(protocol, destination, reply_source.parse().unwrap());
            let found = !stale(vec![flow.clone()], std::slice::from_ref(&frontend)).is_empty();
            assert_eq!(found, want, "{flow:?}");
        }
    }
}
