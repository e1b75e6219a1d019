//! Lists with filters, removals again and again, and names that are the same everywhere.

use super::{said, sleeper};
use crate::node::{IMAGE, Node};
use cri_api::v1::*;
use tonic::Code;

/// "Idempotence", "Streaming List", and removal in every state
pub async fn lists_are_filtered_and_removals_repeated(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let labelled = |value: &str| {
        let mut config = node.script(value, "sleep 1000");
        config.labels = [("key".to_owned(), value.to_owned())].into();
        config
    };
    let created = node.create(&sandbox, labelled("created")).await.unwrap();
    let running = node.run(&sandbox, labelled("running")).await;
    let exited = node.run(&sandbox, labelled("exited")).await;
    let stop = StopContainerRequest {
        container_id: exited.clone(),
        timeout: 0,
    };
    node.runtime().stop_container(stop).await.unwrap();
    let selector = |value: &str| [("key".to_owned(), value.to_owned())].into();
    let state = |state: ContainerState| Some(ContainerStateValue { state: state as i32 });
    type Filter = ContainerFilter;
    for (filter, expected) in [
        (
            Filter {
                id: running.clone(),
                ..Default::default()
            },
            vec![&running],
        ),
        (
            Filter {
                id: "non-existent-id".into(),
                ..Default::default()
            },
            vec![],
        ),
        (
            Filter {
                pod_sandbox_id: sandbox.clone(),
                ..Default::default()
            },
            vec![&created, &exited, &running],
        ),
        (
            Filter {
                state: state(ContainerState::ContainerRunning),
                ..Default::default()
            },
            vec![&running],
        ),
        (
            Filter {
                state: state(ContainerState::ContainerCreated),
                ..Default::default()
            },
            vec![&created],
        ),
        (
            Filter {
                label_selector: selector("exited"),
                ..Default::default()
            },
            vec![&exited],
        ),
        (
            Filter {
                label_selector: selector("no"),
                ..Default::default()
            },
            vec![],
        ),
    ] {
        let filter = Some(filter);
        let listed = node
            .runtime()
            .list_containers(ListContainersRequest {
                filter: filter.clone(),
            })
            .await;
        let mut stream = node
            .runtime()
            .stream_containers(StreamContainersRequest {
                filter: filter.clone(),
            })
            .await
            .unwrap()
            .into_inner();
        let mut streamed = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            streamed.extend(message.containers);
        }
        for list in [listed.unwrap().into_inner().containers, streamed] {
            let mut found: Vec<String> = list.into_iter().map(|container| container.id).collect();
            let mut expected: Vec<String> = expected.iter().map(|id| (*id).clone()).collect();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{filter:?}");
        }
    }
    let filter = Some(ContainerStatsFilter {
        label_selector: selector("running"),
        ..Default::default()
    });
    let stats = node
        .runtime()
        .list_container_stats(ListContainerStatsRequest { filter })
        .await
        .unwrap();
    let stats = stats.into_inner().stats;
    assert_eq!(stats.len(), 1);
    assert_eq!(
        stats[0]
            .attributes
            .as_ref()
            .unwrap()
            .metadata
            .as_ref()
            .unwrap()
            .name,
        "running"
    );
    assert!(stats[0].cpu.as_ref().unwrap().timestamp > 0);
    for id in [&created, &running, &exited, &running, &"none".to_owned()] {
        let request = RemoveContainerRequest {
            container_id: id.clone(),
        };
        node.runtime().remove_container(request).await.unwrap();
        let request = ContainerStatusRequest {
            container_id: id.clone(),
            verbose: false,
        };
        let error = node.runtime().container_status(request).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    }
    for id in ["none", "11111111-2222-3333-4444-555555555555"] {
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        node.runtime().stop_pod_sandbox(stop).await.unwrap();
        let remove = RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        node.runtime().remove_pod_sandbox(remove).await.unwrap();
    }
}

/// "Image Identifier Consistency" and "Image Consistency"
pub async fn an_image_has_one_name_and_goes_once(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let spec = |name: &str| {
        Some(ImageSpec {
            image: name.to_owned(),
            ..Default::default()
        })
    };
    let status = async |name: &str| {
        let request = ImageStatusRequest {
            image: spec(name),
            verbose: false,
        };
        node.images()
            .image_status(request)
            .await
            .unwrap()
            .into_inner()
            .image
    };
    let image = status(IMAGE).await.unwrap().id;
    let id = sleeper(node, &sandbox, "c", |config| config.image = spec(&image)).await;
    assert_eq!(node.status(&id).await.image_id, image);
    let list = node
        .runtime()
        .list_containers(ListContainersRequest::default())
        .await
        .unwrap();
    assert_eq!(list.into_inner().containers[0].image_id, image);
    let removals = (0..5).map(|_| async {
        let request = RemoveImageRequest { image: spec(&image) };
        node.images().remove_image(request).await.unwrap();
        assert_eq!(status(&image).await, None);
    });
    futures::future::join_all(removals).await;
    let absent = RemoveImageRequest {
        image: spec(&"0".repeat(64)),
    };
    node.images().remove_image(absent).await.unwrap();
    assert_eq!(said(node, &id, &["echo", "still here"]).await, "still here");
}
