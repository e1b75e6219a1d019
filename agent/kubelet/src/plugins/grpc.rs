//! One unary call to a plugin's socket.

use std::path::Path;
use std::time::Duration;

use prost::Message;
use tonic::Status;

/// Upstream's `csiTimeout`.
const TIMEOUT: Duration = Duration::from_secs(120);

pub async fn call<Q, A>(socket: &Path, path: &'static str, request: Q) -> Result<A, Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(cri_api::channel(socket));
    let ready = client.ready().await;
    ready.map_err(|error| Status::unavailable(format!("{}: {error}", socket.display())))?;
    let mut request = tonic::Request::new(request);
    request.set_timeout(TIMEOUT);
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    let path = http::uri::PathAndQuery::from_static(path);
    Ok(client.unary(request, path, codec).await?.into_inner())
}
