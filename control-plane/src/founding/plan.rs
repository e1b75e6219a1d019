//! Which files to write, decided from those that exist: authorities are made once and never replaced, leaves and
//! kubeconfigs are renewed when their names, their issuer or their age demand it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use pki::{
    AuthorityError, BootstrapToken, CertificateAuthority, CertificateInfo, Credentials, Kubeconfig,
    LeafRequest, PrivateKey, ServiceAccountKey, Subject, SubjectAltNames,
};
use thiserror::Error;

/// Files of the data directory, below it; kubeadm's layout.
pub mod files {
    pub const CA: &str = "pki/ca";
    pub const APISERVER: &str = "pki/apiserver";
    pub const KUBELET_CLIENT: &str = "pki/apiserver-kubelet-client";
    pub const FRONT_PROXY_CA: &str = "pki/front-proxy-ca";
    pub const FRONT_PROXY_CLIENT: &str = "pki/front-proxy-client";
    /// Common name of that client.
    pub const FRONT_PROXY_NAME: &str = "front-proxy-client";
    pub const ETCD_CA: &str = "pki/etcd/ca";
    pub const SERVICE_ACCOUNT_KEY: &str = "pki/sa.key";
    pub const SERVICE_ACCOUNT_PUBLIC: &str = "pki/sa.pub";
    pub const ADMIN: &str = "admin.kubeconfig";
    pub const CONTROLLER_MANAGER: &str = "controller-manager.kubeconfig";
    pub const SCHEDULER: &str = "scheduler.kubeconfig";
    pub const CLOUD_CONTROLLER_MANAGER: &str = "cloud-controller-manager.kubeconfig";
    pub const BOOTSTRAP_TOKEN: &str = "bootstrap-token";
    pub const CLUSTER_ID: &str = "cluster-id";
}

const CLUSTER_NAME: &str = "ironlet";

/// Each authority with its certificate's name; the certificate is `<stem>.crt`, the key `<stem>.key`.
const AUTHORITIES: [(&str, &str, &str, &str); 3] = [
    (files::CA, "pki/ca.crt", "pki/ca.key", "kubernetes"),
    (
        files::FRONT_PROXY_CA,
        "pki/front-proxy-ca.crt",
        "pki/front-proxy-ca.key",
        "front-proxy-ca",
    ),
    (files::ETCD_CA, "pki/etcd/ca.crt", "pki/etcd/ca.key", "etcd-ca"),
];

enum Role {
    ApiServer,
    Etcd,
    Client(&'static [&'static str]),
}

/// (certificate, key, authority, common name, role)
const LEAVES: [(&str, &str, &str, &str, Role); 6] = [
    (
        "pki/apiserver.crt",
        "pki/apiserver.key",
        files::CA,
        "kube-apiserver",
        Role::ApiServer,
    ),
    (
        "pki/apiserver-kubelet-client.crt",
        "pki/apiserver-kubelet-client.key",
        files::CA,
        "kube-apiserver-kubelet-client",
        Role::Client(&["kubeadm:cluster-admins"]),
    ),
    (
        "pki/front-proxy-client.crt",
        "pki/front-proxy-client.key",
        files::FRONT_PROXY_CA,
        files::FRONT_PROXY_NAME,
        Role::Client(&[]),
    ),
    (
        "pki/apiserver-etcd-client.crt",
        "pki/apiserver-etcd-client.key",
        files::ETCD_CA,
        "kube-apiserver-etcd-client",
        Role::Client(&[]),
    ),
    (
        "pki/etcd/server.crt",
        "pki/etcd/server.key",
        files::ETCD_CA,
        "etcd-server",
        Role::Etcd,
    ),
    (
        "pki/etcd/peer.crt",
        "pki/etcd/peer.key",
        files::ETCD_CA,
        "etcd-peer",
        Role::Etcd,
    ),
];

/// (file, user, groups)
const KUBECONFIGS: [(&str, &str, &[&str]); 4] = [
    (files::ADMIN, "kubernetes-admin", &["kubeadm:cluster-admins"]),
    (files::CONTROLLER_MANAGER, "system:kube-controller-manager", &[]),
    (files::SCHEDULER, "system:kube-scheduler", &[]),
    (
        files::CLOUD_CONTROLLER_MANAGER,
        "system:cloud-controller-manager",
        &[],
    ),
];

