//! `ironctl support-bundle`: everything the node API shows, in one archive for whoever is asked for help. No secrets:
//! only what `get` on nodes/ironlet shows.

use std::fs::File;
use std::path::Path;

use anyhow::Context;
use node_api::v1::{
    DisksRequest, DmesgRequest, EtcdMembersRequest, LinksRequest, LogsRequest, ServicesRequest,
    StatusRequest, TopRequest, VersionRequest,
};
use serde::Serialize;
use tonic::{Response, Status};

use crate::connect::{Connection, explain_status};
use crate::show;

/// What could not be had is said in the archive.
type Part = (String, Result<Vec<u8>, Status>);

fn json<T: Serialize>(name: &str, answer: Result<Response<T>, Status>) -> Part {
    let text = answer.map(|answer| serde_json::to_vec_pretty(answer.get_ref()).unwrap_or_default());
    (format!("{name}.json"), text)
}

async fn log(node: &mut Connection, service: String) -> Part {
    let name = format!("logs/{service}.txt");
    let request = LogsRequest {
        service,
        ..LogsRequest::default()
    };
    let collect = async {
        let mut stream = node.logs(request).await?.into_inner();
        let mut text = String::new();
        while let Some(message) = stream.message().await? {
            message.lines.iter().for_each(|line| text += &format!("{line}\n"));
        }
        Ok(text.into_bytes())
    };
    (name, collect.await)
}

async fn dmesg(node: &mut Connection) -> Part {
    let collect = async {
        let mut stream = node.dmesg(DmesgRequest { follow: false }).await?.into_inner();
        let mut text = String::new();
        while let Some(message) = stream.message().await? {
            message
                .messages
                .iter()
                .for_each(|message| text += &show::kernel_message(message));
        }
        Ok(text.into_bytes())
    };
    ("dmesg.txt".to_owned(), collect.await)
}

pub async fn write(node: &mut Connection, path: &Path) -> anyhow::Result<()> {
    let services = node.services(ServicesRequest {}).await;
    let names: Vec<String> = match &services {
        Ok(list) => list
            .get_ref()
            .services
            .iter()
            .map(|service| service.name.clone())
            .collect(),
        Err(_) => vec![],
    };
    let mut parts = vec![
        json("version", node.version(VersionRequest {}).await),
        json("status", node.status(StatusRequest {}).await),
        json("services", services),
        json("top", node.top(TopRequest {}).await),
        json("disks", node.disks(DisksRequest {}).await),
        json("links", node.links(LinksRequest {}).await),
        json("etcd-members", node.etcd_members(EtcdMembersRequest {}).await),
        dmesg(node).await,
    ];
    for name in names {
        parts.push(log(node, name).await);
    }
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let mut archive = tar::Builder::new(file);
    let mut had = 0;
    let mut missing = String::new();
    for (name, part) in &parts {
        match part {
            Ok(bytes) => {
                had += 1;
                append(&mut archive, name, bytes)?;
            }
            Err(status) => missing += &format!("{name}: {}\n", explain_status(status)),
        }
    }
    append(&mut archive, "missing.txt", missing.as_bytes())?;
    archive.into_inner()?.sync_all()?;
    println!("{}: {had} of {} parts", path.display(), parts.len());
    eprint!("{missing}");
    Ok(())
}

fn append(archive: &mut tar::Builder<File>, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    Ok(archive.append_data(&mut header, name, bytes)?)
}
