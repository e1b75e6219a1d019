//! Kinds that are questions: access reviews, token reviews, who am I. Nothing is stored.

use auth::ReviewProblem;
use http::{Response, StatusCode};
use schema::Resource;

use super::{ResourceRequest, body, respond, subresources};
use crate::connect::Body;
use crate::negotiate::{ACCEPTED, View};
use crate::options::WriteOptions;
use crate::state::ApiServer;
use crate::status::{ApiError, Cause};

pub fn is_review(resource: &Resource) -> bool {
    matches!(
        resource.group.as_str(),
        "authorization.k8s.io" | "authentication.k8s.io"
    ) && resource.plural.ends_with("reviews")
}

pub async fn answer(server: &ApiServer, request: &ResourceRequest) -> Result<Response<Body>, ApiError> {
    if request.wanted.view == View::Table {
        return Err(ApiError::not_acceptable(ACCEPTED));
    }
    let options = WriteOptions::parse(&request.query, "CreateOptions")?;
    let catalog = server.registry.catalog();
    let (mut review, warnings) = body::decode(
        &catalog,
        request,
        &request.resource.kind,
        options.field_validation,
    )?;
    subresources::admit(
        server,
        request,
        &request.resource.kind,
        options.dry_run,
        &mut review,
    )
    .await?;
    let (authorizer, user) = (&server.authorizer, &request.user);
    let answered = match request.resource.plural.as_str() {
        "selfsubjectaccessreviews" => auth::self_subject_access_review(authorizer, user, review),
        "subjectaccessreviews" => auth::subject_access_review(authorizer, review),
        "localsubjectaccessreviews" => {
            auth::local_subject_access_review(authorizer, &request.info.namespace, review)
        }
        "selfsubjectrulesreviews" => auth::self_subject_rules_review(authorizer, user, review),
        "selfsubjectreviews" => Ok(auth::self_subject_review(user, review)),
        "tokenreviews" => auth::token_review(&server.authenticator, review, server, jiff::Timestamp::now())
            .await
            .map_err(ApiError::internal)?,
        _ => return Err(ApiError::method_not_allowed()),
    };
    let answered = answered.map_err(|problem| match problem {
        ReviewProblem::BadRequest(message) => ApiError::bad_request(message),
        ReviewProblem::Invalid { field, message } => {
            let gvk = &request.resource.kind.gvk;
            let cause = Cause {
                reason: "FieldValueInvalid",
                message: message.into(),
                field: field.into(),
            };
            ApiError::invalid(&gvk.group, &gvk.kind, "", vec![cause])
        }
    })?;
    let mut response = respond::value(&catalog, StatusCode::CREATED, &answered, request.wanted);
    respond::warn(&mut response, &warnings);
    Ok(response)
}
