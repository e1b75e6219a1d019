//! `control-plane`: the API server, the scheduler and the controller manager, each alone or all in one process, and
//! the founding of a cluster on disk.

mod access;
mod addons;
mod all;
mod audit;
mod components;
mod files;
mod flags;
mod founding;
mod objects;
mod process;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Kubernetes control plane.
#[derive(Parser)]
#[command(name = "control-plane", version, max_term_width = 110)]
struct Command {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// API server, scheduler and controller manager in one process; founds the cluster when --data-dir is empty
    All(Box<flags::All>),
    /// The API server alone
    Apiserver(Box<flags::ApiServer>),
    /// The scheduler alone
    Scheduler(flags::Scheduler),
    /// The cloud controller manager alone: what a cloud would do, on bare metal
    CloudControllerManager(flags::CloudControllerManager),
    /// The controller manager alone
    ControllerManager(Box<flags::ControllerManager>),
    /// Makes keys, certificates, kubeconfigs and the bootstrap token, and ends; repeating it renews what needs it
    Found(flags::Found),
}

fn main() -> ExitCode {
    let command = Command::parse();
    process::set_up();
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        match command.role {
            Role::Found(flags) => founding::run(&flags),
            Role::All(flags) => all::run(*flags).await,
            Role::Apiserver(flags) => components::apiserver(*flags).await,
            Role::Scheduler(flags) => components::scheduler(flags).await,
            Role::CloudControllerManager(flags) => components::cloud_controller_manager(flags).await,
            Role::ControllerManager(flags) => components::controller_manager(*flags).await,
        }
    });
    // Blocking work left behind (a read of a dead disk) must not keep a finished process alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}
