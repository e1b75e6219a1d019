//! The gRPC health protocol (`grpc.health.v1.Health/Check`).

use std::time::Duration;

use super::http::join;

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SERVING` of the protocol's `ServingStatus`.
const SERVING: i32 = 1;

pub async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, call(host, port, service)).await {
        Err(_) => Err(format!(
            "timeout: health rpc did not complete within {}s",
            timeout.as_secs()
        )),
        Ok(Err(error)) => Err(error),
        Ok(Ok(SERVING)) => Ok(()),
        Ok(Ok(status)) => {
            let name = match status {
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "UNKNOWN",
            };
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
    }
}

async fn call(host: &str, port: u16, service: &str) -> Result<i32, String> {
    let address = join(host, port);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint
        .map_err(|error| error.to_string())?
        .user_agent("kube-probe/1.36");
    let channel = endpoint.map_err(|error| error.to_string())?.connect().await;
    let channel = channel.map_err(|_| format!("timeout: failed to connect service \"{address}\""))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| error.to_string())?;
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = tonic::Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let response = client.unary(request, path, codec).await;
    Ok(response
        .map_err(|status| format!("health rpc failed: {}", status.message()))?
        .into_inner()
        .status)
}
