//! Sub-resources that act: pods/binding, pods/eviction, serviceaccounts/token.

use auth::TokenRequestError;
use http::{Response, StatusCode};
use schema::Kind;
use serde_json::{Value, json};

use super::delete::delete_object;
use super::write::{Intent, update_object};
use super::{ResourceRequest, body, respond};
use crate::connect::Body;
use crate::object::{self, text};
use crate::options::WriteOptions;
use crate::pipeline::{AdmissionContext, ObjectReader, Operation};
use crate::registry::deletion::DeleteOptions;
use crate::selectors::LabelSelector;
use crate::state::ApiServer;
use crate::status::{ApiError, Cause};

fn success() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// What the sub-resource is asked to do, as the body says and admission leaves it.
async fn asked(
    server: &ApiServer,
    request: &ResourceRequest,
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    let kind = match request.resource.subresource(&request.info.subresource) {
        Some(subresource) => &subresource.kind,
        None => &request.resource.kind,
    };
    let (mut object, _) = body::decode(
        &server.registry.catalog(),
        request,
        kind,
        options.field_validation,
    )?;
    admit(server, request, kind, options.dry_run, &mut object).await?;
    Ok(object)
}

/// Admission of the creation of what is not stored.
pub async fn admit(
    server: &ApiServer,
    request: &ResourceRequest,
    kind: &Kind,
    dry_run: bool,
    object: &mut Value,
) -> Result<(), ApiError> {
    let context = AdmissionContext {
        operation: Operation::Create,
        info: &request.info,
        kind: &kind.gvk.kind,
        user: &request.user,
        old: None,
        dry_run,
        query: &request.query,
        reader: server,
        reinvocation: std::sync::Mutex::default(),
    };
    server.admission.mutate(&context, object).await?;
    server.admission.validate(&context, Some(object)).await
}

/// A write of the pod that carries out the request.
fn on_pod(
    server: &ApiServer,
    request: &ResourceRequest,
    name: &str,
    subresource: &str,
) -> Result<ResourceRequest, ApiError> {
    let resource = server
        .registry
        .catalog()
        .resource("", "v1", "pods")
        .cloned()
        .ok_or_else(ApiError::no_such_path)?;
    let mut info = request.info.clone();
    info.resource = "pods".into();
    info.name = name.to_owned();
    info.subresource = subresource.to_owned();
    Ok(ResourceRequest {
        info,
        user: request.user.clone(),
        resource,
        headers: http::HeaderMap::new(),
        query: String::new(),
        wanted: request.wanted,
        body: bytes::Bytes::new(),
        is_admitted: true,
    })
}

/// Puts a pod on a node.
pub async fn bind(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "CreateOptions")?;
    let binding = asked(server, request, &options).await?;
    let node = text(&binding, "/target/name").to_owned();
    let name = if request.info.subresource.is_empty() {
        object::name(&binding)
    } else {
        &request.info.name
    };
    if node.is_empty() {
        let cause = Cause {
            reason: "FieldValueRequired",
            message: "Required value".into(),
            field: "target.name".into(),
        };
        return Err(ApiError::invalid("", "Binding", name, vec![cause]));
    }
    let pod_request = on_pod(server, request, name, "binding")?;
    let intent = Intent {
        request: &pod_request,
        dry_run: options.dry_run,
    };
    update_object(server, intent, |pod| assign(pod, &binding, &node)).await?;
    Ok(respond::value(
        &server.registry.catalog(),
        StatusCode::CREATED,
        &success(),
        request.wanted,
    ))
}

fn assign(pod: &Value, binding: &Value, node: &str) -> Result<Value, ApiError> {
    let name = object::name(pod);
    let conflict = |why: &str| ApiError::conflict("pods/binding", name, why);
    let wanted_uid = object::uid(binding);
    if !wanted_uid.is_empty() && wanted_uid != object::uid(pod) {
        return Err(conflict(&format!(
            "Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {}",
            object::uid(pod)
        )));
    }
    if object::is_terminating(pod) {
        return Err(conflict(&format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        )));
    }
    let current = text(pod, "/spec/nodeName");
    if !current.is_empty() {
        return Err(conflict(&format!(
            "pod {name} is already assigned to node \"{current}\""
        )));
    }
    if pod["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty())
    {
        return Err(conflict(&format!(
            "pod {name} has non-empty .spec.schedulingGates"
        )));
    }
    let mut pod = pod.clone();
    object::metadata(&mut pod).remove("resourceVersion");
    if let Some(annotations) = binding["metadata"]["annotations"].as_object() {
        for (key, value) in annotations {
            pod["metadata"]["annotations"][key] = value.clone();
        }
    }
    if let Some(labels) = binding["metadata"]["labels"].as_object() {
        for (key, value) in labels {
            let label = &mut pod["metadata"]["labels"][key];
            if label.is_null() {
                *label = value.clone();
            }
        }
    }
    object::field(&mut pod, "spec").insert("nodeName".into(), json!(node));
    let now = object::time(jiff::Timestamp::now());
    let generation = pod["metadata"]["generation"].clone();
    let status = object::field(&mut pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(
            json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
            "observedGeneration": generation}),
        );
    }
    Ok(pod)
}