/// Every file founding reads or writes.
pub fn file_names() -> impl Iterator<Item = &'static str> {
    let authorities = AUTHORITIES
        .iter()
        .flat_map(|(_, certificate, key, _)| [*certificate, *key]);
    let leaves = LEAVES
        .iter()
        .flat_map(|(certificate, key, ..)| [*certificate, *key]);
    let kubeconfigs = KUBECONFIGS.iter().map(|(file, ..)| *file);
    let others = [
        files::SERVICE_ACCOUNT_KEY,
        files::SERVICE_ACCOUNT_PUBLIC,
        files::BOOTSTRAP_TOKEN,
        files::CLUSTER_ID,
    ];
    authorities.chain(leaves).chain(kubeconfigs).chain(others)
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Founding {
    pub advertise_address: IpAddr,
    /// URL our own components and the administrator use; without it no kubeconfig is written yet.
    pub server: Option<String>,
    /// Address of the `kubernetes` Service.
    pub service_address: IpAddr,
    pub cluster_domain: String,
    /// More names and addresses for the API server's certificate.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// The token to use; otherwise the existing one, or a new one.
    pub bootstrap_token: Option<BootstrapToken>,
    /// The cluster the directory must belong to, when it belongs to one.
    pub cluster_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileWrite {
    pub name: &'static str,
    pub content: String,
    pub why: &'static str,
}

#[derive(Debug, Error)]
pub enum PlanError {
    #[error("belongs to cluster {actual}, not to {wanted} (--cluster-id)")]
    OtherCluster { actual: String, wanted: String },
    #[error(
        "is damaged: {missing} is gone, but the directory belongs to cluster {cluster}; restore it from a backup"
    )]
    Damaged { missing: &'static str, cluster: String },
    #[error("{file}: {source}")]
    Authority {
        file: &'static str,
        source: AuthorityError,
    },
    #[error("{file}: {message}")]
    Content { file: &'static str, message: String },
}

/// In the order they must be written: the cluster ID last, as proof that all else is there.
pub fn plan(
    existing: &BTreeMap<String, String>,
    wanted: &Founding,
    now: Timestamp,
) -> Result<Vec<FileWrite>, PlanError> {
    let file = |name: &str| existing.get(name).map(String::as_str);
    let cluster_id = file(files::CLUSTER_ID).map(str::trim).filter(|id| !id.is_empty());
    if let (Some(actual), Some(wanted)) = (cluster_id, &wanted.cluster_id)
        && actual != wanted
    {
        return Err(PlanError::OtherCluster {
            actual: actual.into(),
            wanted: wanted.clone(),
        });
    }
    let mut writes = Vec::new();
    let mut add = |name, content: String, why| writes.push(FileWrite { name, content, why });

    let mut authorities = BTreeMap::new();
    for (stem, certificate, key, common_name) in AUTHORITIES {
        let failed = |source| PlanError::Authority {
            file: certificate,
            source,
        };
        let authority = match (file(certificate), file(key), cluster_id) {
            (Some(certificate_pem), Some(key_pem), _) => {
                CertificateAuthority::from_pem(certificate_pem, key_pem).map_err(failed)?
            }
            (found, _, Some(cluster)) => {
                let missing = if found.is_none() { certificate } else { key };
                return Err(PlanError::Damaged {
                    missing,
                    cluster: cluster.into(),
                });
            }
            // No cluster ID: an earlier founding was cut short, nobody has used its files.
            (_, _, None) => {
                let authority = CertificateAuthority::generate(common_name, now).map_err(failed)?;
                add(key, authority.key_pem(), "new authority");
                add(certificate, authority.certificate_pem().into(), "new authority");
                authority
            }
        };
        authorities.insert(stem, authority);
    }

    match (
        file(files::SERVICE_ACCOUNT_KEY),
        file(files::SERVICE_ACCOUNT_PUBLIC),
        cluster_id,
    ) {
        (Some(_), Some(_), _) => {}
        (found, _, Some(cluster)) => {
            let missing = if found.is_none() {
                files::SERVICE_ACCOUNT_KEY
            } else {
                files::SERVICE_ACCOUNT_PUBLIC
            };
            return Err(PlanError::Damaged {
                missing,
                cluster: cluster.into(),
            });
        }
        (_, _, None) => {
            let (private, public) =
                ServiceAccountKey::generate_pem().map_err(|error| PlanError::Content {
                    file: files::SERVICE_ACCOUNT_KEY,
                    message: error.to_string(),
                })?;
            add(files::SERVICE_ACCOUNT_KEY, private, "new key");
            add(files::SERVICE_ACCOUNT_PUBLIC, public, "new key");
        }
    }

    for (certificate, key, stem, common_name, role) in &LEAVES {
        let authority = &authorities[stem];
        let request = leaf_request(common_name, role, wanted);
        let stale = match (file(certificate), file(key)) {
            (Some(certificate), Some(key)) => staleness(certificate, key, authority, &request, now),
            _ => Some("new certificate"),
        };
        if let Some(why) = stale {
            let failed = |source| PlanError::Authority {
                file: certificate,
                source,
            };
            let identity = authority.issue(&request, now).map_err(failed)?;
            add(*key, identity.key_pem, why);
            add(*certificate, identity.certificate_pem, why);
        }
    }

    let authority = &authorities[files::CA];
    let servers = wanted.server.iter().cycle();
    for ((name, user, groups), server) in KUBECONFIGS.into_iter().zip(servers) {
        let request = LeafRequest::client(Subject::new(user, groups));
        let kept = file(name).and_then(|text| kept_credentials(text, authority, &request, now));
        let why = if kept.is_some() {
            "server changed"
        } else {
            "new certificate"
        };
        let credentials = match kept {
            Some(credentials) => credentials,
            None => {
                let failed = |source| PlanError::Authority { file: name, source };
                let identity = authority.issue(&request, now).map_err(failed)?;
                Credentials::ClientCertificate {
                    certificate_pem: identity.certificate_pem,
                    key_pem: identity.key_pem,
                }
            }
        };
        let content = Kubeconfig {
            cluster: CLUSTER_NAME.into(),
            user: user.into(),
            server: server.clone(),
            ca_pem: authority.certificate_pem().into(),
            credentials,
        }
        .render();
        if file(name) != Some(&content) {
            add(name, content, why);
        }
    }

    let kept = file(files::BOOTSTRAP_TOKEN).and_then(|text| BootstrapToken::parse(text.trim()).ok());
    let token = match wanted.bootstrap_token.clone().or_else(|| kept.clone()) {
        Some(token) => token,
        None => BootstrapToken::generate().map_err(|error| PlanError::Content {
            file: files::BOOTSTRAP_TOKEN,
            message: error.to_string(),
        })?,
    };
    if kept.as_ref() != Some(&token) {
        add(
            files::BOOTSTRAP_TOKEN,
            format!("{}\n", token.reveal()),
            "bootstrap token",
        );
    }
    if cluster_id.is_none() {
        let id = match &wanted.cluster_id {
            Some(id) => id.clone(),
            // The CA is the cluster: its pin names it.
            None => pki::ca_pin(authority.certificate_pem()).map_err(|error| PlanError::Content {
                file: files::CLUSTER_ID,
                message: error.to_string(),
            })?,
        };
        add(files::CLUSTER_ID, format!("{id}\n"), "founded");
    }
    Ok(writes)
}

fn leaf_request(common_name: &str, role: &Role, wanted: &Founding) -> LeafRequest {
    let local = ["127.0.0.1".parse(), "::1".parse()];
    let mut addresses: Vec<IpAddr> = local.into_iter().flatten().collect();
    addresses.push(wanted.advertise_address);
    let mut names = vec!["localhost".to_owned()];
    match role {
        Role::Client(groups) => return LeafRequest::client(Subject::new(common_name, groups)),
        Role::Etcd => {}
        Role::ApiServer => {
            let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"];
            names.extend(service.map(str::to_owned));
            names.push(format!("kubernetes.default.svc.{}", wanted.cluster_domain));
            addresses.push(wanted.service_address);
            addresses.extend(&wanted.addresses);
        }
    }
    names.extend(wanted.names.iter().cloned());
    names.sort();
    names.dedup();
    addresses.sort();
    addresses.dedup();
    let alt_names = SubjectAltNames {
        dns_names: names,
        ip_addresses: addresses,
        ..SubjectAltNames::default()
    };
    let subject = Subject::new(common_name, &[]);
    if matches!(role, Role::Etcd) {
        LeafRequest::peer(subject, alt_names)
    } else {
        LeafRequest::server(subject, alt_names)
    }
}

/// Why a leaf must be made anew, if it must.
fn staleness(
    certificate: &str,
    key: &str,
    authority: &CertificateAuthority,
    request: &LeafRequest,
    now: Timestamp,
) -> Option<&'static str> {
    let (Ok(info), Ok(key)) = (CertificateInfo::from_pem(certificate), PrivateKey::from_pem(key)) else {
        return Some("not readable");
    };
    let issued = CertificateInfo::is_issued_by(certificate, authority.certificate_pem());
    let lifetime = info.not_after.duration_since(info.not_before);
    if info.public_key != key.public_der() {
        Some("key and certificate differ")
    } else if !issued.unwrap_or(false) {
        Some("issued by another authority")
    } else if info.subject != request.subject {
        Some("subject changed")
    } else if !covers(&info.alt_names, &request.alt_names) {
        Some("names changed")
    } else if now >= info.not_after - lifetime / 3 {
        Some("two thirds of its lifetime are over")
    } else {
        None
    }
}

