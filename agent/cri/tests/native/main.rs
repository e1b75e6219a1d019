//! The CRI server for real: root, namespaces, overlay mounts, containers, and its own death.
//!
//! The binary is the test, the server, the shim and the helper: what runs is decided by the first argument.

mod cases;
mod faults;
mod image;
mod node;
mod packages;
mod registry;
mod spdy_client;
mod stream_client;
mod token_server;

use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("cri-shim") => cri::shim_main(&args[1..]),
        Some("cri-helper") => cri::helper_main(&args[1..]),
        Some("serve") => node::serve(&args[1..]),
        Some("inside") => inside(&args[1..]),
        // Cargo and nextest ask for the list of tests like this.
        Some("--list") => ExitCode::SUCCESS,
        _ => outside(&args),
    }
}

/// Runs this again as PID 1 of namespaces of its own.
fn outside(args: &[String]) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("native: these tests need root: run them with sudo, as tests/run does");
        return ExitCode::FAILURE;
    }
    let exe = std::env::current_exe().expect("own path");
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--mount-proc",
            "--propagation",
            "private",
        ])
        .arg(exe)
        .arg("inside")
        .args(args)
        .envs([packages::REGISTRY, packages::BUSYBOX].map(|package| package.provide()))
        .status()
        .expect("unshare (util-linux)");
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn inside(args: &[String]) -> ExitCode {
    // The host may hold the v1 controllers: a private view of cgroup v2 does for all but limits.
    let mounted = Command::new("mount")
        .args(["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])
        .status()
        .expect("mount");
    assert!(mounted.success(), "mount cgroup2");
    assert!(
        Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .expect("ip (iproute2)")
            .success()
    );
    let filter = args.iter().find(|arg| !arg.starts_with('-'));
    let folder = std::env::temp_dir().join(format!("cri-native-{}", std::process::id()));
    let folder = folder.with_extension(random());
    std::fs::create_dir_all(&folder).expect("temporary folder");
    let failed = run_cases(&folder, filter.map(String::as_str));
    std::fs::remove_dir_all(&folder).expect("nothing is mounted any more");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn random() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .expect("uuid")
        .trim()
        .to_owned()
}

fn run_cases(folder: &Path, filter: Option<&str>) -> usize {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in cases::ALL {
        if filter.is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        let root = folder.join(name);
        let started = std::time::Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut node = node::Node::new(&root);
            runtime.block_on(async {
                node.start().await;
                case(&mut node).await;
                node.leave_nothing().await;
            });
        }));
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok ({seconds:.2} s)");
            }
            Err(_) => {
                failed += 1;
                println!("test {name} ... FAILED ({seconds:.2} s)");
                node::clean_up_after_failure(&root);
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    failed
}
