//! Kernel modules: found through modules.dep and modules.alias, loaded with their dependencies.

mod coldplug;
mod index;
mod load;

pub use coldplug::{Listener, load_for_devices_present, name_virtio_ports};
pub use load::{LoadError, Loader};

use std::process::ExitCode;

/// The list of modules that the image wants loaded, one name a line.
pub const LIST: &str = "/usr/lib/ironlet/modules.load";

/// `modprobe [-q] [--] MODULE|ALIAS…`, which the kernel and iptables call.
pub fn modprobe(args: impl Iterator<Item = String>) -> ExitCode {
    let args: Vec<String> = args.collect();
    let quiet = args
        .iter()
        .any(|arg| matches!(arg.as_str(), "-q" | "-qq" | "--quiet"));
    let loader = match Loader::of_running_kernel() {
        Ok(loader) => loader,
        Err(error) => {
            eprintln!("modprobe: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut status = ExitCode::SUCCESS;
    for name in args.iter().filter(|arg| !arg.starts_with('-')) {
        if let Err(error) = loader.load(name) {
            if !quiet {
                eprintln!("modprobe: {error}");
            }
            status = ExitCode::FAILURE;
        }
    }
    status
}
