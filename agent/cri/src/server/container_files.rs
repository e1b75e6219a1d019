//! A container's files before it starts: root file system, user, volumes, the OCI bundle.

use super::{Runtime, convert, unknown};
use crate::snapshot;
use crate::spec::mounts::{HostMount, SandboxFiles};
use crate::spec::user::{self, Database, User};
use crate::spec::{self, Input, Namespaces};
use crate::state::{self, ContainerRecord, ImageRecord, SandboxRecord};
use cri_api::v1::{self, NamespaceMode};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::fs;
use std::path::{Path, PathBuf};
use tonic::Status;

/// What making a container's files finds out.
pub struct Prepared {
    pub user: User,
}

impl Runtime {
    /// Makes everything a start needs. Blocks.
    pub fn prepare(
        &self,
        record: &ContainerRecord,
        sandbox: &SandboxRecord,
        image: &ImageRecord,
    ) -> Result<Prepared, Status> {
        let id = &record.id;
        let rootfs = self.layout.rootfs(id);
        let layers = self.images.layer_folders(image);
        snapshot::mount_root(&layers, &self.layout.upper(id), &self.layout.work(id), &rootfs)
            .map_err(unknown)?;
        let config = &record.config;
        let security = config
            .linux
            .as_ref()
            .and_then(|linux| linux.security_context.as_ref());
        let database = Database::read(&rootfs).map_err(unknown)?;
        let user = user::resolve(security, &image.config.user, &database).map_err(unknown)?;
        make_folder(&rootfs, &spec::start_folder(config, &image.config)).map_err(|error| {
            unknown(format!(
                "make the working directory {:?}: {error}",
                spec::start_folder(config, &image.config)
            ))
        })?;
        let mut volumes = self.volumes(id, config)?;
        // Nodes are made below /dev only; elsewhere the root file system has no devices, so they are mounted.
        let (made, mounted): (Vec<_>, Vec<_>) = config
            .devices
            .iter()
            .partition(|device| Path::new(&device.container_path).starts_with("/dev"));
        volumes.extend(mounted.into_iter().map(|device| HostMount {
            destination: PathBuf::from(&device.container_path),
            source: PathBuf::from(&device.host_path),
            readonly: false,
            recursive_readonly: false,
            propagation: v1::MountPropagation::PropagationPrivate,
        }));
        let devices: Vec<_> = made
            .into_iter()
            .flat_map(|device| {
                crate::host::devices_at(Path::new(&device.host_path), Path::new(&device.container_path))
            })
            .collect();
        let namespaces = self.namespaces(sandbox, security)?;
        let files = self.sandbox_files(sandbox);
        let input = Input {
            config,
            image: &image.config,
            host: &self.host,
            user: &user,
            hostname: &self.hostname(sandbox),
            rootfs: &rootfs,
            cgroup: &record.cgroup,
            namespaces: &namespaces,
            files: &files,
            volumes: &volumes,
            devices: &devices,
        };
        let (generated, missing) = spec::generate(&input).map_err(unknown)?;
        if !missing.is_empty() {
            tracing::warn!(container = id, controllers = ?missing, "limits are not enforced: no such cgroup controllers");
        }
        state::save(&self.layout.container(id).join("config.json"), &generated).map_err(unknown)?;
        Ok(Prepared { user })
    }

    fn sandbox_files(&self, sandbox: &SandboxRecord) -> SandboxFiles {
        let folder = self.layout.sandbox(&sandbox.id);
        let shared_memory = self.layout.shared_memory(&sandbox.id);
        SandboxFiles {
            hosts: folder.join("hosts"),
            hostname: folder.join("hostname"),
            resolv_conf: folder.join("resolv.conf"),
            shared_memory: if shared_memory.exists() {
                shared_memory
            } else {
                "/dev/shm".into()
            },
        }
    }

