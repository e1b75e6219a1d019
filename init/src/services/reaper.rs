//! The only caller of wait: tells whoever started a child how it ended, and takes away everybody's orphans.

use crate::{
    console,
    sys::process::{self, Exit},
};
use std::{
    collections::HashMap,
    io::{self, Read},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

type OnExit = Box<dyn FnOnce(Exit) + Send>;

/// How often to look for orphans while no child is known.
const IDLE: Duration = Duration::from_secs(5);

#[derive(Clone, Default)]
pub struct Reaper(Arc<Shared>);

#[derive(Default)]
struct Shared {
    children: Mutex<HashMap<u32, OnExit>>,
    spawned: Condvar,
}

impl Reaper {
    /// Starts a child; `on_exit` is called from the reaper's thread when it has ended.
    pub fn spawn(
        &self,
        command: &mut Command,
        on_exit: impl FnOnce(Exit) + Send + 'static,
    ) -> io::Result<Child> {
        // Held while std forks, so that the child cannot be reaped before it is known here, nor before std has
        // itself waited for a child whose exec failed.
        let mut children = self.lock();
        let child = command.spawn()?;
        children.insert(child.id(), Box::new(on_exit));
        self.0.spawned.notify_all();
        Ok(child)
    }

    /// Runs a program to its end and returns what it printed.
    pub fn run(&self, mut command: Command) -> io::Result<(Exit, String)> {
        let (mut reader, writer) = io::pipe()?;
        command
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer);
        let (sender, receiver) = mpsc::channel();
        self.spawn(&mut command, move |exit| {
            // The receiver waits right below.
            let _ = sender.send(exit);
        })?;
        // Its ends of the pipe would keep the reader waiting.
        drop(command);
        let mut output = String::new();
        reader.read_to_string(&mut output)?;
        Ok((receiver.recv().map_err(io::Error::other)?, output))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, OnExit>> {
        self.0.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps for ever; the one thread that waits.
    pub fn reap_forever(&self) {
        loop {
            match process::wait_any() {
                Ok(Some(pid)) => {
                    let mut children = self.lock();
                    let Some(exit) = process::reap(pid) else { continue };
                    let on_exit = children.remove(&pid);
                    drop(children);
                    if let Some(on_exit) = on_exit {
                        on_exit(exit);
                    }
                }
                Ok(None) => {
                    let children = self.lock();
                    if children.is_empty() {
                        drop(self.0.spawned.wait_timeout(children, IDLE));
                    }
                }
                Err(error) => {
                    console::say(format_args!("waiting for children failed: {error}"));
                    thread::sleep(IDLE);
                }
            }
        }
    }
}
