//! `authorizer` in expressions: asks whether a user may do something (upstream: `k8s.io/apiserver/pkg/cel/library/authz.go`).

use std::fmt;
use std::sync::Arc;

use kube_cel::cel::extractors::This;
use kube_cel::cel::objects::Opaque;
use kube_cel::cel::{Context, ExecutionError, ResolveResult, Value as Cel};

/// What is asked; empty where it does not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub verb: String,
    pub field_selector: String,
    pub label_selector: String,
    /// Namespace and name of the service account that is meant instead of the user of the request.
    pub service_account: Option<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    pub reason: String,
}

pub trait Authorize: Send + Sync {
    fn authorize(&self, question: &Question) -> Verdict;
}

#[derive(Clone)]
struct Asking {
    authorizer: Arc<dyn Authorize>,
    question: Question,
}

impl fmt::Debug for Asking {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.question.fmt(out)
    }
}

impl PartialEq for Asking {
    fn eq(&self, other: &Self) -> bool {
        self.question == other.question
    }
}

impl Eq for Asking {}

impl Opaque for Asking {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Authorizer"
    }
}

impl Opaque for Verdict {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}

/// The variable `authorizer`; `question` is filled in for `authorizer.requestResource`.
pub fn variable(authorizer: Arc<dyn Authorize>, question: Question) -> Cel {
    Cel::Opaque(Arc::new(Asking { authorizer, question }))
}

fn refined(this: &Cel, function: &str, refine: impl FnOnce(&mut Question)) -> ResolveResult {
    let mut asking = of::<Asking>(this, function)?.clone();
    refine(&mut asking.question);
    Ok(Cel::Opaque(Arc::new(asking)))
}

fn of<'a, T: 'static>(value: &'a Cel, function: &str) -> Result<&'a T, ExecutionError> {
    let found = match value {
        Cel::Opaque(opaque) => opaque.downcast_ref::<T>(),
        _ => None,
    };
    found.ok_or_else(|| ExecutionError::function_error(function, "no such overload"))
}

pub(super) fn register(context: &mut Context<'_>) {
    macro_rules! refining {
        ($($name:literal => $field:ident),*) => {
            $(context.add_function($name, |This(this): This<Cel>, text: Arc<String>| {
                refined(&this, $name, |question| question.$field = text.to_string())
            });)*
        };
    }
    refining!("path" => path, "group" => group, "resource" => resource, "subresource" => subresource,
        "namespace" => namespace, "name" => name, "fieldSelector" => field_selector, "labelSelector" => label_selector);
    context.add_function(
        "serviceAccount",
        |This(this): This<Cel>, namespace: Arc<String>, name: Arc<String>| {
            let account = (namespace.to_string(), name.to_string());
            refined(&this, "serviceAccount", |question| {
                question.service_account = Some(account)
            })
        },
    );
    context.add_function("check", |This(this): This<Cel>, verb: Arc<String>| {
        let mut asking = of::<Asking>(&this, "check")?.clone();
        asking.question.verb = verb.to_string();
        Ok(Cel::Opaque(Arc::new(
            asking.authorizer.authorize(&asking.question),
        )))
    });
    context.add_function("allowed", |This(this): This<Cel>| {
        Ok(Cel::Bool(of::<Verdict>(&this, "allowed")?.allowed))
    });
    context.add_function("reason", |This(this): This<Cel>| {
        Ok(Cel::String(Arc::new(
            of::<Verdict>(&this, "reason")?.reason.clone(),
        )))
    });
    context.add_function("errored", |This(this): This<Cel>| {
        of::<Verdict>(&this, "errored").map(|_| Cel::Bool(false))
    });
    context.add_function("error", |This(this): This<Cel>| {
        of::<Verdict>(&this, "error").map(|_| Cel::String(Arc::default()))
    });
}
