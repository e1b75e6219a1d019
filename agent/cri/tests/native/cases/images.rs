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
