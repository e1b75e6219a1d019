//! Work inside another network namespace, on a thread that ends with it (setns(2) is per thread).

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `work` with the calling thread inside the network namespace at `netns`.
pub async fn within<T, F>(netns: &Path, work: impl FnOnce() -> F + Send + 'static) -> io::Result<T>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>>,
{
    let file = File::open(netns)?;
    let (result_tx, result_rx) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netns".into()).spawn(move || {
        let result = enter(&file).and_then(|()| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(work())
        });
        let _ = result_tx.send(result);
    })?;
    result_rx
        .await
        .map_err(|_| io::Error::other("the thread inside the network namespace died"))?
}

fn enter(netns: &File) -> io::Result<()> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
}
