//! `agent node-api`: the node's credentials, which the agent obtains and renews, for the API of the machine.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use node_api::page::{self, Membership};
use pki::Kubeconfig;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::NodeApi;
use crate::certificate_request::Issued;
use crate::identity::{self, Current};
use crate::{api_client, node};

/// How often the files are looked at: for the first time, and for renewed ones.
const APPEAR: Duration = Duration::from_secs(1);
const RENEWED: Duration = Duration::from_secs(30);

/// A certificate with its key as a file has it.
struct Followed {
    path: PathBuf,
    read: fn(&Path) -> Result<Issued, String>,
    text: String,
    current: Arc<Current>,
}

pub async fn run(args: NodeApi) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    node::stop_on_signal(&stop, "stopping")?;
    let (joined, membership) = watch::channel(None);
    if let Some(settings) = page(&args) {
        tokio::spawn(page::show(settings, membership));
    }
    let appeared = async {
        let kubeconfig = appears(&args.kubeconfig, kubeconfig).await;
        let client = Followed::new(args.kubeconfig.clone(), client_certificate).await?;
        let serving = Followed::new(args.serving_certificate.clone(), serving_certificate).await?;
        anyhow::Ok((kubeconfig, client, serving))
    };
    let (kubeconfig, client_identity, serving) = tokio::select! {
        appeared = appeared => appeared?,
        () = stop.cancelled() => return Ok(()),
    };
    let client = api_client::with_certificate(
        &kubeconfig.server,
        &kubeconfig.ca_pem,
        client_identity.current.clone(),
    )?;
    joined.send_replace(Some(Membership {
        server: kubeconfig.server,
        client: client.clone(),
    }));
    let config = node_api::Config {
        node_name: args.node_name,
        listen: SocketAddr::new(args.address, args.port),
        run_dir: args.run_dir,
        client_ca_pem: kubeconfig.ca_pem,
        serving_certificate: serving.current.clone(),
        upgrade: node_api::UpgradeSettings {
            slot: args.slot,
            partition: args.system_partition,
            key: args.upgrade_key,
            is_master: args.master,
            state_dir: args.state_dir,
        },
        control_plane_pki: args.control_plane_pki,
    };
    let following = tokio::spawn(follow([client_identity, serving]));
    let result = node_api::run(client, config, stop).await;
    following.abort();
    Ok(result?)
}

fn page(args: &NodeApi) -> Option<page::Settings> {
    Some(page::Settings {
        screen: args.screen.clone()?,
        node_name: args.node_name.clone(),
        is_master: args.master,
        slot: args.slot.clone(),
        run_dir: args.run_dir.clone(),
    })
}

fn kubeconfig(path: &Path) -> Result<Kubeconfig, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    Kubeconfig::parse(&text).map_err(|error| error.to_string())
}

/// An expired one is taken, too: who it is shown to decides.
fn client_certificate(path: &Path) -> Result<Issued, String> {
    identity::credentials(&kubeconfig(path)?).ok_or_else(|| "it holds no client certificate".to_owned())
}

fn serving_certificate(path: &Path) -> Result<Issued, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    Ok(Issued {
        certificate_pem: text.clone(),
        key_pem: text,
    })
}

/// Before the machine has joined a cluster there is nobody who may ask it anything.
async fn appears<T>(path: &Path, read: impl Fn(&Path) -> Result<T, String>) -> T {
    let mut told = String::new();
    loop {
        match read(path) {
            Ok(value) => return value,
            Err(reason) if reason != told => {
                info!(path = %path.display(), reason, "waiting until the node has joined its cluster");
                told = reason;
            }
            Err(_) => {}
        }
        tokio::time::sleep(APPEAR).await;
    }
}

impl Followed {
    async fn new(path: PathBuf, read: fn(&Path) -> Result<Issued, String>) -> anyhow::Result<Self> {
        let issued = appears(&path, read).await;
        let current = Current::new(&issued).with_context(|| path.display().to_string())?;
        Ok(Self {
            path,
            read,
            text: issued.certificate_pem,
            current,
        })
    }

    fn look(&mut self) {
        let replaced = (self.read)(&self.path).and_then(|issued| {
            if issued.certificate_pem != self.text {
                self.current.replace(&issued).map_err(|error| error.to_string())?;
                self.text = issued.certificate_pem;
            }
            Ok(())
        });
        if let Err(reason) = replaced {
            warn!(path = %self.path.display(), reason, "the certificate in use stays");
        }
    }
}

async fn follow(mut files: [Followed; 2]) {
    loop {
        tokio::time::sleep(RENEWED).await;
        files.iter_mut().for_each(Followed::look);
    }
}
