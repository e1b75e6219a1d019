//! The Container Runtime Interface v1 as Rust types, client and server traits.

use hyper_util::rt::TokioIo;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Everything of the protobuf package `runtime.v1`.
#[allow(clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// gRPC messages between kubelet and runtime may be this large (upstream's limit).
pub const MAX_MESSAGE_SIZE: usize = 16 * 1024 * 1024;

/// The path of `unix:///path`, or of a bare absolute path.
pub fn socket_path(endpoint: &str) -> Option<PathBuf> {
    let path = Path::new(endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    path.is_absolute().then(|| path.to_path_buf())
}

/// A channel to the runtime listening on a unix socket. Connects on first use
/// and again whenever the server has been restarted.
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    Endpoint::from_static("http://cri").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}

/// A client that accepts the largest answers a runtime may give.
pub fn runtime_client(channel: Channel) -> v1::runtime_service_client::RuntimeServiceClient<Channel> {
    v1::runtime_service_client::RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_SIZE)
}

pub fn image_client(channel: Channel) -> v1::image_service_client::ImageServiceClient<Channel> {
    v1::image_service_client::ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_name_a_unix_socket() {
        for (endpoint, path) in [
            ("unix:///run/cri.sock", Some("/run/cri.sock")),
            ("/run/cri.sock", Some("/run/cri.sock")),
            ("unix://run/cri.sock", None),
            ("tcp://127.0.0.1:1", None),
        ] {
            assert_eq!(
                socket_path(endpoint).as_deref(),
                path.map(Path::new),
                "{endpoint}"
            );
        }
    }
}
