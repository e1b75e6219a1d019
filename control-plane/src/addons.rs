//! The add-ons a cluster comes with: their manifests are data, and every start makes the API agree with them. What a
//! manifest does not name is the users', and so is the number of replicas once an object exists.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use serde_json::Value;

use crate::flags::Addon;

const DNS: &str = include_str!("../addons/dns/manifest.yaml");
const METRICS_SERVER: &str = include_str!("../addons/metrics-server/manifest.yaml");
const RETRY: Duration = Duration::from_secs(1);
/// The name server's place in the first Service network, counted from the network's own address.
const DNS_ADDRESS: u8 = 10;

#[derive(Debug, thiserror::Error)]
pub enum AddonError {
    #[error("{0}: not a network")]
    Network(String),
    #[error("{0}: too small for the name server's address, the tenth")]
    Small(String),
    #[error("manifest: {0}")]
    Manifest(String),
}

/// The add-on's objects in a cluster of this Service network and domain.
pub fn objects(
    addon: Addon,
    service_cidr: &str,
    cluster_domain: &str,
) -> Result<Vec<DynamicObject>, AddonError> {
    let text = match addon {
        Addon::Dns => DNS
            .replace("${CLUSTER_DNS}", &dns_address(service_cidr)?.to_string())
            .replace("${CLUSTER_DOMAIN}", cluster_domain),
        Addon::MetricsServer => METRICS_SERVER.to_owned(),
    };
    let text = text.replace("${VERSION}", env!("CARGO_PKG_VERSION"));
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&text).map_err(|error| AddonError::Manifest(error.to_string()))?;
    objects
        .into_iter()
        .map(|object| serde_json::from_value(object).map_err(|error| AddonError::Manifest(error.to_string())))
        .collect()
}

fn dns_address(service_cidr: &str) -> Result<IpAddr, AddonError> {
    let network: IpNet = service_cidr
        .parse()
        .map_err(|_| AddonError::Network(service_cidr.to_owned()))?;
    let address = match network.network() {
        IpAddr::V4(first) => IpAddr::from((u32::from(first) + u32::from(DNS_ADDRESS)).to_be_bytes()),
        IpAddr::V6(first) => IpAddr::from((u128::from(first) + u128::from(DNS_ADDRESS)).to_be_bytes()),
    };
    match network.contains(&address) {
        true => Ok(address),
        false => Err(AddonError::Small(service_cidr.to_owned())),
    }
}

/// Returns when all objects are as they should be.
pub async fn apply(client: kube::Client, objects: &[DynamicObject]) {
    for object in objects {
        while let Err(error) = apply_one(&client, object).await {
            let kind = object.types.as_ref().map(|types| types.kind.as_str());
            tracing::warn!(%error, kind, name = object.metadata.name, "cannot apply the add-on's object yet");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn apply_one(client: &kube::Client, object: &DynamicObject) -> kube::Result<()> {
    let (Some(types), Some(name)) = (&object.types, &object.metadata.name) else {
        return Ok(());
    };
    let kind = match types.api_version.split_once('/') {
        Some((group, version)) => GroupVersionKind::gvk(group, version, &types.kind),
        None => GroupVersionKind::gvk("", &types.api_version, &types.kind),
    };
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = match &object.metadata.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let Some(found) = api.get_opt(name).await? else {
        api.create(&PostParams::default(), object).await?;
        tracing::info!(kind = types.kind, name, "add-on object created");
        return Ok(());
    };
    let json = |object| serde_json::to_value(object).map_err(kube::Error::SerdeError);
    let mut wanted = json(object)?;
    if let Some(spec) = wanted.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("replicas");
    }
    if !covers(&json(&found)?, &wanted) {
        api.patch(name, &PatchParams::default(), &Patch::Merge(&wanted))
            .await?;
        tracing::info!(kind = types.kind, name, "add-on object updated");
    }
    Ok(())
}

/// Whether all that is wanted is there; more may be, since defaults are filled in.
fn covers(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Object(found), Value::Object(wanted)) => wanted
            .iter()
            .all(|(name, wanted)| found.get(name).is_some_and(|found| covers(found, wanted))),
        (Value::Array(found), Value::Array(wanted)) => {
            found.len() == wanted.len() && found.iter().zip(wanted).all(|(f, w)| covers(f, w))
        }
        _ => found == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_name_server_has_the_tenth_address() {
        for (cidr, want) in [
            ("10.96.0.0/12", "10.96.0.10"),
            ("172.20.7.0/24", "172.20.7.10"),
            ("fd00:96::/112", "fd00:96::a"),
        ] {
            let objects = objects(Addon::Dns, cidr, "cluster.test").unwrap();
            let kinds: Vec<_> = objects
                .iter()
                .filter_map(|o| Some(&o.types.as_ref()?.kind))
                .collect();
            assert_eq!(kinds.len(), 7, "{kinds:?}");
            let of = |kind: &str| objects.iter().find(|o| o.types.as_ref().unwrap().kind == kind);
            assert_eq!(of("Service").unwrap().data["spec"]["clusterIP"], want);
            let pod = &of("Deployment").unwrap().data["spec"]["template"]["spec"];
            let container = &pod["containers"][0];
            assert_eq!(container["args"], json!(["--cluster-domain=cluster.test"]));
            assert!(!serde_json::to_string(&objects).unwrap().contains("${"));
        }
    }

    #[test]
    fn metrics_server_is_known_by_upstreams_names() {
        let objects = objects(Addon::MetricsServer, "10.96.0.0/12", "cluster.local").unwrap();
        let mut names: Vec<_> = objects
            .iter()
            .filter_map(|object| {
                Some((
                    object.types.as_ref()?.kind.as_str(),
                    object.metadata.name.as_deref()?,
                ))
            })
            .collect();
        names.sort_unstable();
        let want = [
            ("APIService", "v1beta1.metrics.k8s.io"),
            ("ClusterRole", "system:aggregated-metrics-reader"),
            ("ClusterRole", "system:metrics-server"),
            ("ClusterRoleBinding", "metrics-server:system:auth-delegator"),
            ("ClusterRoleBinding", "system:metrics-server"),
            ("Deployment", "metrics-server"),
            ("RoleBinding", "metrics-server-auth-reader"),
            ("Service", "metrics-server"),
            ("ServiceAccount", "metrics-server"),
        ];
        assert_eq!(names, want);
        assert!(!serde_json::to_string(&objects).unwrap().contains("${"));
    }

    #[test]
    fn a_network_without_a_tenth_address_is_named() {
        for (cidr, want) in [
            ("10.0.0.0/29", "10.0.0.0/29: too small"),
            ("ten", "ten: not a network"),
        ] {
            let error = objects(Addon::Dns, cidr, "cluster.local")
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(want), "{error}");
        }
    }

    #[test]
    fn only_what_is_wanted_is_compared() {
        let found = json!({"spec": {"replicas": 5, "ports": [{"port": 53, "protocol": "UDP"}]}});
        for (wanted, want) in [
            (json!({"spec": {"ports": [{"port": 53}]}}), true),
            (json!({"spec": {"ports": [{"port": 54}]}}), false),
            (json!({"spec": {"ports": []}}), false),
            (json!({"metadata": {"labels": {}}}), false),
        ] {
            assert_eq!(covers(&found, &wanted), want, "{wanted}");
        }
    }
}