    fn namespaces(
        &self,
        sandbox: &SandboxRecord,
        security: Option<&v1::LinuxContainerSecurityContext>,
    ) -> Result<Namespaces, Status> {
        let options = security
            .and_then(|security| security.namespace_options.clone())
            .unwrap_or_else(|| convert::namespace_options(sandbox));
        let bound = |kind: &str| Some(self.layout.namespace(&sandbox.id, kind)).filter(|path| path.exists());
        let pid = match options.pid() {
            NamespaceMode::Container => Some(None),
            NamespaceMode::Node => None,
            NamespaceMode::Pod => Some(bound("pid")),
            NamespaceMode::Target => {
                let target = self.memory.container(&options.target_id)?;
                if target.record.sandbox_id != sandbox.id || !target.running() {
                    return Err(unknown(format!(
                        "target container {:?} does not run in this pod",
                        options.target_id
                    )));
                }
                let pid = target.process.map(|process| process.pid).unwrap_or_default();
                Some(Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))))
            }
        };
        Ok(Namespaces {
            network: bound("net"),
            ipc: bound("ipc"),
            uts: bound("uts"),
            pid,
        })
    }

    fn volumes(&self, container_id: &str, config: &v1::ContainerConfig) -> Result<Vec<HostMount>, Status> {
        let mounts = config.mounts.iter().enumerate();
        mounts
            .map(|(index, mount)| self.volume(container_id, index, mount))
            .collect()
    }

    fn volume(&self, container_id: &str, index: usize, mount: &v1::Mount) -> Result<HostMount, Status> {
        if !Path::new(&mount.container_path).is_absolute() {
            return Err(Status::invalid_argument(format!(
                "config.mounts[{index}].container_path: {:?} is not absolute",
                mount.container_path
            )));
        }
        if mount.recursive_read_only
            && (!mount.readonly || mount.propagation() != v1::MountPropagation::PropagationPrivate)
        {
            return Err(Status::invalid_argument(format!(
                "config.mounts[{index}].recursive_read_only: requires readonly and private propagation"
            )));
        }
        if mount.image.is_some() && !mount.readonly {
            return Err(Status::invalid_argument(format!(
                "config.mounts[{index}].readonly: an image volume is read-only"
            )));
        }
        let source = match &mount.image {
            Some(image) => self.image_volume(container_id, index, image, &mount.image_sub_path)?,
            None => host_source(Path::new(&mount.host_path))
                .map_err(|error| unknown(format!("failed to mkdir {:?}: {error}", mount.host_path)))?,
        };
        Ok(HostMount {
            destination: PathBuf::from(&mount.container_path),
            source,
            readonly: mount.readonly,
            recursive_readonly: mount.recursive_read_only,
            propagation: mount.propagation(),
        })
    }

    fn image_volume(
        &self,
        container_id: &str,
        index: usize,
        image: &v1::ImageSpec,
        sub_path: &str,
    ) -> Result<PathBuf, Status> {
        let found = self
            .images
            .find(&image.image)
            .ok_or_else(|| Status::not_found(format!("image {:?} not found", image.image)))?;
        let target = self
            .layout
            .container(container_id)
            .join(format!("image-volume-{index}"));
        snapshot::mount_image(&self.images.layer_folders(&found), &target).map_err(unknown)?;
        let inside = crate::spec::mounts::normal(Path::new(sub_path));
        let source = target.join(inside.strip_prefix("/").unwrap_or(&inside));
        let real = fs::canonicalize(&source)
            .map_err(|error| unknown(format!("image sub path {sub_path:?}: {error}")))?;
        if !real.starts_with(&target) {
            return Err(unknown(format!("image sub path {sub_path:?} leaves the image")));
        }
        Ok(real)
    }

    /// Undoes the mounts of `prepare`. Blocks.
    pub fn unmount(&self, container_id: &str) -> std::io::Result<()> {
        crate::namespaces::unmount(&self.layout.rootfs(container_id))?;
        for entry in fs::read_dir(self.layout.container(container_id))
            .into_iter()
            .flatten()
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with("image-volume-") {
                crate::namespaces::unmount(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// The real source of a bind mount; a missing folder is made, as containerd does.
fn host_source(path: &Path) -> std::io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fs::create_dir_all(path)?;
            fs::canonicalize(path)
        }
        other => other,
    }
}

/// Makes a folder inside a root file system; links there cannot lead out of it.
fn make_folder(rootfs: &Path, folder: &Path) -> std::io::Result<()> {
    let root = rustix::fs::open(
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &Path| {
        rustix::fs::openat2(
            &root,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
    };
    let mut path = PathBuf::from("/");
    let mut parent = open(&path)?;
    for component in folder
        .components()
        .filter(|component| matches!(component, std::path::Component::Normal(_)))
    {
        path.push(component);
        parent = match open(&path) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(
                    &parent,
                    Path::new(component.as_os_str()),
                    Mode::from_raw_mode(0o755),
                )?;
                open(&path)?
            }
            other => other?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_folders_stay_inside_the_root() {
        let dir = crate::test_support::TempDir::new("folder");
        let outside = crate::test_support::TempDir::new("outside");
        make_folder(dir.path(), Path::new("/a/b/c")).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        assert!(make_folder(dir.path(), Path::new("/link/x")).is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
