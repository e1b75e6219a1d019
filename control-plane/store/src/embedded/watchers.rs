//! Who is told about changes: each watcher first reads history, then follows the writer.

use bytes::Bytes;
use fjall::Snapshot;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::{Disk, reader};
use crate::{Event, Revision, Watch, WatchMessage};

/// A watcher this far behind is cut off, so that it cannot hold memory for ever.
const LIVE_QUEUE: usize = 16_384;
const OUTPUT_QUEUE: usize = 64;

struct Watcher {
    prefix: Bytes,
    /// Changes before this revision come from history, or are not wanted.
    from: Revision,
    live: mpsc::Sender<WatchMessage>,
}

#[derive(Default)]
pub struct Watchers(Vec<Watcher>);

/// A new watch's starting point, as the writer sees it.
pub struct Start {
    pub prefix: Bytes,
    pub from: Revision,
    pub now: Revision,
    pub compacted: Revision,
    pub snapshot: Snapshot,
}

impl Watchers {
    pub fn add(&mut self, disk: Disk, start: Start, runtime: &tokio::runtime::Handle) -> Watch {
        let (output, receiver) = mpsc::channel(OUTPUT_QUEUE);
        let (live, mut queue) = mpsc::channel(LIVE_QUEUE);
        let from = if start.from == 0 {
            start.now + 1
        } else {
            start.from
        };
        if from >= start.compacted {
            self.0.push(Watcher {
                prefix: start.prefix.clone(),
                from: from.max(start.now + 1),
                live,
            });
        }
        runtime.spawn(async move {
            if from < start.compacted {
                let message = WatchMessage::Compacted {
                    compact_revision: start.compacted,
                };
                // A failed send means nobody listens any more.
                let _ = output.send(message).await;
                return;
            }
            if from <= start.now && !replay(disk, start, from, &output).await {
                return;
            }
            loop {
                let message = tokio::select! {
                    message = queue.recv() => message,
                    () = output.closed() => return,
                };
                let lost = message.is_none();
                let message =
                    message.unwrap_or_else(|| WatchMessage::Lost("the watch fell too far behind".into()));
                if output.send(message).await.is_err() || lost {
                    return;
                }
            }
        });
        Watch {
            receiver,
            _guard: None,
        }
    }

    /// Tells watchers about committed changes; forgets those that are gone or too slow.
    pub fn publish(&mut self, events: &[Event]) {
        self.0.retain(|watcher| {
            let mine: Vec<Event> = events
                .iter()
                .filter(|event| event.revision() >= watcher.from && event.key().starts_with(&watcher.prefix))
                .cloned()
                .collect();
            mine.is_empty() && !watcher.live.is_closed()
                || !mine.is_empty() && watcher.deliver(WatchMessage::Events(mine))
        });
    }

    pub fn progress(&mut self, revision: Revision) {
        self.0
            .retain(|watcher| watcher.deliver(WatchMessage::Progress(revision)));
    }
}

impl Watcher {
    fn deliver(&self, message: WatchMessage) -> bool {
        match self.live.try_send(message) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => false,
        }
    }
}

/// Sends history; false when the watch is over.
async fn replay(disk: Disk, start: Start, from: Revision, output: &mpsc::Sender<WatchMessage>) -> bool {
    let sender = output.clone();
    let read = tokio::task::spawn_blocking(move || {
        reader::history(&start.snapshot, &disk, &start.prefix, from, start.now, |events| {
            sender.blocking_send(WatchMessage::Events(events)).is_ok()
        })
    });
    let problem = match read.await {
        Ok(Ok(())) => return !output.is_closed(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let _ = output.send(WatchMessage::Lost(problem)).await;
    false
}
