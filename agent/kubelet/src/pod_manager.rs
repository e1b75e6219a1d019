//! Gives every pod of this node a worker, tells workers what changed in the API or in the runtime, and clears away
//! what belongs to no pod.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::watcher;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::{Context, is_static, name, namespace, uid};
use crate::eviction::Eviction;
use crate::pod_worker::{Assignment, PodWorker};
use crate::runtime::{self, PodIdentity};
use crate::static_pods::{self, is_mirror};

/// How often CRI is asked for everything: often while it sends no events, seldom when it does.
const RELIST: Duration = Duration::from_secs(1);
const RELIST_WITH_EVENTS: Duration = Duration::from_secs(10);

struct Entry {
    assignment: watch::Sender<Assignment>,
    wake: Arc<Notify>,
}

/// The pods bound to this node, shared with the kubelet's API.
#[derive(Clone, Default)]
pub struct Pods {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
}

impl Pods {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub fn all(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = self
            .lock()
            .values()
            .map(|entry| entry.assignment.borrow().pod.clone())
            .collect();
        pods.sort_by(|a, b| (namespace(a), name(a)).cmp(&(namespace(b), name(b))));
        pods
    }

    pub fn find(&self, pod_namespace: &str, pod_name: &str) -> Option<Pod> {
        let of = |pod: &Pod| namespace(pod) == pod_namespace && name(pod) == pod_name;
        self.lock()
            .values()
            .map(|entry| entry.assignment.borrow().pod.clone())
            .find(of)
    }

    fn wake_named(&self, pod: &Pod) {
        if let Some(found) = self.find(namespace(pod), name(pod)) {
            self.wake(uid(&found));
        }
    }

    fn wake(&self, uid: &str) {
        if let Some(entry) = self.lock().get(uid) {
            entry.wake.notify_one();
        }
    }

    pub fn static_pods(&self) -> Vec<Pod> {
        let mut all = self.all();
        all.retain(is_static);
        all
    }

    fn uids(&self) -> BTreeSet<String> {
        self.lock().keys().cloned().collect()
    }

    /// Hands the pod to its worker, hiring one for a pod not seen before.
    pub fn assign(&self, context: &Arc<Context>, pod: Pod, removed: bool) {
        let key = uid(&pod).to_owned();
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&key) {
            entry.assignment.send_modify(|assignment| {
                assignment.pod = pod;
                assignment.removed = removed;
            });
            return;
        }
        let assignment = Assignment {
            pod,
            removed,
            evicted: None,
        };
        if removed {
            return;
        }
        let (sender, receiver) = watch::channel(assignment);
        let wake = Arc::new(Notify::new());
        let worker = PodWorker::new(context.clone(), receiver, wake.clone());
        entries.insert(
            key.clone(),
            Entry {
                assignment: sender,
                wake,
            },
        );
        drop(entries);
        let pods = self.clone();
        tokio::spawn(async move {
            worker.run().await;
            pods.lock().remove(&key);
        });
    }

    /// Ends the pod for the reason that `message` tells.
    pub fn evict(&self, uid: &str, eviction: Eviction) {
        if let Some(entry) = self.lock().get(uid) {
            entry
                .assignment
                .send_modify(|assignment| assignment.evicted = Some(eviction));
        }
    }

    pub fn mark_removed(&self, uid: &str) {
        if let Some(entry) = self.lock().get(uid) {
            entry
                .assignment
                .send_modify(|assignment| assignment.removed = true);
        }
    }
}

/// Follows the API server's pods of this node.
pub async fn follow_api(context: Arc<Context>, pods: Pods, synced: watch::Sender<bool>) {
    let api: Api<Pod> = Api::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.config.node_name));
    let mut events = watcher::watcher(api, config).boxed();
    let mut listed: BTreeSet<String> = BTreeSet::new();
    let mut found: Vec<Pod> = Vec::new();
    let mut back_off = Duration::from_millis(500);
    loop {
        match events.try_next().await {
            Ok(Some(event)) => {
                back_off = Duration::from_millis(500);
                match event {
                    watcher::Event::Init => {
                        listed.clear();
                        found.clear();
                        context.mirrors.forget_all();
                    }
                    watcher::Event::InitApply(pod) if is_mirror(&pod) => context.mirrors.note(pod),
                    watcher::Event::InitApply(pod) => {
                        listed.insert(uid(&pod).to_owned());
                        found.push(pod);
                    }
                    watcher::Event::InitDone => {
                        // Who came first is admitted first, and what pods had that are gone is free.
                        listed.extend(pods.static_pods().iter().map(|pod| uid(pod).to_owned()));
                        context.allocations.retain(&listed);
                        found.sort_by_key(|pod| pod.metadata.creation_timestamp.clone().map(|at| at.0));
                        for pod in found.drain(..) {
                            pods.assign(&context, pod, false);
                        }
                        for gone in &pods.uids() - &listed {
                            pods.mark_removed(&gone);
                        }
                        synced.send_replace(true);
                        for mirror in context.mirrors.all() {
                            remove_stale_mirror(&context, &pods, mirror).await;
                        }
                    }
                    watcher::Event::Apply(pod) if is_mirror(&pod) => {
                        context.mirrors.note(pod.clone());
                        remove_stale_mirror(&context, &pods, pod).await;
                    }
                    watcher::Event::Delete(pod) if is_mirror(&pod) => {
                        context.mirrors.forget(&pod);
                        pods.wake_named(&pod);
                    }
                    watcher::Event::Apply(pod) => pods.assign(&context, pod, false),
                    watcher::Event::Delete(pod) => pods.assign(&context, pod, true),
                }
            }
            Ok(None) => return,
            Err(error) => {
                warn!(%error, "watch of pods interrupted");
                tokio::time::sleep(back_off).await;
                back_off = (back_off * 2).min(Duration::from_secs(10));
            }
        }
    }
}

