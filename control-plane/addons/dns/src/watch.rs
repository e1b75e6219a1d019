//! Keeps the records true to the API: three watches, and new records a moment after anything changed.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, future, stream};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::{WatchStreamExt, reflector, reflector::Store, watcher};
use kube::{Api, Client, Resource};

use crate::records::Records;
use crate::server::Server;

/// Changes come in bursts; one rebuild does for all that arrive within this.
const GATHER: Duration = Duration::from_millis(50);

pub async fn run(client: Client, domain: String, server: Arc<Server>) -> anyhow::Result<()> {
    let (namespaces, changed_namespaces) = watch::<Namespace>(&client);
    let (services, changed_services) = watch::<Service>(&client);
    let (slices, changed_slices) = watch::<EndpointSlice>(&client);
    let mut changes = stream::select_all([changed_namespaces, changed_services, changed_slices]);
    let ready = async {
        namespaces.wait_until_ready().await?;
        services.wait_until_ready().await?;
        slices.wait_until_ready().await
    };
    tokio::select! {
        ready = ready => ready?,
        // The stores fill as their streams are read.
        () = changes.by_ref().for_each(|()| future::ready(())) => {}
    }
    loop {
        let (names, services, slices) = (namespaces.state(), services.state(), slices.state());
        let names = names.iter().filter_map(|object| object.metadata.name.as_deref());
        let services = services.iter().map(AsRef::as_ref);
        let slices = slices.iter().map(AsRef::as_ref);
        let records = Records::build(&domain, names, services, slices);
        if server.records().is_none() {
            tracing::info!(names = records.len(), domain, "serving the cluster's names");
        }
        server.set_records(records);
        anyhow::ensure!(changes.next().await.is_some(), "the watches ended");
        let more = changes.by_ref().for_each(|()| future::ready(()));
        _ = tokio::time::timeout(GATHER, more).await;
    }
}

type Changes = stream::BoxStream<'static, ()>;

fn watch<K>(client: &Client) -> (Store<K>, Changes)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Eq + Hash,
{
    let (store, writer) = reflector::store();
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .filter_map(|event| {
            if let Err(error) = &event {
                tracing::warn!(kind = %K::kind(&()), %error, "watch");
            }
            future::ready(event.is_ok().then_some(()))
        });
    (store, events.boxed())
}
