//! Volumes made of small files: configMap, secret, downwardAPI, and projected mixtures of them with tokens.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};

use super::atomic_writer::{FileProjection, Payload};
use super::{SetUpError, VolumeContext};
use crate::field_path::pod_field;
use crate::objects::{Data, ObjectError};
use crate::resources::resource_field;

const DEFAULT_MODE: i32 = 0o644;
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

fn mode(own: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(own.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644)
}

/// The volume plugin's directory name and the files to write.
pub(super) async fn payload(
    pod: &Pod,
    volume: &Volume,
    context: &VolumeContext<'_>,
) -> Result<(&'static str, Payload), SetUpError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(source) = &volume.config_map {
        let data = context.objects.config_map(namespace, &source.name).await?;
        let data = require(data, source.optional, "configmap", namespace, &source.name)?;
        let files = project_keys(
            data,
            source.items.as_deref(),
            source.default_mode,
            source.optional,
            "config",
        )
        .map_err(SetUpError::Refused)?;
        return Ok(("configmap", files));
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = context.objects.secret(namespace, name).await?;
        let data = require(data, source.optional, "secret", namespace, name)?;
        let files = project_keys(
            data,
            source.items.as_deref(),
            source.default_mode,
            source.optional,
            "secret",
        )
        .map_err(SetUpError::Refused)?;
        return Ok(("secret", files));
    }
    if let Some(source) = &volume.downward_api {
        let files = downward(pod, source.items.as_deref(), source.default_mode, context)?;
        return Ok(("downward-api", files));
    }
    if let Some(source) = &volume.projected {
        let mut files = Payload::new();
        for projection in source.sources.iter().flatten() {
            files.extend(project(pod, projection, source.default_mode, context).await?);
        }
        return Ok(("projected", files));
    }
    let kind = serde_json::to_value(volume).ok();
    let kind = kind
        .as_ref()
        .and_then(|value| value.as_object())
        .and_then(|fields| fields.keys().find(|k| *k != "name"));
    Err(SetUpError::Refused(format!(
        "no volume plugin matched: volume type {} is not supported by this kubelet",
        kind.map_or("unknown", String::as_str)
    )))
}

async fn project(
    pod: &Pod,
    projection: &VolumeProjection,
    default_mode: Option<i32>,
    context: &VolumeContext<'_>,
) -> Result<Payload, SetUpError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(source) = &projection.config_map {
        let data = context.objects.config_map(namespace, &source.name).await?;
        let data = require(data, source.optional, "configmap", namespace, &source.name)?;
        return project_keys(
            data,
            source.items.as_deref(),
            default_mode,
            source.optional,
            "config",
        )
        .map_err(SetUpError::Refused);
    }
    if let Some(source) = &projection.secret {
        let data = context.objects.secret(namespace, &source.name).await?;
        let data = require(data, source.optional, "secret", namespace, &source.name)?;
        return project_keys(
            data,
            source.items.as_deref(),
            default_mode,
            source.optional,
            "secret",
        )
        .map_err(SetUpError::Refused);
    }
    if let Some(source) = &projection.downward_api {
        return downward(pod, source.items.as_deref(), default_mode, context);
    }
    if let Some(source) = &projection.service_account_token {
        let audience = source.audience.as_deref().unwrap_or_default();
        let seconds = source.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
        let token = context.objects.token(pod, audience, seconds).await?;
        let (mode, user) = token_access(pod, mode(None, default_mode));
        let file = FileProjection {
            data: token.into_bytes(),
            mode,
            user,
        };
        return Ok(Payload::from([(source.path.clone(), file)]));
    }
    Err(SetUpError::Refused(
        "a projected source of this kind is not supported by this kubelet".into(),
    ))
}

fn require(
    data: Option<Data>,
    optional: Option<bool>,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Data, SetUpError> {
    match data {
        Some(data) => Ok(data),
        None if optional == Some(true) => Ok(Data::new()),
        None => Err(ObjectError::Api(format!("{kind} \"{namespace}\"/\"{name}\" not found")).into()),
    }
}

/// All keys under their own names, or the listed ones under the given paths.
fn project_keys(
    data: Data,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: Option<bool>,
    what: &str,
) -> Result<Payload, String> {
    let items = items.unwrap_or_default();
    if items.is_empty() {
        let file = |data| FileProjection {
            data,
            mode: mode(None, default_mode),
            user: None,
        };
        return Ok(data.into_iter().map(|(key, data)| (key, file(data))).collect());
    }
    let mut files = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(data) => {
                let file = FileProjection {
                    data: data.clone(),
                    mode: mode(item.mode, default_mode),
                    user: None,
                };
                files.insert(item.path.clone(), file);
            }
            None if optional == Some(true) => {}
            None => return Err(format!("references non-existent {what} key: {}", item.key)),
        }
    }
    Ok(files)
}

