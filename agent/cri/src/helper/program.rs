//! Finding a container's program, with the messages that users of runc know.

use super::Failure;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The shell's codes for "not found" and "cannot be run".
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Looks the program up as execvp would, relative to `cwd` when it names a relative path.
pub fn find(program: &str, path: &str, cwd: &Path) -> Result<PathBuf, Failure> {
    if program.contains('/') {
        let full = cwd.join(program);
        return match check(&full) {
            Ok(()) => Ok(full),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Failure::new(
                format!("exec: {program:?}: permission denied"),
                NOT_EXECUTABLE,
            )),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Err(Failure::new(
                format!("exec: {program:?}: is a directory"),
                NOT_EXECUTABLE,
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::new(
                format!("exec: {program:?}: stat {program}: no such file or directory"),
                NOT_FOUND,
            )),
            Err(error) => Err(Failure::new(
                format!("exec: {program:?}: stat {program}: {error}"),
                NOT_FOUND,
            )),
        };
    }
    path.split(':')
        .map(|folder| cwd.join(folder).join(program))
        .find(|candidate| check(candidate).is_ok())
        .ok_or_else(|| {
            Failure::new(
                format!("exec: {program:?}: executable file not found in $PATH"),
                NOT_FOUND,
            )
        })
}

fn check(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        Err(io::ErrorKind::IsADirectory.into())
    } else if metadata.permissions().mode() & 0o111 == 0 {
        Err(io::ErrorKind::PermissionDenied.into())
    } else {
        Ok(())
    }
}

/// `PATH` of an environment, or the usual one.
pub fn path_of(environment: &[String]) -> &str {
    environment
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_what_a_shell_would() {
        let dir = crate::test_support::TempDir::new("program");
        let plain = dir.path().join("plain");
        fs::write(&plain, "").unwrap();
        let folder = dir.path().to_str().unwrap();
        for (program, message, code) in [
            ("nope", "exec: \"nope\": executable file not found in $PATH", 127),
            (
                "plain",
                "exec: \"plain\": executable file not found in $PATH",
                127,
            ),
            (
                "/no/such",
                "exec: \"/no/such\": stat /no/such: no such file or directory",
                127,
            ),
            ("./plain", "exec: \"./plain\": permission denied", 126),
            ("./.", "exec: \"./.\": is a directory", 126),
        ] {
            let failure = find(program, folder, dir.path()).unwrap_err();
            assert_eq!((failure.message.as_str(), failure.exit_code), (message, code));
        }
        fs::set_permissions(&plain, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("plain", folder, Path::new("/")).unwrap(), plain);
        assert_eq!(
            find("./plain", "", dir.path()).unwrap(),
            dir.path().join("./plain")
        );
    }
}
