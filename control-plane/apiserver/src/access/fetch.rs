//! JSON from a web server.

use std::time::Duration;

use http::header::{ACCEPT, HOST};
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use rustls::ClientConfig;
use serde_json::Value;

use crate::connect::{Body, BoxError};
use crate::proxy::target::{Scheme, Target};
use crate::proxy::{dial, transport};

const LIMIT: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

pub async fn json(url: &str, tls: &ClientConfig) -> Result<Value, String> {
    tokio::time::timeout(PATIENCE, get(url, tls))
        .await
        .unwrap_or_else(|_| Err("context deadline exceeded".into()))
        .map_err(|why| format!("Get {url:?}: {why}"))
}

async fn get(url: &str, tls: &ClientConfig) -> Result<Value, BoxError> {
    let url: Uri = url.parse()?;
    let scheme = match url.scheme_str() {
        Some("https") => Scheme::Https,
        Some("http") => Scheme::Http,
        _ => return Err("unsupported protocol scheme".into()),
    };
    let usual = if scheme == Scheme::Https { 443 } else { 80 };
    let target = Target {
        scheme,
        host: url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
        port: url.port_u16().unwrap_or(usual),
        path: url.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
    };
    let nothing: Body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let request = Request::get(&target.path)
        .header(HOST, url.authority().map_or("", |authority| authority.as_str()))
        .header(ACCEPT, "application/json")
        .body(nothing)?;
    let tls = (scheme == Scheme::Https).then(|| (target.host.as_str(), tls.clone()));
    let response = transport::send(dial::connect(&target, tls), &target, request).await?;
    let status = response.status();
    let bytes = Limited::new(response.into_body(), LIMIT)
        .collect()
        .await?
        .to_bytes();
    if !status.is_success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&bytes)).into());
    }
    Ok(serde_json::from_slice(&bytes)?)
}
