//! The built-in admission plug-ins, in upstream's order. Names, decisions and messages are upstream's.

mod certificates;
mod claim_resize;
mod default_class;
mod default_toleration_seconds;
mod dynamic;
mod in_use_protection;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod pod_security;
mod pod_topology_labels;
mod policies;
mod priority;
mod rbac_escalation;
mod resource_quota;
mod runtime_class;
mod service_account;
mod taint_nodes_by_condition;
mod webhooks;

use std::sync::Arc;

use auth::Authorizer;
use serde_json::Value;
use store::Store;

use crate::pipeline::{Admission, AdmissionContext, Chain};
use crate::status::{ApiError, qualified};

pub use dynamic::Conditions;
pub use priority::system_priority_classes;

/// `--enable-admission-plugins` and `--disable-admission-plugins`: upstream's names.
#[derive(Debug, Clone, Default)]
pub struct AdmissionOptions {
    pub enable: Vec<String>,
    pub disable: Vec<String>,
}

/// The plug-ins that the options leave; the error names the flag.
pub fn chain(
    options: &AdmissionOptions,
    authorizer: Arc<Authorizer>,
    store: Arc<dyn Store>,
) -> Result<Chain, String> {
    let mut plugins = all(authorizer, store);
    for (flag, names) in [("enable", &options.enable), ("disable", &options.disable)] {
        let is_known = |name: &&String| {
            name.as_str() != rbac_escalation::NAME
                && plugins.iter().any(|plugin| plugin.name() == name.as_str())
        };
        if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
            return Err(format!("{flag}-admission-plugins plugin {unknown:?} is unknown"));
        }
    }
    if let Some(both) = options.enable.iter().find(|name| options.disable.contains(name)) {
        return Err(format!(
            "{both:?} is in both enable-admission-plugins and disable-admission-plugins"
        ));
    }
    plugins.retain(|plugin| !options.disable.iter().any(|name| name == plugin.name()));
    Ok(Chain(plugins))
}

/// Plug-ins that ask the authorizer or write to the store get them here.
fn all(authorizer: Arc<Authorizer>, store: Arc<dyn Store>) -> Vec<Box<dyn Admission>> {
    vec![
        Box::new(namespace_lifecycle::NamespaceLifecycle),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccount),
        Box::new(node_restriction::NodeRestriction {
            authorizer: authorizer.clone(),
        }),
        Box::new(taint_nodes_by_condition::TaintNodesByCondition),
        Box::new(pod_security::PodSecurity),
        Box::new(priority::Priority),
        Box::new(default_toleration_seconds::DefaultTolerationSeconds),
        Box::new(default_class::STORAGE),
        Box::new(in_use_protection::StorageObjectInUseProtection),
        Box::new(claim_resize::PersistentVolumeClaimResize),
        Box::new(runtime_class::RuntimeClass),
        Box::new(certificates::CertificateApproval {
            authorizer: authorizer.clone(),
        }),
        Box::new(certificates::CertificateSigning {
            authorizer: authorizer.clone(),
        }),
        Box::new(certificates::CertificateSubjectRestriction),
        Box::new(default_class::INGRESS),
        Box::new(pod_topology_labels::PodTopologyLabels),
        Box::new(rbac_escalation::RbacEscalation {
            authorizer: authorizer.clone(),
        }),
        Box::new(policies::MutatingAdmissionPolicy::new(authorizer.clone())),
        Box::new(webhooks::MutatingAdmissionWebhook::new(authorizer.clone())),
        Box::new(policies::ValidatingAdmissionPolicy::new(authorizer.clone())),
        Box::new(webhooks::ValidatingAdmissionWebhook::new(authorizer)),
        // Last, so that only what is otherwise fine is charged.
        Box::new(resource_quota::ResourceQuota { store }),
    ]
}

/// Upstream's `admission.NewForbidden`: an object that has no name yet goes by its `generateName`.
fn forbidden(context: &AdmissionContext<'_>, object: Option<&Value>, why: impl Into<String>) -> ApiError {
    let metadata = object.map(|object| &object["metadata"]);
    let from_object = |field: &str| {
        metadata
            .and_then(|metadata| metadata[field].as_str())
            .filter(|n| !n.is_empty())
    };
    let name = Some(context.info.name.as_str())
        .filter(|name| !name.is_empty())
        .or_else(|| from_object("name"))
        .or_else(|| from_object("generateName"))
        .unwrap_or("Unknown");
    ApiError::forbidden(
        &qualified(&context.info.resource, &context.info.group),
        name,
        &why.into(),
    )
}

/// True for this resource itself, not for its sub-resources.
fn is(context: &AdmissionContext<'_>, group: &str, resource: &str) -> bool {
    is_sub(context, group, resource, "")
}

fn is_sub(context: &AdmissionContext<'_>, group: &str, resource: &str, subresource: &str) -> bool {
    context.info.group == group
        && context.info.resource == resource
        && context.info.subresource == subresource
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The list at `field`, made when it is not there.
fn list_mut<'a>(object: &'a mut Value, field: &str) -> &'a mut Vec<Value> {
    let list = &mut object[field];
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    match list {
        Value::Array(items) => items,
        _ => unreachable!("made an array above"),
    }
}

fn is_mirror_pod(pod: &Value) -> bool {
    !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null()
}

#[cfg(test)]
mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plug_ins_are_chosen_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = store::EmbeddedStore::open(directory.path()).unwrap();
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        let choose = |enable: &[&str], disable: &[&str]| {
            let options = AdmissionOptions {
                enable: names(enable),
                disable: names(disable),
            };
            chain(&options, Arc::default(), store.clone())
                .map(|chain| chain.0.iter().map(|plugin| plugin.name()).collect::<Vec<_>>())
        };
        let all = choose(&["NodeRestriction"], &[]).unwrap();
        let fewer = choose(&[], &["Priority"]).unwrap();
        assert_eq!(fewer.len() + 1, all.len());
        assert!(!fewer.contains(&"Priority"));
        for (enable, disable, expected) in [
            (
                &["Priorty"][..],
                &[][..],
                "enable-admission-plugins plugin \"Priorty\" is unknown",
            ),
            (
                &[],
                &[rbac_escalation::NAME],
                "disable-admission-plugins plugin \"RBACEscalation\" is unknown",
            ),
            (
                &["Priority"],
                &["Priority"],
                "\"Priority\" is in both enable-admission-plugins and disable-admission-plugins",
            ),
        ] {
            assert_eq!(choose(enable, disable).unwrap_err(), expected);
        }
    }
}
