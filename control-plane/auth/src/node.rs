//! The Node authorizer: a kubelet reads and writes what concerns the pods bound to it, and its own objects.
//! Semantics and reasons: upstream's `plugin/pkg/auth/authorizer/node`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use crate::attributes::{Attributes, Verdict};
use crate::bootstrap::node_rules;
use crate::rbac::Rule;
use crate::user::UserInfo;

const NODES_GROUP: &str = "system:nodes";
const NODE_PREFIX: &str = "system:node:";
const LEASE_NAMESPACE: &str = "kube-node-lease";

/// The node a user is, when it is one (upstream: `nodeidentifier`).
pub fn node_name(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(NODE_PREFIX)?;
    user.in_group(NODES_GROUP).then_some(name)
}

/// Kinds a node reaches through its pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    ConfigMap,
    Secret,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// (namespace, name)
type Key = (String, String);

#[derive(Debug)]
struct Pod {
    node: String,
    references: HashSet<(Kind, String)>,
}

#[derive(Debug)]
struct Volume {
    claim: Key,
    secrets: HashSet<Key>,
}

#[derive(Debug)]
pub(crate) struct NodeGraph {
    rules: Vec<Rule>,
    pods: HashMap<Key, Pod>,
    /// Object → pods that use it.
    users: HashMap<(Kind, Key), HashSet<Key>>,
    volumes: HashMap<String, Volume>,
    /// Secret → persistent volumes that name it.
    secret_volumes: HashMap<Key, HashSet<String>>,
    attachments: HashMap<String, String>,
    slices: HashMap<String, String>,
}