fn downward(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: Option<i32>,
    context: &VolumeContext<'_>,
) -> Result<Payload, SetUpError> {
    let mut files = Payload::new();
    for item in items.unwrap_or_default() {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => pod_field(pod, &field.field_path, &context.addresses)
                .ok_or_else(|| SetUpError::Refused(format!("unsupported fieldPath: {}", field.field_path)))?,
            (None, Some(field)) => {
                let name = field.container_name.as_deref().unwrap_or_default();
                let containers = pod
                    .spec
                    .iter()
                    .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
                let container = containers.into_iter().find(|container| container.name == name);
                let value = container.and_then(|c| {
                    resource_field(c, &field.resource, field.divisor.as_ref(), context.allocatable)
                });
                value.ok_or_else(|| {
                    SetUpError::Refused(format!(
                        "unsupported resource {:?} of container {name:?}",
                        field.resource
                    ))
                })?
            }
            (None, None) => String::new(),
        };
        let file = FileProjection {
            data: value.into_bytes(),
            mode: mode(item.mode, default_mode),
            user: None,
        };
        files.insert(item.path.clone(), file);
    }
    Ok(files)
}

/// Only the user that all containers run as reads a token, or the pod's `fsGroup`; where neither is known, everybody
/// whom the volume's own mode lets (upstream's `FsUserFrom` and `collectData`).
fn token_access(pod: &Pod, default: u32) -> (u32, Option<u32>) {
    let spec = pod.spec.as_ref();
    let of_pod = spec.and_then(|spec| spec.security_context.as_ref());
    let containers = spec
        .into_iter()
        .flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let mut users = containers.map(|container| {
        let own = container
            .security_context
            .as_ref()
            .and_then(|own| own.run_as_user);
        own.or(of_pod.and_then(|of_pod| of_pod.run_as_user))
    });
    let first = users.next().flatten();
    let user = first.filter(|_| users.all(|user| user == first));
    let user = user.and_then(|user| u32::try_from(user).ok());
    let private = user.is_some() || of_pod.is_some_and(|of_pod| of_pod.fs_group.is_some());
    (if private { 0o600 } else { default }, user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_items() {
        let data = || Data::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let item = |key: &str, path: &str| KeyToPath {
            key: key.into(),
            path: path.into(),
            mode: Some(0o400),
        };
        let all = project_keys(data(), None, Some(0o600), None, "config").unwrap();
        assert_eq!(
            all["b"],
            FileProjection {
                data: b"2".to_vec(),
                mode: 0o600,
                user: None,
            }
        );
        let some = project_keys(data(), Some(&[item("a", "x/y")]), None, None, "config").unwrap();
        assert_eq!(
            some,
            Payload::from([(
                "x/y".into(),
                FileProjection {
                    data: b"1".to_vec(),
                    mode: 0o400,
                    user: None,
                }
            )])
        );
        let missing = [item("z", "z")];
        let error = project_keys(data(), Some(&missing), None, None, "config").unwrap_err();
        assert_eq!(error, "references non-existent config key: z");
        assert!(
            project_keys(data(), Some(&missing), None, Some(true), "config")
                .unwrap()
                .is_empty()
        );
    }
    #[test]
    fn who_may_read_a_token() {
        let pod = |of_pod: serde_json::Value, users: &[Option<i64>]| -> Pod {
            let container =
                |user: &Option<i64>| serde_json::json!({"name": "c", "securityContext": {"runAsUser": user}});
            let (init, containers) = users.split_at(users.len() / 2);
            let lists = [init, containers].map(|list| list.iter().map(container).collect::<Vec<_>>());
            let [init, containers] = lists;
            let spec = serde_json::json!({"securityContext": of_pod, "initContainers": init, "containers": containers});
            serde_json::from_value(serde_json::json!({"spec": spec})).unwrap()
        };
        let none = || serde_json::json!({});
        for (of_pod, users, expected) in [
            (none(), &[None][..], (0o644, None)),
            (none(), &[Some(7)], (0o600, Some(7))),
            (none(), &[Some(0)], (0o600, Some(0))),
            (none(), &[Some(7), Some(7)], (0o600, Some(7))),
            (none(), &[Some(7), Some(8)], (0o644, None)),
            (none(), &[Some(7), None], (0o644, None)),
            (none(), &[None, Some(7)], (0o644, None)),
            (
                serde_json::json!({"runAsUser": 7}),
                &[None, Some(7)],
                (0o600, Some(7)),
            ),
            (
                serde_json::json!({"runAsUser": 7}),
                &[None, Some(8)],
                (0o644, None),
            ),
            (serde_json::json!({"fsGroup": 9}), &[None], (0o600, None)),
            (serde_json::json!({"fsGroup": 9}), &[Some(7)], (0o600, Some(7))),
        ] {
            let found = token_access(&pod(of_pod.clone(), users), 0o644);
            assert_eq!(found, expected, "{of_pod} {users:?}");
        }
    }
}
