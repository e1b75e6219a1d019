//! Whether extension API servers can be used, written into their APIServices with upstream's reasons.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use schema::custom::naming::set_condition;
use serde_json::Value;
use tokio::time::Instant;

use super::{GROUP, PLURAL, Remote, reach};
use crate::background::own_request;
use crate::endpoints::{Intent, update_object};
use crate::object;
use crate::pipeline::ObjectReader;
use crate::proxy::service;
use crate::state::ApiServer;
use crate::status::ApiError;

/// A good server is asked again after this long, a bad one sooner.
const RECHECK: Duration = Duration::from_secs(30);
const RECHECK_BAD: Duration = Duration::from_secs(2);
/// Changes close together are looked at once.
const SETTLE: Duration = Duration::from_millis(100);

/// A condition's status, reason and message.
type Finding = (&'static str, &'static str, String);

/// What can be told without asking the server itself; None: ask it.
fn by_objects(remote: &Remote, found: Option<&Value>, slices: &[Value]) -> Option<Finding> {
    let (name, namespace, port) = (&remote.service, &remote.service_namespace, remote.port);
    let no = |reason, message| Some(("False", reason, message));
    let Some(found) = found else {
        return no(
            "ServiceNotFound",
            format!("service/{name} in {namespace:?} is not present"),
        );
    };
    if found["spec"]["type"]
        .as_str()
        .is_some_and(|kind| kind != "ClusterIP")
    {
        return None;
    }
    let Some(port_name) = service::port_name(found, &port.to_string()) else {
        return no(
            "ServicePortError",
            format!("service/{name} in {namespace:?} is not listening on port {port}"),
        );
    };
    if !slices.iter().any(|slice| service::is_of(slice, name)) {
        return no(
            "EndpointsNotFound",
            format!("cannot find endpointslices for service/{name} in {namespace:?}"),
        );
    }
    if service::endpoints(slices, name, &port_name).is_empty() {
        return no(
            "MissingEndpoints",
            format!(
                "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
            ),
        );
    }
    None
}

struct Known {
    /// What the finding rests on.
    basis: String,
    at: Instant,
    good: bool,
}

