//! Makes sure that a container's image is present, as its pull policy demands.

use std::collections::HashMap;
use std::sync::Mutex;

use cri_api::v1::{AuthConfig, Image, PodSandboxConfig};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use tracing::info;

use crate::back_off::BackOff;
use crate::context::{Context, namespace, uid};
use crate::pod_status::Waiting;
use crate::security_context::ImageUser;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// The container's policy, or the default that the image's tag implies.
fn policy(container: &Container) -> PullPolicy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None => {
            let image = container.image.as_deref().unwrap_or_default();
            let name = image.rsplit('/').next().unwrap_or_default();
            let latest = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
            if latest {
                PullPolicy::Always
            } else {
                PullPolicy::IfNotPresent
            }
        }
    }
}

#[derive(Default)]
pub struct ImagePuller {
    back_off: Mutex<State>,
}

#[derive(Default)]
struct State {
    delays: BackOff,
    failures: HashMap<String, (Timestamp, String)>,
}

/// The image to create a container from.
pub struct PresentImage {
    pub reference: String,
    pub user: ImageUser,
}

impl From<Image> for PresentImage {
    fn from(image: Image) -> Self {
        let user = ImageUser {
            uid: image.uid.map(|uid| uid.value),
            name: image.username,
        };
        Self {
            reference: image.id,
            user,
        }
    }
}

fn waiting(reason: &str, message: String) -> Waiting {
    Waiting {
        reason: reason.into(),
        message,
    }
}

impl ImagePuller {
    pub async fn ensure(
        &self,
        context: &Context,
        pod: &Pod,
        container: &Container,
        about: &ObjectReference,
        sandbox: PodSandboxConfig,
    ) -> Result<PresentImage, Waiting> {
        let name = container.image.as_deref().unwrap_or_default();
        let events = &context.events;
        let present = context.runtime.image(name).await.map_err(|error| {
            let message = format!("Failed to inspect image \"{name}\": {error}");
            events.warning(about.clone(), "InspectFailed", message.clone());
            waiting("ImageInspectError", message)
        })?;
        match (policy(container), present) {
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => {}
            (PullPolicy::Never, None) => {
                let message = format!("Container image \"{name}\" is not present with pull policy of Never");
                events.warning(about.clone(), "ErrImageNeverPull", message.clone());
                return Err(waiting("ErrImageNeverPull", message));
            }
            (_, Some(image)) => {
                let message = format!(
                    "Container image \"{name}\" already present on machine and can be accessed by the pod"
                );
                events.normal(about.clone(), "Pulled", message);
                return Ok(image.into());
            }
        }
        let key = format!("{}_{name}", uid(pod));
        if let Some(message) = self.still_backing_off(&key) {
            events.normal(
                about.clone(),
                "BackOff",
                format!("Back-off pulling image \"{name}\""),
            );
            events.warning(about.clone(), "Failed", "Error: ImagePullBackOff");
            return Err(waiting(
                "ImagePullBackOff",
                format!("Back-off pulling image \"{name}\": {message}"),
            ));
        }
        self.pull(context, pod, name, &key, about, sandbox).await
    }

    /// When the next attempt at an image of this pod is due.
    pub fn retry_in(&self, pod: &Pod, container: &Container) -> Option<std::time::Duration> {
        let key = format!("{}_{}", uid(pod), container.image.as_deref().unwrap_or_default());
        let state = self.back_off.lock().unwrap_or_else(|e| e.into_inner());
        let (failed, _) = state.failures.get(&key)?;
        state.delays.remaining(&key, *failed, Timestamp::now())
    }

    pub fn forget_pod(&self, uid: &str) {
        let prefix = format!("{uid}_");
        let mut state = self.back_off.lock().unwrap_or_else(|e| e.into_inner());
        let keys: Vec<String> = state
            .failures
            .keys()
            .filter(|key| key.starts_with(&prefix))
            .cloned()
            .collect();
        for key in keys {
            state.failures.remove(&key);
            state.delays.reset(&key);
        }
    }

    fn still_backing_off(&self, key: &str) -> Option<String> {
        let state = self.back_off.lock().unwrap_or_else(|e| e.into_inner());
        let (failed, message) = state.failures.get(key)?;
        state
            .delays
            .remaining(key, *failed, Timestamp::now())
            .map(|_| message.clone())
    }

    async fn pull(
        &self,
        context: &Context,
        pod: &Pod,
        name: &str,
        key: &str,
        about: &ObjectReference,
        sandbox: PodSandboxConfig,
    ) -> Result<PresentImage, Waiting> {
        let events = &context.events;
        events.normal(about.clone(), "Pulling", format!("Pulling image \"{name}\""));
        let started = std::time::Instant::now();
        let auth = pull_secret(context, pod, name).await;
        let pulled = match context.runtime.pull_image(name, auth, sandbox).await {
            Ok(_) => context.runtime.image(name).await,
            Err(error) => Err(error),
        };
        let error = match pulled {
            Ok(Some(image)) => {
                let took = started.elapsed();
                info!(
                    image = name,
                    milliseconds = took.as_millis() as u64,
                    "image pulled"
                );
                let message = format!(
                    "Successfully pulled image \"{name}\" in {:.3}s ({:.3}s including waiting). Image size: {} bytes.",
                    took.as_secs_f64(),
                    took.as_secs_f64(),
                    image.size
                );
                events.normal(about.clone(), "Pulled", message);
                let mut state = self.back_off.lock().unwrap_or_else(|e| e.into_inner());
                state.failures.remove(key);
                state.delays.reset(key);
                return Ok(image.into());
            }
            Ok(None) => "the runtime does not have the image after pulling it".to_owned(),
            Err(error) => error.message(),
        };
        let now = Timestamp::now();
        {
            let mut state = self.back_off.lock().unwrap_or_else(|e| e.into_inner());
            state.delays.advance(key, now, now);
            state
                .failures
                .insert(key.to_owned(), (now, format!("ErrImagePull: {error}")));
        }
        let message = format!("Failed to pull image \"{name}\": {error}");
        events.warning(about.clone(), "Failed", message);
        events.warning(about.clone(), "Failed", "Error: ErrImagePull");
        Err(waiting("ErrImagePull", error))
    }
}

