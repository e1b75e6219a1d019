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
