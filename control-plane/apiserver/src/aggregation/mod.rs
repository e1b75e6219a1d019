//! Extension API servers: which group versions are theirs, and the way there. Upstream: kube-aggregator.

pub mod availability;
pub mod discovery;
mod reach;
pub mod registration;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use auth::UserInfo;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::Value;

use crate::connect::Body;
use crate::endpoints::plain;
use crate::object::{self, text};
use crate::proxy::transport;
use crate::request_info::RequestInfo;
use crate::state::ApiServer;

pub const GROUP: &str = "apiregistration.k8s.io";
pub const PLURAL: &str = "apiservices";
const DEFAULT_PORT: u16 = 443;

/// An APIService that another server answers for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    pub name: String,
    pub group: String,
    pub version: String,
    pub group_priority: i64,
    pub version_priority: i64,
    pub service_namespace: String,
    pub service: String,
    pub port: u16,
    /// PEM; empty: nobody's certificate is believed, unless `insecure`.
    pub ca: String,
    pub insecure: bool,
    pub available: bool,
}

impl Remote {
    /// None when the API is served here.
    pub fn of(service: &Value) -> Option<Self> {
        let spec = &service["spec"];
        let reference = spec["service"].as_object()?;
        let part = |name: &str| {
            reference
                .get(name)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let port = reference.get("port").and_then(Value::as_u64);
        let ca = STANDARD.decode(text(spec, "/caBundle")).unwrap_or_default();
        let conditions = service["status"]["conditions"].as_array();
        Some(Self {
            name: object::name(service).to_owned(),
            group: text(spec, "/group").to_owned(),
            version: text(spec, "/version").to_owned(),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            service_namespace: part("namespace"),
            service: part("name"),
            port: port
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or(DEFAULT_PORT),
            ca: String::from_utf8_lossy(&ca).into_owned(),
            insecure: spec["insecureSkipTLSVerify"] == true,
            available: conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Available" && condition["status"] == "True"),
        })
    }

    pub fn group_version(&self) -> String {
        format!("{}/{}", self.group, self.version)
    }

    /// The name its certificate must have.
    fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.service_namespace)
    }
}

/// What is known about extension API servers.
#[derive(Default)]
pub struct Aggregator {
    remotes: RwLock<Arc<Vec<Remote>>>,
    /// The last APIResourceList of each group version.
    resources: RwLock<BTreeMap<String, Arc<Value>>>,
}

impl Aggregator {
    pub fn remotes(&self) -> Arc<Vec<Remote>> {
        self.remotes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_remotes(&self, remotes: Vec<Remote>) {
        self.resources
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|known, _| remotes.iter().any(|remote| remote.group_version() == *known));
        *self.remotes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(remotes);
    }

    fn resources(&self, remote: &Remote) -> Option<Arc<Value>> {
        let known = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&remote.group_version()).cloned()
    }

    fn set_resources(&self, remote: &Remote, list: Value) {
        let mut known = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(remote.group_version(), Arc::new(list));
    }

    /// The server that answers for this path.
    pub fn find(&self, info: &RequestInfo) -> Option<Remote> {
        let mut parts = info.path.split('/').filter(|part| !part.is_empty());
        if parts.next() != Some("apis") {
            return None;
        }
        let (group, version) = (parts.next()?, parts.next()?);
        let remotes = self.remotes();
        remotes
            .iter()
            .find(|remote| remote.group == group && remote.version == version)
            .cloned()
    }
}

/// Sends the request on; nothing of it is understood here.
pub async fn proxy(
    server: &ApiServer,
    remote: &Remote,
    user: &UserInfo,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let unavailable = |why: &str| {
        plain(
            StatusCode::SERVICE_UNAVAILABLE,
            "text/plain; charset=utf-8",
            format!("{why}\n"),
        )
    };
    if !remote.available {
        return unavailable("service unavailable");
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let target = match reach::resolve(server, remote, path.to_owned()).await {
        Ok(target) => target,
        Err(error) => {
            tracing::warn!(apiservice = remote.name, %error, "cannot be resolved");
            return unavailable("service unavailable");
        }
    };
    let claims = &server.config.front_proxy.headers;
    let forged: Vec<HeaderName> = request
        .headers()
        .keys()
        .filter(|name| claims.claims(name.as_str()))
        .cloned()
        .collect();
    for name in forged {
        request.headers_mut().remove(name);
    }
    for (name, value) in auth::front_proxy_headers(user) {
        // A user whose name is no header value cannot be told; the other side then refuses.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            request.headers_mut().append(name, value);
        }
    }
    let connecting = reach::connect(server, remote, &target);
    match transport::carry(connecting, &target, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(apiservice = remote.name, error, "cannot be reached");
            unavailable(&format!("error trying to reach service: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn group_versions_of_others_are_found_by_path() {
        let service = json!({"metadata": {"name": "v1alpha1.wardle.example.com"}, "spec": {"group": "wardle.example.com",
            "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200, "caBundle": STANDARD.encode("PEM"),
            "service": {"namespace": "ns", "name": "sample-api", "port": 7443}},
            "status": {"conditions": [{"type": "Available", "status": "True"}]}});
        let remote = Remote::of(&service).unwrap();
        assert!(remote.available && !remote.insecure);
        assert_eq!((remote.ca.as_str(), remote.port), ("PEM", 7443));
        assert_eq!(remote.host(), "sample-api.ns.svc");
        let aggregator = Aggregator::default();
        aggregator.set_remotes(vec![remote]);
        for (path, found) in [
            ("/apis/wardle.example.com/v1alpha1", true),
            ("/apis/wardle.example.com/v1alpha1/namespaces/a/flunders/b", true),
            ("/apis/wardle.example.com", false),
            ("/apis/wardle.example.com/v1beta1", false),
            ("/api/wardle.example.com/v1alpha1", false),
        ] {
            let info = RequestInfo::parse(&http::Method::GET, path, "");
            assert_eq!(aggregator.find(&info).is_some(), found, "{path}");
        }
        assert_eq!(
            Remote::of(&json!({"spec": {"group": "apps", "version": "v1"}})),
            None
        );
    }
}
