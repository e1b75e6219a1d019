//! `qemu`: a cluster of virtual machines on this host, without privileges.

mod accelerator;
mod cluster;
mod commands;
mod console;
mod hub;
mod kubeconfig;
mod kubectl;
mod layout;
mod machine;
mod machines;
mod monitor;
mod process;
mod ready;
mod record;
mod stage;
mod workload;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode, time::Duration};

const DEFAULT_NAME: &str = "lab";

/// Run an Ironlet cluster in virtual machines.
#[derive(Parser)]
#[command(name = "qemu", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a cluster, wait until its nodes are Ready, and run a first workload
    Up(UpArguments),
    /// Show the machines of a cluster
    Status(Target),
    /// Connect this terminal to a machine's serial console
    Console(Target),
    /// Press the power button and wait for the machines to end
    Stop {
        #[command(flatten)]
        target: Target,
        /// Seconds to wait for a machine
        #[arg(long, default_value_t = 120)]
        timeout: u64,
    },
    /// Pull the plug
    Kill(Target),
    /// Start machines that are off
    Start(Target),
    /// End a cluster and remove everything it left
    Down(Target),
    #[command(hide = true)]
    Hub { socket: PathBuf },
}

#[derive(Args)]
struct UpArguments {
    /// How many masters
    #[arg(long, default_value_t = 1)]
    masters: u8,
    /// How many workers
    #[arg(long, default_value_t = 1)]
    workers: u8,
    /// Memory of each machine in MiB [default: 768 for a master, 512 for a worker]
    #[arg(long)]
    memory: Option<u32>,
    /// Processors of each machine
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Directory with the images, DIR/master and DIR/worker [default: ~/.cache/ironlet/images]
    #[arg(long)]
    image: Option<PathBuf>,
    /// Name of the cluster
    #[arg(long, default_value = DEFAULT_NAME)]
    name: String,
    /// Directory of the cluster's files [default: ~/.local/state/ironlet/NAME]
    #[arg(long)]
    state: Option<PathBuf>,
    /// Kernel parameters to add
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Kernel parameters to add on masters
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append_master: String,
    /// Kernel parameters to add on workers
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append_worker: String,
    /// Return when the machines run
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait for nodes and workload
    #[arg(long, default_value_t = 900)]
    timeout: u64,
}

#[derive(Args)]
struct Target {
    /// Name of the cluster
    name: Option<String>,
    /// One node only
    node: Option<String>,
    /// Directory of the cluster's files [default: ~/.local/state/ironlet/NAME]
    #[arg(long)]
    state: Option<PathBuf>,
}

impl Target {
    fn resolve(&self) -> anyhow::Result<(layout::Layout, Option<String>)> {
        commands::resolve(
            self.state.as_deref(),
            DEFAULT_NAME,
            [self.name.as_deref(), self.node.as_deref()],
        )
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("qemu: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(arguments) => up(arguments),
        Command::Hub { socket } => machines::serve_hub(&socket),
        Command::Status(target) => commands::status(&target.resolve()?.0),
        Command::Console(target) => {
            let (layout, node) = target.resolve()?;
            commands::attach(&layout, node.as_deref())
        }
        Command::Stop { target, timeout } => {
            let (layout, node) = target.resolve()?;
            commands::stop(&layout, node.as_deref(), Duration::from_secs(timeout))
        }
        Command::Kill(target) => {
            let (layout, node) = target.resolve()?;
            commands::kill(&layout, node.as_deref())
        }
        Command::Start(target) => {
            let (layout, node) = target.resolve()?;
            commands::start(&layout, node.as_deref())
        }
        Command::Down(target) => {
            let (layout, node) = target.resolve()?;
            anyhow::ensure!(
                node.is_none(),
                "NODE: down ends a whole cluster; qemu kill ends one machine"
            );
            commands::down(&layout)
        }
    }
}

fn up(arguments: UpArguments) -> anyhow::Result<()> {
    let (layout, _) = commands::resolve(arguments.state.as_deref(), &arguments.name, [None, None])?;
    let default_image = || kubectl::cache_directory().map(|cache| cache.join("images"));
    let image = arguments
        .image
        .or_else(default_image)
        .context("neither XDG_CACHE_HOME nor HOME is set; say --image DIR")?;
    let request = cluster::Request {
        masters: arguments.masters,
        workers: arguments.workers,
        memory: arguments.memory,
        cpus: arguments.cpus,
        append: arguments.append,
        append_master: arguments.append_master,
        append_worker: arguments.append_worker,
    };
    let up = commands::Up {
        request,
        name: arguments.name,
        image,
        wait: !arguments.no_wait,
        limit: Duration::from_secs(arguments.timeout),
    };
    commands::up(&up, &layout)
}
