//! Keeps the `kubernetes` Service pointing at the API servers that are alive. Each announces itself
//! under a lease (upstream: the lease endpoint reconciler).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use store::{Range, Txn, Write};

use super::{ensure_object, own_request};
use crate::cache::store_error;
use crate::endpoints::{Intent, update_object};
use crate::state::ApiServer;
use crate::status::ApiError;

const ANNOUNCEMENTS: &str = "/registry/masterleases/";
const LEASE_SECONDS: i64 = 60;
const INTERVAL: Duration = Duration::from_secs(20);

pub async fn keep(server: &ApiServer, port: u16) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = announce(server, port).await {
            tracing::warn!(error = error.message, "cannot announce this API server");
        }
    }
}

/// Says that we are here, and writes down who else is.
pub async fn announce(server: &ApiServer, port: u16) -> Result<(), ApiError> {
    let address = server.config.advertise_address;
    let lease = server
        .store
        .grant_lease(LEASE_SECONDS)
        .await
        .map_err(store_error)?;
    let key = Bytes::from(format!("{ANNOUNCEMENTS}{address}"));
    let txn = Txn {
        compares: vec![],
        writes: vec![Write::Put {
            key,
            value: Bytes::from(port.to_string()),
            lease,
        }],
    };
    server.store.txn(txn).await.map_err(store_error)?;
    let alive = server
        .store
        .range(Range::prefix(ANNOUNCEMENTS))
        .await
        .map_err(store_error)?;
    let addresses: BTreeSet<IpAddr> = alive
        .kvs
        .iter()
        .filter_map(|kv| {
            std::str::from_utf8(&kv.key[ANNOUNCEMENTS.len()..])
                .ok()?
                .parse()
                .ok()
        })
        .collect();
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    for (group, plural, object) in [
        ("", "endpoints", endpoints(&addresses, port)),
        (
            "discovery.k8s.io",
            "endpointslices",
            slice(&addresses, address, port),
        ),
    ] {
        let request = own_request(server, group, plural, "default", "kubernetes")?;
        if !ensure_object(server, &request, object.clone()).await? {
            let intent = Intent {
                request: &request,
                dry_run: false,
            };
            update_object(server, intent, |current| Ok(merged(current, &object))).await?;
        }
    }
    Ok(())
}

/// The current object with the parts we own.
fn merged(current: &Value, wanted: &Value) -> Value {
    let mut next = current.clone();
    for field in ["subsets", "endpoints", "ports", "addressType"] {
        if let Some(value) = wanted.get(field) {
            next[field] = value.clone();
        }
    }
    next
}

fn endpoints(addresses: &[String], port: u16) -> Value {
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            // The slice below is ours; nobody shall mirror these endpoints.
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    })
}

fn slice(addresses: &[String], own: IpAddr, port: u16) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if own.is_ipv6() { "IPv6" } else { "IPv4" },
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}
