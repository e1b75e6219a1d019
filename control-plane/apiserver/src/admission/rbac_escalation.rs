//! Writers of roles and bindings hand out no more than they hold, unless they may `escalate` or `bind`. Upstream
//! does this in storage (`pkg/registry/rbac/*/policybased`), after admission proper.

use std::sync::Arc;

use async_trait::async_trait;
use auth::{Attributes, Authorizer, Rule};
use serde_json::{Value, json};

use super::{forbidden, items, text};
use crate::pipeline::{Admission, AdmissionContext, Operation};
use crate::status::{ApiError, qualified};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Upstream has no plug-in for this: its registry checks, and no flag turns it off.
pub const NAME: &str = "RBACEscalation";

pub struct RbacEscalation {
    pub authorizer: Arc<Authorizer>,
}

#[async_trait]
impl Admission for RbacEscalation {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn validate(&self, context: &AdmissionContext<'_>, object: Option<&Value>) -> Result<(), ApiError> {
        let writes = matches!(context.operation, Operation::Create | Operation::Update);
        let Some(object) = object.filter(|_| writes && context.info.group == GROUP) else {
            return Ok(());
        };
        if context
            .old
            .is_some_and(|old| apart_from_ownership(old) == apart_from_ownership(object))
        {
            return Ok(());
        }
        match context.info.resource.as_str() {
            "roles" | "clusterroles" => self.check_role(context, object),
            "rolebindings" | "clusterrolebindings" => self.check_binding(context, object).await,
            _ => Ok(()),
        }
    }
}

impl RbacEscalation {
    fn may(
        &self,
        context: &AdmissionContext<'_>,
        verb: &str,
        group: &str,
        resource: &str,
        name: &str,
    ) -> bool {
        let attributes = Attributes {
            namespace: &context.info.namespace,
            name,
            ..Attributes::resource(context.user, verb, group, resource)
        };
        self.authorizer.authorize(&attributes).is_allowed()
    }

    fn confirm(&self, context: &AdmissionContext<'_>, wanted: &[Rule]) -> Result<(), String> {
        self.authorizer
            .confirm_no_escalation(context.user, &context.info.namespace, wanted)
    }

    fn check_role(&self, context: &AdmissionContext<'_>, role: &Value) -> Result<(), ApiError> {
        let info = context.info;
        if self.may(context, "escalate", &info.group, &info.resource, &info.name) {
            return Ok(());
        }
        self.confirm(context, &rules(&role["rules"])?)
            .map_err(|why| forbidden(context, Some(role), why))?;
        let gathers = |role: &Value| !items(&role["aggregationRule"]["clusterRoleSelectors"]).is_empty();
        if !gathers(role) && !context.old.is_some_and(gathers) {
            return Ok(());
        }
        // An aggregated role may come to hold anything.
        let everything = rules(&json!([
            {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
            {"verbs": ["*"], "nonResourceURLs": ["*"]},
        ]))?;
        self.confirm(context, &everything).map_err(|_| {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            forbidden(context, Some(role), why)
        })
    }

    async fn check_binding(&self, context: &AdmissionContext<'_>, binding: &Value) -> Result<(), ApiError> {
        let reference = &binding["roleRef"];
        let (group, name) = (text(&reference["apiGroup"]), text(&reference["name"]));
        let (resource, namespace) = match text(&reference["kind"]) {
            "Role" => ("roles", context.info.namespace.as_str()),
            _ => ("clusterroles", ""),
        };
        if self.may(context, "bind", group, resource, name) {
            return Ok(());
        }
        let role = context.reader.get(GROUP, resource, namespace, name).await?;
        let role = role.ok_or_else(|| ApiError::not_found(&qualified(resource, GROUP), name))?;
        self.confirm(context, &rules(&role["rules"])?)
            .map_err(|why| forbidden(context, Some(binding), why))
    }
}

/// What is left to change when only the garbage collector's fields may.
fn apart_from_ownership(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["ownerReferences", "finalizers", "resourceVersion"] {
            metadata.remove(field);
        }
    }
    object
}

fn rules(list: &Value) -> Result<Vec<Rule>, ApiError> {
    if list.is_null() {
        return Ok(Vec::new());
    }
    serde_json::from_value(list.clone()).map_err(|error| ApiError::bad_request(error.to_string()))
}

#[cfg(test)]
mod tests {
    use auth::UserInfo;

    use super::super::testing::{Objects, Request};
    use super::*;

    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/roles";
    const CLUSTER_ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/ns/rolebindings";