/// A mirror that shows nothing, or that a user has deleted, goes at once.
async fn remove_stale_mirror(context: &Context, pods: &Pods, mirror: Pod) {
    let shown = pods
        .find(namespace(&mirror), name(&mirror))
        .is_some_and(|pod| is_static(&pod));
    if (!shown || mirror.metadata.deletion_timestamp.is_some())
        && let Err(error) = static_pods::delete(context, &mirror).await
    {
        warn!(pod = name(&mirror), namespace = namespace(&mirror), %error, "mirror pod not deleted");
    }
}

/// Watches the runtime: wakes the workers of pods that changed and clears away orphans.
pub async fn follow_runtime(
    context: Arc<Context>,
    pods: Pods,
    synced: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let events = Arc::new(Notify::new());
    let streaming = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stream = tokio::spawn(stream_events(context.clone(), events.clone(), streaming.clone()));
    let mut known: BTreeMap<PodIdentity, Vec<(String, i32)>> = BTreeMap::new();
    let mut ended: HashMap<PodIdentity, ()> = HashMap::new();
    while !stop.is_cancelled() {
        match relist(&context).await {
            Ok(now) => {
                for (pod, entries) in &now {
                    if known.get(pod) != Some(entries) {
                        pods.wake(&pod.uid);
                    }
                }
                for pod in known.keys().filter(|pod| !now.contains_key(*pod)) {
                    pods.wake(&pod.uid);
                }
                if *synced.borrow() {
                    let present = pods.uids();
                    // Twice in a row, so that a pod just assigned is not mistaken.
                    let orphans: Vec<PodIdentity> = now
                        .keys()
                        .filter(|pod| !present.contains(&pod.uid))
                        .cloned()
                        .collect();
                    for orphan in orphans.iter().filter(|orphan| ended.contains_key(*orphan)) {
                        remove_orphan(&context, orphan).await;
                    }
                    ended = orphans.into_iter().map(|orphan| (orphan, ())).collect();
                }
                known = now;
            }
            Err(error) => warn!(%error, "CRI does not list its pods"),
        }
        let pause = if streaming.load(std::sync::atomic::Ordering::Relaxed) {
            RELIST_WITH_EVENTS
        } else {
            RELIST
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = events.notified() => {}
            () = stop.cancelled() => {}
        }
    }
    stream.abort();
}

async fn relist(
    context: &Context,
) -> Result<BTreeMap<PodIdentity, Vec<(String, i32)>>, runtime::RuntimeError> {
    let sandboxes = context.runtime.list_sandboxes().await?;
    let containers = context.runtime.list_containers().await?;
    Ok(runtime::fingerprints(&sandboxes, &containers))
}

/// Turns CRI's events into wake-ups, for as long as the runtime offers them.
async fn stream_events(
    context: Arc<Context>,
    notify: Arc<Notify>,
    streaming: Arc<std::sync::atomic::AtomicBool>,
) {
    loop {
        match context.runtime.events().await {
            Ok(mut events) => {
                streaming.store(true, std::sync::atomic::Ordering::Relaxed);
                while let Ok(Some(_)) = events.message().await {
                    notify.notify_one();
                }
                streaming.store(false, std::sync::atomic::Ordering::Relaxed);
                notify.notify_one();
            }
            Err(error) if error.is_unimplemented() => {
                info!("the runtime has no events, its pods are listed every second");
                return;
            }
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Removes the remains of a pod that the API server does not have.
async fn remove_orphan(context: &Context, orphan: &PodIdentity) {
    info!(
        pod = orphan.name,
        namespace = orphan.namespace,
        uid = orphan.uid,
        "removing a pod that is no longer wanted"
    );
    let result: Result<(), runtime::RuntimeError> = async {
        let observed = context.runtime.pod(&orphan.uid).await?;
        for running in observed.running_containers() {
            context
                .runtime
                .stop_container(&running.id, Duration::from_secs(30))
                .await?;
        }
        for container in &observed.containers {
            context.runtime.remove_container(&container.id).await?;
        }
        for sandbox in &observed.sandboxes {
            context.runtime.stop_sandbox(&sandbox.id).await?;
            context.runtime.remove_sandbox(&sandbox.id).await?;
        }
        Ok(())
    }
    .await;
    if let Err(error) = result {
        warn!(pod = orphan.name, namespace = orphan.namespace, %error, "orphan not removed yet");
    }
}