/// Credentials for the image's registry from the pod's `imagePullSecrets`.
async fn pull_secret(context: &Context, pod: &Pod, image: &str) -> Option<AuthConfig> {
    let references = pod
        .spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten());
    for reference in references {
        let Ok(Some(data)) = context.objects.secret(namespace(pod), &reference.name).await else {
            continue;
        };
        let new = data
            .get(".dockerconfigjson")
            .and_then(|data| serde_json::from_slice::<DockerConfig>(data).ok());
        let old = || serde_json::from_slice(data.get(".dockercfg")?).ok();
        let Some(auths) = new.map(|config| config.auths).or_else(old) else {
            continue;
        };
        if let Some(entry) = credentials(auths, image) {
            return Some(AuthConfig {
                username: entry.username,
                password: entry.password,
                auth: entry.auth,
                server_address: registry(image),
                ..Default::default()
            });
        }
    }
    None
}

/// The entry that names the image most closely.
fn credentials(auths: HashMap<String, DockerAuth>, image: &str) -> Option<DockerAuth> {
    let full = match image.split_once('/') {
        Some((host, _)) if host == registry(image) => image.to_owned(),
        _ => format!("docker.io/{image}"),
    };
    let fitting = auths.into_iter().filter(|(entry, _)| covers(entry, &full));
    fitting.max_by_key(|(entry, _)| entry.len()).map(|(_, auth)| auth)
}

/// Whether an entry, `host[:port][/path]` with `*` for a label of the host, is about the image.
fn covers(entry: &str, image: &str) -> bool {
    let entry = entry
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let (host, path) = entry.split_once('/').unwrap_or((entry, ""));
    let host = if host == "index.docker.io" {
        "docker.io"
    } else {
        host
    };
    let path = if ["v1", "v2"].contains(&path) { "" } else { path };
    let (image_host, image_path) = image.split_once('/').unwrap_or((image, ""));
    let labels: Vec<&str> = host.split('.').collect();
    let image_labels: Vec<&str> = image_host.split('.').collect();
    let same = labels.len() == image_labels.len()
        && labels
            .iter()
            .zip(&image_labels)
            .all(|(pattern, label)| *pattern == "*" || pattern == label);
    same && (path.is_empty()
        || image_path
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@'])))
}

#[derive(serde::Deserialize)]
struct DockerConfig {
    auths: HashMap<String, DockerAuth>,
}

#[derive(serde::Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    username: String,
    password: String,
    auth: String,
}

fn registry(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host.to_owned(),
        _ => "docker.io".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_policies_follow_the_tag() {
        for (image, own, expected) in [
            ("busybox", None, PullPolicy::Always),
            ("busybox:latest", None, PullPolicy::Always),
            ("localhost:5000/busybox", None, PullPolicy::Always),
            ("busybox:1.36", None, PullPolicy::IfNotPresent),
            ("busybox@sha256:0", None, PullPolicy::IfNotPresent),
            ("busybox", Some("Never"), PullPolicy::Never),
        ] {
            let container = Container {
                image: Some(image.into()),
                image_pull_policy: own.map(Into::into),
                ..Default::default()
            };
            assert_eq!(policy(&container), expected, "{image}");
        }
    }

    #[test]
    fn registries() {
        for (image, expected) in [
            ("busybox", "docker.io"),
            ("a/b", "docker.io"),
            ("r.io/a", "r.io"),
            ("localhost/a", "localhost"),
        ] {
            assert_eq!(registry(image), expected);
        }
    }

    #[test]
    fn the_closest_credentials_are_taken() {
        let auths = |names: &[&str]| -> HashMap<String, DockerAuth> {
            let one = |name: &&str| {
                let auth = DockerAuth {
                    username: (*name).to_owned(),
                    ..Default::default()
                };
                ((*name).to_owned(), auth)
            };
            names.iter().map(one).collect()
        };
        let index = "https://index.docker.io/v1/";
        for (names, image, expected) in [
            (&[index][..], "busybox", Some(index)),
            (&["r.io", "r.io/team"], "r.io/team/a:1", Some("r.io/team")),
            (&["r.io", "r.io/team"], "r.io/teams/a:1", Some("r.io")),
            (&["*.r.io"], "eu.r.io/a", Some("*.r.io")),
            (&["*.r.io"], "r.io/a", None),
            (&["localhost:5000"], "localhost:5000/a", Some("localhost:5000")),
        ] {
            let found = credentials(auths(names), image).map(|auth| auth.username);
            assert_eq!(found.as_deref(), expected, "{image}");
        }
    }
}
