//! The part of a volume driver's node service that a kubelet uses (CSI 1.x, `csi.v1.Node`).

use std::collections::HashMap;
use std::path::Path;

use crate::plugins::grpc::call;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Topology {
    #[prost(map = "string, string", tag = "1")]
    pub segments: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeInfo {
    #[prost(string, tag = "1")]
    pub node_id: String,
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
    #[prost(message, optional, tag = "3")]
    pub accessible_topology: Option<Topology>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Rpc {
    #[prost(int32, tag = "1")]
    kind: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Capability {
    #[prost(message, optional, tag = "1")]
    rpc: Option<Rpc>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Capabilities {
    #[prost(message, repeated, tag = "1")]
    capabilities: Vec<Capability>,
}

/// What a driver can do, by the protocol's numbers.
pub const STAGE_UNSTAGE: i32 = 1;
pub const SINGLE_NODE_MULTI_WRITER: i32 = 5;
pub const VOLUME_MOUNT_GROUP: i32 = 6;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub fs_type: String,
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
    #[prost(string, tag = "3")]
    pub volume_mount_group: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct AccessMode {
    #[prost(int32, tag = "1")]
    pub mode: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct VolumeCapability {
    #[prost(message, optional, tag = "1")]
    pub block: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub mount: Option<Mount>,
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<AccessMode>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct StageRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(map = "string, string", tag = "2")]
    pub publish_context: HashMap<String, String>,
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(map = "string, string", tag = "5")]
    pub secrets: HashMap<String, String>,
    #[prost(map = "string, string", tag = "6")]
    pub volume_context: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct PublishRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(map = "string, string", tag = "2")]
    pub publish_context: HashMap<String, String>,
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    #[prost(string, tag = "4")]
    pub target_path: String,
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    #[prost(map = "string, string", tag = "7")]
    pub secrets: HashMap<String, String>,
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

/// Both ends of a volume's life on a node are undone by id and path.
#[derive(Clone, PartialEq, prost::Message)]
pub struct UndoRequest {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub path: String,
}

async fn ask<Q, A>(socket: &Path, path: &'static str, request: Q) -> Result<A, String>
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let answer = call(socket, path, request).await;
    answer.map_err(|status| {
        format!(
            "rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        )
    })
}

pub async fn node_info(socket: &Path) -> Result<NodeInfo, String> {
    ask(socket, "/csi.v1.Node/NodeGetInfo", Empty {}).await
}

pub async fn capabilities(socket: &Path) -> Result<Vec<i32>, String> {
    let answer: Capabilities = ask(socket, "/csi.v1.Node/NodeGetCapabilities", Empty {}).await?;
    Ok(answer
        .capabilities
        .into_iter()
        .filter_map(|one| Some(one.rpc?.kind))
        .collect())
}

pub async fn stage(socket: &Path, request: StageRequest) -> Result<(), String> {
    let answer: Result<Empty, _> = ask(socket, "/csi.v1.Node/NodeStageVolume", request).await;
    answer.map(drop)
}

pub async fn unstage(socket: &Path, request: UndoRequest) -> Result<(), String> {
    let answer: Result<Empty, _> = ask(socket, "/csi.v1.Node/NodeUnstageVolume", request).await;
    answer.map(drop)
}

pub async fn publish(socket: &Path, request: PublishRequest) -> Result<(), String> {
    let answer: Result<Empty, _> = ask(socket, "/csi.v1.Node/NodePublishVolume", request).await;
    answer.map(drop)
}

pub async fn unpublish(socket: &Path, request: UndoRequest) -> Result<(), String> {
    let answer: Result<Empty, _> = ask(socket, "/csi.v1.Node/NodeUnpublishVolume", request).await;
    answer.map(drop)
}
