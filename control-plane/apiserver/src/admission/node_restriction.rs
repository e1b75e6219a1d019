//! A kubelet changes its own node, the pods bound to it, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use auth::{Attributes, Authorizer, node_name};
use serde_json::Value;

use super::{forbidden, is_mirror_pod, items, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::ApiError;

pub struct NodeRestriction {
    /// Asked whether a node may get tokens for more audiences than its pods name.
    pub authorizer: Arc<Authorizer>,
}

const RESTRICTED_LABELS: &str = "node-restriction.kubernetes.io";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// Labels of kubernetes.io and k8s.io a kubelet may set on itself, and the namespaces it may use freely.
const KUBELET_LABELS: [&str; 12] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
const KUBELET_LABEL_NAMESPACES: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

#[async_trait]
impl Admission for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn mutate(&self, context: &AdmissionContext<'_>, object: &mut Value) -> Result<(), ApiError> {
        self.check(context, Some(object)).await
    }

    /// What others changed meanwhile is not the node's doing.
    async fn mutate_again(
        &self,
        _context: &AdmissionContext<'_>,
        _object: &mut Value,
    ) -> Result<(), ApiError> {
        Ok(())
    }

    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        // Writes were checked as the node sent them, before other plug-ins added to them.
        if context.operation == Operation::Delete {
            self.check(context, object).await
        } else {
            Ok(())
        }
    }
}

impl NodeRestriction {
    async fn check(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        let Some(node) = node_name(context.user) else {
            return Ok(());
        };
        let refuse = |why: String| forbidden(context, object, why);
        if node.is_empty() {
            return Err(refuse(format!(
                "could not determine node from user {:?}",
                context.user.name
            )));
        }
        let info = context.info;
        let none = Value::Null;
        let new = object.unwrap_or(&none);
        let old = context.old.unwrap_or(&none);
        let outcome = match (
            info.group.as_str(),
            info.resource.as_str(),
            info.subresource.as_str(),
        ) {
            ("", "pods", "") if context.operation == Operation::Create => {
                let own = context.reader.get("", "nodes", "", node).await?;
                let own = own.ok_or_else(|| ApiError::not_found("nodes", node))?;
                new_pod(node, text(&own["metadata"]["uid"]), new)
            }
            ("", "pods", "") if context.operation == Operation::Delete => bound(node, old, || {
                format!("node {node:?} can only delete pods with spec.nodeName set to itself")
            }),
            ("", "pods", "") => Err(format!(
                "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
                "UPDATE"
            )),
            ("", "pods", "status") => pod_status(node, old, new),
            ("", "pods", "eviction") => {
                let pod = context
                    .reader
                    .get("", "pods", &info.namespace, &info.name)
                    .await?;
                let pod = pod.ok_or_else(|| ApiError::not_found("pods", &info.name))?;
                bound(node, &pod, || {
                    format!("node {node} can only evict pods with spec.nodeName set to itself")
                })
            }
            ("", "pods", other) => Err(format!(
                "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
            )),
            ("", "nodes", _) => {
                let name = if info.name.is_empty() {
                    text(&new["metadata"]["name"])
                } else {
                    &info.name
                };
                node_object(node, name, context.operation, old, new)
            }
            ("", "persistentvolumeclaims", subresource) if subresource != "status" => {
                Err("may only update PVC status".into())
            }
            ("", "serviceaccounts", "token") if context.operation == Operation::Create => {
                let reference = &new["spec"]["boundObjectRef"];
                let name = text(&reference["name"]);
                let pod = context.reader.get("", "pods", &info.namespace, name).await?;
                token(node, reference, pod.as_ref())
                    .and_then(|()| self.audiences(context, new, pod.as_ref().unwrap_or(&none)))
            }
            ("coordination.k8s.io", "leases", _) => named_like_node(node, context, new, "node lease")
                .and_then(|()| {
                    let elsewhere =
                        || format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace");
                    (info.namespace == LEASE_NAMESPACE)
                        .then_some(())
                        .ok_or_else(elsewhere)
                }),
            ("storage.k8s.io", "csinodes", _) => named_like_node(node, context, new, "CSINode"),
            ("resource.k8s.io", "resourceslices", _) => {
                let slice = if new.is_null() { old } else { new };
                let foreign = || {
                    "can only create ResourceSlice with the same NodeName as the requesting node".to_owned()
                };
                (slice["spec"]["nodeName"] == node)
                    .then_some(())
                    .ok_or_else(foreign)
            }
            _ => Ok(()),
        };
        outcome.map_err(refuse)
    }

