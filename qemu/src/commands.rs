//! What each subcommand does.

use crate::{
    accelerator::Accelerator,
    cluster::{self, MAX_NODES_PER_ROLE},
    console, kubectl,
    layout::Layout,
    machines, ready,
    record::Record,
    stage::Stages,
    workload,
};
use anyhow::{Context, bail, ensure};
use node_config::Role;
use rustix::rand::{GetRandomFlags, getrandom};
use std::{
    env,
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub struct Up {
    pub request: cluster::Request,
    pub name: String,
    pub image: PathBuf,
    pub wait: bool,
    pub limit: Duration,
}

/// Starts a new cluster, or what is down of the one that is there, waits for it and runs the first workload.
pub fn up(arguments: &Up, layout: &Layout) -> anyhow::Result<()> {
    let mut stages = Stages::start();
    let deadline = Instant::now() + arguments.limit;
    let existing = Record::read(layout)?;
    let fresh = existing.is_none();
    let mut record = match existing {
        Some(record) => {
            println!(
                "cluster {} is there already ({})",
                record.name,
                layout.directory.display()
            );
            record
        }
        None => plan(arguments, layout)?,
    };
    let lock = create_and_lock(layout)?;
    ensure!(
        !fresh || Record::read(layout)?.is_none(),
        "another qemu up has just made a cluster at {}",
        layout.directory.display()
    );
    match start_all(&mut record, layout) {
        Err(error) if fresh => {
            return Err(match machines::remove(&record, layout) {
                Ok(()) => error,
                Err(second) => error.context(format!("and then: {second:#}")),
            });
        }
        result => result?,
    }
    drop(lock);
    stages.done(
        &format!(
            "{} machines started ({:?})",
            record.nodes.len(),
            record.accelerator
        )
        .to_lowercase(),
    );
    if !arguments.wait {
        return status(layout);
    }
    let kubectl = ready::wait(&record, layout, &mut stages, deadline)?;
    workload::run(&kubectl, &mut stages, deadline)?;
    println!("  {:>6.1} s  in all\n", stages.total().as_secs_f64());
    let program = kubectl.program().display();
    println!("export KUBECONFIG={}", layout.kubeconfig().display());
    println!("{program} get nodes -o wide\n{program} get pods -A");
    if let Some((node, port)) = record.node_api_ports.first_key_value() {
        let ironctl = env::current_exe()?.with_file_name("ironctl");
        println!(
            "{} --node {node} --endpoint 127.0.0.1:{port} status",
            ironctl.display()
        );
    }
    Ok(())
}

fn plan(arguments: &Up, layout: &Layout) -> anyhow::Result<Record> {
    let Up {
        request, name, image, ..
    } = arguments;
    ensure!(
        request.masters == 1,
        "--masters {}: this version founds a cluster with one master, and masters cannot join yet",
        request.masters
    );
    ensure!(
        request.workers <= MAX_NODES_PER_ROLE,
        "--workers {}: at most {MAX_NODES_PER_ROLE}",
        request.workers
    );
    for (argument, text) in [
        ("append", &request.append),
        ("append-master", &request.append_master),
        ("append-worker", &request.append_worker),
    ] {
        for error in node_config::parse(text).1 {
            println!("note: --{argument}: {error}");
        }
    }
    let mut baked = Vec::new();
    for role in [Role::Master, Role::Worker] {
        let used = if role == Role::Master {
            request.masters
        } else {
            request.workers
        };
        for file in ["vmlinuz", "initramfs", "cmdline"].iter().filter(|_| used > 0) {
            let path = image.join(role.to_string()).join(file);
            ensure!(
                path.is_file(),
                "--image {}: no {}; qemu/up builds it",
                image.display(),
                path.display()
            );
        }
        baked.push((
            role,
            fs::read_to_string(image.join(role.to_string()).join("cmdline")).unwrap_or_default(),
        ));
    }
    let of_role = |role: Role| {
        baked
            .iter()
            .find(|(other, _)| *other == role)
            .map(|(_, text)| text.clone())
            .unwrap_or_default()
    };
    let nodes = cluster::nodes(request, &token()?, of_role);
    ensure!(
        layout.sockets_fit(nodes.iter().map(|node| node.name.as_str())),
        "--state {}: too long, sockets below it would not have a valid path",
        layout.directory.display()
    );
    let mut ports = machines::free_ports(1 + nodes.len())?.into_iter();
    let api_port = ports.next().unwrap_or_default();
    let accelerator = Accelerator::probe(&image.join(Role::Master.to_string()).join("vmlinuz"));
    Ok(Record {
        name: name.clone(),
        image: fs::canonicalize(image).with_context(|| format!("--image {}", image.display()))?,
        accelerator,
        api_port,
        node_api_ports: nodes.iter().map(|node| node.name.clone()).zip(ports).collect(),
        nodes,
        hub: None,
        machines: Default::default(),
    })
}

fn start_all(record: &mut Record, layout: &Layout) -> anyhow::Result<()> {
    record.write(layout)?;
    machines::ensure_hub(record, layout)?;
    for node in record.nodes.clone() {
        machines::make_disk(&layout.node(&node.name).disk)?;
        machines::start(record, layout, &node)?;
    }
    Ok(())
}

/// kubeadm's form: six and sixteen characters of `[a-z0-9]`.
fn token() -> anyhow::Result<String> {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::new();
    while text.len() < 22 {
        let mut byte = [0];
        getrandom(&mut byte, GetRandomFlags::empty()).context("get random bytes")?;
        // 252 = 7 × 36: without the rest, every letter is equally likely.
        if byte[0] < 252 {
            text.push(char::from(LETTERS[usize::from(byte[0]) % LETTERS.len()]));
        }
    }
    Ok(format!("{}.{}", &text[..6], &text[6..]))
}

pub fn status(layout: &Layout) -> anyhow::Result<()> {
    let record = existing(layout)?;
    println!(
        "cluster {} ({:?}), lab network {}",
        record.name,
        record.accelerator,
        if record.hub.as_ref().is_some_and(|hub| hub.is_alive()) {
            "up"
        } else {
            "down"
        }
    );
    for node in &record.nodes {
        let state = match record
            .machines
            .get(&node.name)
            .filter(|machine| machine.is_alive())
        {
            Some(machine) => format!("running, pid {}", machine.pid),
            None => "stopped".to_owned(),
        };
        println!(
            "  {:<12} {:<16} {:>5} MiB  {:<20} node API 127.0.0.1:{:<6} {}",
            node.name,
            node.lab_address,
            node.memory,
            state,
            record.node_api_ports.get(&node.name).copied().unwrap_or_default(),
            layout.node(&node.name).log.display()
        );
    }
    if layout.kubeconfig().exists() {
        println!("export KUBECONFIG={}", layout.kubeconfig().display());
    }
    Ok(())
}

pub fn stop(layout: &Layout, node: Option<&str>, limit: Duration) -> anyhow::Result<()> {
    let _lock = lock(layout)?;
    let record = existing(layout)?;
    // Workers first: their agents still reach the API server while they shut down.
    for name in chosen(&record, node)?.into_iter().rev() {
        machines::stop(&record, layout, &name, limit)?;
        println!("{name} is off");
    }
    Ok(())
}

pub fn kill(layout: &Layout, node: Option<&str>) -> anyhow::Result<()> {
    let _lock = lock(layout)?;
    let record = existing(layout)?;
    for name in chosen(&record, node)? {
        machines::kill(&record, &name)?;
        println!("{name} is off");
    }
    Ok(())
}

pub fn start(layout: &Layout, node: Option<&str>) -> anyhow::Result<()> {
    let _lock = lock(layout)?;
    let mut record = existing(layout)?;
    machines::ensure_hub(&mut record, layout)?;
    for name in chosen(&record, node)? {
        let Some(node) = record.nodes.iter().find(|node| node.name == name).cloned() else {
            continue;
        };
        machines::start(&mut record, layout, &node)?;
        println!("{name} is on");
    }
    Ok(())
}

pub fn attach(layout: &Layout, node: Option<&str>) -> anyhow::Result<()> {
    let record = existing(layout)?;
    let Some(node) = node else {
        bail!(
            "NODE: which one of {}?",
            Vec::from_iter(record.names()).join(", ")
        );
    };
    for name in chosen(&record, Some(node))? {
        ensure!(record.is_running(&name), "{name} is stopped");
        console::attach(&layout.node(&name).serial)?;
    }
    Ok(())
}

/// Ends the cluster and removes all that it left; nothing to do is fine.
pub fn down(layout: &Layout) -> anyhow::Result<()> {
    if !layout.record().exists() {
        println!("no cluster at {}", layout.directory.display());
        return Ok(());
    }
    let _lock = lock(layout)?;
    let record = existing(layout)?;
    machines::remove(&record, layout)?;
    println!("cluster {} is gone", record.name);
    Ok(())
}

fn existing(layout: &Layout) -> anyhow::Result<Record> {
    Record::read(layout)?.with_context(|| format!("no cluster at {}", layout.directory.display()))
}

fn chosen(record: &Record, node: Option<&str>) -> anyhow::Result<Vec<String>> {
    match node {
        None => Ok(record.names().map(str::to_owned).collect()),
        Some(name) if record.names().any(|known| known == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!(
            "NODE {name}: the cluster has {}",
            Vec::from_iter(record.names()).join(", ")
        ),
    }
}

fn create_and_lock(layout: &Layout) -> anyhow::Result<File> {
    let directory = &layout.directory;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("--state {}: create it", directory.display()))?;
    lock(layout)
}

/// Only one command at a time changes a cluster.
fn lock(layout: &Layout) -> anyhow::Result<File> {
    if !layout.directory.is_dir() {
        bail!("no cluster at {}", layout.directory.display());
    }
    let path = layout.lock();
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// The state directory and the node that `[NAME] [NODE]` mean: one word alone may be a node of the default cluster.
pub fn resolve(
    state: Option<&Path>,
    default_name: &str,
    words: [Option<&str>; 2],
) -> anyhow::Result<(Layout, Option<String>)> {
    let of_name = |name: &str| -> anyhow::Result<Layout> {
        let base =
            kubectl::state_directory().context("neither XDG_STATE_HOME nor HOME is set; say --state DIR")?;
        Ok(Layout::new(state.map_or_else(|| base.join(name), Path::to_owned)))
    };
    match words {
        [None, _] => Ok((of_name(default_name)?, None)),
        [Some(name), Some(node)] => Ok((of_name(name)?, Some(node.to_owned()))),
        [Some(word), None] => {
            let default = of_name(default_name)?;
            let record = Record::read(&default)?;
            let is_node = record
                .as_ref()
                .is_some_and(|record| record.names().any(|node| node == word));
            if is_node {
                Ok((default, Some(word.to_owned())))
            } else {
                Ok((of_name(word)?, None))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_kubeadms_form_and_differ() {
        let first = token().unwrap();
        assert!(
            first.parse::<node_config::Token>().is_ok(),
            "a token that parameters accept"
        );
        assert_ne!(first, token().unwrap());
    }
}
