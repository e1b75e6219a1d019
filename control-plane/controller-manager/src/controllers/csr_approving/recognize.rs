//! Which requests are kubelets', and what must be true to approve them.

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use k8s_openapi::api::core::v1::Node;
use pki::{CertificateRequest, SubjectAltNames};
use std::collections::BTreeSet;

pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES_GROUP: &str = "system:nodes";
const NODE_USER_PREFIX: &str = "system:node:";

#[derive(Debug, PartialEq)]
pub enum Recognized {
    /// A kubelet's client certificate, to approve when its requestor may create one of these sub-resources.
    Client {
        candidates: Vec<(&'static str, &'static str)>,
    },
    /// A kubelet's serving certificate, asked for by that node itself.
    Serving { node: String, names: SubjectAltNames },
}

pub fn recognize(spec: &CertificateSigningRequestSpec) -> Option<Recognized> {
    let request = CertificateRequest::from_pem(std::str::from_utf8(&spec.request.0).ok()?).ok()?;
    let username = spec.username.as_deref().unwrap_or_default();
    let own = username == request.subject.common_name;
    match spec.signer_name.as_str() {
        KUBELET_CLIENT if is_kubelet_client(&request, spec) => {
            let mut candidates = Vec::new();
            if own {
                let message = "Auto approving self kubelet client certificate after SubjectAccessReview.";
                candidates.push(("selfnodeclient", message));
            }
            candidates.push((
                "nodeclient",
                "Auto approving kubelet client certificate after SubjectAccessReview.",
            ));
            Some(Recognized::Client { candidates })
        }
        KUBELET_SERVING if own && is_kubelet_serving(&request, spec) => {
            let in_group = spec.groups.iter().flatten().any(|g| g == NODES_GROUP);
            let node = username.strip_prefix(NODE_USER_PREFIX)?.to_owned();
            in_group.then_some(Recognized::Serving {
                node,
                names: request.alt_names,
            })
        }
        _ => None,
    }
}

/// Upstream's `ValidateKubeletClientCSR`.
pub fn is_kubelet_client(request: &CertificateRequest, spec: &CertificateSigningRequestSpec) -> bool {
    is_node_subject(request)
        && request.alt_names.is_empty()
        && usages_are(spec, &["digital signature", "client auth"], "key encipherment")
}

/// Upstream's `ValidateKubeletServingCSR`.
pub fn is_kubelet_serving(request: &CertificateRequest, spec: &CertificateSigningRequestSpec) -> bool {
    let names = &request.alt_names;
    is_node_subject(request)
        && !(names.dns_names.is_empty() && names.ip_addresses.is_empty())
        && names.emails.is_empty()
        && names.uris.is_empty()
        && usages_are(spec, &["digital signature", "server auth"], "key encipherment")
}

/// Every name is an address, host name or the name of the node.
pub fn serving_names_are_the_nodes(names: &SubjectAltNames, node: &Node) -> bool {
    let addresses = node
        .status
        .as_ref()
        .and_then(|s| s.addresses.as_deref())
        .unwrap_or_default();
    let own: BTreeSet<&str> = addresses
        .iter()
        .map(|a| a.address.as_str())
        .chain(node.metadata.name.as_deref())
        .collect();
    names.dns_names.iter().all(|n| own.contains(n.as_str()))
        && names
            .ip_addresses
            .iter()
            .all(|ip| own.contains(ip.to_string().as_str()))
}

fn is_node_subject(request: &CertificateRequest) -> bool {
    request.subject.organizations == [NODES_GROUP]
        && request
            .subject
            .common_name
            .strip_prefix(NODE_USER_PREFIX)
            .is_some_and(|name| !name.is_empty())
}

/// Exactly the needed usages, and perhaps the optional one.
fn usages_are(spec: &CertificateSigningRequestSpec, needed: &[&str], optional: &str) -> bool {
    let asked: BTreeSet<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    needed.iter().all(|u| asked.contains(u)) && asked.iter().all(|u| needed.contains(u) || *u == optional)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use pki::{PrivateKey, Subject};
    use serde_json::{from_value, json};

    fn spec(
        signer: &str,
        user: &str,
        subject: &Subject,
        names: &SubjectAltNames,
        usages: &[&str],
    ) -> CertificateSigningRequestSpec {
        let pem = CertificateRequest::create(&PrivateKey::generate().unwrap(), subject, names).unwrap();
        CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.into(),
            username: Some(user.into()),
            groups: Some(vec![NODES_GROUP.into()]),
            usages: Some(usages.iter().map(|u| u.to_string()).collect()),
            ..CertificateSigningRequestSpec::default()
        }
    }

    const CLIENT: &[&str] = &["digital signature", "client auth"];
    const SERVER: &[&str] = &["digital signature", "server auth", "key encipherment"];

    #[test]
    fn client_requests() {
        let node = Subject::new("system:node:n1", &["system:nodes"]);
        let none = SubjectAltNames::default();
        let count = |spec: &CertificateSigningRequestSpec| match recognize(spec) {
            Some(Recognized::Client { candidates }) => candidates.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            count(&spec(KUBELET_CLIENT, "system:node:n1", &node, &none, CLIENT)),
            2
        );
        assert_eq!(
            count(&spec(
                KUBELET_CLIENT,
                "system:bootstrap:abcdef",
                &node,
                &none,
                CLIENT
            )),
            1
        );
        let names = SubjectAltNames {
            dns_names: vec!["n1".into()],
            ..SubjectAltNames::default()
        };
        for refused in [
            spec(
                KUBELET_CLIENT,
                "u",
                &Subject::new("system:node:n1", &["system:masters"]),
                &none,
                CLIENT,
            ),
            spec(
                KUBELET_CLIENT,
                "u",
                &Subject::new("admin", &["system:nodes"]),
                &none,
                CLIENT,
            ),
            spec(KUBELET_CLIENT, "u", &node, &names, CLIENT),
            spec(KUBELET_CLIENT, "u", &node, &none, SERVER),
            spec("example.com/other", "u", &node, &none, CLIENT),
        ] {
            assert_eq!(recognize(&refused), None);
        }
    }

    #[test]
    fn serving_requests() {
        let subject = Subject::new("system:node:n1", &["system:nodes"]);
        let names = |ip: &str| SubjectAltNames {
            dns_names: vec!["n1".into()],
            ip_addresses: vec![ip.parse().unwrap()],
            ..SubjectAltNames::default()
        };
        let asked = spec(
            KUBELET_SERVING,
            "system:node:n1",
            &subject,
            &names("10.0.0.1"),
            SERVER,
        );
        let Some(Recognized::Serving { node, names: asked }) = recognize(&asked) else {
            panic!("not recognized")
        };
        assert_eq!(node, "n1");
        let node: Node = from_value(json!({"metadata": {"name": "n1"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "10.0.0.1"}]}}))
        .unwrap();
        assert!(serving_names_are_the_nodes(&asked, &node));
        assert!(!serving_names_are_the_nodes(&names("10.0.0.2"), &node));
        let stranger = spec(
            KUBELET_SERVING,
            "system:node:n2",
            &subject,
            &names("10.0.0.1"),
            SERVER,
        );
        assert_eq!(recognize(&stranger), None);
        let empty = spec(
            KUBELET_SERVING,
            "system:node:n1",
            &subject,
            &SubjectAltNames::default(),
            SERVER,
        );
        assert_eq!(recognize(&empty), None);
    }
}