    /// Upstream: `ServiceAccountNodeAudienceRestriction`.
    fn audiences(&self, context: &AdmissionContext<'_>, request: &Value, pod: &Value) -> Result<(), String> {
        let requested = match items(&request["spec"]["audiences"]) {
            [] => "",
            [one] => text(one),
            _ => return Err("node may only request 0 or 1 audiences".into()),
        };
        let projected = items(&pod["spec"]["volumes"])
            .iter()
            .flat_map(|volume| items(&volume["projected"]["sources"]));
        let mut tokens = projected.filter(|source| source["serviceAccountToken"].is_object());
        if requested.is_empty() || tokens.any(|source| source["serviceAccountToken"]["audience"] == requested)
        {
            return Ok(());
        }
        let attributes = Attributes {
            namespace: &context.info.namespace,
            name: &context.info.name,
            ..Attributes::resource(
                context.user,
                "request-serviceaccounts-token-audience",
                "",
                requested,
            )
        };
        if self.authorizer.authorize(&attributes).is_allowed() {
            return Ok(());
        }
        Err(format!("audience {requested:?} not found in pod spec volume"))
    }
}

fn bound(node: &str, pod: &Value, why: impl FnOnce() -> String) -> Result<(), String> {
    if pod["spec"]["nodeName"] == node {
        Ok(())
    } else {
        Err(why())
    }
}

