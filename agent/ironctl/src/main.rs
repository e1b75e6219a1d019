//! `ironctl`: looks after machines of a cluster through their node API.

mod bundle;
mod commands;
mod connect;
mod drain;
mod image;
mod show;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// Looks after the machines of an Ironlet cluster.
///
/// It shows the node the client certificate of the kubeconfig; the cluster's RBAC says what its user may do:
/// get, update, create and delete on nodes/ironlet.
#[derive(Parser, Debug)]
#[command(name = "ironctl", version)]
struct Args {
    /// Kubeconfig with a client certificate [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// The node, by its name in the cluster
    #[arg(long, short, global = true, value_name = "NAME")]
    node: Option<String>,
    /// Where the node API is, when the Node object does not say it or cannot be asked
    #[arg(long, global = true, value_name = "HOST[:PORT]")]
    endpoint: Option<String>,
    /// How to print
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Versions of the system and its kernel
    Version,
    /// How the machine does
    Status,
    /// What runs on the machine beside pods
    Services,
    /// What a service said
    Logs {
        /// As `ironctl services` names it
        service: String,
        /// Go on with what it says from now on
        #[arg(long, short)]
        follow: bool,
        /// Only the last so many lines
        #[arg(long, value_name = "LINES", default_value_t = 0, hide_default_value = true)]
        tail: u32,
    },
    /// The kernel's messages
    Dmesg {
        /// Go on with what it says from now on
        #[arg(long, short)]
        follow: bool,
    },
    /// Who uses processors and memory
    Top {
        /// So many processes
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: usize,
    },
    /// Disks and partitions
    Disks,
    /// Network interfaces and their addresses
    Links,
    /// Restart the machine
    Reboot,
    /// Power the machine off
    Shutdown,
    /// Write an image to the idle slot, and restart into it; kept when the node is Ready again, else left by itself
    Upgrade {
        /// What `image build --format pxe` wrote; beside manifest.json may lie manifest.json.minisig
        #[arg(value_name = "DIR|URL")]
        image: String,
        #[command(flatten)]
        restart: Restart,
    },
    /// Restart into the other slot; an upgrade on trial is left
    Rollback {
        #[command(flatten)]
        restart: Restart,
    },
    /// Restart with all state of the node gone
    Reset {
        /// Yes: pods' data, volumes and, on a master, the cluster itself
        #[arg(long, required = true)]
        wipe_state: bool,
    },
    /// The cluster's store, on a master
    #[command(subcommand)]
    Etcd(Etcd),
    /// Write all of the above that helps to find out what is wrong to a tar archive
    SupportBundle {
        #[arg(value_name = "FILE", default_value = "support-bundle.tar")]
        file: PathBuf,
    },
}

#[derive(clap::Args, Debug)]
pub struct Restart {
    /// Have the node's pods leave before
    #[arg(long)]
    drain: bool,
    /// Leave the restart to somebody else
    #[arg(long)]
    no_reboot: bool,
    /// Do not wait for the outcome
    #[arg(long)]
    no_wait: bool,
}

#[derive(Subcommand, Debug)]
pub enum Etcd {
    /// Who keeps the cluster's state
    Members,
    /// Copy the database, Secrets included, as `etcdutl snapshot restore` takes it
    Snapshot {
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let target = connect::Target {
        kubeconfig: args.kubeconfig,
        context: args.context,
        node: args.node,
        endpoint: args.endpoint,
    };
    // rustls must know its cryptography before the first connection; a second call would be an error of ours.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(commands::run(&target, args.command, args.output)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ironctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}
