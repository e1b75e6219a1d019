//! Volumes as critest tries them: propagation, and how deep read-only goes.

use super::{complaint, host, said, security_of as security, sleeper};
use crate::node::Node;
use cri_api::v1::*;
use std::path::Path;

fn below(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("folder").count()
}

/// "Container Mount Propagation"
pub async fn mounts_propagate_as_asked(node: &mut Node) {
    use MountPropagation::{
        PropagationBidirectional as Both, PropagationHostToContainer as In, PropagationPrivate as Private,
    };
    let sandbox = node.sandbox().await;
    for (index, (propagation, reaches_container, reaches_host)) in
        [(Private, false, false), (In, true, false), (Both, true, true)]
            .into_iter()
            .enumerate()
    {
        let base = node.folder.join(format!("propagation-{index}"));
        let (shared, origin) = (base.join("mnt"), base.join("origin"));
        for folder in [shared.join("from-host"), origin.clone()] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(origin.join("flag"), "").unwrap();
        let path = |path: &Path| path.display().to_string();
        host("mount", &["--bind", &path(&shared), &path(&shared)]);
        let kind = if propagation == Private {
            "--make-rprivate"
        } else {
            "--make-rshared"
        };
        host("mount", &[kind, &path(&shared)]);
        let id = sleeper(node, &sandbox, &format!("p{index}"), |config| {
            security(config).privileged = true;
            config.mounts = vec![Mount {
                container_path: path(&shared),
                host_path: path(&shared),
                propagation: propagation as i32,
                ..Default::default()
            }];
        })
        .await;
        let told = node.status(&id).await.mounts.remove(0);
        assert_eq!(
            (told.propagation(), told.readonly, told.host_path),
            (propagation, false, path(&shared))
        );
        host(
            "mount",
            &["--bind", &path(&origin), &path(&shared.join("from-host"))],
        );
        let seen = said(node, &id, &["ls", "-A", &path(&shared.join("from-host"))]).await;
        assert_eq!(!seen.is_empty(), reaches_container, "{propagation:?}");
        let inside = shared.join("from-container");
        said(node, &id, &["mkdir", &path(&inside)]).await;
        said(node, &id, &["busybox", "mount", "--bind", "/etc", &path(&inside)]).await;
        assert_eq!(below(&inside) > 0, reaches_host, "{propagation:?}");
        if reaches_host {
            host("umount", &[&path(&inside)]);
        }
        host("umount", &[&path(&shared.join("from-host"))]);
        host("umount", &[&path(&shared)]);
    }
}

/// "Container Mount Readonly"
pub async fn readonly_mounts_are_as_deep_as_asked(node: &mut Node) {
    let features = node
        .runtime()
        .status(StatusRequest::default())
        .await
        .unwrap()
        .into_inner()
        .runtime_handlers
        .remove(0)
        .features
        .unwrap();
    assert!(features.recursive_read_only_mounts);
    let sandbox = node.sandbox().await;
    let folder = node.folder.join("volume");
    let inner = folder.join("tmpfs");
    std::fs::create_dir_all(&inner).unwrap();
    host("mount", &["-t", "tmpfs", "none", inner.to_str().unwrap()]);
    let mount = |readonly, recursive_read_only, propagation: MountPropagation| Mount {
        container_path: "/mnt".into(),
        host_path: folder.display().to_string(),
        readonly,
        recursive_read_only,
        propagation: propagation as i32,
        selinux_relabel: true,
        ..Default::default()
    };
    use MountPropagation::*;
    for recursive in [false, true] {
        let id = sleeper(node, &sandbox, &format!("c{recursive}"), |config| {
            config.mounts = vec![mount(true, recursive, PropagationPrivate)];
        })
        .await;
        assert_eq!(
            complaint(node, &id, &["touch", "/mnt/file"]).await,
            "touch: /mnt/file: Read-only file system"
        );
        let touched = node.exec(&id, &["touch", "/mnt/tmpfs/file"], 30).await.unwrap();
        assert_eq!(touched.exit_code != 0, recursive);
    }
    for (readonly, propagation) in [
        (true, PropagationHostToContainer),
        (true, PropagationBidirectional),
        (false, PropagationPrivate),
    ] {
        let mut config = node.script("refused", "true");
        config.mounts = vec![mount(readonly, true, propagation)];
        let error = node.create(&sandbox, config).await.unwrap_err();
        assert!(error.message().contains("recursive_read_only"), "{error}");
    }
    // The host's path may be a link.
    let link = node.folder.join("link");
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    let id = sleeper(node, &sandbox, "linked", |config| {
        config.mounts = vec![Mount {
            container_path: link.display().to_string(),
            host_path: link.display().to_string(),
            ..Default::default()
        }];
    })
    .await;
    assert_eq!(said(node, &id, &["ls", link.to_str().unwrap()]).await, "tmpfs");
    host("umount", &[inner.to_str().unwrap()]);
}