fn new_pod(node: &str, node_uid: &str, pod: &Value) -> Result<(), String> {
    if !is_mirror_pod(pod) {
        return Err(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        ));
    }
    bound(node, pod, || {
        format!("node {node:?} can only create pods with spec.nodeName set to itself")
    })?;
    let owner = match items(&pod["metadata"]["ownerReferences"]) {
        [owner] => owner,
        [] => {
            return Err(format!(
                "node {node:?} can only create pods with an owner reference set to itself"
            ));
        }
        _ => {
            return Err(format!(
                "node {node:?} can only create pods with a single owner reference set to itself"
            ));
        }
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if owner["controller"] != true {
        return Err(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner["blockOwnerDeletion"] == true {
        return Err(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    if owner["uid"] != node_uid {
        return Err(format!(
            "node {node} UID mismatch: expected {} got {node_uid}",
            text(&owner["uid"])
        ));
    }
    let spec = &pod["spec"];
    if !text(&spec["serviceAccountName"]).is_empty() {
        return Err(format!(
            "node {node:?} can not create pods that reference a service account"
        ));
    }
    match foreign_reference(spec) {
        Some(what) => Err(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

fn foreign_reference(spec: &Value) -> Option<&'static str> {
    let volumes = items(&spec["volumes"]);
    let projected: Vec<&Value> = volumes
        .iter()
        .flat_map(|volume| items(&volume["projected"]["sources"]))
        .collect();
    let containers: Vec<&Value> = ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| items(&spec[list]))
        .collect();
    let in_environment = |key: &str, whole: &str| {
        containers.iter().any(|container| {
            items(&container["env"])
                .iter()
                .any(|env| env["valueFrom"][key].is_object())
                || items(&container["envFrom"])
                    .iter()
                    .any(|source| source[whole].is_object())
        })
    };
    let in_volumes = |field: &str| {
        volumes.iter().any(|volume| volume[field].is_object())
            || projected.iter().any(|source| source[field].is_object())
    };
    if in_environment("secretKeyRef", "secretRef")
        || in_volumes("secret")
        || !items(&spec["imagePullSecrets"]).is_empty()
    {
        Some("secrets")
    } else if in_environment("configMapKeyRef", "configMapRef") || in_volumes("configMap") {
        Some("configmaps")
    } else if in_volumes("clusterTrustBundle") {
        Some("clustertrustbundles")
    } else if in_volumes("persistentVolumeClaim") {
        Some("persistentvolumeclaims")
    } else {
        None
    }
}

fn pod_status(node: &str, old: &Value, new: &Value) -> Result<(), String> {
    bound(node, old, || {
        format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
    })?;
    if labels(old) != labels(new) {
        return Err(format!("node {node:?} cannot update labels through pod status"));
    }
    if items(&old["status"]["resourceClaimStatuses"]) != items(&new["status"]["resourceClaimStatuses"]) {
        return Err(format!("node {node:?} cannot update resource claim statues"));
    }
    Ok(())
}

fn node_object(node: &str, name: &str, operation: Operation, old: &Value, new: &Value) -> Result<(), String> {
    if name != node {
        return Err(format!("node {node:?} is not allowed to modify node {name:?}"));
    }
    if operation == Operation::Create {
        let refused = refused_labels(&BTreeMap::new(), &labels(new));
        if !refused.is_empty() {
            return Err(format!(
                "node {node:?} is not allowed to set the following labels: {}",
                refused.join(", ")
            ));
        }
    }
    if operation == Operation::Update {
        if items(&old["spec"]["taints"]) != items(&new["spec"]["taints"]) {
            return Err(format!("node {node:?} is not allowed to modify taints"));
        }
        if items(&new["metadata"]["ownerReferences"]) != items(&old["metadata"]["ownerReferences"]) {
            return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
        }
        let refused = refused_labels(&labels(old), &labels(new));
        if !refused.is_empty() {
            return Err(format!("is not allowed to modify labels: {}", refused.join(", ")));
        }
    }
    Ok(())
}

fn labels(object: &Value) -> BTreeMap<&str, &Value> {
    let labels = object["metadata"]["labels"].as_object();
    labels
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
        .collect()
}

/// Changed labels a kubelet has no say over.
fn refused_labels<'a>(old: &BTreeMap<&'a str, &Value>, new: &BTreeMap<&'a str, &Value>) -> Vec<&'a str> {
    let keys: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
    let changed = keys.into_iter().filter(|key| old.get(key) != new.get(key));
    changed.filter(|key| is_refused_label(key)).collect()
}

fn is_refused_label(key: &str) -> bool {
    let Some((namespace, _)) = key.split_once('/') else {
        return false;
    };
    let within = |parent: &str| {
        namespace == parent
            || namespace
                .strip_suffix(parent)
                .is_some_and(|rest| rest.ends_with('.'))
    };
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    let kubelets = KUBELET_LABELS.contains(&key)
        || key == "node.kubernetes.io/instance-type"
        || KUBELET_LABEL_NAMESPACES.iter().any(|namespace| within(namespace));
    within(RESTRICTED_LABELS) || (kubernetes && !kubelets)
}

fn token(node: &str, reference: &Value, pod: Option<&Value>) -> Result<(), String> {
    if reference["apiVersion"] != "v1" || reference["kind"] != "Pod" || text(&reference["name"]).is_empty() {
        return Err("node requested token not bound to a pod".into());
    }
    let uid = text(&reference["uid"]);
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid".into());
    }
    let Some(pod) = pod else {
        return Err(format!("pod {:?} not found", text(&reference["name"])));
    };
    if pod["metadata"]["uid"] != uid {
        return Err(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    bound(node, pod, || {
        "node requested token bound to a pod scheduled on a different node".into()
    })
}

/// On create the name is in the object only.
fn named_like_node(
    node: &str,
    context: &AdmissionContext<'_>,
    new: &Value,
    what: &str,
) -> Result<(), String> {
    let name = if context.operation == Operation::Create {
        text(&new["metadata"]["name"])
    } else {
        &context.info.name
    };
    let other = || format!("can only access {what} with the same name as the requesting node");
    (name == node).then_some(()).ok_or_else(other)
}

#[cfg(test)]
mod tests {
    use auth::UserInfo;
    use serde_json::json;

    use super::super::testing::{Objects, Request};
    use super::*;

    fn world() -> Objects {
        let volumes = json!([{"projected": {"sources": [{"serviceAccountToken": {"audience": "vault"}}]}}]);
        let pod = |name: &str, node: &str| {
            let spec = json!({"nodeName": node, "volumes": volumes});
            (
                "pods",
                json!({"metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")}, "spec": spec}),
            )
        };
        Objects::new(&[
            ("nodes", json!({"metadata": {"name": "n1", "uid": "u1"}})),
            pod("mine", "n1"),
            pod("theirs", "n2"),
        ])
    }

    fn judge(request: Request, object: Option<Value>) -> Result<(), String> {
        let plugin = NodeRestriction {
            authorizer: Arc::default(),
        };
        let node = UserInfo::new("system:node:n1", &["system:nodes"]);
        request.by(node).run(&plugin, &world(), object).map(|_| ())
    }

    fn expect(outcome: Result<(), String>, words: &str) {
        match outcome {
            Ok(()) => assert_eq!(words, "", "should have been refused"),
            Err(error) => assert!(!words.is_empty() && error.ends_with(words), "{error}"),
        }
    }

    #[test]
    fn others_than_nodes_are_not_restricted() {
        let plugin = NodeRestriction {
            authorizer: Arc::default(),
        };
        let request = Request::create("/api/v1/nodes", "Node");
        assert!(
            request
                .run(&plugin, &world(), Some(json!({"metadata": {"name": "n2"}})))
                .is_ok()
        );
    }

    #[test]
    fn a_node_changes_only_itself_and_only_some_of_itself() {
        let node = |name: &str, labels: Value, taints: Value| json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
        let own_labels =
            json!({"kubernetes.io/hostname": "n1", "acme.com/x": "y", "node.kubernetes.io/z": "1"});
        let create = |object| judge(Request::create("/api/v1/nodes", "Node"), Some(object));
        expect(create(node("n1", own_labels, json!([]))), "");
        expect(
            create(node("n2", json!({}), json!([]))),
            r#"node "n1" is not allowed to modify node "n2""#,
        );
        let role =
            json!({"node-role.kubernetes.io/control-plane": "", "a.node-restriction.kubernetes.io/b": ""});
        expect(
            create(node("n1", role, json!([]))),
            "not allowed to set the following labels: a.node-restriction.kubernetes.io/b, node-role.kubernetes.io/control-plane",
        );
        let old = || node("n1", json!({"foo.k8s.io/bar": "1"}), json!([{"key": "k"}]));
        let update = |object| judge(Request::update("/api/v1/nodes/n1", "Node", old()), Some(object));
        expect(update(old()), "");
        expect(
            update(node("n1", json!({"foo.k8s.io/bar": "1"}), json!([]))),
            r#"node "n1" is not allowed to modify taints"#,
        );
        expect(
            update(node("n1", json!({}), json!([{"key": "k"}]))),
            "is not allowed to modify labels: foo.k8s.io/bar",
        );
    }

    #[test]
    fn a_node_touches_only_pods_bound_to_it() {
        let pod = |node: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": node}});
        let delete = |node| {
            judge(
                Request::delete("/api/v1/namespaces/ns/pods/p", "Pod", pod(node)),
                None,
            )
        };
        expect(delete("n1"), "");
        expect(
            delete("n2"),
            r#"node "n1" can only delete pods with spec.nodeName set to itself"#,
        );
        let status = |node| {
            judge(
                Request::update("/api/v1/namespaces/ns/pods/p/status", "Pod", pod(node)),
                Some(pod(node)),
            )
        };
        expect(status("n1"), "");
        expect(
            status("n2"),
            "can only update pod status for pods with spec.nodeName set to itself",
        );
        let evict = |path| judge(Request::create(path, "Eviction"), Some(json!({})));
        expect(evict("/api/v1/namespaces/ns/pods/mine/eviction"), "");
        expect(
            evict("/api/v1/namespaces/ns/pods/theirs/eviction"),
            "can only evict pods with spec.nodeName set to itself",
        );
    }

    #[test]
    fn mirror_pods_belong_to_their_node_and_reference_nothing() {
        let good = json!({
            "metadata": {
                "name": "p",
                "annotations": {"kubernetes.io/config.mirror": "x"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true}],
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        });
        let create = |object| judge(Request::create("/api/v1/namespaces/ns/pods", "Pod"), Some(object));
        expect(create(good.clone()), "");
        for (pointer, value, words) in [
            ("/metadata/annotations", json!({}), "can only create mirror pods"),
            (
                "/spec/nodeName",
                json!("n2"),
                "can only create pods with spec.nodeName set to itself",
            ),
            (
                "/metadata/ownerReferences",
                json!([]),
                "with an owner reference set to itself",
            ),
            (
                "/metadata/ownerReferences/0/uid",
                json!("u2"),
                "UID mismatch: expected u2 got u1",
            ),
            (
                "/spec/containers/0",
                json!({"envFrom": [{"secretRef": {"name": "s"}}]}),
                "reference secrets",
            ),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            expect(create(bad), words);
        }
    }

    #[test]
    fn tokens_are_for_own_pods_and_their_audiences() {
        let request = |pod: &str, uid: &str, audiences: Value| {
            let reference = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid});
            let object = json!({"spec": {"boundObjectRef": reference, "audiences": audiences}});
            judge(
                Request::create("/api/v1/namespaces/ns/serviceaccounts/sa/token", "TokenRequest"),
                Some(object),
            )
        };
        expect(request("mine", "uid-mine", json!([])), "");
        expect(request("mine", "uid-mine", json!(["vault"])), "");
        expect(
            request("mine", "uid-mine", json!(["other"])),
            r#"audience "other" not found in pod spec volume"#,
        );
        expect(request("mine", "", json!([])), "without a uid");
        expect(request("mine", "old", json!([])), "deleted and then recreated");
        expect(
            request("theirs", "uid-theirs", json!([])),
            "scheduled on a different node",
        );
        let unbound = judge(
            Request::create("/api/v1/namespaces/ns/serviceaccounts/sa/token", "TokenRequest"),
            Some(json!({})),
        );
        expect(unbound, "node requested token not bound to a pod");
    }

    #[test]
    fn leases_are_named_like_their_node() {
        let lease = |name: &str| json!({"metadata": {"name": name}});
        let create = |path, name| judge(Request::create(path, "Lease"), Some(lease(name)));
        expect(
            create(
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
                "n1",
            ),
            "",
        );
        expect(
            create(
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases",
                "n2",
            ),
            "same name as the requesting node",
        );
        expect(
            create("/apis/coordination.k8s.io/v1/namespaces/default/leases", "n1"),
            r#"in the "kube-node-lease" system namespace"#,
        );
    }
}
