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
    let registry = registry(image);
    for reference in pod
        .spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten())
    {
        let Ok(Some(data)) = context.objects.secret(namespace(pod), &reference.name).await else {
            continue;
        };
        let config = data
            .get(".dockerconfigjson")
            .and_then(|data| serde_json::from_slice::<DockerConfig>(data).ok());
        let entry = config.and_then(|config| {
            config
                .auths
                .into_iter()
                .find(|(host, _)| host_of(host) == registry)
        });
        if let Some((_, entry)) = entry {
            return Some(AuthConfig {
                username: entry.username,
                password: entry.password,
                auth: entry.auth,
                server_address: registry,
                ..Default::default()
            });
        }
    }
    None
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

fn host_of(entry: &str) -> String {
    let host = entry.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    if host == "index.docker.io" {
        "docker.io".to_owned()
    } else {
        host.to_owned()
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
        assert_eq!(host_of("https://index.docker.io/v1/"), "docker.io");
        assert_eq!(host_of("r.io"), "r.io");
    }
}
