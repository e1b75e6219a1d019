//! The registration service of a plugin (`pluginregistration.Registration`, v1).

use std::path::{Path, PathBuf};

use super::grpc::call;

#[derive(Clone, PartialEq, prost::Message)]
struct InfoRequest {}

#[derive(Clone, PartialEq, prost::Message)]
struct PluginInfo {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    endpoint: String,
    #[prost(string, repeated, tag = "4")]
    supported_versions: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    plugin_registered: bool,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RegistrationStatusResponse {}

pub struct Plugin {
    pub kind: String,
    pub name: String,
    pub endpoint: PathBuf,
}

pub async fn info(socket: &Path) -> Result<Plugin, String> {
    let path = "/pluginregistration.Registration/GetInfo";
    let info: PluginInfo = call(socket, path, InfoRequest {})
        .await
        .map_err(|status| status.message().to_owned())?;
    if info.name.is_empty() {
        return Err("the plugin has no name".into());
    }
    let endpoint = if info.endpoint.is_empty() {
        socket.to_owned()
    } else {
        PathBuf::from(info.endpoint.trim_start_matches("unix://"))
    };
    Ok(Plugin {
        kind: info.kind,
        name: info.name,
        endpoint,
    })
}

/// Tells the plugin what has become of its registration.
pub async fn notify(socket: &Path, error: Option<&str>) -> Result<(), String> {
    let status = RegistrationStatus {
        plugin_registered: error.is_none(),
        error: error.unwrap_or_default().to_owned(),
    };
    let path = "/pluginregistration.Registration/NotifyRegistrationStatus";
    let answer: Result<RegistrationStatusResponse, _> = call(socket, path, status).await;
    answer.map(drop).map_err(|status| status.message().to_owned())
}
