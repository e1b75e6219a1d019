//! Watch: the initial state if wanted, then changes as the selectors see them, and bookmarks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rand::Rng;
use schema::MediaType;
use serde_json::{Value, json};
use store::Revision;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{ResourceRequest, read, respond};
use crate::cache::{Change, Entry, Selection, TooOld, WatchCache};
use crate::connect::Body;
use crate::negotiate::View;
use crate::object;
use crate::options::ListOptions;
use crate::registry::conversion;
use crate::state::ApiServer;
use crate::status::ApiError;
use crate::wire;

const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Without `timeoutSeconds` a watch ends after this, up to twice as long.
const DEFAULT_TIMEOUT_SECONDS: u64 = 1800;
const OUTPUT_QUEUE: usize = 16;

/// What a change is to one watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Added,
    Modified,
    Deleted,
}

impl Seen {
    fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// Decides with both states, so that an object that leaves the selection is deleted for its watcher.
fn see(was: bool, is: bool) -> Option<Seen> {
    match (was, is) {
        (false, true) => Some(Seen::Added),
        (true, true) => Some(Seen::Modified),
        (true, false) => Some(Seen::Deleted),
        (false, false) => None,
    }
}

pub async fn start(server: &Arc<ApiServer>, request: ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = ListOptions::parse(&request.query)?;
    options.validate(true)?;
    let content_type = match request.wanted.media {
        MediaType::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        MediaType::Json => "application/json",
        MediaType::Yaml => {
            return Err(ApiError::not_acceptable(
                "application/json, application/vnd.kubernetes.protobuf",
            ));
        }
    };
    let mut selection = read::selection(&request, &options)?;
    if !request.info.name.is_empty() && selection.fields.is_empty() {
        selection.fields =
            crate::selectors::FieldSelector::parse(&format!("metadata.name={}", request.info.name))
                .map_err(ApiError::bad_request)?;
    }
    let cache = server.cache(&request.resource.group, &request.resource.plural);
    let from = options.revision()?;
    // Rejects an impossible view before the stream begins.
    respond::Viewer::new(
        &server.registry.catalog(),
        &request.resource,
        request.wanted,
        &request.query,
    )?;
    let initial = options
        .send_initial_events
        .unwrap_or(matches!(from, None | Some(0)));
    match from {
        // A watch "from now" must not miss what was written before it began.
        None => cache.wait_for_newest().await?,
        Some(revision) if initial => cache.wait_for(revision).await?,
        Some(_) => cache.wait_for(0).await?,
    };
    let seconds = match options.timeout {
        Some(timeout) => timeout.as_secs(),
        None => DEFAULT_TIMEOUT_SECONDS + rand::rng().random_range(0..DEFAULT_TIMEOUT_SECONDS),
    };
    let (sender, receiver) = mpsc::channel(OUTPUT_QUEUE);
    let watcher = Watcher {
        server: server.clone(),
        cache,
        selection,
        deadline: Instant::now() + Duration::from_secs(seconds),
        bookmarks: options.bookmarks,
        initial,
        initial_end: options.send_initial_events == Some(true) && options.bookmarks,
        from,
        is_plain: request.wanted.media == MediaType::Json
            && request.wanted.view == View::Object
            && !conversion::converts(&request.resource),
        headers_sent: false,
        output: sender,
        request,
    };
    tokio::spawn(watcher.run());
    let frames = tokio_stream(receiver).map(|bytes| Ok(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        http::header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    Ok(response)
}

fn tokio_stream(receiver: mpsc::Receiver<Bytes>) -> impl futures::Stream<Item = Bytes> + Send {
    futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|bytes| (bytes, receiver))
    })
}

struct Watcher {
    server: Arc<ApiServer>,
    request: ResourceRequest,
    cache: Arc<WatchCache>,
    selection: Selection,
    deadline: Instant,
    bookmarks: bool,
    initial: bool,
    initial_end: bool,
    from: Option<Revision>,
    /// Stored bytes are what the client gets.
    is_plain: bool,
    headers_sent: bool,
    output: mpsc::Sender<Bytes>,
}

/// The client is gone, or the watch has said its last word.
struct Ended;

impl Watcher {
    async fn run(mut self) {
        // Either way the stream ends with this task.
        let _: Result<(), Ended> = self.follow().await;
    }

    async fn follow(&mut self) -> Result<(), Ended> {
        let mut revisions = self.cache.revisions();
        let mut last = match self.from {
            Some(revision) if !self.initial => revision,
            _ if self.initial => self.send_initial().await?,
            _ => self.cache.current_revision(),
        };
        let mut next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
        loop {
            let reached = *revisions.borrow_and_update();
            match self.cache.changes_after(last) {
                Ok(changes) => {
                    for change in changes {
                        last = change.revision;
                        self.send_change(&change).await?;
                    }
                    last = last.max(reached);
                }
                Err(TooOld { oldest }) => {
                    if let Some(changes) = self.cache.replay(last, oldest).await {
                        for change in changes {
                            self.send_change(&change).await?;
                        }
                        last = oldest;
                        continue;
                    }
                    let gone = ApiError::expired(format!("too old resource version: {last} ({oldest})"));
                    return self
                        .send_raw("ERROR", wire::text(&gone.to_value()).as_bytes())
                        .await;
                }
            }
            tokio::select! {
                changed = revisions.changed() => if changed.is_err() { return Err(Ended) },
                () = self.cache.ended.cancelled() => return Err(Ended),
                () = self.output.closed() => return Err(Ended),
                () = self.server.shutdown.cancelled() => return Err(Ended),
                () = tokio::time::sleep_until(self.deadline) => {
                    if self.bookmarks {
                        self.send_bookmark(last, false).await?;
                    }
                    return Err(Ended);
                }
                () = tokio::time::sleep_until(next_bookmark) => {
                    next_bookmark = Instant::now() + BOOKMARK_INTERVAL;
                    if self.bookmarks {
                        // Its answer moves an idle kind's revision before the next bookmark.
                        if let Err(error) = self.cache.request_progress().await {
                            tracing::warn!(%error, "cannot ask the store for its progress");
                        }
                        self.send_bookmark(last, false).await?;
                    }
                }
            }
        }
    }

