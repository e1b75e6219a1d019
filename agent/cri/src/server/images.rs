//! The image service.

use super::{Runtime, blocking, convert, unknown};
use crate::image::registry::Credentials;
use crate::image::{ImageError, Reference, archive};
use crate::state::{ImageRecord, now_nanos};
use cri_api::v1;
use std::collections::HashMap;
use std::sync::Arc;
use tonic::Status;

impl Runtime {
    pub fn list_images(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let wanted = filter
            .and_then(|filter| filter.image)
            .map(|image| image.image)
            .unwrap_or_default();
        if wanted.is_empty() {
            self.images.list().iter().map(convert::image).collect()
        } else {
            self.images.find(&wanted).iter().map(convert::image).collect()
        }
    }

    /// Finds an image that can be run. One whose layers are damaged is imported again when it came with the
    /// machine; otherwise it is not there, and the kubelet pulls it.
    pub async fn find_whole_image(self: &Arc<Self>, wanted: &str) -> Result<Option<ImageRecord>, Status> {
        let Some(found) = self.images.find(wanted) else {
            return Ok(None);
        };
        let runtime = Arc::clone(self);
        let wanted = wanted.to_owned();
        blocking(move || {
            if !runtime.images.forget_damaged(&found)? {
                return Ok::<_, ImageError>(Some(found));
            }
            tracing::warn!(image = found.id, "an image's layers are damaged: it is forgotten");
            if let Some(folder) = &runtime.image_archives {
                archive::import_all(&runtime.images, folder)?;
            }
            Ok(runtime.images.find(&wanted))
        })
        .await
    }

    pub async fn image_status(
        self: &Arc<Self>,
        request: v1::ImageStatusRequest,
    ) -> Result<v1::ImageStatusResponse, Status> {
        let wanted = request.image.map(|image| image.image).unwrap_or_default();
        let found = self.find_whole_image(&wanted).await?;
        let mut info = HashMap::new();
        if let Some(image) = found.as_ref().filter(|_| request.verbose) {
            let text = serde_json::to_string(
                &serde_json::json!({"imageSpec": {"config": image.config}, "layers": image.layers}),
            );
            info.insert("info".to_owned(), text.map_err(unknown)?);
        }
        Ok(v1::ImageStatusResponse {
            image: found.as_ref().map(convert::image),
            info,
        })
    }

    pub async fn pull_image(self: &Arc<Self>, request: v1::PullImageRequest) -> Result<String, Status> {
        let spec = request.image.unwrap_or_default();
        if !spec.runtime_handler.is_empty() {
            return Err(unknown(format!(
                "no runtime for {:?} is configured",
                spec.runtime_handler
            )));
        }
        let reference =
            Reference::parse(&spec.image).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let credentials = request.auth.map(credentials).transpose()?.unwrap_or_default();
        let started = std::time::Instant::now();
        let pulled = match self.fetch_and_unpack(&reference, &credentials).await {
            // A layer was removed while it was thought to be there.
            Err(ImageError::Unfetched(_)) => self.fetch_and_unpack(&reference, &credentials).await,
            other => other,
        };
        let id = pulled.map_err(|error| {
            let message = format!(
                "failed to pull and unpack image {:?}: {error}",
                reference.to_string()
            );
            match error {
                ImageError::Unresolved { missing: true, .. } | ImageError::NoPlatform(_) => {
                    Status::not_found(message)
                }
                _ => Status::unknown(message),
            }
        })?;
        tracing::info!(image = %reference, id, seconds = started.elapsed().as_secs_f32(), "pulled an image");
        Ok(id)
    }

    async fn fetch_and_unpack(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<String, ImageError> {
        let folder = self.layout.temporary();
        let images = Arc::clone(&self.images);
        let have = move |diff_id: &str| images.has_layer(diff_id);
        let pulled = self
            .registry
            .fetch(reference, credentials, &folder, &have)
            .await?;
        let (images, name) = (Arc::clone(&self.images), reference.clone());
        let stored = tokio::task::spawn_blocking(move || {
            images.add(&pulled.blobs, &pulled.digest, &pulled.manifest, &[name], false)
        });
        stored
            .await
            .unwrap_or_else(|error| Err(ImageError::Invalid(format!("unpack: {error}"))))
    }

    pub async fn remove_image(self: &Arc<Self>, image: Option<v1::ImageSpec>) -> Result<(), Status> {
        let wanted = image.map(|image| image.image).unwrap_or_default();
        let Some(found) = self.images.find(&wanted) else {
            return Ok(());
        };
        let (images, keep) = (Arc::clone(&self.images), self.layers_in_use());
        blocking(move || images.remove(&found.id, &keep)).await
    }

    pub async fn drop_unused_layers(self: &Arc<Self>) -> Result<(), Status> {
        let (images, keep) = (Arc::clone(&self.images), self.layers_in_use());
        blocking(move || images.collect(&keep)).await
    }

    pub async fn image_fs_info(self: &Arc<Self>) -> Result<v1::ImageFsInfoResponse, Status> {
        let runtime = Arc::clone(self);
        blocking(move || {
            let (mut bytes, mut inodes) = (0, 0);
            for layer in runtime.images.layers() {
                bytes += layer.bytes;
                inodes += layer.inodes;
            }
            let written = crate::snapshot::usage(&runtime.layout.containers());
            let usage = |mountpoint: &std::path::Path, (bytes, inodes): (u64, u64)| v1::FilesystemUsage {
                timestamp: now_nanos(),
                fs_id: Some(v1::FilesystemIdentifier {
                    mountpoint: mountpoint.display().to_string(),
                }),
                used_bytes: Some(v1::UInt64Value { value: bytes }),
                inodes_used: Some(v1::UInt64Value { value: inodes }),
            };
            Ok::<_, Status>(v1::ImageFsInfoResponse {
                image_filesystems: vec![usage(&runtime.layout.layers(), (bytes, inodes))],
                container_filesystems: vec![usage(&runtime.layout.containers(), written)],
            })
        })
        .await
    }
}

/// CRI's credentials: user and password, or both in base64, or a token.
fn credentials(auth: v1::AuthConfig) -> Result<Credentials, Status> {
    use base64::Engine;
    let (mut username, mut password) = (auth.username, auth.password);
    if username.is_empty() && !auth.auth.is_empty() {
        let bad = || Status::invalid_argument("auth.auth: not base64 of user:password");
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(&auth.auth)
            .map_err(|_| bad())?;
        let text = String::from_utf8(decoded).map_err(|_| bad())?;
        let (user, secret) = text.split_once(':').ok_or_else(bad)?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    Ok(Credentials {
        username,
        password,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_in_three_forms() {
        let auth = v1::AuthConfig {
            auth: "dXNlcjpwYTpzcw==".into(),
            ..Default::default()
        };
        let decoded = credentials(auth).unwrap();
        assert_eq!(
            (decoded.username.as_str(), decoded.password.as_str()),
            ("user", "pa:ss")
        );
        let plain = v1::AuthConfig {
            username: "u".into(),
            password: "p".into(),
            ..Default::default()
        };
        assert_eq!(credentials(plain).unwrap().password, "p");
        assert!(
            credentials(v1::AuthConfig {
                auth: "?".into(),
                ..Default::default()
            })
            .is_err()
        );
    }
}
