//! One gRPC watch stream per watch, its responses put in the trait's terms.

use std::time::{Duration, Instant};

use bytes::Bytes;
use etcd_client::{EventType, WatchClient, WatchOptions, WatchResponse, WatchStream};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::{bounded, key_value, revision_of};
use crate::{Event, Result, Revision, Watch, WatchMessage};

const OUTPUT_QUEUE: usize = 64;
/// While etcd owes an answer, no other is asked for; but it gives none while a watch catches up.
const PROGRESS_PATIENCE: Duration = Duration::from_millis(100);

pub async fn start(
    mut client: WatchClient,
    prefix: Bytes,
    from: Revision,
    progress: broadcast::Receiver<Bytes>,
) -> Result<Watch> {
    let options = WatchOptions::new()
        .with_prefix()
        .with_prev_key()
        .with_progress_notify()
        .with_start_revision(from);
    let stream = bounded("watch", client.watch(prefix.clone(), Some(options))).await?;
    let (output, receiver) = mpsc::channel(OUTPUT_QUEUE);
    let token = CancellationToken::new();
    tokio::spawn(forward(stream, prefix, output, progress, token.clone()));
    Ok(Watch {
        receiver,
        _guard: Some(token.drop_guard()),
    })
}

async fn forward(
    mut stream: WatchStream,
    prefix: Bytes,
    output: mpsc::Sender<WatchMessage>,
    mut progress: broadcast::Receiver<Bytes>,
    dropped: CancellationToken,
) {
    let mut asked_at: Option<Instant> = None;
    loop {
        let response = tokio::select! {
            () = dropped.cancelled() => return,
            asked = progress.recv() => {
                match asked {
                    Ok(of) if of != prefix => continue,
                    // A closed channel means shutdown.
                    Err(broadcast::error::RecvError::Closed) => return,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                }
                if asked_at.is_some_and(|at| at.elapsed() < PROGRESS_PATIENCE) {
                    continue;
                }
                asked_at = Some(Instant::now());
                match stream.request_progress().await {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                }
            }
            response = stream.message() => response,
        };
        asked_at = None;
        let messages = match response {
            Ok(Some(response)) => messages(&response),
            Ok(None) => vec![WatchMessage::Lost("etcd closed the watch".into())],
            Err(error) => vec![WatchMessage::Lost(error.to_string())],
        };
        for message in messages {
            let last = matches!(message, WatchMessage::Compacted { .. } | WatchMessage::Lost(_));
            if output.send(message).await.is_err() || last {
                return;
            }
        }
    }
}

fn messages(response: &WatchResponse) -> Vec<WatchMessage> {
    if response.compact_revision() > 0 {
        return vec![WatchMessage::Compacted {
            compact_revision: response.compact_revision(),
        }];
    }
    if response.canceled() {
        return vec![WatchMessage::Lost(response.cancel_reason().to_owned())];
    }
    if response.created() {
        return Vec::new();
    }
    if response.events().is_empty() {
        return vec![WatchMessage::Progress(revision_of(response.header()))];
    }
    vec![WatchMessage::Events(
        response.events().iter().filter_map(event).collect(),
    )]
}

fn event(event: &etcd_client::Event) -> Option<Event> {
    let prev = event.prev_kv().map(key_value);
    let kv = key_value(event.kv()?);
    Some(match event.event_type() {
        EventType::Put => Event::Put { kv, prev },
        EventType::Delete => Event::Delete {
            key: kv.key,
            revision: kv.mod_revision,
            prev,
        },
    })
}
