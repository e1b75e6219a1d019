//! Each API server tells that it lives by a Lease of its own (upstream: APIServerIdentity,
//! `pkg/controlplane/controller/leaderelection`).

use std::time::Duration;

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{ensure_object, own_request};
use crate::endpoints::{Intent, update_object};
use crate::registry::names;
use crate::state::ApiServer;
use crate::status::ApiError;

const GROUP: &str = "coordination.k8s.io";
const NAMESPACE: &str = "kube-system";
const DURATION_SECONDS: u64 = 3600;
const INTERVAL: Duration = Duration::from_secs(10);

pub async fn keep(server: &ApiServer) {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().to_owned();
    let name = lease_name(&host);
    let holder = format!("{name}_{}", names::uid());
    loop {
        if let Err(error) = renew(server, &name, &host, &holder).await {
            tracing::warn!(
                name,
                error = error.message,
                "cannot renew the lease of this API server"
            );
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn renew(server: &ApiServer, name: &str, host: &str, holder: &str) -> Result<(), ApiError> {
    let mut request = own_request(server, GROUP, "leases", NAMESPACE, name)?;
    let now = || {
        jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            .to_string()
    };
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": NAMESPACE,
            "labels": {"apiserver.kubernetes.io/identity": "kube-apiserver", "kubernetes.io/hostname": host}},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now()},
    });
    if ensure_object(server, &request, lease).await? {
        return Ok(());
    }
    request.info.verb = "update".into();
    let intent = Intent {
        request: &request,
        dry_run: false,
    };
    update_object(server, intent, |current| {
        let mut current = current.clone();
        current["spec"]["holderIdentity"] = json!(holder);
        current["spec"]["renewTime"] = json!(now());
        Ok(current)
    })
    .await
    .map(drop)
}

/// The same after a restart.
fn lease_name(host: &str) -> String {
    let digest = Sha256::digest(host);
    format!("apiserver-{}", base32(&digest[..16]))
}

/// RFC 4648, lower case, without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bits = bytes.len() * 8;
    let bit = |index: usize| bytes.get(index / 8).map_or(0, |byte| byte >> (7 - index % 8) & 1);
    let letter = |start: usize| {
        let value = (start..start + 5).fold(0, |value, index| value << 1 | bit(index));
        char::from(ALPHABET[usize::from(value)])
    };
    (0..bits).step_by(5).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_upstreams_for_the_host() {
        for (text, expected) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("foobar", "mzxw6ytboi")] {
            assert_eq!(base32(text.as_bytes()), expected);
        }
        let name = lease_name("master");
        assert!(name.starts_with("apiserver-") && name.len() == 36, "{name}");
        assert_eq!(name, lease_name("master"));
    }
}