/// Deletes a pod if its disruption budgets allow it.
pub async fn evict(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let write = WriteOptions::parse(&request.query, "CreateOptions")?;
    let eviction = asked(server, request, &write).await?;
    let (namespace, name) = (&request.info.namespace, &request.info.name);
    let mut options = DeleteOptions::parse(&eviction["deleteOptions"], "")?;
    options.dry_run |= write.dry_run;
    let pod = server
        .read("", "pods", namespace, name)
        .await?
        .ok_or_else(|| ApiError::not_found("pods", name))?;
    // Pods that do not run disrupt nothing.
    let idle = matches!(text(&pod, "/status/phase"), "Pending" | "Succeeded" | "Failed")
        || object::is_terminating(&pod);
    let budget = match idle {
        true => None,
        false => budget_of(server, namespace, &pod).await?,
    };
    let mut as_seen = None;
    if let Some(budget) = &budget {
        if is_unguarded(&pod, budget) {
            as_seen = options.resource_version.is_none().then_some(budget);
            let seen = || object::resource_version(&pod).to_owned();
            options.resource_version.get_or_insert_with(seen);
        } else {
            spend_budget(server, request, budget, name, options.dry_run).await?;
        }
    }
    let went = mark_and_delete(server, request, &mut options).await;
    went.map_err(|error| match as_seen {
        // By now the pod may be healthy, and the budget guard it.
        Some(budget) if error.reason == "Conflict" => still_processed(budget),
        _ => error,
    })?;
    Ok(respond::value(
        &server.registry.catalog(),
        StatusCode::CREATED,
        &success(),
        request.wanted,
    ))
}

/// A pod tells those who count its failure that it did not end by itself.
async fn mark_and_delete(
    server: &ApiServer,
    request: &ResourceRequest,
    options: &mut DeleteOptions,
) -> Result<(), ApiError> {
    let (namespace, name) = (&request.info.namespace, &request.info.name);
    if !options.dry_run {
        let status = on_pod(server, request, name, "status")?;
        let intent = Intent {
            request: &status,
            dry_run: false,
        };
        let now = object::time(jiff::Timestamp::now());
        let marked = update_object(server, intent, |pod| {
            options.check("pods", pod)?;
            Ok(disrupted(pod.clone(), &now))
        })
        .await?;
        if let Some(version) = &mut options.resource_version {
            *version = object::resource_version(&marked.object).to_owned();
        }
    }
    let pod = on_pod(server, request, name, "")?;
    delete_object(server, &pod, namespace, name, options)
        .await
        .map(drop)
}

fn disrupted(mut pod: Value, now: &str) -> Value {
    let generation = pod["metadata"]["generation"].clone();
    let status = object::field(&mut pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        let is_target = |condition: &Value| condition["type"] == "DisruptionTarget";
        let before = conditions.iter().find(|c| is_target(c) && c["status"] == "True");
        let since = before.map_or(json!(now), |c| c["lastTransitionTime"].clone());
        conditions.retain(|condition| !is_target(condition));
        conditions.push(
            json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": since,
            "observedGeneration": generation}),
        );
    }
    pod
}

