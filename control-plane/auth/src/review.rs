//! The review APIs: authorization and authentication asked about, through objects. Each takes the posted object and
//! gives back the one to answer with; nothing is stored.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use thiserror::Error;

use crate::attributes::{Attributes, Decision};
use crate::authenticate::{Authenticator, Known, Unauthenticated};
use crate::authorize::Authorizer;
use crate::lookup::{LookupError, ObjectLookup};
use crate::rbac::Rule;
use crate::user::UserInfo;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReviewProblem {
    /// 422 on the review.
    #[error("{field}: {message}")]
    Invalid {
        field: &'static str,
        message: &'static str,
    },
    /// 400.
    #[error("{0}")]
    BadRequest(String),
}

fn invalid(field: &'static str, message: &'static str) -> ReviewProblem {
    ReviewProblem::Invalid { field, message }
}

pub fn self_subject_access_review(
    authorizer: &Authorizer,
    user: &UserInfo,
    review: Value,
) -> Result<Value, ReviewProblem> {
    check_attributes(&review["spec"])?;
    Ok(answer(authorizer, user, review))
}

pub fn subject_access_review(authorizer: &Authorizer, review: Value) -> Result<Value, ReviewProblem> {
    check_attributes(&review["spec"])?;
    let user = subject(&review["spec"])?;
    Ok(answer(authorizer, &user, review))
}

/// `namespace` is the one the review was posted to.
pub fn local_subject_access_review(
    authorizer: &Authorizer,
    namespace: &str,
    review: Value,
) -> Result<Value, ReviewProblem> {
    let spec = &review["spec"];
    check_attributes(spec)?;
    let user = subject(spec)?;
    if !spec["nonResourceAttributes"].is_null() {
        return Err(invalid(
            "spec.nonResourceAttributes",
            "Forbidden: disallowed on this kind of request",
        ));
    }
    if spec["resourceAttributes"]["namespace"]
        .as_str()
        .unwrap_or_default()
        != namespace
    {
        return Err(ReviewProblem::BadRequest(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    Ok(answer(authorizer, &user, review))
}

pub fn self_subject_rules_review(
    authorizer: &Authorizer,
    user: &UserInfo,
    mut review: Value,
) -> Result<Value, ReviewProblem> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ReviewProblem::BadRequest("no namespace on request".into()));
    }
    let found = authorizer.rules_for(user, namespace);
    let (urls, resources): (Vec<_>, Vec<_>) = found
        .rules
        .iter()
        .partition(|rule| !rule.non_resource_urls.is_empty());
    let mut status = json!({
        "resourceRules": resources.into_iter().map(resource_rule).collect::<Vec<_>>(),
        "nonResourceRules": urls
            .into_iter()
            .map(|rule| json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}))
            .collect::<Vec<_>>(),
        "incomplete": !found.errors.is_empty(),
    });
    if !found.errors.is_empty() {
        status["evaluationError"] = json!(found.errors.join(", "));
    }
    review["status"] = status;
    Ok(review)
}

pub fn self_subject_review(user: &UserInfo, mut review: Value) -> Value {
    review["status"] = json!({"userInfo": user.to_json()});
    review
}

pub async fn token_review(
    authenticator: &Authenticator,
    mut review: Value,
    lookup: &dyn ObjectLookup,
    now: Timestamp,
) -> Result<Result<Value, ReviewProblem>, LookupError> {
    let spec = &review["spec"];
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Ok(Err(ReviewProblem::BadRequest(
            "token is required for TokenReview in authentication".into(),
        )));
    }
    let asked = strings(&spec["audiences"]);
    let audiences = if asked.is_empty() {
        authenticator.audiences().to_vec()
    } else {
        asked
    };
    let status = match authenticator.token_user(token, &audiences, lookup, now).await {
        Ok(Some(Known { mut user, audiences })) => {
            user.join(crate::user::AUTHENTICATED);
            json!({"authenticated": true, "user": user.to_json(), "audiences": audiences})
        }
        Ok(None) => json!({"user": {}}),
        Err(Unauthenticated::Rejected(why)) => {
            json!({"user": {}, "error": format!("[invalid bearer token, {why}]")})
        }
        Err(Unauthenticated::Lookup(error)) => return Err(error),
    };
    review["status"] = status;
    Ok(Ok(review))
}

