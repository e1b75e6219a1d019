//! Images: imported, listed, removed.

use crate::node::{IMAGE, Node};
use cri_api::v1::*;

pub async fn images_are_imported_once(node: &mut Node) {
    let before = node
        .images()
        .list_images(ListImagesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(before.len(), 1);
    assert_eq!(before[0].repo_tags, [IMAGE]);
    assert!(before[0].pinned && before[0].size > 100_000);
    node.kill_server();
    node.start().await;
    let after = node
        .images()
        .list_images(ListImagesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(before, after);
    for name in [
        IMAGE,
        &before[0].id,
        &before[0].repo_digests[0],
        before[0].id.trim_start_matches("sha256:"),
    ] {
        let image = ImageSpec {
            image: name.into(),
            ..Default::default()
        };
        let request = ImageStatusRequest {
            image: Some(image),
            verbose: false,
        };
        let found = node
            .images()
            .image_status(request)
            .await
            .unwrap()
            .into_inner()
            .image;
        assert_eq!(found.expect(name).id, before[0].id);
    }
    let unused = RemoveImageRequest {
        image: Some(ImageSpec {
            image: IMAGE.into(),
            ..Default::default()
        }),
    };
    node.images().remove_image(unused.clone()).await.unwrap();
    node.images().remove_image(unused).await.unwrap();
    let layers = std::fs::read_dir(node.folder.join("root/l")).unwrap().count();
    assert_eq!(layers, 0, "layers go with their image");
}

/// As an unclean power-off may leave the disk.
pub async fn damaged_images_heal(node: &mut Node) {
    let layers = || {
        let entries = std::fs::read_dir(node.folder.join("root/l")).unwrap().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect::<Vec<_>>()
    };
    let base = layers()
        .into_iter()
        .find(|layer| layer.join("bin/busybox").exists())
        .unwrap();
    let lost = || std::fs::remove_dir_all(&base).unwrap();
    let emptied = || std::fs::remove_dir_all(base.join("bin")).unwrap();
    let no_record = || std::fs::remove_file(base.with_extension("json")).unwrap();
    let sandbox = node.sandbox().await;
    for (name, damage) in [
        ("lost", &lost as &dyn Fn()),
        ("emptied", &emptied),
        ("no-record", &no_record),
    ] {
        damage();
        let (code, text) = node.output(&sandbox, node.script(name, "cat /etc/shown")).await;
        assert_eq!((code, text.as_str()), (0, "new"), "while the server runs: {name}");
    }
    for (name, damage) in [
        ("lost-at-start", &lost as &dyn Fn()),
        ("emptied-at-start", &emptied),
    ] {
        damage();
        node.kill_server();
        node.start().await;
        let (code, text) = node.output(&sandbox, node.script(name, "cat /etc/shown")).await;
        assert_eq!((code, text.as_str()), (0, "new"), "{name}");
    }
    // What did not come with the machine is not there until it is pulled.
    std::fs::remove_file(node.folder.join("archives/busybox.tar.zst")).unwrap();
    lost();
    let image = ImageSpec {
        image: IMAGE.into(),
        ..Default::default()
    };
    let request = ImageStatusRequest {
        image: Some(image),
        verbose: false,
    };
    assert_eq!(
        node.images()
            .image_status(request)
            .await
            .unwrap()
            .into_inner()
            .image,
        None
    );
    let error = node
        .create(&sandbox, node.script("gone", "true"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), tonic::Code::NotFound);
}
