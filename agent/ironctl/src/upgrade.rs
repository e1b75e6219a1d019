//! `ironctl upgrade` and `rollback`: send the image, empty the node where asked, restart, and see what became of it.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use node_api::v1::{
    LastUpgrade, RebootRequest, RollbackRequest, StatusRequest, UpgradeHeader, UpgradePart, UpgradeResult,
    upgrade_part::Part,
};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::commands::failed;
use crate::connect::{Connection, Target};
use crate::drain;
use crate::image::{Image, Source};
use crate::show::bytes;

/// Bytes in one message.
const CHUNK: usize = 1 << 20;
const LOOK: Duration = Duration::from_secs(3);
/// Two tries of a system that init leaves after ten minutes, and a way back.
const OUTCOME_WITHIN: Duration = Duration::from_secs(30 * 60);

/// What happens after the next boot's system is set.
pub struct After {
    pub drain: bool,
    pub no_reboot: bool,
    pub no_wait: bool,
}

pub async fn upgrade(
    target: &Target,
    node: &mut Connection,
    from: &str,
    after: &After,
) -> anyhow::Result<()> {
    let source = Source::parse(from);
    let image = source.image().await?;
    eprintln!("sending {} to the idle slot", bytes(image.size));
    let result = send(node, source, image).await?;
    let signature = match result.signature_checked {
        true => "signed by the machine's key",
        false => "its signature was not looked at: the machine has no ironlet.upgrade-key",
    };
    println!(
        "slot {} has Ironlet {}, read back ({signature})",
        result.slot, result.version
    );
    restart(target, node, after).await
}

pub async fn rollback(target: &Target, node: &mut Connection, after: &After) -> anyhow::Result<()> {
    let result = node
        .rollback(RollbackRequest {})
        .await
        .map_err(|status| failed(&status))?
        .into_inner();
    println!("the next boot starts slot {}", described(&result));
    restart(target, node, after).await
}

fn described(result: &UpgradeResult) -> String {
    match result.version.as_str() {
        "" => result.slot.clone(),
        version => format!("{} (Ironlet {version})", result.slot),
    }
}

async fn send(node: &mut Connection, source: Source, image: Image) -> anyhow::Result<UpgradeResult> {
    let (sender, receiver) = mpsc::channel(4);
    let header = UpgradeHeader {
        manifest: image.manifest,
        signature: image.signature,
        kernel: image.names[0].to_owned(),
        initramfs: image.names[1].to_owned(),
    };
    let reading = tokio::spawn(async move {
        let part = |part| UpgradePart { part: Some(part) };
        if sender.send(part(Part::Header(header))).await.is_err() {
            return anyhow::Ok(());
        }
        let mut progress = Progress::new(image.size);
        for name in image.names {
            let mut stream = source.open(name).await?;
            loop {
                let mut chunk = Vec::with_capacity(CHUNK);
                let read = (&mut stream).take(CHUNK as u64).read_to_end(&mut chunk).await;
                if read.with_context(|| name.to_owned())? == 0 {
                    break;
                }
                progress.add(chunk.len() as u64);
                if sender.send(part(Part::Data(chunk))).await.is_err() {
                    // The node has had enough, and says why.
                    return Ok(());
                }
            }
        }
        Ok(())
    });
    let sent = node
        .upgrade(tokio_stream::wrappers::ReceiverStream::new(receiver))
        .await;
    // What cannot be read here is why the node got too little.
    if reading.is_finished() || sent.is_ok() {
        reading.await??;
    } else {
        reading.abort();
    }
    Ok(sent.map_err(|status| failed(&status))?.into_inner())
}

/// A line that counts, for people.
struct Progress {
    size: u64,
    sent: u64,
    terminal: bool,
}

impl Progress {
    fn new(size: u64) -> Self {
        Self {
            size,
            sent: 0,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn add(&mut self, count: u64) {
        self.sent += count;
        if self.terminal {
            let end = if self.sent >= self.size { "\n" } else { "" };
            eprint!("\r{} of {} {end}", bytes(self.sent), bytes(self.size));
        }
    }
}

async fn restart(target: &Target, node: &mut Connection, after: &After) -> anyhow::Result<()> {
    if after.no_reboot {
        println!("the next boot tries it");
        return Ok(());
    }
    let before = node
        .status(StatusRequest {})
        .await
        .map_err(|status| failed(&status))?
        .into_inner();
    let cordoned = match after.drain {
        true => drain::drain(&target.api().await?, &before.node).await?,
        false => false,
    };
    node.reboot(RebootRequest {})
        .await
        .map_err(|status| failed(&status))?;
    println!("the machine restarts");
    if after.no_wait {
        return Ok(());
    }
    let last = outcome(target, &before.boot_id).await?;
    if cordoned {
        drain::uncordon(&target.api().await?, &before.node).await?;
    }
    match last.outcome.as_str() {
        "kept" => {
            println!("the node is Ready with slot {}: it is kept", last.to);
            Ok(())
        }
        _ if last.reason.is_empty() => Err(anyhow!("slot {} was not kept", last.to)),
        _ => Err(anyhow!("slot {} was not kept: {}", last.to, last.reason)),
    }
}

/// Waits for another boot that has a verdict.
async fn outcome(target: &Target, boot_before: &str) -> anyhow::Result<LastUpgrade> {
    let deadline = Instant::now() + OUTCOME_WITHIN;
    loop {
        tokio::time::sleep(LOOK).await;
        let asked = async {
            let mut node = target.connect().await.map_err(|error| error.to_string())?;
            let status = node
                .status(StatusRequest {})
                .await
                .map_err(|status| status.message().to_owned())?;
            Ok::<_, String>(status.into_inner())
        };
        let complaint = match asked.await {
            Ok(status) if status.boot_id == boot_before => "it has not restarted yet".to_owned(),
            Ok(status) => match status.last_upgrade {
                Some(last) if last.outcome != "pending" => return Ok(last),
                Some(last) => last.reason,
                None => bail!("the machine is back and knows of no change"),
            },
            Err(reason) => reason,
        };
        if Instant::now() > deadline {
            bail!(
                "no outcome within {} min: {complaint}",
                OUTCOME_WITHIN.as_secs() / 60
            );
        }
    }
}
