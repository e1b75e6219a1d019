//! Get and list.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use serde_json::{Value, json};
use store::{Range, Revision, StoreError};

use super::{ResourceRequest, respond::Viewer};
use crate::cache::{Entry, Listed, Selection, WatchCache, store_error};
use crate::connect::Body;
use crate::object;
use crate::options::{Continue, Freshness, ListOptions, parse_revision};
use crate::registry::{self, conversion, fields};
use crate::request_info::query_values;
use crate::state::ApiServer;
use crate::status::ApiError;

const OLD_TOKEN: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

pub async fn get(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let (info, resource) = (&request.info, &request.resource);
    let namespace = if resource.namespaced() {
        info.namespace.as_str()
    } else {
        ""
    };
    let wanted = parse_revision(
        &query_values(&request.query, "resourceVersion")
            .next()
            .unwrap_or_default(),
    )?;
    let bytes = match wanted {
        None => {
            let key = registry::key(&resource.group, &resource.plural, namespace, &info.name);
            let (kv, _) = server.store.get(key).await.map_err(store_error)?;
            kv.map(|kv| object::with_revision(&kv.value, kv.mod_revision))
        }
        Some(revision) => {
            let cache = server.cache(&resource.group, &resource.plural);
            cache.wait_for(revision).await?;
            cache
                .get(&registry::relative_key(namespace, &info.name))
                .map(|entry| entry.bytes.clone())
        }
    };
    let bytes = bytes.ok_or_else(|| ApiError::not_found(&request.qualified(), &info.name))?;
    let catalog = server.registry.catalog();
    let viewer = Viewer::new(&catalog, resource, request.wanted, &request.query)?;
    viewer.bytes(present(resource, bytes)?)
}

/// The bytes as this resource serves them; almost always those that are stored.
pub fn present(resource: &schema::Resource, bytes: Bytes) -> Result<Bytes, ApiError> {
    if !conversion::converts(resource) {
        return Ok(bytes);
    }
    let stored = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
    Ok(Bytes::from(conversion::to_served(resource, stored)?.to_string()))
}

fn present_all(resource: &schema::Resource, entries: &[Arc<Entry>]) -> Result<Vec<Bytes>, ApiError> {
    if !conversion::converts(resource) {
        return Ok(entries.iter().map(|entry| entry.bytes.clone()).collect());
    }
    let parse = |entry: &Arc<Entry>| serde_json::from_slice(&entry.bytes).map_err(ApiError::internal);
    let stored = entries.iter().map(parse).collect::<Result<_, _>>()?;
    let served = conversion::all_to_served(resource, stored)?;
    Ok(served
        .iter()
        .map(|object| Bytes::from(object.to_string()))
        .collect())
}

pub fn selection(request: &ResourceRequest, options: &ListOptions) -> Result<Selection, ApiError> {
    let resource = &request.resource;
    fields::check(&options.fields, &fields::of_resource(resource))?;
    let mut namespace = if resource.namespaced() {
        request.info.namespace.clone()
    } else {
        String::new()
    };
    if resource.namespaced()
        && namespace.is_empty()
        && let Some(only) = options.fields.exactly("metadata.namespace")
    {
        namespace = only.to_owned();
    }
    Ok(Selection {
        namespace,
        labels: options.labels.clone(),
        fields: options.fields.clone(),
    })
}

pub async fn list(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    let options = ListOptions::parse(&request.query)?;
    options.validate(false)?;
    let resource = &request.resource;
    let selection = selection(request, &options)?;
    let cache = server.cache(&resource.group, &resource.plural);
    let listed = if !options.continue_token.is_empty() {
        let token = Continue::decode(&options.continue_token)?;
        let revision = match token.revision {
            Continue::INCONSISTENT => server.store.revision().await.map_err(store_error)?,
            revision => revision,
        };
        at_revision(
            server,
            &cache,
            &selection,
            revision,
            Some(&token.start),
            options.limit,
        )
        .await
        .map_err(|error| {
            if error.reason == "Expired" {
                let rest = Continue::new(Continue::INCONSISTENT, token.start.clone());
                ApiError {
                    continue_token: rest.encode(),
                    ..ApiError::expired(OLD_TOKEN)
                }
            } else {
                error
            }
        })?
    } else {
        match options.freshness()? {
            Freshness::Consistent => {
                cache.wait_for_newest().await?;
                cache.list(&selection, options.limit)
            }
            Freshness::Any => {
                cache.wait_for(0).await?;
                cache.list(&selection, options.limit)
            }
            Freshness::NotOlderThan(revision) => {
                cache.wait_for(revision).await?;
                cache.list(&selection, options.limit)
            }
            Freshness::Exact(revision) => {
                at_revision(server, &cache, &selection, revision, None, options.limit).await?
            }
        }
    };
    let mut metadata = json!({"resourceVersion": listed.revision.to_string()});
    if let Some(next) = listed.next {
        metadata["continue"] = Value::String(Continue::new(listed.revision, next).encode());
        if !selection.is_filtering() && listed.remaining > 0 {
            metadata["remainingItemCount"] = json!(listed.remaining);
        }
    }
    let items = present_all(resource, &listed.entries)?;
    let catalog = server.registry.catalog();
    Viewer::new(&catalog, resource, request.wanted, &request.query)?.list(&items, &metadata)
}

/// A page of the past, read from the store in pieces until the page is full.
async fn at_revision(
    server: &ApiServer,
    cache: &WatchCache,
    selection: &Selection,
    revision: Revision,
    start: Option<&str>,
    limit: usize,
) -> Result<Listed, ApiError> {
    let scope = match selection.namespace.as_str() {
        "" => cache.prefix().to_owned(),
        namespace => format!("{}{namespace}/", cache.prefix()),
    };
    let mut range = Range {
        revision,
        ..Range::prefix(Bytes::from(scope.clone()))
    };
    if let Some(start) = start {
        let from = format!("{}{start}", cache.prefix());
        if !from.starts_with(&scope) {
            return Err(ApiError::bad_request(
                "continue key is not valid: it belongs to another namespace",
            ));
        }
        range.start = from.into();
    }
    // One more than a page tells whether more follow.
    range.limit = if limit == 0 || selection.is_filtering() {
        0
    } else {
        limit + 1
    };
    let found = server.store.range(range).await.map_err(|error| match error {
        StoreError::Compacted => ApiError::expired(format!(
            "The resourceVersion for the provided list is too old: {revision}."
        )),
        other => store_error(other),
    })?;
    let mut listed = Listed {
        revision,
        ..Listed::default()
    };
    for kv in &found.kvs {
        let entry = Entry::new(cache.prefix().len(), kv, &cache.selectable);
        if !selection.matches(&entry, &cache.selectable) {
            continue;
        }
        if limit > 0 && listed.entries.len() == limit {
            listed.next = Some(entry.key.to_string());
            listed.remaining = usize::try_from(found.count)
                .unwrap_or(usize::MAX)
                .saturating_sub(limit);
            break;
        }
        listed.entries.push(Arc::new(entry));
    }
    Ok(listed)
}
