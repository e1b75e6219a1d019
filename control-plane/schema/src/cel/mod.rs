//! CEL as admission uses it: expressions compiled once, asked about JSON values (upstream: `k8s.io/apiserver/pkg/cel`).
//!
//! Kubernetes' function libraries come with `kube-cel`. Message literals (`Object{…}`, `JSONPatch{…}`) are maps here:
//! what they make is judged where it is used.

mod authorizer;
mod check;
mod functions;
mod prepare;
pub mod types;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use kube_cel::cel::parser::Parser;
use kube_cel::cel::{Context, ExecutionError, IdedExpr, ResolveResult, Value as Cel};
use serde_json::Value;

pub use authorizer::{Authorize, Question, Verdict, variable as authorizer};
pub use check::{Checked, check};
pub use kube_cel::cel::Value as CelValue;

/// What `object` and the like are bound to.
pub type Bindings = Vec<(&'static str, Cel)>;

/// `a.?b` and `a[?b]` are calls of this.
const OPTIONAL: &str = "@optional";

fn optional(of: Cel, key: Cel) -> ResolveResult {
    let of = match &of {
        Cel::Opaque(opaque) => opaque
            .downcast_ref::<OptionalValue>()
            .and_then(OptionalValue::value),
        other => Some(other),
    };
    let found = match (of, key) {
        (Some(Cel::Map(fields)), Cel::String(name)) => fields.map.get(&Key::String(name)).cloned(),
        (Some(Cel::List(items)), Cel::Int(index)) => usize::try_from(index)
            .ok()
            .and_then(|index| items.get(index).cloned()),
        _ => None,
    };
    Ok(Cel::Opaque(Arc::new(
        found.map_or_else(OptionalValue::none, OptionalValue::of),
    )))
}

thread_local! {
    /// Functions are registered once a thread.
    static FUNCTIONS: Context<'static> = {
        let mut context = Context::default().with_all();
        authorizer::register(&mut context);
        context.add_function(OPTIONAL, optional);
        context
    };
}

#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    tree: Arc<IdedExpr>,
}

impl Expression {
    /// `variables` are the names that may be used; the error is upstream's detail, `compilation failed: …`.
    pub fn compile(text: &str, variables: &[&str]) -> Result<Self, String> {
        let parsed = catch_unwind(AssertUnwindSafe(|| {
            Parser::new().enable_optional_syntax(true).parse(text)
        }));
        let mut tree = parsed
            .map_err(|_| "compilation failed: the expression is not supported".to_owned())?
            .map_err(|error| format!("compilation failed: {error}"))?;
        prepare::prepare(&mut tree, variables).map_err(|why| format!("compilation failed: ERROR: {why}"))?;
        Ok(Self {
            text: text.to_owned(),
            tree: Arc::new(tree),
        })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn evaluate(&self, bindings: &Bindings) -> Result<Cel, String> {
        FUNCTIONS.with(|functions| {
            let mut context = functions.new_inner_scope();
            for (name, value) in bindings {
                context.add_variable_from_value(*name, value.clone());
            }
            catch_unwind(AssertUnwindSafe(|| Cel::resolve(&self.tree, &context)))
                .map_err(|_| "the expression cannot be evaluated".to_owned())?
                .map_err(|error| words(&error))
        })
    }

    pub fn evaluate_bool(&self, bindings: &Bindings) -> Result<bool, String> {
        match self.evaluate(bindings)? {
            Cel::Bool(value) => Ok(value),
            other => Err(format!(
                "must evaluate to bool, but evaluated to {}",
                other.type_of()
            )),
        }
    }
}

/// cel-go's words for the commonest failures.
fn words(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::NoSuchOverload | ExecutionError::UnsupportedBinaryOperator(..) => {
            "no such overload".into()
        }
        ExecutionError::DivisionByZero(_) => "division by zero".into(),
        ExecutionError::IndexOutOfBounds(_) => "index out of bounds".into(),
        ExecutionError::FunctionError { message, .. } => message.clone(),
        other => other.to_string(),
    }
}

