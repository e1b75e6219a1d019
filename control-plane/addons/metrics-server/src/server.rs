//! The HTTPS side: who asks, may they, and the answer.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use api_client::{Patience, Reviews};
use auth::UserInfo;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::discovery;
use crate::objects::{self, GROUP};
use crate::request::{Question, Target, parameter};
use crate::state::{Selection, State};
use crate::trust::{self, Peer, Trust};

/// Upstream's defaults.
pub const PATIENCE: Patience = Patience {
    token: Duration::from_secs(10),
    allowed: Duration::from_secs(10),
    denied: Duration::from_secs(10),
};
const HANDSHAKE: Duration = Duration::from_secs(10);
/// They may do everything, so nobody is asked.
const MASTERS: &str = "system:masters";

type Answer = Response<Full<Bytes>>;

pub struct Server {
    pub state: Arc<State>,
    pub reviews: Reviews,
    pub trust: trust::Current,
}

/// Accepts until the process ends.
pub async fn serve(server: Arc<Server>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = server.connection(stream).await {
                        tracing::debug!(%peer, error, "connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Server {
    async fn connection(self: Arc<Self>, stream: TcpStream) -> Result<(), String> {
        let Some(trust) = trust::current(&self.trust) else {
            return Err("whom to believe is not known yet".to_owned());
        };
        let accepting = TlsAcceptor::from(trust.tls.clone()).accept(stream);
        let stream = tokio::time::timeout(HANDSHAKE, accepting)
            .await
            .map_err(|_| "TLS handshake timed out".to_owned())?
            .map_err(|error| error.to_string())?;
        let peer = trust.peer(stream.get_ref().1.peer_certificates());
        let service = service_fn(|request| {
            let (server, trust, peer) = (self.clone(), trust.clone(), peer.clone());
            async move { Ok::<_, Infallible>(server.answer(&trust, peer, &request).await) }
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(|error| error.to_string())
    }

    async fn answer(&self, trust: &Trust, peer: Peer, request: &Request<Incoming>) -> Answer {
        let (method, path) = (request.method(), request.uri().path());
        if let Some(answer) = self.health(path) {
            return answer;
        }
        let user = match peer {
            Peer::FrontProxy => trust.named(request.headers()),
            Peer::User(user) => Some(user),
            Peer::Unknown => self.token_user(request.headers()).await,
        };
        let Some(user) = user else {
            return failure(
                StatusCode::UNAUTHORIZED,
                "Unauthorized",
                "Unauthorized",
                json!({}),
            );
        };
        let question = Question::new(method, path);
        if !user.in_group(MASTERS) {
            let verdict = match self.reviews.verdict(question.review(&user)).await {
                Ok(verdict) => verdict,
                Err(error) => {
                    let message = format!("Internal Server Error: {path:?}: {error}");
                    return failure(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "InternalError",
                        &message,
                        json!({}),
                    );
                }
            };
            if !verdict.allowed {
                let message = question.forbidden(&user, &verdict.reason);
                return failure(
                    StatusCode::FORBIDDEN,
                    "Forbidden",
                    &message,
                    details(question.target.as_ref()),
                );
            }
        }
        match &question.target {
            Some(target) => self.metrics(target, request),
            None => document(path),
        }
    }

    async fn token_user(&self, headers: &HeaderMap) -> Option<UserInfo> {
        let token = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = token.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        match self.reviews.user(token.trim()).await {
            Ok(user) => user.map(|user| UserInfo {
                name: user.username.unwrap_or_default(),
                uid: user.uid.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                extra: user.extra.unwrap_or_default(),
            }),
            Err(error) => {
                tracing::warn!(%error, "token not reviewed");
                None
            }
        }
    }

    /// Upstream's checks; anybody may look.
    fn health(&self, path: &str) -> Option<Answer> {
        let timely = ("metric-collection-timely", self.state.is_timely());
        let stored = ("metric-storage-ready", self.state.has_metrics());
        let (name, checks) = match path {
            "/livez" => ("livez", vec![("ping", true), timely]),
            "/healthz" => ("healthz", vec![("ping", true)]),
            "/readyz" => ("readyz", vec![("ping", true), stored]),
            _ => return None,
        };
        if checks.iter().all(|(_, good)| *good) {
            return Some(text(StatusCode::OK, "ok".to_owned()));
        }
        let mut lines: String = checks
            .iter()
            .map(|(check, good)| match good {
                true => format!("[+]{check} ok\n"),
                false => format!("[-]{check} failed: reason withheld\n"),
            })
            .collect();
        lines.push_str(&format!("{name} check failed\n"));
        Some(text(StatusCode::INTERNAL_SERVER_ERROR, lines))
    }

    fn metrics(&self, target: &Target, request: &Request<Incoming>) -> Answer {
        let kind = match (target.resource.as_str(), &target.namespace, &target.name) {
            ("nodes", None, _) => "NodeMetrics",
            ("pods", None, None) | ("pods", Some(_), _) => "PodMetrics",
            _ => return not_found(),
        };
        let query = request.uri().query();
        let watching =
            parameter(query, "watch").is_some_and(|value| !matches!(value.as_str(), "0" | "false"));
        if request.method() != Method::GET || watching {
            let message = "the server does not allow this method on the requested resource";
            return failure(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                message,
                details(Some(target)),
            );
        }
        let bad = |message: &str| failure(StatusCode::BAD_REQUEST, "BadRequest", message, json!({}));
        let labels = parameter(query, "labelSelector").unwrap_or_default();
        let labels = match api::selector::parse(&labels) {
            Ok(labels) => labels,
            Err(error) => return bad(&error.to_string()),
        };
        let fields = parameter(query, "fieldSelector").unwrap_or_default();
        let mut items = match self.state.items(target, &Selection { labels, fields }) {
            Ok(items) => items,
            Err(message) => return bad(&message),
        };
        if wants_table(request.headers()) && (target.name.is_none() || !items.is_empty()) {
            return answer(StatusCode::OK, &objects::table(&items));
        }
        match (&target.name, items.pop()) {
            (None, last) => {
                items.extend(last);
                answer(StatusCode::OK, &objects::list(kind, items))
            }
            (Some(_), Some(item)) => answer(StatusCode::OK, &item.value),
            (Some(name), None) => {
                let name = match &target.namespace {
                    Some(namespace) => format!("{namespace}/{name}"),
                    None => name.clone(),
                };
                let kind = kind.to_ascii_lowercase();
                let message = format!("{kind}.{GROUP} \"{name}\" not found");
                let details = json!({"name": name, "group": GROUP, "kind": kind});
                failure(StatusCode::NOT_FOUND, "NotFound", &message, details)
            }
        }
    }
}

fn document(path: &str) -> Answer {
    let document = match path.trim_end_matches('/') {
        "/apis" => discovery::groups(),
        "/apis/metrics.k8s.io" => discovery::group(),
        "/apis/metrics.k8s.io/v1beta1" => discovery::resources(),
        "/openapi/v2" => discovery::openapi_v2(),
        "/openapi/v3" => discovery::openapi_v3_index(),
        path if discovery::is_openapi_v3(path) => discovery::openapi_v3(),
        "/version" => discovery::product(),
        _ => return not_found(),
    };
    answer(StatusCode::OK, &document)
}

fn wants_table(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).into_iter();
    let mut kinds = accept
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    kinds.any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        parts.next() == Some("application/json") && parts.any(|part| part == "as=Table")
    })
}

fn details(target: Option<&Target>) -> Value {
    let Some(target) = target else {
        return json!({});
    };
    let mut details = json!({"group": GROUP, "kind": target.resource});
    if let Some(name) = &target.name {
        details["name"] = name.as_str().into();
    }
    details
}

fn not_found() -> Answer {
    let message = "the server could not find the requested resource";
    failure(StatusCode::NOT_FOUND, "NotFound", message, json!({}))
}

fn failure(status: StatusCode, reason: &str, message: &str, details: Value) -> Answer {
    let value = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "details": details, "code": status.as_u16()});
    answer(status, &value)
}

fn answer(status: StatusCode, value: &Value) -> Answer {
    typed(status, "application/json", value.to_string())
}

fn text(status: StatusCode, body: String) -> Answer {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
