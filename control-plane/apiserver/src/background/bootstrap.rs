//! The objects every cluster has: four namespaces, the `kubernetes` Service and ServiceCIDR, the system's priority classes, the
//! default RBAC policy.

use auth::{BootstrapObject, bootstrap_policy};
use futures::future::try_join_all;
use serde_json::{Value, json};

use super::{ensure_object, own_request};
use crate::admission::system_priority_classes;
use crate::endpoints::{Intent, update_object};
use crate::object;
use crate::state::ApiServer;
use crate::status::ApiError;

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
const RBAC: &str = "rbac.authorization.k8s.io";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

pub async fn ensure(server: &ApiServer) -> Result<(), ApiError> {
    try_join_all(NAMESPACES.iter().map(|name| namespace(server, name))).await?;
    service(server).await?;
    service_cidr(server).await?;
    try_join_all(
        system_priority_classes()
            .into_iter()
            .map(|class| priority_class(server, class)),
    )
    .await?;
    // Together, so that the store can group them.
    try_join_all(bootstrap_policy().into_iter().map(|entry| policy(server, entry))).await?;
    Ok(())
}

async fn namespace(server: &ApiServer, name: &str) -> Result<(), ApiError> {
    let request = own_request(server, "", "namespaces", "", name)?;
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    ensure_object(server, &request, object).await.map(drop)
}

async fn priority_class(server: &ApiServer, object: Value) -> Result<(), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let request = own_request(server, "scheduling.k8s.io", "priorityclasses", "", &name)?;
    ensure_object(server, &request, object).await.map(drop)
}

async fn service(server: &ApiServer) -> Result<(), ApiError> {
    let request = own_request(server, "", "services", "default", "kubernetes")?;
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": server.services.first_address().to_string(),
            "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": server.config.bind_address.port()}],
        },
    });
    ensure_object(server, &request, object).await.map(drop)
}

/// Stands for `--service-cluster-ip-range`.
async fn service_cidr(server: &ApiServer) -> Result<(), ApiError> {
    let request = own_request(server, "networking.k8s.io", "servicecidrs", "", "kubernetes")?;
    let object = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": server.config.service_cidrs},
    });
    ensure_object(server, &request, object).await.map(drop)
}

/// Creates the object, or gives back what it lost; `autoupdate: "false"` leaves it to the user.
async fn policy(server: &ApiServer, entry: BootstrapObject) -> Result<(), ApiError> {
    let request = own_request(server, RBAC, entry.resource, &entry.namespace, &entry.name)?;
    let Some(current) = server
        .read(RBAC, entry.resource, &entry.namespace, &entry.name)
        .await?
    else {
        return ensure_object(server, &request, entry.object).await.map(drop);
    };
    if current["metadata"]["annotations"][AUTOUPDATE] == "false"
        || reconciled(&current, &entry.object).is_none()
    {
        return Ok(());
    }
    let intent = Intent {
        request: &request,
        dry_run: false,
    };
    let make = |current: &Value| Ok(reconciled(current, &entry.object).unwrap_or_else(|| current.clone()));
    update_object(server, intent, make).await.map(drop)
}

/// The current object with missing rules and subjects added; None when none are missing.
fn reconciled(current: &Value, wanted: &Value) -> Option<Value> {
    let mut next = current.clone();
    for list in ["rules", "subjects"] {
        // An aggregated role's rules belong to its controller.
        if list == "rules" && !wanted["aggregationRule"].is_null() {
            continue;
        }
        let have = current[list].as_array().cloned().unwrap_or_default();
        let missing: Vec<Value> = wanted[list]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|item| !have.contains(item))
            .cloned()
            .collect();
        if !missing.is_empty() {
            next[list] = Value::Array(have.into_iter().chain(missing).collect());
        }
    }
    object::metadata(&mut next).remove("resourceVersion");
    let mut before = current.clone();
    object::metadata(&mut before).remove("resourceVersion");
    (next != before).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_rules_come_back_and_added_ones_stay() {
        let wanted = json!({"metadata": {}, "rules": [{"verbs": ["get"]}, {"verbs": ["list"]}]});
        let current =
            json!({"metadata": {"resourceVersion": "7"}, "rules": [{"verbs": ["get"]}, {"verbs": ["mine"]}]});
        let next = reconciled(&current, &wanted).unwrap();
        assert_eq!(
            next["rules"],
            json!([{"verbs": ["get"]}, {"verbs": ["mine"]}, {"verbs": ["list"]}])
        );
        assert_eq!(reconciled(&next, &wanted), None, "once is enough");
        let aggregated = json!({"metadata": {}, "aggregationRule": {}, "rules": [{"verbs": ["x"]}]});
        assert_eq!(reconciled(&current, &aggregated), None);
    }
}
