//! Processes and directories that end with the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where a binary of this workspace is: in `$IRONLET_BINARIES`, else beside the running test's directory.
pub fn binary(name: &str) -> PathBuf {
    let directory = match std::env::var_os("IRONLET_BINARIES") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let test = std::env::current_exe().expect("the path of the running test");
            test.parent()
                .and_then(Path::parent)
                .expect("target/PROFILE/deps/TEST")
                .to_owned()
        }
    };
    let path = directory.join(name);
    assert!(
        path.exists(),
        "{} is missing: tests/run builds it, or `cargo build -p {name}`",
        path.display()
    );
    path
}

pub fn command(name: &str) -> Command {
    Command::new(binary(name))
}

/// The standard output of a command that must succeed.
pub fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{stderr}",
        output.status
    );
    stdout
}

/// Waits until `probe` returns a value; panics with `what` and the last complaint after `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(complaint) if Instant::now() > deadline => {
                panic!("{what}: not within {limit:?}: {complaint}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A running process with its output in a file.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    pub fn start(command: &mut Command, log: PathBuf) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("a log file");
        let stderr = file.try_clone().expect("a second handle of the log file");
        command.stdin(Stdio::null()).stdout(file).stderr(stderr);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Still running, or the reason to give up waiting for it.
    pub fn check(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            status => panic!("the process ended ({status:?}):\n{}", self.output()),
        }
    }

    /// Waits for its success.
    pub fn succeeds(&mut self, limit: Duration) {
        let status = eventually("the process ends", limit, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            _ => Err(self.output()),
        });
        assert!(status.success(), "{status}:\n{}", self.output());
    }

    /// As a power cut would end it.
    pub fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("a process to reap");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.output());
        }
    }
}

/// A directory of the test's own, removed with it.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ironlet-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