    fn rule(verbs: &[&str], group: &str, resource: &str) -> Value {
        json!({"verbs": verbs, "apiGroups": [group], "resources": [resource]})
    }

    /// bob holds exactly these rules.
    fn plugin(held: Value) -> RbacEscalation {
        let authorizer = Authorizer::default();
        let role = json!({"metadata": {"name": "r"}, "rules": held});
        let binding = json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "User", "name": "bob"}]});
        authorizer
            .set("clusterroles", role.to_string().as_bytes())
            .unwrap();
        authorizer
            .set("clusterrolebindings", binding.to_string().as_bytes())
            .unwrap();
        RbacEscalation {
            authorizer: Arc::new(authorizer),
        }
    }

    fn role(rules: Value) -> Value {
        json!({"metadata": {"name": "new"}, "rules": rules})
    }

    #[test]
    fn roles_need_their_rights_or_escalate() {
        let wanted = || Some(role(json!([rule(&["get", "list"], "", "pods")])));
        let create = Request::create(ROLES, "Role");
        for (held, allowed) in [
            (json!([rule(&["get", "list"], "", "pods")]), true),
            (json!([rule(&["get"], "", "pods")]), false),
            (json!([rule(&["escalate"], GROUP, "roles")]), true),
            (json!([rule(&["escalate"], GROUP, "clusterroles")]), false),
        ] {
            let result = create.run(&plugin(held.clone()), &Objects::default(), wanted());
            assert_eq!(result.is_ok(), allowed, "{held}: {result:?}");
        }
        let refusal = create
            .run(&plugin(json!([])), &Objects::default(), wanted())
            .unwrap_err();
        assert_eq!(
            refusal,
            "roles.rbac.authorization.k8s.io \"new\" is forbidden: user \"bob\" (groups=[]) is attempting to grant RBAC \
             permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}"
        );
        let masters = Request::create(ROLES, "Role").by(UserInfo::new("root", &["system:masters"]));
        assert!(
            masters
                .run(&plugin(json!([])), &Objects::default(), wanted())
                .is_ok()
        );
    }

    #[test]
    fn aggregation_needs_everything() {
        let mut gathering = role(json!([]));
        gathering["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]});
        let everything = json!([rule(&["*"], "*", "*"), {"verbs": ["*"], "nonResourceURLs": ["*"]}]);
        // Without `escalate` through the wildcard the same rights could not be told apart, so ask for less first.
        let little = plugin(json!([rule(&["create", "get"], "*", "*")]));
        let create = Request::create(CLUSTER_ROLES, "ClusterRole");
        let refusal = create
            .run(&little, &Objects::default(), Some(gathering.clone()))
            .unwrap_err();
        assert!(
            refusal.ends_with("must have cluster-admin privileges to use the aggregationRule"),
            "{refusal}"
        );
        let update = Request::update(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/new",
            "ClusterRole",
            gathering.clone(),
        );
        assert!(
            update
                .run(&little, &Objects::default(), Some(role(json!([]))))
                .is_err()
        );
        let mut released = gathering.clone();
        released["metadata"]["finalizers"] = json!(["x"]);
        assert!(update.run(&little, &Objects::default(), Some(released)).is_ok());
        assert!(
            create
                .run(&plugin(everything), &Objects::default(), Some(gathering))
                .is_ok()
        );
    }

    #[test]
    fn bindings_need_the_roles_rights_or_bind() {
        let reader = json!({"metadata": {"name": "reader"}, "rules": [rule(&["get"], "", "pods")]});
        let objects = Objects::new(&[("clusterroles", reader)]);
        let binding = |role: &str| {
            let reference = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": role});
            Some(json!({"metadata": {"name": "new"}, "roleRef": reference}))
        };
        let create = Request::create(BINDINGS, "RoleBinding");
        let mut bind = rule(&["bind"], GROUP, "clusterroles");
        bind["resourceNames"] = json!(["reader"]);
        for (held, allowed) in [
            (json!([rule(&["get"], "", "pods")]), true),
            (json!([bind]), true),
            (json!([rule(&["list"], "", "pods")]), false),
        ] {
            let result = create.run(&plugin(held.clone()), &objects, binding("reader"));
            assert_eq!(result.is_ok(), allowed, "{held}: {result:?}");
        }
        let refusal = create
            .run(&plugin(json!([])), &objects, binding("nobody"))
            .unwrap_err();
        assert_eq!(
            refusal,
            r#"clusterroles.rbac.authorization.k8s.io "nobody" not found"#
        );
    }
}
