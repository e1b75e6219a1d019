//! The program the kernel starts as PID 1; called as `modprobe` it loads modules for the kernel and iptables.

use std::{env, path::Path, process::ExitCode};

const HELP: &str = "\
init is the first process of an Ironlet machine; the kernel starts it. It reads the kernel command line
(ironlet.*, ip=, nameserver=), and nothing from its own. Signals: SIGTERM and SIGUSR2 power the machine off,
SIGINT (Ctrl-Alt-Del) reboots it. On /run/ironlet/init.sock it tells root the machine's state and takes orders, a line
each: state, power-off, reboot, reset (reboot with the state disk emptied), good (keep the system on trial).

Called under the name modprobe: modprobe [-q] [--] MODULE|ALIAS…";

fn main() -> ExitCode {
    let mut args = env::args();
    let name = args.next().unwrap_or_default();
    let called_as = Path::new(&name)
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    if called_as == "modprobe" {
        return init::modules::modprobe(args);
    }
    if std::process::id() != 1 {
        eprintln!("{HELP}");
        return ExitCode::from(2);
    }
    init::boot::run()
}
