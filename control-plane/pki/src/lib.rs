//! The cluster's cryptographic identity as pure functions: certificates, keys, bootstrap tokens, signed
//! discovery, service-account tokens and kubeconfigs. PEM and text in and out; no files, no sockets, no clock.

mod authority;
mod certificate;
mod discovery;
mod key;
mod kubeconfig;
mod names;
mod pem;
mod request;
mod service_account;
mod token;

pub use authority::{AuthorityError, CertificateAuthority, Identity, LeafRequest};
pub use certificate::{CertificateError, CertificateInfo, ca_pin, split_bundle};
pub use discovery::{DiscoveryError, cluster_info_signature, verify_cluster_info};
pub use key::{KeyError, PrivateKey};
pub use kubeconfig::{Credentials, Kubeconfig, KubeconfigError};
pub use names::{Subject, SubjectAltNames, Usage};
pub use request::{CertificateRequest, RequestError};
pub use service_account::{
    BoundObject, JwtError, KubernetesClaims, LEGACY_ISSUER, LegacyClaims, ServiceAccountKey,
    ServiceAccountVerifier, TokenClaims, looks_like_jwt,
};
pub use token::{BootstrapToken, TokenError};
