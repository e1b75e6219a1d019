//! Host tools, run with their failures named.

use std::{
    env, io,
    process::{Command, Stdio},
};

/// Where depmod is; users other than root do not have it in their PATH.
const SYSTEM_PROGRAMS: &str = "/usr/sbin:/sbin";

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{program} could not be started ({error}); qemu/setup installs what is missing")]
    Start { program: String, error: io::Error },
    #[error("{command} failed ({status}): {stderr}")]
    Failed {
        command: String,
        status: std::process::ExitStatus,
        stderr: String,
    },
}

/// Runs to the end; standard output is dropped.
pub fn run(command: &mut Command) -> Result<(), RunError> {
    output(command).map(drop)
}

/// Runs to the end and returns standard output as text.
pub fn stdout(command: &mut Command) -> Result<String, RunError> {
    output(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

pub fn output(command: &mut Command) -> Result<Vec<u8>, RunError> {
    let path = format!("{}:{SYSTEM_PROGRAMS}", env::var("PATH").unwrap_or_default());
    let result = command.env("PATH", path).stdin(Stdio::null()).output();
    let output = result.map_err(|error| RunError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        error,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let command = words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ");
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RunError::Failed {
        command,
        status: output.status,
        stderr,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_the_command_and_what_it_said() {
        let error = run(Command::new("sh").args(["-c", "echo broken >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sh -c") && error.contains("broken") && error.contains('3'),
            "{error}"
        );
        let error = run(&mut Command::new("/nonexistent/tool"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("/nonexistent/tool could not be started"),
            "{error}"
        );
    }
}