fn check_attributes(spec: &Value) -> Result<(), ReviewProblem> {
    match (
        spec["resourceAttributes"].is_object(),
        spec["nonResourceAttributes"].is_object(),
    ) {
        (true, true) => Err(invalid(
            "spec.nonResourceAttributes",
            "Invalid value: cannot be specified in combination with resourceAttributes",
        )),
        (false, false) => Err(invalid(
            "spec.resourceAttributes",
            "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => Ok(()),
    }
}

fn subject(spec: &Value) -> Result<UserInfo, ReviewProblem> {
    let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
    let extra = spec["extra"].as_object().map(|extra| {
        extra
            .iter()
            .map(|(key, values)| (key.clone(), strings(values)))
            .collect::<BTreeMap<_, _>>()
    });
    let user = UserInfo {
        name: text("user"),
        uid: text("uid"),
        groups: strings(&spec["groups"]),
        extra: extra.unwrap_or_default(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(invalid(
            "spec.user",
            "Invalid value: \"\": at least one of user or group must be specified",
        ));
    }
    Ok(user)
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

fn answer(authorizer: &Authorizer, user: &UserInfo, mut review: Value) -> Value {
    let spec = &review["spec"];
    let resource = &spec["resourceAttributes"];
    let text = |object: &'_ Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let verdict = if resource.is_object() {
        let [
            verb,
            group,
            version,
            name_of_resource,
            subresource,
            namespace,
            name,
        ] = [
            "verb",
            "group",
            "version",
            "resource",
            "subresource",
            "namespace",
            "name",
        ]
        .map(|field| text(resource, field));
        authorizer.authorize(&Attributes {
            version: &version,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
            field_selector: &field_selector(&resource["fieldSelector"]),
            ..Attributes::resource(user, &verb, &group, &name_of_resource)
        })
    } else {
        let path = text(&spec["nonResourceAttributes"], "path");
        let verb = text(&spec["nonResourceAttributes"], "verb");
        authorizer.authorize(&Attributes::non_resource(user, &verb, &path))
    };
    let mut status = json!({"allowed": verdict.is_allowed()});
    if verdict.decision == Decision::Deny {
        status["denied"] = json!(true);
    }
    if !verdict.reason.is_empty() {
        status["reason"] = json!(verdict.reason);
    }
    review["status"] = status;
    review
}

/// A selector in attribute form, as the query parameter it stands for.
fn field_selector(selector: &Value) -> String {
    if let Some(raw) = selector["rawSelector"].as_str() {
        return raw.to_owned();
    }
    let requirements = selector["requirements"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let terms = requirements.iter().filter_map(|term| {
        let (key, values) = (term["key"].as_str()?, strings(&term["values"]));
        match (term["operator"].as_str()?, values.as_slice()) {
            ("In", [value]) => Some(format!("{key}={value}")),
            _ => None,
        }
    });
    terms.collect::<Vec<_>>().join(",")
}

fn resource_rule(rule: &Rule) -> Value {
    let mut shown = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
    if !rule.resource_names.is_empty() {
        shown["resourceNames"] = json!(rule.resource_names);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorizer() -> Authorizer {
        let authorizer = Authorizer::default();
        let role = json!({"metadata": {"name": "r"}, "rules": [
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
            {"verbs": ["get"], "nonResourceURLs": ["/metrics"]},
        ]});
        let binding = json!({
            "metadata": {"name": "b"},
            "roleRef": {"kind": "ClusterRole", "name": "r"},
            "subjects": [{"kind": "Group", "name": "dev"}],
        });
        authorizer
            .set("clusterroles", role.to_string().as_bytes())
            .unwrap();
        authorizer
            .set("clusterrolebindings", binding.to_string().as_bytes())
            .unwrap();
        authorizer
    }

    fn pods(verb: &str) -> Value {
        json!({"verb": verb, "resource": "pods", "namespace": "ns"})
    }

    #[test]
    fn reviews_answer_for_their_subject() {
        let authorizer = authorizer();
        let dev = UserInfo::new("bob", &["dev"]);
        for (verb, allowed) in [("get", true), ("delete", false)] {
            let own = json!({"spec": {"resourceAttributes": pods(verb)}});
            let own = self_subject_access_review(&authorizer, &dev, own).unwrap();
            assert_eq!(own["status"]["allowed"], allowed);
            let other = json!({"spec": {"user": "x", "groups": ["dev"], "resourceAttributes": pods(verb)}});
            let local = local_subject_access_review(&authorizer, "ns", other.clone()).unwrap();
            let other = subject_access_review(&authorizer, other).unwrap();
            assert_eq!(
                (&other["status"], &local["status"]),
                (&own["status"], &own["status"])
            );
        }
        let path = json!({"spec": {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}});
        assert_eq!(
            self_subject_access_review(&authorizer, &dev, path).unwrap()["status"]["allowed"],
            true
        );
    }

    #[test]
    fn incomplete_reviews_are_refused() {
        let authorizer = authorizer();
        let both = json!({"user": "x", "resourceAttributes": {}, "nonResourceAttributes": {}});
        for (spec, field) in [
            (json!({"user": "x"}), "spec.resourceAttributes"),
            (both, "spec.nonResourceAttributes"),
            (json!({"resourceAttributes": pods("get")}), "spec.user"),
        ] {
            let problem = subject_access_review(&authorizer, json!({"spec": spec})).unwrap_err();
            assert!(
                matches!(problem, ReviewProblem::Invalid { field: named, .. } if named == field),
                "{problem}"
            );
        }
        let elsewhere = json!({"spec": {"user": "x", "resourceAttributes": pods("get")}});
        let problem = local_subject_access_review(&authorizer, "other", elsewhere).unwrap_err();
        assert_eq!(
            problem.to_string(),
            "spec.resourceAttributes.namespace must match namespace: other"
        );
    }

    #[test]
    fn the_rules_review_lists_what_applies() {
        let authorizer = authorizer();
        let review = || json!({"spec": {"namespace": "ns"}});
        let dev = self_subject_rules_review(&authorizer, &UserInfo::new("bob", &["dev"]), review()).unwrap();
        assert_eq!(
            dev["status"],
            json!({
                "resourceRules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}],
                "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/metrics"]}],
                "incomplete": false,
            })
        );
        let node = UserInfo::new("system:node:n", &["system:nodes"]);
        let node = self_subject_rules_review(&authorizer, &node, review()).unwrap();
        assert_eq!(node["status"]["incomplete"], true);
    }
}
