//! Virtual machines by the `qemu` command, one cluster a value.

use std::path::PathBuf;
use std::time::Duration;

use crate::kubectl::Kubectl;
use crate::programs::{Program, TempDir, command, eventually, output};

/// Software emulation on a busy machine is slow, and a test that fails for that proves nothing.
pub const BOOT: Duration = Duration::from_secs(300);

pub struct Machines {
    name: String,
    state: TempDir,
}

impl Machines {
    /// Boots what `args` of `qemu up` say.
    pub fn up(name: &str, args: &[&str]) -> Self {
        let machines = Self {
            name: format!("test-{name}"),
            state: TempDir::new(&format!("vm-{name}")),
        };
        let images = std::env::var_os("IRONLET_IMAGES").expect("IRONLET_IMAGES: tests/run builds the images");
        let mut up = command("qemu");
        up.args(["up", "--name", &machines.name, "--state"])
            .arg(machines.state.path());
        up.arg("--image").arg(images).args(args);
        println!("{}", output(&mut up));
        machines
    }

    /// Begins to wait until all nodes are Ready and the first workload answers; the kubeconfig
    /// appears on the way.
    pub fn begin_to_wait(&self) -> Program {
        let mut up = command("qemu");
        up.args(["up", "--name", &self.name, "--state"])
            .arg(self.state.path());
        let program = Program::start(&mut up, self.state.path().with_extension("up.log"));
        let kubeconfig = self.state.join("kubeconfig");
        eventually("the API server is ready", BOOT, || match kubeconfig.exists() {
            true => Ok(()),
            false => Err(program.output()),
        });
        program
    }

    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.state.join("kubeconfig"))
    }

    /// `qemu stop|kill|start NAME NODE`.
    pub fn control(&self, action: &str, node: &str) {
        output(
            command("qemu")
                .arg(action)
                .arg("--state")
                .arg(self.state.path())
                .args([&self.name, node]),
        );
    }

    pub fn console(&self, node: &str) -> String {
        let path: PathBuf = self.state.join(&format!("{node}.log"));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// Waits until the node's console shows `text` after byte `from`; where it stands then.
    pub fn console_shows(&self, node: &str, text: &str, from: usize) -> usize {
        eventually(&format!("{node}'s console shows {text:?}"), BOOT, || {
            let console = self.console(node);
            let new = console.get(from..).unwrap_or_default();
            new.find(text).map(|at| from + at).ok_or_else(|| tail(new))
        })
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in ["master-1", "worker-1"] {
                eprintln!("--- console of {node}\n{}", tail(&self.console(node)));
            }
        }
        let down = command("qemu")
            .args(["down", "--state"])
            .arg(self.state.path())
            .arg(&self.name)
            .status();
        if !down.is_ok_and(|status| status.success()) {
            eprintln!("qemu down {} failed", self.name);
        }
    }
}