pub fn text(value: &Cel) -> Option<&str> {
    match value {
        Cel::String(text) => Some(text),
        _ => None,
    }
}

pub fn map(fields: impl IntoIterator<Item = (String, Cel)>) -> Cel {
    let fields = fields.into_iter().map(|(name, value)| (Key::from(name), value));
    Cel::Map(Map {
        map: Arc::new(fields.collect::<HashMap<_, _>>()),
    })
}

pub fn from_json(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(value) => Cel::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Cel::Int(number),
            (None, Some(number)) => Cel::UInt(number),
            _ => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(items) => Cel::List(Arc::new(items.iter().map(from_json).collect())),
        Value::Object(fields) => map(fields
            .iter()
            .map(|(name, value)| (name.clone(), from_json(value)))),
    }
}

/// None for what JSON cannot hold. Absent optional values are left out.
pub fn to_json(value: &Cel) -> Option<Value> {
    Some(match value {
        Cel::Null => Value::Null,
        Cel::Bool(value) => (*value).into(),
        Cel::Int(number) => (*number).into(),
        Cel::UInt(number) => (*number).into(),
        Cel::Float(number) => serde_json::Number::from_f64(*number)?.into(),
        Cel::String(text) => text.as_str().into(),
        Cel::List(items) => Value::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Cel::Map(fields) => Value::Object(
            fields
                .map
                .iter()
                .map(|(key, value)| match key {
                    Key::String(name) => Some((name.to_string(), to_json(value)?)),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        Cel::Opaque(opaque) => to_json(opaque.downcast_ref::<OptionalValue>()?.value()?)?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn eval(text: &str, object: &Value) -> Result<Value, String> {
        let expression = Expression::compile(text, &["object", "oldObject"])?;
        let bindings = vec![("object", from_json(object)), ("oldObject", Cel::Null)];
        expression
            .evaluate(&bindings)
            .map(|value| to_json(&value).unwrap_or(json!("not JSON")))
    }

    #[test]
    fn expressions_see_objects() {
        let object = json!({"metadata": {"name": "a", "annotations": {"x.io/y-z": "1"}}, "spec": {"replicas": 2, "items": [1, 2]}});
        for (text, expected) in [
            ("object.spec.replicas > 1", json!(true)),
            ("object.metadata.annotations['x.io/y-z'] == '1'", json!(true)),
            ("oldObject == null", json!(true)),
            ("has(object.spec.paused) && object.spec.paused", json!(false)),
            ("object.spec.items.all(i, i > 0)", json!(true)),
            ("object.spec.items.map(i, i * 2)", json!([2, 4])),
            ("object.spec.?paused.orValue(false)", json!(false)),
            ("object.?status.?phase.orValue('none')", json!("none")),
            ("object.?spec.?replicas.orValue(0)", json!(2)),
            ("quantity('1Gi').isGreaterThan(quantity('1Mi'))", json!(true)),
            ("'%s-%d'.format(['a', 1])", json!("a-1")),
            ("sets.contains([1, 2], [2])", json!(true)),
            (
                "Object{spec: Object.spec{replicas: object.spec.replicas + 1}, metadata: {'a': 'b'}}",
                json!({"spec": {"replicas": 3}, "metadata": {"a": "b"}}),
            ),
            (
                "[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('b/c'), value: 1}]",
                json!([{"op": "add", "path": "/a/b~1c", "value": 1}]),
            ),
        ] {
            assert_eq!(eval(text, &object), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        let object = json!({"spec": {"replicas": 2}});
        for (text, expected) in [
            ("object.spec.nothing > 1", "no such key: nothing"),
            ("'a' + object.spec.replicas", "no such overload"),
            (
                "object.spec.replicas +",
                "compilation failed: ERROR: <input>:1:23: ",
            ),
            (
                "nothing == 1",
                "compilation failed: ERROR: undeclared reference to 'nothing' (in container '')",
            ),
            (
                "Other{a: 1}",
                "compilation failed: ERROR: undeclared reference to 'Other' (in container '')",
            ),
        ] {
            let told = eval(text, &object).expect_err(text);
            assert!(told.starts_with(expected), "{text}: {told}");
        }
    }
}
