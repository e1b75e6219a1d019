//! Carries out what the supervisor decides: cgroup, process, output.

use super::{Service, output::Output, reaper::Reaper};
use crate::{
    console, programs,
    sys::process::{self, Exit},
};
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
};

pub struct Runner {
    reaper: Reaper,
    /// The cgroup above all services; without one they run where init runs.
    cgroups: Option<PathBuf>,
    logs: PathBuf,
    outputs: HashMap<String, Output>,
    /// What the kernel keeps for each service; their sum is what it must keep for the cgroup above them.
    protected: HashMap<String, u64>,
}

impl Runner {
    pub fn new(reaper: Reaper, cgroups: Option<&Path>, logs: &Path) -> Self {
        Self {
            reaper,
            cgroups: cgroups.map(Path::to_owned),
            logs: logs.to_owned(),
            outputs: HashMap::new(),
            protected: HashMap::new(),
        }
    }

    /// Starts the service; `on_exit` gets its process number and how it ended.
    pub fn start(
        &mut self,
        service: &Service,
        on_exit: impl FnOnce(u32, Exit) + Send + 'static,
    ) -> io::Result<u32> {
        let cgroup = self.cgroup(service);
        let (reader, writer) = io::pipe()?;
        let mut command = programs::command(&service.program);
        command
            .args(&service.args)
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        process::place(&mut command, cgroup.as_deref(), service.oom_score_adj)?;

        let output = self.output(&service.name);
        thread::Builder::new()
            .name(format!("log-{}", service.name))
            .stack_size(128 * 1024)
            .spawn(move || output.follow(reader))?;
        let (pid_sender, pid_receiver) = std::sync::mpsc::channel();
        let child = self.reaper.spawn(&mut command, move |exit| {
            // Sent right after the spawn; only a panic between the two could lose it.
            if let Ok(pid) = pid_receiver.recv() {
                on_exit(pid, exit);
            }
        })?;
        pid_sender.send(child.id()).map_err(io::Error::other)?;
        Ok(child.id())
    }

    fn output(&mut self, name: &str) -> Output {
        self.outputs
            .entry(name.to_owned())
            .or_insert_with(|| Output::new(name, &self.logs))
            .clone()
    }

    /// The service's cgroup, made when missing. A machine whose cgroups fail still runs its services.
    fn cgroup(&mut self, service: &Service) -> Option<PathBuf> {
        let parent = self.cgroups.as_ref()?;
        let dir = parent.join(&service.name);
        self.protected.insert(service.name.clone(), service.memory_min);
        let sum: u64 = self.protected.values().sum();
        let made = fs::create_dir_all(&dir)
            .and_then(|()| fs::write(dir.join("memory.min"), service.memory_min.to_string()))
            .and_then(|()| fs::write(parent.join("memory.min"), sum.to_string()));
        if let Err(error) = made {
            console::say(format_args!(
                "{}: cgroup {}: {error}",
                service.name,
                dir.display()
            ));
        }
        dir.join("cgroup.procs").exists().then_some(dir)
    }
}
