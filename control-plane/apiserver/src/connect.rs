//! The seam between the engine and the kubelet/service proxy: requests that become streams.

use std::sync::Arc;

use auth::UserInfo;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;

use crate::config::Config;
use crate::pipeline::ObjectReader;
use crate::request_info::RequestInfo;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every response.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A request to `pods/{log,exec,attach,portforward,proxy}`, `nodes/proxy` or `services/proxy`,
/// authenticated, authorized and admitted. `proxy::connect(ConnectRequest) -> Result<Response<Body>, ApiError>`
/// answers it; upgrades are taken with `hyper::upgrade::on(&mut request)`.
pub struct ConnectRequest {
    pub info: RequestInfo,
    pub user: UserInfo,
    pub request: Request<Incoming>,
    pub config: Arc<Config>,
    pub reader: Arc<dyn ObjectReader>,
}

pub type ConnectResponse = Response<Body>;