/// The budget that counts the pod.
async fn budget_of(server: &ApiServer, namespace: &str, pod: &Value) -> Result<Option<Value>, ApiError> {
    let label = |key: &str| pod["metadata"]["labels"][key].as_str();
    let budgets = server.list("policy", "poddisruptionbudgets", namespace).await?;
    let mut matching = budgets.into_iter().filter(|budget| {
        !budget["spec"]["selector"].is_null()
            && LabelSelector::from_object(&budget["spec"]["selector"]).matches(label)
    });
    let budget = matching.next();
    if matching.next().is_some() {
        return Err(ApiError::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    Ok(budget)
}

/// A pod that is not ready may go at any time, or while enough others are healthy (`unhealthyPodEvictionPolicy`).
fn is_unguarded(pod: &Value, budget: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let is_ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
    if conditions.into_iter().flatten().any(is_ready) {
        return false;
    }
    let count = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        || (count("desiredHealthy") > 0 && count("currentHealthy") >= count("desiredHealthy"))
}

fn refused(why: String) -> ApiError {
    let mut error = ApiError::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        10,
    );
    *error.details = json!({"causes": [{"reason": "DisruptionBudget", "message": why}]});
    error
}

fn still_processed(budget: &Value) -> ApiError {
    refused(format!(
        "The disruption budget {} is still being processed by the server.",
        object::name(budget)
    ))
}

async fn spend_budget(
    server: &ApiServer,
    request: &ResourceRequest,
    budget: &Value,
    pod: &str,
    dry_run: bool,
) -> Result<(), ApiError> {
    let resource = server
        .registry
        .catalog()
        .resource("policy", "v1", "poddisruptionbudgets")
        .cloned();
    let mut budget_request = on_pod(server, request, object::name(budget), "status")?;
    budget_request.resource = resource.ok_or_else(ApiError::no_such_path)?;
    budget_request.info.group = "policy".into();
    budget_request.info.resource = "poddisruptionbudgets".into();
    let now = object::time(jiff::Timestamp::now());
    update_object(
        server,
        Intent {
            request: &budget_request,
            dry_run,
        },
        |budget| {
            let status = &budget["status"];
            let observed = status["observedGeneration"].as_i64().unwrap_or(0);
            if observed < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
                return Err(still_processed(budget));
            }
            let allowed = status["disruptionsAllowed"].as_i64().unwrap_or(0);
            if allowed <= 0 {
                let count = |field: &str| status[field].as_i64().unwrap_or(0);
                return Err(refused(format!(
                    "The disruption budget {} needs {} healthy pods and has {} currently",
                    object::name(budget),
                    count("desiredHealthy"),
                    count("currentHealthy")
                )));
            }
            let mut budget = budget.clone();
            budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
            budget["status"]["disruptedPods"][pod] = json!(now);
            Ok(budget)
        },
    )
    .await
    .map(drop)
}

/// Mints a token for a service account.
pub async fn token(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(&request.query, "CreateOptions")?;
    let token_request = asked(server, request, &options).await?;
    let (namespace, name) = (&request.info.namespace, &request.info.name);
    let account = server
        .read("", "serviceaccounts", namespace, name)
        .await?
        .ok_or_else(|| ApiError::not_found("serviceaccounts", name))?;
    let issued = server
        .tokens
        .issue(&account, &token_request, server, jiff::Timestamp::now())
        .await;
    let answer = issued.map_err(|error| match error {
        TokenRequestError::BadRequest(message) => ApiError::bad_request(message),
        TokenRequestError::Invalid {
            field,
            value,
            message,
        } => {
            let message = format!("Invalid value: {value}: {message}");
            let cause = Cause {
                reason: "FieldValueInvalid",
                message,
                field: field.into(),
            };
            ApiError::invalid("authentication.k8s.io", "TokenRequest", name, vec![cause])
        }
        TokenRequestError::NotFound { resource, name } => ApiError::not_found(resource, &name),
        TokenRequestError::Conflict {
            resource,
            name,
            message,
        } => ApiError::conflict(resource, &name, &message),
        TokenRequestError::Lookup(error) => ApiError::internal(error),
        TokenRequestError::Sign(error) => ApiError::internal(error),
    })?;
    Ok(respond::value(
        &server.registry.catalog(),
        StatusCode::CREATED,
        &answer,
        request.wanted,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_are_not_ready_are_guarded_only_while_too_few_are_healthy() {
        let pod = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let budget = |policy: Value, current: i64, desired: i64| {
            json!({"spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"currentHealthy": current, "desiredHealthy": desired}})
        };
        for (ready, policy, current, desired, unguarded) in [
            ("True", json!("AlwaysAllow"), 3, 1, false),
            ("False", json!("AlwaysAllow"), 0, 1, true),
            ("False", json!("IfHealthyBudget"), 1, 1, true),
            ("False", Value::Null, 1, 1, true),
            ("False", Value::Null, 0, 1, false),
            ("False", Value::Null, 0, 0, false),
        ] {
            let budget = budget(policy, current, desired);
            assert_eq!(is_unguarded(&pod(ready), &budget), unguarded, "{ready} {budget}");
        }
    }
}