    async fn send_initial(&mut self) -> Result<Revision, Ended> {
        let listed = self.cache.list(&self.selection, 0);
        for entry in &listed.entries {
            self.send(Seen::Added, entry, entry.revision).await?;
        }
        if self.initial_end {
            self.send_bookmark(listed.revision, true).await?;
        }
        Ok(listed.revision)
    }

    async fn send_change(&mut self, change: &Change) -> Result<(), Ended> {
        let matches = |entry: &Option<Arc<Entry>>| {
            entry
                .as_ref()
                .is_some_and(|entry| self.selection.matches(entry, &self.cache.selectable))
        };
        let (was, is) = (matches(&change.before), matches(&change.now));
        let Some(seen) = see(was, is) else { return Ok(()) };
        let entry = if seen == Seen::Deleted {
            &change.before
        } else {
            &change.now
        };
        let Some(entry) = entry else { return Ok(()) };
        if self.is_plain && self.cache.is_crowded() {
            let shared = change.frame(seen as usize, || {
                let bytes = at(entry, change.revision).unwrap_or_else(|_| entry.bytes.clone());
                frame(seen.name(), &bytes)
            });
            return self.output.send(shared).await.map_err(|_| Ended);
        }
        self.send(seen, entry, change.revision).await
    }

    async fn send(&mut self, seen: Seen, entry: &Entry, revision: Revision) -> Result<(), Ended> {
        match self.render(entry, revision) {
            Ok(object) => self.send_raw(seen.name(), &object).await,
            Err(error) => {
                self.send_raw("ERROR", wire::text(&error.to_value()).as_bytes())
                    .await
            }
        }
    }

    fn render(&mut self, entry: &Entry, revision: Revision) -> Result<Bytes, ApiError> {
        let bytes = read::present(&self.request.resource, at(entry, revision)?)?;
        if self.request.wanted.view == View::Object {
            return Ok(bytes);
        }
        let object: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        Ok(wire::text(&self.view(&object)?).into())
    }

    fn view(&mut self, object: &Value) -> Result<Value, ApiError> {
        let catalog = self.server.registry.catalog();
        let viewer = respond::Viewer::new(
            &catalog,
            &self.request.resource,
            self.request.wanted,
            &self.request.query,
        )?;
        Ok(match self.request.wanted.view {
            View::Object => object.clone(),
            View::PartialMetadata => respond::partial(object),
            View::Table => {
                let headers = !std::mem::replace(&mut self.headers_sent, true);
                let metadata = json!({"resourceVersion": object::resource_version(object)});
                viewer.table(std::slice::from_ref(object), metadata, headers)
            }
        })
    }

    async fn send_bookmark(&mut self, revision: Revision, initial_end: bool) -> Result<(), Ended> {
        let resource = &self.request.resource;
        let mut bookmark = json!({
            "kind": resource.kind.gvk.kind,
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if initial_end {
            bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.view(&bookmark) {
            Ok(object) => object,
            Err(_) => bookmark,
        };
        self.send_raw("BOOKMARK", wire::text(&object).as_bytes()).await
    }

    async fn send_raw(&self, kind: &str, object: &[u8]) -> Result<(), Ended> {
        let frame = if self.request.wanted.media == MediaType::Protobuf {
            self.protobuf_frame(kind, object).map_err(|error| {
                tracing::error!(error = error.message, "a watch event cannot be encoded");
                Ended
            })?
        } else {
            frame(kind, object)
        };
        self.output.send(frame).await.map_err(|_| Ended)
    }

    /// The event's length as four bytes, then the event.
    fn protobuf_frame(&self, kind: &str, object: &[u8]) -> Result<Bytes, ApiError> {
        let object: Value = serde_json::from_slice(object).map_err(ApiError::internal)?;
        let catalog = self.server.registry.catalog();
        let envelope = schema::codec::encode_protobuf(&catalog, &object).map_err(ApiError::internal)?;
        let event = schema::codec::encode_watch_event_protobuf(kind, &envelope);
        let length = u32::try_from(event.len()).map_err(ApiError::internal)?;
        Ok([&length.to_be_bytes(), event.as_slice()].concat().into())
    }
}

/// The entry's bytes as of `revision`: a deletion has one of its own.
fn at(entry: &Entry, revision: Revision) -> Result<Bytes, ApiError> {
    if entry.revision == revision {
        return Ok(entry.bytes.clone());
    }
    let stored: Value = serde_json::from_slice(&entry.bytes).map_err(ApiError::internal)?;
    Ok(object::with_revision(&object::encode(&stored), revision))
}

/// A line of the stream.
fn frame(kind: &str, object: &[u8]) -> Bytes {
    let parts: [&[u8]; 5] = [
        b"{\"type\":\"",
        kind.as_bytes(),
        b"\",\"object\":",
        object,
        b"}\n",
    ];
    parts.concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_decide_what_a_change_is() {
        for (was, is, expected) in [
            (false, true, Some(Seen::Added)),
            (true, true, Some(Seen::Modified)),
            (true, false, Some(Seen::Deleted)),
            (false, false, None),
        ] {
            assert_eq!(see(was, is), expected);
        }
    }
}
