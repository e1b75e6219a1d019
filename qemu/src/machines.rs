//! Starting and ending a cluster's processes: the hub and one QEMU a node.

use crate::{
    cluster::{API_PORT, NODE_API_PORT, Node},
    hub,
    layout::Layout,
    machine::{self, Machine},
    monitor,
    process::{self, Process},
    record::Record,
};
use anyhow::{Context, bail};
use node_config::Role;
use std::{
    env,
    ffi::OsStr,
    fs::{self, OpenOptions},
    io,
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::OpenOptionsExt, net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// Sparse: only what the guest writes takes space.
const DISK_BYTES: u64 = 8 << 30;
/// QEMU and the hub answer on their sockets within this, or never.
const START_LIMIT: Duration = Duration::from_secs(30);
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// The subcommand of our own executable that serves the lab network.
pub const HUB_COMMAND: &str = "hub";

/// Different ports of 127.0.0.1 that are free now.
pub fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners: Vec<TcpListener> = (0..count)
        .map(bind)
        .collect::<io::Result<_>>()
        .context("find free ports on 127.0.0.1")?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect()
}

/// Makes the node's state disk unless it is there.
pub fn make_disk(path: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path);
    let file = file.with_context(|| format!("create {}", path.display()))?;
    if file.metadata()?.len() == 0 {
        file.set_len(DISK_BYTES)
            .with_context(|| format!("size {}", path.display()))?;
    }
    Ok(())
}

/// Starts the hub when it does not run.
pub fn ensure_hub(record: &mut Record, layout: &Layout) -> anyhow::Result<()> {
    if record.hub.as_ref().is_some_and(Process::is_alive) {
        return Ok(());
    }
    let own = env::current_exe().context("find the own executable")?;
    let socket = layout.hub();
    let hub = process::spawn(
        own.as_os_str(),
        &[OsStr::new(HUB_COMMAND), socket.as_os_str()],
        &layout.hub_log(),
    );
    let hub = hub.context("start the lab network")?;
    record.hub = Some(hub.clone());
    record.write(layout)?;
    await_socket(&hub, &socket, &layout.hub_log())
}

/// Starts a node's QEMU when it does not run.
pub fn start(record: &mut Record, layout: &Layout, node: &Node) -> anyhow::Result<()> {
    if record.is_running(&node.name) {
        return Ok(());
    }
    let files = layout.node(&node.name);
    let first_master = record.nodes.iter().find(|node| node.role == Role::Master);
    let api = first_master
        .filter(|first| first.name == node.name)
        .map(|_| (record.api_port, API_PORT));
    let node_api = record
        .node_api_ports
        .get(&node.name)
        .map(|port| (*port, NODE_API_PORT));
    let forwards = Vec::from_iter(api.into_iter().chain(node_api));
    let hub = layout.hub();
    let arguments = machine::arguments(&Machine {
        cluster: &record.name,
        node,
        image: &record.image.join(node.role.to_string()),
        files: &files,
        hub: &hub,
        accelerator: record.accelerator,
        forwards: &forwards,
    });
    // The serial console's log carries secrets when a founding master shows its generated token.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&files.log)
        .with_context(|| format!("create {}", files.log.display()))?;
    let machine =
        process::spawn(OsStr::new(machine::PROGRAM), &arguments, &files.qemu_log).with_context(|| {
            format!(
                "start {} for {} (qemu/setup installs it)",
                machine::PROGRAM,
                node.name
            )
        })?;
    record.machines.insert(node.name.clone(), machine.clone());
    record.write(layout)?;
    await_socket(&machine, &files.monitor, &files.qemu_log)
}

/// Waits until a process of ours listens; its death is told with what it said.
fn await_socket(process: &Process, socket: &Path, log: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if UnixStream::connect(socket).is_ok() {
            return Ok(());
        }
        if !process.is_alive() || Instant::now() >= deadline {
            let said = fs::read_to_string(log).unwrap_or_default();
            bail!("{} did not come up: {}", socket.display(), said.trim());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Presses the power button and waits for the machine to end.
pub fn stop(record: &Record, layout: &Layout, node: &str, limit: Duration) -> anyhow::Result<()> {
    let Some(machine) = record.machines.get(node).filter(|machine| machine.is_alive()) else {
        return Ok(());
    };
    monitor::power_button(&layout.node(node).monitor)
        .with_context(|| format!("press the power button of {node}"))?;
    if !machine.wait(limit) {
        bail!(
            "{node} did not power off within {} s; `qemu kill` ends it the hard way",
            limit.as_secs()
        );
    }
    Ok(())
}

/// Pulls the plug.
pub fn kill(record: &Record, node: &str) -> anyhow::Result<()> {
    let Some(machine) = record.machines.get(node) else {
        return Ok(());
    };
    machine.kill(KILL_LIMIT).with_context(|| format!("kill {node}"))
}

/// Ends every process of the cluster and removes its files.
pub fn remove(record: &Record, layout: &Layout) -> anyhow::Result<()> {
    for node in record.names() {
        kill(record, node)?;
    }
    if let Some(hub) = &record.hub {
        hub.kill(KILL_LIMIT).context("kill the lab network")?;
    }
    let gone = |path: &Path, result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    };
    gone(
        &layout.kubectl_cache(),
        fs::remove_dir_all(layout.kubectl_cache()),
    )?;
    for path in layout.all(record.names()) {
        gone(&path, fs::remove_file(&path))?;
    }
    // A directory that holds something of the user's stays.
    let _ = fs::remove_dir(&layout.directory);
    Ok(())
}

/// Serves the lab network until killed.
pub fn serve_hub(socket: &Path) -> anyhow::Result<()> {
    hub::run(socket).with_context(|| format!("lab network {}", socket.display()))
}