/// Keeps table and conditions true until the server ends.
pub async fn keep(server: &Arc<ApiServer>) {
    let watched = [
        (GROUP, PLURAL),
        ("", "services"),
        ("discovery.k8s.io", "endpointslices"),
    ];
    let mut revisions = watched.map(|(group, plural)| server.cache(group, plural).revisions());
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    loop {
        let next = match look(server, &mut known).await {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(error = error.message, "cannot look after APIServices");
                RECHECK_BAD
            }
        };
        let [services, backends, slices] = &mut revisions;
        if server.aggregator.remotes().is_empty() {
            // Without extension API servers only a new APIService matters.
            if services.changed().await.is_err() {
                return;
            }
        } else {
            tokio::select! {
                changed = services.changed() => if changed.is_err() { return },
                changed = backends.changed() => if changed.is_err() { return },
                changed = slices.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(next) => {}
            }
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Looks at each APIService that changed or is due; returns when the next one is.
async fn look(server: &ApiServer, known: &mut BTreeMap<String, Known>) -> Result<Duration, ApiError> {
    let objects = server.list(GROUP, PLURAL, "").await?;
    let remotes: Vec<(Remote, &Value)> = objects
        .iter()
        .filter_map(|object| Some((Remote::of(object)?, object)))
        .collect();
    server
        .aggregator
        .set_remotes(remotes.iter().map(|(remote, _)| remote.clone()).collect());
    known.retain(|name, _| remotes.iter().any(|(remote, _)| remote.name == *name));
    let mut due = Vec::new();
    for (remote, object) in &remotes {
        let (namespace, name) = (&remote.service_namespace, &remote.service);
        let found = ObjectReader::get(server, "", "services", namespace, name).await?;
        let slices = server
            .list("discovery.k8s.io", "endpointslices", namespace)
            .await?;
        let own = slices.into_iter().filter(|slice| service::is_of(slice, name));
        let slices: Vec<Value> = own.collect();
        let versions = slices.iter().chain(&found).map(object::resource_version);
        let basis = format!("{}{}", object["spec"], versions.collect::<Vec<_>>().join(","));
        let fresh = known.get(&remote.name).is_some_and(|known| {
            known.basis == basis && known.at.elapsed() < if known.good { RECHECK } else { RECHECK_BAD }
        });
        if !fresh {
            due.push((remote, basis, by_objects(remote, found.as_ref(), &slices)));
        }
    }
    let looked = join_all(due.into_iter().map(async |(remote, basis, told)| {
        let finding = match told {
            Some(finding) => finding,
            None => ask(server, remote).await,
        };
        let good = finding.0 == "True";
        if let Err(error) = write(server, &remote.name, &finding).await {
            tracing::warn!(
                apiservice = remote.name,
                error = error.message,
                "cannot write its condition"
            );
        }
        let at = Instant::now();
        (remote.name.clone(), Known { basis, at, good })
    }))
    .await;
    known.extend(looked);
    Ok(if known.values().all(|known| known.good) {
        RECHECK
    } else {
        RECHECK_BAD
    })
}

/// Asks for what every server of a group version must serve, and keeps it for discovery.
async fn ask(server: &ApiServer, remote: &Remote) -> Finding {
    let failed = |message| ("False", "FailedDiscoveryCheck", message);
    let path = format!("/apis/{}", remote.group_version());
    let (status, body) = match reach::fetch(server, remote, &path, false).await {
        Ok(answer) => answer,
        Err(message) => return failed(message),
    };
    if !status.is_success() {
        let url = format!("https://{}:{}{path}", remote.host(), remote.port);
        return failed(format!(
            "failing or missing response from {url}: bad status from {url}: {}",
            status.as_u16()
        ));
    }
    if let Ok(list) = serde_json::from_slice(&body) {
        server.aggregator.set_resources(remote, list);
    }
    ("True", "Passed", "all checks passed".into())
}

/// Says so in the status, unless it says so already.
pub async fn write(
    server: &ApiServer,
    name: &str,
    (status, reason, message): &Finding,
) -> Result<(), ApiError> {
    let mut request = own_request(server, GROUP, PLURAL, "", name)?;
    request.info.verb = "update".into();
    request.info.subresource = "status".into();
    let make = |current: &Value| {
        let mut next = current.clone();
        let now = object::time(jiff::Timestamp::now());
        set_condition(&mut next, ["Available", status, reason, message], &now);
        Ok(next)
    };
    let current = ObjectReader::get(server, GROUP, PLURAL, "", name).await?;
    if current.is_none_or(|current| make(&current).is_ok_and(|next| next == current)) {
        return Ok(());
    }
    let intent = Intent {
        request: &request,
        dry_run: false,
    };
    match update_object(server, intent, make).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let api = json!({"metadata": {"name": "v1.x"}, "spec": {"group": "x", "version": "v1",
            "service": {"namespace": "ns", "name": "api", "port": 443}}});
        let remote = Remote::of(&api).unwrap();
        let service = |port: u16| json!({"spec": {"type": "ClusterIP", "ports": [{"port": port}]}});
        let slice = |ready: bool| {
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "api"}}, "ports": [{"name": "", "port": 8443}],
                "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": ready}}]})
        };
        let external = json!({"spec": {"type": "ExternalName", "externalName": "x.example"}});
        for (service, slices, reason) in [
            (None, vec![], Some("ServiceNotFound")),
            (Some(service(80)), vec![slice(true)], Some("ServicePortError")),
            (Some(service(443)), vec![], Some("EndpointsNotFound")),
            (Some(service(443)), vec![slice(false)], Some("MissingEndpoints")),
            (Some(service(443)), vec![slice(true)], None),
            (Some(external), vec![], None),
        ] {
            let told = by_objects(&remote, service.as_ref(), &slices);
            assert_eq!(told.map(|(_, reason, _)| reason), reason);
        }
    }
}