fn covers(present: &SubjectAltNames, wanted: &SubjectAltNames) -> bool {
    wanted
        .dns_names
        .iter()
        .all(|name| present.dns_names.contains(name))
        && wanted
            .ip_addresses
            .iter()
            .all(|address| present.ip_addresses.contains(address))
}

fn kept_credentials(
    kubeconfig: &str,
    authority: &CertificateAuthority,
    request: &LeafRequest,
    now: Timestamp,
) -> Option<Credentials> {
    let credentials = Kubeconfig::parse(kubeconfig).ok()?.credentials;
    let Credentials::ClientCertificate {
        certificate_pem,
        key_pem,
    } = &credentials
    else {
        return None;
    };
    let stale = staleness(certificate_pem, key_pem, authority, request, now);
    stale.is_none().then_some(credentials)
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn wanted() -> Founding {
        Founding {
            advertise_address: "192.168.76.11".parse().unwrap(),
            server: Some("https://127.0.0.1:6443".into()),
            service_address: "10.96.0.1".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            names: vec!["master-1".into()],
            addresses: vec![],
            bootstrap_token: None,
            cluster_id: None,
        }
    }

    fn apply(existing: &mut BTreeMap<String, String>, writes: Vec<FileWrite>) -> Vec<&'static str> {
        let names = writes.iter().map(|write| write.name).collect();
        existing.extend(
            writes
                .into_iter()
                .map(|write| (write.name.to_owned(), write.content)),
        );
        names
    }

    fn founded() -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        let writes = plan(&files, &wanted(), now()).unwrap();
        apply(&mut files, writes);
        files
    }

    #[test]
    fn founding_writes_everything_once() {
        let mut files = BTreeMap::new();
        let writes = plan(&files, &wanted(), now()).unwrap();
        assert_eq!(writes.last().unwrap().name, files::CLUSTER_ID);
        apply(&mut files, writes);
        let mut names: Vec<&str> = file_names().collect();
        names.sort_unstable();
        assert_eq!(files.keys().map(String::as_str).collect::<Vec<_>>(), names);
        assert_eq!(plan(&files, &wanted(), now()).unwrap(), vec![]);
        let info = CertificateInfo::from_pem(&files["pki/apiserver.crt"]).unwrap();
        for name in ["kubernetes.default.svc.cluster.local", "localhost", "master-1"] {
            assert!(
                info.alt_names.dns_names.iter().any(|present| present == name),
                "{name}"
            );
        }
        for address in ["127.0.0.1", "::1", "192.168.76.11", "10.96.0.1"] {
            assert!(
                info.alt_names.ip_addresses.contains(&address.parse().unwrap()),
                "{address}"
            );
        }
    }

    #[test]
    fn only_what_changed_is_written_again() {
        let mut files = founded();
        let mut moved = wanted();
        moved.advertise_address = "192.168.76.99".parse().unwrap();
        let writes = plan(&files, &moved, now()).unwrap();
        let names = apply(&mut files, writes);
        let renewed = [
            "pki/apiserver.key",
            "pki/apiserver.crt",
            "pki/etcd/server.key",
            "pki/etcd/server.crt",
        ];
        assert_eq!(names[..4], renewed);
        assert_eq!(names.len(), 6, "{names:?}");

        moved.server = Some("https://127.0.0.1:7443".into());
        let before = Kubeconfig::parse(&files[files::ADMIN]).unwrap();
        let writes = plan(&files, &moved, now()).unwrap();
        let names = apply(&mut files, writes);
        let kubeconfigs: Vec<&str> = KUBECONFIGS.iter().map(|(file, ..)| *file).collect();
        assert_eq!(names, kubeconfigs);
        let after = Kubeconfig::parse(&files[files::ADMIN]).unwrap();
        assert_eq!(after.credentials, before.credentials);
        assert_eq!(after.server, "https://127.0.0.1:7443");
    }

    #[test]
    fn leaves_are_renewed_in_time_and_authorities_never() {
        let mut files = founded();
        let early = now() + SignedDuration::from_hours(24 * 200);
        assert_eq!(plan(&files, &wanted(), early).unwrap(), vec![]);
        let late = now() + SignedDuration::from_hours(24 * 250);
        let authority = files["pki/ca.crt"].clone();
        let writes = plan(&files, &wanted(), late).unwrap();
        let names = apply(&mut files, writes);
        assert_eq!(names.len(), LEAVES.len() * 2 + KUBECONFIGS.len());
        assert_eq!(files["pki/ca.crt"], authority);
        assert_eq!(plan(&files, &wanted(), late).unwrap(), vec![]);
    }

    #[test]
    fn a_founding_cut_short_is_finished_whatever_was_written() {
        let writes = plan(&BTreeMap::new(), &wanted(), now()).unwrap();
        for cut in 0..writes.len() {
            let mut files = BTreeMap::new();
            apply(&mut files, writes[..cut].to_vec());
            let rest = plan(&files, &wanted(), now()).unwrap();
            apply(&mut files, rest);
            assert_eq!(
                plan(&files, &wanted(), now()).unwrap(),
                vec![],
                "cut after {cut} files"
            );
        }
    }

    #[test]
    fn a_foreign_or_damaged_directory_is_refused() {
        let files = founded();
        let mut other = wanted();
        other.cluster_id = Some("another".into());
        let refused = plan(&files, &other, now()).unwrap_err();
        assert!(matches!(refused, PlanError::OtherCluster { .. }), "{refused}");
        for gone in ["pki/ca.crt", "pki/ca.key", "pki/etcd/ca.key", "pki/sa.key"] {
            let mut files = files.clone();
            files.remove(gone);
            let refused = plan(&files, &wanted(), now()).unwrap_err();
            assert!(refused.to_string().contains(gone), "{refused}");
        }
        let mut garbled = files.clone();
        garbled.insert("pki/ca.key".into(), "garbage".into());
        assert!(
            plan(&garbled, &wanted(), now())
                .unwrap_err()
                .to_string()
                .contains("pki/ca.crt")
        );
    }

    #[test]
    fn a_given_token_wins_over_the_kept_one() {
        let mut files = founded();
        let mut given = wanted();
        given.bootstrap_token = Some(BootstrapToken::parse("abcdef.0123456789abcdef").unwrap());
        let writes = plan(&files, &given, now()).unwrap();
        assert_eq!(apply(&mut files, writes), [files::BOOTSTRAP_TOKEN]);
        assert_eq!(files[files::BOOTSTRAP_TOKEN], "abcdef.0123456789abcdef\n");
        assert_eq!(plan(&files, &wanted(), now()).unwrap(), vec![]);
    }
}
