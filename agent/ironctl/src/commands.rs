//! What each command asks and prints.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, anyhow};
use node_api::v1::{
    DisksRequest, DmesgRequest, EtcdMembersRequest, EtcdSnapshotRequest, LinksRequest, LogsRequest,
    RebootRequest, ResetRequest, ServicesRequest, ShutdownRequest, StatusRequest, TopRequest, VersionRequest,
};
use serde::Serialize;
use tonic::{Response, Status};

use crate::connect::{Connection, Target, explain_status};
use crate::{Command, Etcd, Output, Restart, bundle, show, upgrade};

pub async fn run(target: &Target, command: Command, output: Output) -> anyhow::Result<()> {
    let mut node = target.connect().await?;
    match command {
        Command::Version => print(node.version(VersionRequest {}).await, output, show::version),
        Command::Status => print(node.status(StatusRequest {}).await, output, show::status),
        Command::Services => print(node.services(ServicesRequest {}).await, output, show::services),
        Command::Top { limit } => print(node.top(TopRequest {}).await, output, |info| {
            show::top(info, limit)
        }),
        Command::Disks => print(node.disks(DisksRequest {}).await, output, show::disks),
        Command::Links => print(node.links(LinksRequest {}).await, output, show::links),
        Command::Logs {
            service,
            follow,
            tail,
        } => {
            let request = LogsRequest {
                service,
                follow,
                tail,
            };
            let mut stream = node
                .logs(request)
                .await
                .map_err(|status| failed(&status))?
                .into_inner();
            while let Some(message) = stream.message().await.map_err(|status| failed(&status))? {
                write(&message.lines, output, |line| format!("{line}\n"))?;
            }
            Ok(())
        }
        Command::Dmesg { follow } => {
            let answer = node.dmesg(DmesgRequest { follow }).await;
            let mut stream = answer.map_err(|status| failed(&status))?.into_inner();
            while let Some(message) = stream.message().await.map_err(|status| failed(&status))? {
                write(&message.messages, output, show::kernel_message)?;
            }
            Ok(())
        }
        Command::Reboot => done(node.reboot(RebootRequest {}).await, "the machine restarts"),
        Command::Shutdown => done(node.shutdown(ShutdownRequest {}).await, "the machine goes off"),
        Command::Upgrade { image, restart } => {
            upgrade::upgrade(target, &mut node, &image, &after(&restart)).await
        }
        Command::Rollback { restart } => upgrade::rollback(target, &mut node, &after(&restart)).await,
        Command::Reset { .. } => done(
            node.reset(ResetRequest {}).await,
            "the machine restarts, and its state is emptied on the way",
        ),
        Command::Etcd(Etcd::Members) => print(
            node.etcd_members(EtcdMembersRequest {}).await,
            output,
            show::etcd_members,
        ),
        Command::Etcd(Etcd::Snapshot { file }) => snapshot(&mut node, &file).await,
        Command::SupportBundle { file } => bundle::write(&mut node, &file).await,
    }
}

fn after(restart: &Restart) -> upgrade::After {
    upgrade::After {
        drain: restart.drain,
        no_reboot: restart.no_reboot,
        no_wait: restart.no_wait,
    }
}

/// Readable by its owner alone: it holds the cluster's Secrets.
async fn snapshot(node: &mut Connection, path: &Path) -> anyhow::Result<()> {
    let answer = node.etcd_snapshot(EtcdSnapshotRequest {}).await;
    let mut stream = answer.map_err(|status| failed(&status))?.into_inner();
    let partial = path.with_extension("partial");
    let at = || partial.display().to_string();
    let mut options = File::options();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial);
    let mut file = file.with_context(at)?;
    let mut size = 0;
    while let Some(part) = stream.message().await.map_err(|status| failed(&status))? {
        file.write_all(&part.data).with_context(at)?;
        size += part.data.len() as u64;
    }
    file.sync_all().with_context(at)?;
    std::fs::rename(&partial, path).with_context(at)?;
    writeln!(std::io::stdout(), "{}: {}", path.display(), show::bytes(size))?;
    Ok(())
}

pub fn failed(status: &Status) -> anyhow::Error {
    anyhow!(explain_status(status))
}

fn print<T: Serialize>(
    answer: Result<Response<T>, Status>,
    output: Output,
    text: impl Fn(&T) -> String,
) -> anyhow::Result<()> {
    let answer = answer.map_err(|status| failed(&status))?.into_inner();
    let text = match output {
        Output::Text => text(&answer),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&answer)?),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Parts of a stream as they come; JSON is one value a line.
fn write<T: Serialize>(parts: &[T], output: Output, text: impl Fn(&T) -> String) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for part in parts {
        let line = match output {
            Output::Text => text(part),
            Output::Json => format!("{}\n", serde_json::to_string(part)?),
        };
        out.write_all(line.as_bytes())?;
    }
    Ok(out.flush()?)
}

fn done<T>(answer: Result<Response<T>, Status>, said: &str) -> anyhow::Result<()> {
    answer.map_err(|status| failed(&status))?;
    writeln!(std::io::stdout(), "{said}")?;
    Ok(())
}
