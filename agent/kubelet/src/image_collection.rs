//! Removes images that no container uses when the disk fills up (upstream's image garbage collection).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cri_api::v1::{Container, Image};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::Context;
use crate::node;
use crate::runtime::RuntimeError;

const PERIOD: Duration = Duration::from_secs(300);

#[derive(Clone, Copy)]
struct Seen {
    first: Instant,
    last_used: Option<Instant>,
}

/// Since when images are here and when they were used.
#[derive(Default)]
pub struct ImageHistory(Mutex<HashMap<String, Seen>>);

impl ImageHistory {
    fn note(&self, images: &[Image], used: &BTreeSet<String>, now: Instant) {
        let mut seen = self.0.lock().unwrap_or_else(|e| e.into_inner());
        seen.retain(|id, _| images.iter().any(|image| image.id == *id));
        for image in images {
            let entry = seen.entry(image.id.clone()).or_insert(Seen {
                first: now,
                last_used: None,
            });
            if is_used(image, used) {
                entry.last_used = Some(now);
            }
        }
    }

    /// What may go, the longest unused first.
    fn unused<'a>(
        &self,
        images: &'a [Image],
        used: &BTreeSet<String>,
        age: Duration,
        now: Instant,
    ) -> Vec<&'a Image> {
        let seen = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let mut unused: Vec<(Seen, &Image)> = images
            .iter()
            .filter(|image| !image.pinned && !is_used(image, used))
            .filter_map(|image| Some((*seen.get(&image.id)?, image)))
            .filter(|(seen, _)| now.duration_since(seen.first) >= age)
            .collect();
        unused.sort_by_key(|(seen, _)| (seen.last_used, seen.first));
        unused.into_iter().map(|(_, image)| image).collect()
    }
}

fn is_used(image: &Image, used: &BTreeSet<String>) -> bool {
    used.contains(&image.id)
        || image
            .repo_tags
            .iter()
            .chain(&image.repo_digests)
            .any(|name| used.contains(name))
}

fn used_by(containers: &[Container]) -> BTreeSet<String> {
    let names = containers.iter().flat_map(|container| {
        let spec = container.image.as_ref().map(|spec| spec.image.clone());
        [
            Some(container.image_ref.clone()),
            Some(container.image_id.clone()),
            spec,
        ]
    });
    names.flatten().filter(|name| !name.is_empty()).collect()
}

/// Bytes to free so that the disk is as empty as wanted; none while it is not full.
fn excess(available: u64, capacity: u64, high: u64, low: u64) -> Option<u64> {
    if capacity == 0 || 100 - available * 100 / capacity < high {
        return None;
    }
    Some((capacity / 100 * (100 - low.min(100))).saturating_sub(available))
}

pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    loop {
        if let Err(error) = collect(&context).await {
            warn!(%error, "image garbage collection interrupted");
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn collect(context: &Context) -> Result<(), RuntimeError> {
    let settings = &context.config.settings;
    let (high, low) = (
        settings.image_gc_high_threshold_percent,
        settings.image_gc_low_threshold_percent,
    );
    let disk = node::disk(&context.config.root_dir);
    let wanted = disk.and_then(|disk| excess(disk.available, disk.capacity, high, low));
    let freed = free(context, wanted.unwrap_or(0)).await?;
    if let Some(wanted) = wanted.filter(|wanted| freed < *wanted) {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
             {freed} bytes eligible to free."
        );
        context
            .events
            .warning(context.events.node(), "FreeDiskSpaceFailed", message);
    }
    Ok(())
}

/// Takes stock of the images and removes unused ones until that many bytes are free; how many it were.
pub async fn free(context: &Context, wanted: u64) -> Result<u64, RuntimeError> {
    let images = context.runtime.list_images().await?;
    let used = used_by(&context.runtime.list_containers().await?);
    let (now, age) = (Instant::now(), context.config.settings.image_minimum_gc_age);
    context.image_history.note(&images, &used, now);
    let mut freed = 0;
    for image in context.image_history.unused(&images, &used, age, now) {
        if freed >= wanted {
            break;
        }
        info!(image = image.id, names = ?image.repo_tags, bytes = image.size, "removing an unused image");
        context.runtime.remove_image(&image.id).await?;
        freed += image.size;
    }
    Ok(freed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tag: &str) -> Image {
        Image {
            id: id.into(),
            repo_tags: vec![tag.into()],
            ..Default::default()
        }
    }

    #[test]
    fn excesses() {
        for (available, capacity, expected) in [
            (200, 1000, None),
            (160, 1000, None),
            (150, 1000, Some(50)),
            (0, 1000, Some(200)),
            (0, 0, None),
        ] {
            assert_eq!(
                excess(available, capacity, 85, 80),
                expected,
                "{available} of {capacity}"
            );
        }
    }

    #[test]
    fn the_longest_unused_go_first() {
        let mut pinned = image("pinned", "p");
        pinned.pinned = true;
        let images = [
            image("new", "n"),
            image("was-used", "w"),
            image("old", "o"),
            image("used", "u"),
            pinned,
        ];
        let (history, start) = (ImageHistory::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let names = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|n| (*n).to_owned()).collect() };
        history.note(&images[1..], &names(&["w", "used"]), at(0));
        history.note(&images, &names(&["used"]), at(100));
        let gone = |now| -> Vec<&str> {
            let unused = history.unused(&images, &names(&["used"]), Duration::from_secs(120), now);
            unused.into_iter().map(|image| image.id.as_str()).collect()
        };
        assert_eq!(gone(at(119)), [""; 0]);
        assert_eq!(gone(at(120)), ["old", "was-used"]);
        assert_eq!(gone(at(220)), ["old", "new", "was-used"]);
    }
}
