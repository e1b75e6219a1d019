//! Keeps the records true to the API: three watches, and new records a moment after anything changed; and a fourth for
//! what the administrator says.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, future, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::runtime::{WatchStreamExt, reflector, reflector::Store, watcher};
use kube::{Api, Client, Resource};

use crate::loops;
use crate::overrides::{CONFIG_MAP, Overrides};
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

/// Follows the ConfigMap `cluster-dns` of `namespace`; while it is wrong, what was right before stays.
pub async fn overrides(client: Client, namespace: String, server: Arc<Server>) -> anyhow::Result<()> {
    let only = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let api = Api::<ConfigMap>::namespaced(client, &namespace);
    let mut events = watcher(api, only).default_backoff().boxed();
    let mut found = false;
    while let Some(event) = events.next().await {
        let data = match event {
            Ok(watcher::Event::Init) => {
                found = false;
                continue;
            }
            Ok(watcher::Event::InitApply(map) | watcher::Event::Apply(map)) => {
                found = true;
                map.data.unwrap_or_default()
            }
            Ok(watcher::Event::InitDone) if found => continue,
            Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(%error, "watch of the ConfigMap");
                continue;
            }
        };
        match Overrides::parse(&data) {
            Ok(overrides) => {
                let servers = server.forwarder.upstreams().iter().copied();
                let servers = servers.chain(overrides.servers()).collect();
                tracing::info!(keys = ?data.keys(), "configuration read");
                server.set_overrides(overrides);
                let looping = loops::find(&server, servers).await;
                for upstream in &looping {
                    tracing::error!(%upstream, "this upstream leads back to us and is not asked any more");
                }
                server.forwarder.avoid(looping);
            }
            Err(error) => {
                tracing::error!(%error, namespace, name = CONFIG_MAP, "ConfigMap is wrong; the last good one counts")
            }
        }
    }
    anyhow::bail!("the watch of the ConfigMap ended")
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