impl Default for NodeGraph {
    fn default() -> Self {
        Self {
            rules: node_rules(),
            pods: HashMap::new(),
            users: HashMap::new(),
            volumes: HashMap::new(),
            secret_volumes: HashMap::new(),
            attachments: HashMap::new(),
            slices: HashMap::new(),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

impl NodeGraph {
    /// Takes over the object; `false` when its resource means nothing to the graph.
    pub(crate) fn set(&mut self, resource: &str, object: &Value) {
        let name = text(&object["metadata"]["name"]);
        match resource {
            "pods" => self.set_pod(object),
            "persistentvolumes" => self.set_volume(name, &object["spec"]),
            "volumeattachments" => {
                self.attachments.insert(name, text(&object["spec"]["nodeName"]));
            }
            "resourceslices" => {
                self.slices.insert(name, text(&object["spec"]["nodeName"]));
            }
            _ => {}
        }
    }

    pub(crate) fn remove(&mut self, resource: &str, namespace: &str, name: &str) {
        match resource {
            "pods" => self.remove_pod(&key(namespace, name)),
            "persistentvolumes" => self.remove_volume(name),
            "volumeattachments" => {
                self.attachments.remove(name);
            }
            "resourceslices" => {
                self.slices.remove(name);
            }
            _ => {}
        }
    }

    fn set_pod(&mut self, object: &Value) {
        let namespace = text(&object["metadata"]["namespace"]);
        let id = key(&namespace, &text(&object["metadata"]["name"]));
        let node = text(&object["spec"]["nodeName"]);
        if node.is_empty() {
            self.remove_pod(&id);
            return;
        }
        let references = pod_references(object);
        if self
            .pods
            .get(&id)
            .is_some_and(|pod| pod.node == node && pod.references == references)
        {
            return;
        }
        self.remove_pod(&id);
        for (kind, name) in &references {
            self.users
                .entry((*kind, key(&namespace, name)))
                .or_default()
                .insert(id.clone());
        }
        self.pods.insert(id, Pod { node, references });
    }

    fn remove_pod(&mut self, id: &Key) {
        let Some(pod) = self.pods.remove(id) else { return };
        for (kind, name) in pod.references {
            let object = (kind, key(&id.0, &name));
            if let Some(pods) = self.users.get_mut(&object) {
                pods.remove(id);
                if pods.is_empty() {
                    self.users.remove(&object);
                }
            }
        }
    }

    fn set_volume(&mut self, name: String, spec: &Value) {
        self.remove_volume(&name);
        let claim = key(
            &text(&spec["claimRef"]["namespace"]),
            &text(&spec["claimRef"]["name"]),
        );
        let secrets = volume_secrets(spec, &claim.0);
        for secret in &secrets {
            self.secret_volumes
                .entry(secret.clone())
                .or_default()
                .insert(name.clone());
        }
        self.volumes.insert(name, Volume { claim, secrets });
    }

    fn remove_volume(&mut self, name: &str) {
        let Some(volume) = self.volumes.remove(name) else {
            return;
        };
        for secret in volume.secrets {
            if let Some(volumes) = self.secret_volumes.get_mut(&secret) {
                volumes.remove(name);
                if volumes.is_empty() {
                    self.secret_volumes.remove(&secret);
                }
            }
        }
    }

    fn pod_uses(&self, node: &str, kind: Kind, object: &Key) -> bool {
        self.users.get(&(kind, object.clone())).is_some_and(|pods| {
            pods.iter()
                .any(|pod| self.pods.get(pod).is_some_and(|pod| pod.node == node))
        })
    }

    fn volume_used(&self, node: &str, volume: &str) -> bool {
        self.volumes
            .get(volume)
            .is_some_and(|volume| self.pod_uses(node, Kind::Claim, &volume.claim))
    }

    fn secret_used(&self, node: &str, secret: &Key) -> bool {
        self.pod_uses(node, Kind::Secret, secret)
            || self
                .secret_volumes
                .get(secret)
                .is_some_and(|volumes| volumes.iter().any(|volume| self.volume_used(node, volume)))
    }

    /// `None`: the user is no node, the authorizer has nothing to say.
    pub(crate) fn authorize(&self, attributes: &Attributes<'_>) -> Option<Verdict> {
        let node = node_name(attributes.user)?;
        if node.is_empty() {
            return Some(Verdict::no_opinion(format!(
                "unknown node for user {:?}",
                attributes.user.name
            )));
        }
        let outcome = if attributes.is_resource {
            self.subdivided(node, attributes)
        } else {
            None
        };
        Some(match outcome {
            Some(Ok(())) => Verdict::allow(""),
            Some(Err(reason)) => Verdict::no_opinion(reason),
            None if self.rules.iter().any(|rule| rule.allows(attributes)) => Verdict::allow(""),
            None => Verdict::no_opinion(""),
        })
    }

    /// `None`: this resource is not subdivided by node; the static rules decide.
    fn subdivided(&self, node: &str, attributes: &Attributes<'_>) -> Option<Result<(), String>> {
        let Attributes {
            verb,
            subresource,
            namespace,
            name,
            ..
        } = *attributes;
        let object = key(namespace, name);
        let related = |related: bool| {
            if name.is_empty() {
                return Err("No Object name found".to_owned());
            }
            let unrelated = || format!("no relationship found between node '{node}' and this object");
            related.then_some(()).ok_or_else(unrelated)
        };
        let get = |found: bool| match (verb, subresource) {
            ("get", "") => related(found),
            ("get", _) => Err("cannot get subresource".into()),
            _ => Err("can only get individual resources of this type".into()),
        };
        let read = |found: bool| match (verb, subresource) {
            ("get" | "list" | "watch", "") if namespace.is_empty() => {
                Err("can only read namespaced object of this type".into())
            }
            ("get" | "list" | "watch", "") => related(found),
            ("get" | "list" | "watch", _) => Err("cannot read subresource".into()),
            _ => Err("can only read resources of this type".into()),
        };
        Some(match (attributes.group, attributes.resource) {
            ("", "secrets") => read(self.secret_used(node, &object)),
            ("", "configmaps") => read(self.pod_uses(node, Kind::ConfigMap, &object)),
            ("", "persistentvolumeclaims") => {
                let found = self.pod_uses(node, Kind::Claim, &object);
                match (subresource, verb) {
                    ("status", "update" | "patch") => related(found),
                    ("status", _) => Err("can only get/update/patch this type".into()),
                    _ => get(found),
                }
            }
            ("", "persistentvolumes") => get(self.volume_used(node, name)),
            ("resource.k8s.io", "resourceclaims") => get(self.pod_uses(node, Kind::ResourceClaim, &object)),
            ("storage.k8s.io", "volumeattachments") => {
                get(self.attachments.get(name).is_some_and(|owner| owner == node))
            }
            ("", "serviceaccounts") => {
                let found = self.pod_uses(node, Kind::ServiceAccount, &object);
                match (verb, subresource) {
                    ("get", _) => get(found),
                    ("create", "token") if !name.is_empty() => related(found),
                    ("create", _) if !name.is_empty() => {
                        Err("can only create token subresource of serviceaccount".into())
                    }
                    _ => Err("can only create tokens for individual service accounts".into()),
                }
            }
            ("coordination.k8s.io", "leases") => own_object(verb, name, node, &LEASE_WORDS).and_then(|()| {
                let elsewhere =
                    || format!("can only access leases in the {LEASE_NAMESPACE:?} system namespace");
                (namespace == LEASE_NAMESPACE).then_some(()).ok_or_else(elsewhere)
            }),
            ("storage.k8s.io", "csinodes") if !subresource.is_empty() => {
                Err("cannot authorize CSINode subresources".into())
            }
            ("storage.k8s.io", "csinodes") => own_object(verb, name, node, &CSI_NODE_WORDS),
            ("resource.k8s.io", "resourceslices") => match (verb, subresource) {
                (_, subresource) if !subresource.is_empty() => {
                    Err("cannot authorize ResourceSlice subresources".into())
                }
                ("create", _) => Ok(()),
                ("get" | "update" | "patch" | "delete", _) => {
                    related(self.slices.get(name).is_some_and(|owner| owner == node))
                }
                ("watch" | "list" | "deletecollection", _) if attributes.selects("spec.nodeName", node) => Ok(()),
                ("watch" | "list" | "deletecollection", _) => {
                    Err("can only list/watch/deletecollection resourceslices with nodeName field selector".into())
                }
                _ => Err("only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection".into()),
            },
            ("", "nodes") => match (subresource, verb) {
                ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
                ("", "get" | "list" | "watch") if name == node => Ok(()),
                ("", "get" | "list" | "watch") if name.is_empty() => {
                    Err(format!("node '{node}' cannot read all nodes, only its own Node object"))
                }
                ("", "get" | "list" | "watch") => {
                    Err(format!("node '{node}' cannot read '{name}', only its own Node object"))
                }
                _ => Err(String::new()),
            },
            ("", "pods") => {
                let bound = || self.pods.get(&object).is_some_and(|pod| pod.node == node);
                match (subresource, verb) {
                    ("", "get") => related(bound()),
                    ("", "list" | "watch") if attributes.selects("spec.nodeName", node) => Ok(()),
                    ("", "list" | "watch") if !name.is_empty() => related(bound()),
                    ("", "list" | "watch") => {
                        Err("can only list/watch pods with spec.nodeName field selector".into())
                    }
                    ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
                    _ => Err(String::new()),
                }
            }
            _ => return None,
        })
    }
}

/// The reasons for the two kinds of object named like their node.
struct OwnObjectWords {
    verbs: &'static str,
    name: &'static str,
}

const LEASE_WORDS: OwnObjectWords = OwnObjectWords {
    verbs: "can only get, create, update, patch, or delete a node lease",
    name: "can only access node lease with the same name as the requesting node",
};

const CSI_NODE_WORDS: OwnObjectWords = OwnObjectWords {
    verbs: "can only get, create, update, patch, or delete a CSINode",
    name: "can only access CSINode with the same name as the requesting node",
};

/// The name is not known on create; NodeRestriction checks it there.
fn own_object(verb: &str, name: &str, node: &str, words: &OwnObjectWords) -> Result<(), String> {
    match verb {
        "create" => Ok(()),
        "get" | "update" | "patch" | "delete" if name == node => Ok(()),
        "get" | "update" | "patch" | "delete" => Err(words.name.into()),
        _ => Err(words.verbs.into()),
    }
}

/// What a pod lets its node read. A mirror pod, made by the node itself, grants nothing.
fn pod_references(pod: &Value) -> HashSet<(Kind, String)> {
    let mut found = HashSet::new();
    if pod["metadata"]["annotations"]
        .get("kubernetes.io/config.mirror")
        .is_some()
    {
        return found;
    }
    let spec = &pod["spec"];
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
            found.insert((kind, name.to_owned()));
        }
    };
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    add(Kind::ServiceAccount, &spec["serviceAccountName"]);
    for secret in items(&spec["imagePullSecrets"]) {
        add(Kind::Secret, &secret["name"]);
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items(&spec[list]) {
            for source in items(&container["envFrom"]) {
                add(Kind::ConfigMap, &source["configMapRef"]["name"]);
                add(Kind::Secret, &source["secretRef"]["name"]);
            }
            for variable in items(&container["env"]) {
                add(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
                add(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
            }
        }
    }
    for volume in items(&spec["volumes"]) {
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Secret, &volume["secret"]["secretName"]);
        add(Kind::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        for source in ["cephfs", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"] {
            add(Kind::Secret, &volume[source]["secretRef"]["name"]);
        }
        add(Kind::Secret, &volume["azureFile"]["secretName"]);
        add(Kind::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        if volume["ephemeral"].is_object() {
            let claim = format!("{}-{}", text(&pod["metadata"]["name"]), text(&volume["name"]));
            add(Kind::Claim, &Value::String(claim));
        }
        for source in items(&volume["projected"]["sources"]) {
            add(Kind::ConfigMap, &source["configMap"]["name"]);
            add(Kind::Secret, &source["secret"]["name"]);
        }
    }
    for claim in items(&spec["resourceClaims"]) {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    for claim in items(&pod["status"]["resourceClaimStatuses"]) {
        add(Kind::ResourceClaim, &claim["resourceClaimName"]);
    }
    add(
        Kind::ResourceClaim,
        &pod["status"]["extendedResourceClaimStatus"]["resourceClaimName"],
    );
    found
}

/// Secrets a persistent volume names; without a namespace of their own they are in the claim's.
fn volume_secrets(spec: &Value, claim_namespace: &str) -> HashSet<Key> {
    let csi = [
        "controllerPublishSecretRef",
        "nodePublishSecretRef",
        "nodeStageSecretRef",
        "controllerExpandSecretRef",
        "nodeExpandSecretRef",
    ]
    .map(|field| &spec["csi"][field]);
    let others = ["cephfs", "flexVolume", "rbd", "scaleIO", "iscsi", "storageos"]
        .map(|source| &spec[source]["secretRef"]);
    let namespace_of = |reference: &Value| match reference["namespace"].as_str() {
        Some(namespace) if !namespace.is_empty() => namespace.to_owned(),
        _ => claim_namespace.to_owned(),
    };
    let named = csi
        .into_iter()
        .chain(others)
        .filter_map(|reference| Some((namespace_of(reference), reference["name"].as_str()?.to_owned())));
    let azure = spec["azureFile"]["secretName"].as_str().map(|name| {
        let namespace = spec["azureFile"]["secretNamespace"]
            .as_str()
            .unwrap_or(claim_namespace);
        key(namespace, name)
    });
    named.chain(azure).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": name, "namespace": "ns"}, "spec": spec});
        pod["spec"]["nodeName"] = json!(node);
        pod
    }

    fn world() -> NodeGraph {
        let mut graph = NodeGraph::default();
        let spec = json!({
            "serviceAccountName": "sa",
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{
                "env": [{"valueFrom": {"secretKeyRef": {"name": "env-secret"}}}],
                "envFrom": [{"configMapRef": {"name": "env-map"}}],
            }],
            "volumes": [
                {"name": "v", "persistentVolumeClaim": {"claimName": "claim"}},
                {"name": "scratch", "ephemeral": {}},
                {"projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}},
            ],
        });
        graph.set("pods", &pod("p1", "n1", spec));
        graph.set("pods", &pod("p2", "n2", json!({"serviceAccountName": "sa2"})));
        let csi = json!({"nodeStageSecretRef": {"name": "csi-secret", "namespace": "other"}});
        let claim = json!({"namespace": "ns", "name": "claim"});
        graph.set(
            "persistentvolumes",
            &json!({"metadata": {"name": "pv"}, "spec": {"claimRef": claim, "csi": csi}}),
        );
        graph.set(
            "volumeattachments",
            &json!({"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}),
        );
        graph
    }

    /// `what` is `[group/]resource[:subresource]`.
    fn ask(graph: &NodeGraph, node: &str, verb: &str, what: &str, namespace: &str, name: &str) -> Verdict {
        let user = UserInfo::new(format!("system:node:{node}"), &[NODES_GROUP]);
        let (what, subresource) = what.split_once(':').unwrap_or((what, ""));
        let (group, resource) = what.split_once('/').unwrap_or(("", what));
        let attributes = Attributes {
            subresource,
            namespace,
            name,
            ..Attributes::resource(&user, verb, group, resource)
        };
        graph
            .authorize(&attributes)
            .expect("a node's question is answered")
    }

    #[test]
    fn only_nodes_are_judged() {
        let graph = world();
        for user in [
            UserInfo::new("bob", &[NODES_GROUP]),
            UserInfo::new("system:node:n1", &[]),
            UserInfo::new("system:serviceaccount:a:b", &[]),
        ] {
            assert_eq!(
                graph.authorize(&Attributes::resource(&user, "get", "", "pods")),
                None,
                "{}",
                user.name
            );
        }
        let nameless = UserInfo::new("system:node:", &[NODES_GROUP]);
        let verdict = graph
            .authorize(&Attributes::resource(&nameless, "get", "", "pods"))
            .unwrap();
        assert_eq!(verdict.reason, r#"unknown node for user "system:node:""#);
    }

    #[test]
    fn a_node_reads_what_its_pods_use() {
        let graph = world();
        let reached = [
            ("get", "secrets", "ns", "pull"),
            ("get", "secrets", "ns", "env-secret"),
            ("watch", "secrets", "ns", "env-secret"),
            ("get", "secrets", "other", "csi-secret"),
            ("list", "configmaps", "ns", "env-map"),
            ("get", "configmaps", "ns", "kube-root-ca.crt"),
            ("get", "persistentvolumeclaims", "ns", "claim"),
            ("get", "persistentvolumeclaims", "ns", "p1-scratch"),
            ("patch", "persistentvolumeclaims:status", "ns", "claim"),
            ("get", "persistentvolumes", "", "pv"),
            ("get", "storage.k8s.io/volumeattachments", "", "va"),
            ("create", "serviceaccounts:token", "ns", "sa"),
            ("get", "serviceaccounts", "ns", "sa"),
            ("get", "pods", "ns", "p1"),
        ];
        for (verb, what, namespace, name) in reached {
            assert!(
                ask(&graph, "n1", verb, what, namespace, name).is_allowed(),
                "{verb} {what} {name}"
            );
            let other = ask(&graph, "n2", verb, what, namespace, name);
            assert_eq!(
                other.reason, "no relationship found between node 'n2' and this object",
                "{verb} {what} {name}"
            );
        }
        for (verb, what, namespace, name, reason) in [
            ("list", "secrets", "ns", "", "No Object name found"),
            (
                "list",
                "secrets",
                "",
                "pull",
                "can only read namespaced object of this type",
            ),
            (
                "delete",
                "secrets",
                "ns",
                "pull",
                "can only read resources of this type",
            ),
            (
                "list",
                "persistentvolumes",
                "",
                "",
                "can only get individual resources of this type",
            ),
            (
                "create",
                "serviceaccounts:token",
                "ns",
                "",
                "can only create tokens for individual service accounts",
            ),
        ] {
            let verdict = ask(&graph, "n1", verb, what, namespace, name);
            assert_eq!(verdict, Verdict::no_opinion(reason), "{verb} {what} {name}");
        }
    }

    #[test]
    fn a_node_has_its_own_objects_and_the_static_rules() {
        let graph = world();
        let lease = "coordination.k8s.io/leases";
        for (verb, what, namespace, name, allowed) in [
            ("get", "nodes", "", "n1", true),
            ("get", "nodes", "", "n2", false),
            ("list", "nodes", "", "", false),
            ("create", "nodes", "", "", true),
            ("patch", "nodes:status", "", "n1", true),
            ("delete", "nodes", "", "n1", false),
            ("update", lease, LEASE_NAMESPACE, "n1", true),
            ("update", lease, LEASE_NAMESPACE, "n2", false),
            ("create", lease, "default", "", false),
            ("list", lease, LEASE_NAMESPACE, "", false),
            ("list", "services", "", "", true),
            ("create", "events", "ns", "", true),
            (
                "create",
                "certificates.k8s.io/certificatesigningrequests",
                "",
                "",
                true,
            ),
            (
                "create",
                "authorization.k8s.io/subjectaccessreviews",
                "",
                "",
                true,
            ),
            ("delete", "services", "ns", "s", false),
            ("list", "pods", "", "", false),
            ("patch", "pods:status", "ns", "p1", true),
            ("create", "pods:exec", "ns", "p1", false),
        ] {
            let verdict = ask(&graph, "n1", verb, what, namespace, name);
            assert_eq!(
                verdict.is_allowed(),
                allowed,
                "{verb} {what} {name}: {}",
                verdict.reason
            );
        }
        let user = UserInfo::new("system:node:n1", &[NODES_GROUP]);
        let list = |field_selector| {
            let attributes = Attributes {
                field_selector,
                ..Attributes::resource(&user, "watch", "", "pods")
            };
            graph.authorize(&attributes).unwrap().is_allowed()
        };
        assert!(list("spec.nodeName=n1") && !list("spec.nodeName=n2"));
    }

    #[test]
    fn rights_end_with_the_pod() {
        let mut graph = world();
        let get = |graph: &NodeGraph| ask(graph, "n1", "get", "secrets", "ns", "pull").is_allowed();
        let through_volume =
            |graph: &NodeGraph| ask(graph, "n1", "get", "secrets", "other", "csi-secret").is_allowed();
        assert!(get(&graph) && through_volume(&graph));
        graph.set(
            "pods",
            &pod("p3", "n1", json!({"imagePullSecrets": [{"name": "pull"}]})),
        );
        graph.remove("pods", "ns", "p1");
        assert!(get(&graph), "p3 still uses it");
        assert!(!through_volume(&graph));
        graph.remove("pods", "ns", "p3");
        assert!(!get(&graph));
        graph.remove("pods", "ns", "p2");
        graph.remove("persistentvolumes", "", "pv");
        assert!(graph.pods.is_empty() && graph.users.is_empty() && graph.secret_volumes.is_empty());
    }

    #[test]
    fn mirror_pods_grant_nothing() {
        let mut graph = NodeGraph::default();
        let mut mirror = pod("m", "n1", json!({"imagePullSecrets": [{"name": "pull"}]}));
        mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
        graph.set("pods", &mirror);
        assert!(!ask(&graph, "n1", "get", "secrets", "ns", "pull").is_allowed());
        assert!(ask(&graph, "n1", "get", "pods", "ns", "m").is_allowed());
    }
}
