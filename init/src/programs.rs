//! Programs of the image that init calls, all with the same clean environment.

use std::{path::PathBuf, process::Command};

/// Where programs are, in order.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A command with nothing inherited but what every program of the machine may count on.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/")
        .env("LANG", "C.UTF-8")
        .current_dir("/");
    command
}

/// The program's file, when the image has it.
pub fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':')
        .map(|dir| PathBuf::from(dir).join(program))
        .find(|path| path.is_file())
}
