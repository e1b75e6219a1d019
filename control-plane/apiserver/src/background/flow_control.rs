//! Keeps flow control in step with its objects, the objects that every cluster has as they should be, and the
//! `Dangling` condition of FlowSchemas true.

use std::sync::Arc;

use schema::custom::naming::set_condition;
use serde_json::{Value, json};

use super::{RETRY, ensure_object, own_request};
use crate::endpoints::{Intent, update_object};
use crate::flow_control::objects::{self, AUTOUPDATE, GROUP, LEVELS, SCHEMAS};
use crate::object;
use crate::pipeline::ObjectReader;
use crate::state::ApiServer;
use crate::status::ApiError;

pub async fn keep(server: &Arc<ApiServer>) {
    let mut revisions = [SCHEMAS, LEVELS].map(|plural| server.cache(GROUP, plural).revisions());
    loop {
        let [schemas, levels] = &mut revisions;
        schemas.mark_unchanged();
        levels.mark_unchanged();
        if let Err(error) = settle(server).await {
            tracing::warn!(error = error.message, "cannot settle flow control");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        tokio::select! {
            changed = schemas.changed() => if changed.is_err() { return },
            changed = levels.changed() => if changed.is_err() { return },
        }
    }
}

async fn settle(server: &ApiServer) -> Result<(), ApiError> {
    for (plural, wanted) in objects::wanted() {
        let name = object::name(&wanted).to_owned();
        let mut request = own_request(server, GROUP, plural, "", &name)?;
        let Some(current) = ObjectReader::get(server, GROUP, plural, "", &name).await? else {
            ensure_object(server, &request, wanted).await?;
            continue;
        };
        if let Some(next) = corrected(&current, &wanted) {
            request.info.verb = "update".into();
            write(server, &request, move |_| next.clone()).await?;
        }
    }
    let levels = server.list(GROUP, LEVELS, "").await?;
    let schemas = server.list(GROUP, SCHEMAS, "").await?;
    server.flow_control.configure(&schemas, &levels);
    for schema in &schemas {
        if told(schema, &levels) == *schema {
            continue;
        }
        let mut request = own_request(server, GROUP, SCHEMAS, "", object::name(schema))?;
        request.info.verb = "update".into();
        request.info.subresource = "status".into();
        write(server, &request, |current| told(current, &levels)).await?;
    }
    Ok(())
}

async fn write(
    server: &ApiServer,
    request: &crate::endpoints::ResourceRequest,
    make: impl Fn(&Value) -> Value + Send + Sync,
) -> Result<(), ApiError> {
    let intent = Intent {
        request,
        dry_run: false,
    };
    match update_object(server, intent, |current| Ok(make(current))).await {
        Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

/// The object as it has to be; None when it is. Suggested objects may be taken over by their annotation.
fn corrected(current: &Value, wanted: &Value) -> Option<Value> {
    let automatic = current["metadata"]["annotations"][AUTOUPDATE] != "false";
    if current["spec"] == wanted["spec"] || !(automatic || objects::is_mandatory(object::name(wanted))) {
        return None;
    }
    let mut next = current.clone();
    next["spec"] = wanted["spec"].clone();
    Some(next)
}

/// The schema with its condition.
fn told(schema: &Value, levels: &[Value]) -> Value {
    let level = object::text(schema, "/spec/priorityLevelConfiguration/name");
    let refers = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {}",
        json!(level)
    );
    let exists = levels.iter().any(|candidate| object::name(candidate) == level);
    let (status, reason, message) = if exists {
        ("False", "Found", format!("{refers} and it exists"))
    } else {
        (
            "True",
            "NotFound",
            format!("{refers} but there is no such object"),
        )
    };
    let mut next = schema.clone();
    let now = object::time(jiff::Timestamp::now());
    set_condition(&mut next, ["Dangling", status, reason, &message], &now);
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_may_change_stays_changed() {
        let wanted = objects::wanted();
        let find = |plural: &str, name: &str| {
            let found = wanted
                .iter()
                .find(|(kind, object)| *kind == plural && object::name(object) == name);
            found.map(|(_, object)| object.clone()).unwrap()
        };
        for (name, annotation, kept) in [
            ("workload-low", "false", true),
            ("workload-low", "true", false),
            ("catch-all", "false", false),
        ] {
            let good = find(LEVELS, name);
            let mut changed = good.clone();
            changed["spec"]["limited"]["nominalConcurrencyShares"] = json!(7);
            changed["metadata"]["annotations"][AUTOUPDATE] = json!(annotation);
            assert_eq!(corrected(&changed, &good).is_none(), kept, "{name} {annotation}");
            assert_eq!(corrected(&good, &good), None);
        }
        let schema = find(SCHEMAS, "probes");
        let dangling = told(&schema, &[]);
        assert_eq!(dangling["status"]["conditions"][0]["reason"], "NotFound");
        let found = told(&dangling, &[find(LEVELS, "exempt")]);
        assert_eq!(
            found["status"]["conditions"][0]["message"],
            "This FlowSchema references the PriorityLevelConfiguration object named \"exempt\" and it exists"
        );
        assert_eq!(told(&found, &[find(LEVELS, "exempt")]), found);
    }
}
