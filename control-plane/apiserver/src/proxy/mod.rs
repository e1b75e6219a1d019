//! Requests that end at a kubelet, a pod or a service: resolved to a target, then carried byte by byte.

mod belief;
pub(crate) mod dial;
mod log_socket;
mod pod;
mod query;
mod rewrite;
pub(crate) mod service;
pub(crate) mod target;
pub(crate) mod transport;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};

use dial::Kubelets;
use rewrite::Links;
use target::Target;

use crate::connect::{Body, ConnectRequest, ConnectResponse};
use crate::status::ApiError;

/// Answers a request to `pods/{log,exec,attach,portforward,proxy}`, `nodes/proxy` or `services/proxy`.
pub async fn connect(request: ConnectRequest) -> Result<ConnectResponse, ApiError> {
    let ConnectRequest {
        info,
        mut request,
        config,
        reader,
        user: _,
    } = request;
    let query = request.uri().query().unwrap_or_default().to_owned();
    let reader = reader.as_ref();
    let kubelets = Kubelets::from(config.as_ref());
    match (info.resource.as_str(), info.subresource.as_str()) {
        ("pods", "log") => {
            let log = match pod::log(reader, &info, &query).await? {
                Some(target) => transport::fetch_log(kubelets, &target, &info.name).await?,
                // Not scheduled yet, so nothing has been logged.
                None => Response::new(empty()),
            };
            Ok(match log_socket::wish(request.headers())? {
                Some(wish) => log_socket::answer(wish, request, log.into_body()),
                None => log,
            })
        }
        ("pods", subresource @ ("exec" | "attach" | "portforward")) => {
            if !transport::is_upgrade(request.headers()) {
                return Err(ApiError::bad_request("Upgrade request required"));
            }
            let target = pod::stream(reader, &info, subresource, &query).await?;
            transport::forward(kubelets, target, request).await
        }
        (resource, "proxy") => {
            let slash = info.rest.is_empty() && !request.uri().path().ends_with('/');
            if slash && matches!(*request.method(), Method::GET | Method::HEAD) {
                return Ok(redirect_to_slash(request.uri(), &query));
            }
            let target = match resource {
                "pods" => service::pod(reader, &info, &query).await?,
                "services" => service::service(reader, &info, &query).await?,
                _ => service::node(reader, &info, &query).await?,
            };
            let links = links(&mut request, &info.rest, &target);
            let response = transport::forward(kubelets, target, request).await?;
            Ok(links.apply(response))
        }
        _ => Err(ApiError::no_such_path()),
    }
}

/// The backend is told where it is seen, so that it may write its links accordingly.
fn links<B>(request: &mut Request<B>, rest: &str, target: &Target) -> Links {
    let path = request.uri().path().to_owned();
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let links = Links::new(&path, rest, host.unwrap_or_default(), target.authority());
    if let Ok(path) = HeaderValue::from_str(&path) {
        request.headers_mut().insert("x-forwarded-uri", path);
    }
    links
}

/// Relative links of the proxied page resolve only below a path that ends with a slash.
fn redirect_to_slash(uri: &http::Uri, query: &str) -> ConnectResponse {
    let separator = if query.is_empty() { "" } else { "?" };
    let location = format!("{}/{separator}{query}", uri.path());
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
