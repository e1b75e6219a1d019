//! The pod network's records, followed as they change: the runtime writes a pod's before it connects the pod.

use std::fs;
use std::io;
use std::path::Path;

use futures::{StreamExt, stream};
use rustix::fs::inotify;
use tokio::sync::mpsc::error::TrySendError;

use super::world::Attached;
use crate::pod_network::{ATTACHMENTS, Attachment};

/// One item for each batch of changes below `pod_network_dir`.
pub fn changes(pod_network_dir: &Path) -> io::Result<stream::BoxStream<'static, ()>> {
    let directory = pod_network_dir.join(ATTACHMENTS);
    fs::create_dir_all(&directory)?;
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(
        &inotify,
        &directory,
        inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE,
    )?;
    // One that is not taken yet stands for all that follow.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    std::thread::Builder::new()
        .name("attachments".into())
        .spawn(move || {
            let mut buffer = [0; 4096];
            while rustix::io::read(&inotify, &mut buffer).is_ok() {
                if let Err(TrySendError::Closed(())) = sender.try_send(()) {
                    return;
                }
            }
        })?;
    Ok(stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|()| ((), receiver))
    })
    .boxed())
}

/// What is recorded now; a record that goes away meanwhile is gone.
pub fn read(pod_network_dir: &Path) -> Attached {
    let mut attached = Attached::new();
    let entries = fs::read_dir(pod_network_dir.join(ATTACHMENTS))
        .into_iter()
        .flatten()
        .flatten();
    for path in entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
    {
        let record = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Attachment>(&bytes).ok());
        if let Some(record) = record
            && let Some((namespace, name)) = record.pod.split_once('/')
        {
            let key = (namespace.to_owned(), name.to_owned());
            attached.entry(key).or_default().extend(record.addresses);
        }
    }
    attached
}
