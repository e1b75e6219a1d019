//! Type checking and cost estimation of expressions in one walk (upstream: cel-go's `checker`).

use std::collections::HashMap;

use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators};

use super::functions::{self, Missing, NAMESPACES};
use super::types::{LARGEST_REQUEST, Type};
use super::{Expression, OPTIONAL};

const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
/// Characters read for one unit of cost.
const TRAVERSAL: u64 = 10;

/// What an expression gives, and what it costs at most.
#[derive(Clone, Debug)]
pub struct Checked {
    pub ty: Type,
    pub cost: u64,
}

/// The error is cel-go's, with the place that it means.
pub fn check(expression: &Expression, variables: &[(&str, Type)]) -> Result<Checked, String> {
    let mut checker = Checker {
        scope: variables
            .iter()
            .map(|(name, ty)| ((*name).to_owned(), ty.clone()))
            .collect(),
    };
    checker
        .visit(&expression.tree)
        .map_err(|mistake| mistake.told(&expression.text))
}

struct Mistake {
    message: String,
    /// What to look for in the text.
    at: String,
}

impl Mistake {
    fn told(&self, text: &str) -> String {
        let found = text.find(&self.at).unwrap_or(0);
        let before = &text[..found];
        let line = before.matches('\n').count();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let shown = text.lines().nth(line).unwrap_or_default();
        format!(
            "ERROR: <input>:{}:{}: {}\n | {shown}\n | {}^",
            line + 1,
            column + 1,
            self.message,
            ".".repeat(column)
        )
    }
}

struct Checker {
    scope: HashMap<String, Type>,
}

type Outcome = Result<Checked, Mistake>;

fn checked(ty: Type, cost: u64) -> Outcome {
    Ok(Checked { ty, cost })
}

impl Checker {
    fn visit(&mut self, node: &IdedExpr) -> Outcome {
        match &node.expr {
            Expr::Unspecified | Expr::Struct(_) => checked(Type::Dyn, 0),
            Expr::Literal(literal) => checked(of_literal(literal), 0),
            // Names of types are values, too.
            Expr::Ident(name) => checked(self.scope.get(name).cloned().unwrap_or(Type::Dyn), 1),
            Expr::Select(select) => {
                let of = self.visit(&select.operand)?;
                let ty = field(&of.ty, &select.field)?;
                checked(
                    if select.test { Type::Bool } else { ty },
                    of.cost.saturating_add(1),
                )
            }
            Expr::List(list) => {
                let mut cost = LIST_COST;
                let mut item: Option<Type> = None;
                for element in &list.elements {
                    let element = self.visit(element)?;
                    cost = cost.saturating_add(element.cost);
                    item = Some(match item {
                        Some(item) if !item.fits(&element.ty) => Type::Dyn,
                        Some(item) if item.size() >= element.ty.size() => item,
                        _ => element.ty,
                    });
                }
                let length = list.elements.len() as u64;
                checked(Type::List(Box::new(item.unwrap_or(Type::Dyn)), length), cost)
            }
            Expr::Map(map) => {
                let mut cost = MAP_COST;
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        let (key, value) = (self.visit(&entry.key)?, self.visit(&entry.value)?);
                        cost = cost.saturating_add(key.cost).saturating_add(value.cost);
                    }
                }
                let length = map.entries.len() as u64;
                checked(Type::Map(Box::new(Type::Dyn), Box::new(Type::Dyn), length), cost)
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(loops) => self.comprehension(loops),
        }
    }

    fn comprehension(&mut self, loops: &ComprehensionExpr) -> Outcome {
        let range = self.visit(&loops.iter_range)?;
        let (first, second) = match &range.ty {
            Type::List(item, _) if loops.iter_var2.is_some() => (Type::Int, (**item).clone()),
            Type::List(item, _) => ((**item).clone(), Type::Dyn),
            Type::Map(key, value, _) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Object(_) | Type::Optional(_) => (Type::Dyn, Type::Dyn),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                return Err(Mistake {
                    message,
                    at: place(&loops.iter_range),
                });
            }
        };
        let start = self.visit(&loops.accu_init)?;
        let outer = self.scope.clone();
        self.scope.insert(loops.iter_var.clone(), first);
        if let Some(name) = &loops.iter_var2 {
            self.scope.insert(name.clone(), second);
        }
        self.scope.insert(loops.accu_var.clone(), start.ty);
        let goes_on = self.visit(&loops.loop_cond)?;
        let step = self.visit(&loops.loop_step)?;
        let gathered = match step.ty {
            // As many as there are rounds, whatever one round adds.
            Type::List(item, _) => Type::List(item, range.ty.size()),
            other => other,
        };
        self.scope.insert(loops.accu_var.clone(), gathered);
        let result = self.visit(&loops.result)?;
        self.scope = outer;
        let rounds = goes_on
            .cost
            .saturating_add(step.cost)
            .saturating_mul(range.ty.size());
        let cost = [range.cost, start.cost, rounds, result.cost];
        checked(result.ty, cost.into_iter().fold(0, u64::saturating_add))
    }

    fn call(&mut self, call: &CallExpr) -> Outcome {
        let name = call.func_name.as_str();
        let namespace = call.target.as_deref().and_then(|target| match &target.expr {
            Expr::Ident(name) if NAMESPACES.contains(&name.as_str()) && !self.scope.contains_key(name) => {
                Some(name)
            }
            _ => None,
        });
        let target = match (&call.target, namespace) {
            (Some(target), None) => Some(self.visit(target)?),
            _ => None,
        };
        let args: Vec<Checked> = call
            .args
            .iter()
            .map(|arg| self.visit(arg))
            .collect::<Result<_, _>>()?;
        let spent = target
            .iter()
            .chain(&args)
            .fold(0, |sum: u64, part| sum.saturating_add(part.cost));
        let types: Vec<Type> = args.iter().map(|arg| arg.ty.clone()).collect();
        if let Some(found) = operator(name, &types) {
            let ty = found.ok_or_else(|| no_overload(name, None, &types))?;
            let cost = match name {
                operators::CONDITIONAL => {
                    let branches = args[1].cost.max(args[2].cost);
                    return checked(ty, args[0].cost.saturating_add(branches));
                }
                operators::LOGICAL_AND | operators::LOGICAL_OR => 0,
                _ => operator_cost(name, &types),
            };
            return checked(ty, spent.saturating_add(cost));
        }
        if name == OPTIONAL {
            let ty = match call.args.as_slice() {
                [
                    _,
                    IdedExpr {
                        expr: Expr::Literal(LiteralValue::String(key)),
                        ..
                    },
                ] => field(&types[0], key.inner())?,
                _ => Type::Dyn,
            };
            let ty = match ty {
                Type::Optional(inner) => *inner,
                other => other,
            };
            return checked(Type::Optional(Box::new(ty)), spent.saturating_add(1));
        }
        let qualified = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}.{name}"));
        let target = target.map(|target| target.ty);
        let has_no_type = |ty: &Type| matches!(ty, Type::Dyn | Type::Optional(_) | Type::Opaque(_));
        let ty = match functions::result(&qualified, target.as_ref(), &types) {
            Ok(ty) => ty,
            Err(_) if target.as_ref().is_some_and(has_no_type) => Type::Dyn,
            Err(Missing::Overload) => return Err(no_overload(&qualified, target.as_ref(), &types)),
            Err(Missing::Function) if name.starts_with('@') => Type::Dyn,
            Err(Missing::Function) => {
                return Err(Mistake {
                    message: format!("undeclared reference to '{qualified}' (in container '')"),
                    at: format!("{name}("),
                });
            }
        };
        let cost = function_cost(name, target.as_ref(), &types);
        checked(ty, spent.saturating_add(cost))
    }
}

fn of_literal(literal: &LiteralValue) -> Type {
    match literal {
        LiteralValue::Boolean(_) => Type::Bool,
        LiteralValue::Bytes(bytes) => Type::Bytes(bytes.inner().len() as u64),
        LiteralValue::Double(_) => Type::Double,
        LiteralValue::Int(_) => Type::Int,
        LiteralValue::Null => Type::Null,
        LiteralValue::String(text) => Type::String(text.inner().len() as u64),
        LiteralValue::UInt(_) => Type::Uint,
    }
}

fn field(of: &Type, name: &str) -> Result<Type, Mistake> {
    let at = format!(".{name}");
    match of {
        Type::Dyn => Ok(Type::Dyn),
        Type::Map(_, value, _) => Ok((**value).clone()),
        Type::Optional(inner) => field(inner, name).map(|ty| Type::Optional(Box::new(ty))),
        Type::Opaque(_) => Ok(of.clone()),
        Type::Object(shape) => shape.field(name).ok_or_else(|| Mistake {
            message: format!("undefined field '{name}'"),
            at,
        }),
        other => Err(Mistake {
            message: format!("type '{other}' does not support field selection"),
            at,
        }),
    }
}

fn no_overload(name: &str, target: Option<&Type>, args: &[Type]) -> Mistake {
    let args: Vec<String> = args.iter().map(Type::to_string).collect();
    let receiver = target.map_or_else(String::new, |target| format!("{target}."));
    let applied = args.join(", ");
    let at = match name {
        operators::CONDITIONAL => "?".to_owned(),
        operators::IN => " in ".to_owned(),
        _ => name.trim_matches('_').to_owned(),
    };
    Mistake {
        message: format!("found no matching overload for '{name}' applied to '{receiver}({applied})'"),
        at,
    }
}

/// The text that a simple expression begins with.
fn place(node: &IdedExpr) -> String {
    match &node.expr {
        Expr::Ident(name) => name.clone(),
        Expr::Select(select) => format!(".{}", select.field),
        _ => String::new(),
    }
}

/// None: it is no operator; Some(None): not for these.
fn operator(name: &str, args: &[Type]) -> Option<Option<Type>> {
    use Type::{Bool, Bytes, Double, Duration, Dyn, Int, List, String, Timestamp, Uint};
    let is_bool = |ty: &Type| matches!(ty, Bool | Dyn);
    Some(match (name, args) {
        (operators::LOGICAL_AND | operators::LOGICAL_OR, [left, right]) => {
            (is_bool(left) && is_bool(right)).then_some(Bool)
        }
        (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, [of]) => is_bool(of).then_some(Bool),
        (operators::CONDITIONAL, [condition, yes, no]) => {
            let larger = if yes.size() >= no.size() { yes } else { no };
            (is_bool(condition) && yes.fits(no)).then(|| larger.clone())
        }
        (operators::EQUALS | operators::NOT_EQUALS, [left, right]) => {
            (left.fits(right) || (left.is_number() && right.is_number())).then_some(Bool)
        }
        (
            operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
            [left, right],
        ) => {
            let ordered = |ty: &Type| {
                matches!(ty, Bool | String(_) | Bytes(_) | Timestamp | Duration | Dyn) || ty.is_number()
            };
            let alike = left.fits(right) || (left.is_number() && right.is_number());
            (alike && ordered(left) && ordered(right)).then_some(Bool)
        }
        (operators::ADD, [left, right]) => match (left, right) {
            (String(left), String(right)) => Some(String(left.saturating_add(*right))),
            (Bytes(left), Bytes(right)) => Some(Bytes(left.saturating_add(*right))),
            (List(item, left), List(other, right)) if item.fits(other) => {
                let item = if matches!(**item, Dyn) { other } else { item };
                Some(List(item.clone(), left.saturating_add(*right)))
            }
            (Int, Int) | (Uint, Uint) | (Double, Double) | (Duration, Duration) => Some(left.clone()),
            (Timestamp, Duration) | (Duration, Timestamp) => Some(Timestamp),
            (Dyn, _) | (_, Dyn) => Some(Dyn),
            _ => None,
        },
        (operators::SUBSTRACT, [left, right]) => match (left, right) {
            (Int, Int) | (Uint, Uint) | (Double, Double) | (Duration, Duration) => Some(left.clone()),
            (Timestamp, Timestamp) => Some(Duration),
            (Timestamp, Duration) => Some(Timestamp),
            (Dyn, _) | (_, Dyn) => Some(Dyn),
            _ => None,
        },
        (operators::MULTIPLY | operators::DIVIDE, [left, right]) => match (left, right) {
            (Int, Int) | (Uint, Uint) | (Double, Double) => Some(left.clone()),
            (Dyn, _) | (_, Dyn) => Some(Dyn),
            _ => None,
        },
        (operators::MODULO, [left, right]) => match (left, right) {
            (Int, Int) | (Uint, Uint) => Some(left.clone()),
            (Dyn, _) | (_, Dyn) => Some(Dyn),
            _ => None,
        },
        (operators::NEGATE, [of]) => matches!(of, Int | Double | Dyn).then(|| of.clone()),
        (operators::IN, [item, of]) => match of {
            List(held, _) => item.fits(held).then_some(Bool),
            Type::Map(key, ..) => item.fits(key).then_some(Bool),
            Dyn | Type::Object(_) => Some(Bool),
            _ => None,
        },
        (operators::INDEX, [of, key]) => match of {
            List(item, _) => matches!(key, Int | Dyn).then(|| (**item).clone()),
            Type::Map(of, value, _) => key.fits(of).then(|| (**value).clone()),
            Dyn | Type::Object(_) | Type::Opaque(_) => Some(Dyn),
            Type::Optional(_) => Some(Type::Optional(Box::new(Dyn))),
            _ => None,
        },
        _ => return None,
    })
}

fn traversal(size: u64) -> u64 {
    size.div_ceil(TRAVERSAL)
}

fn operator_cost(name: &str, args: &[Type]) -> u64 {
    let is_text = |ty: &Type| matches!(ty, Type::String(_) | Type::Bytes(_) | Type::Dyn);
    match (name, args) {
        (operators::IN, [_, of @ Type::List(..)]) => of.size(),
        (operators::ADD, [left, right]) if is_text(left) && is_text(right) => {
            traversal(left.size().saturating_add(right.size()))
        }
        (
            operators::EQUALS
            | operators::NOT_EQUALS
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS,
            [left, right],
        ) if is_text(left) && is_text(right) => traversal(left.size().min(right.size())),
        _ => 1,
    }
}

fn function_cost(name: &str, target: Option<&Type>, args: &[Type]) -> u64 {
    let size = |ty: Option<&Type>| ty.map_or(1, Type::size).min(LARGEST_REQUEST);
    let (own, first) = (size(target), size(args.first()));
    match name {
        "startsWith" | "endsWith" => traversal(first),
        "contains" if target.is_none() => own.saturating_mul(first),
        "contains" => traversal(own).saturating_mul(traversal(first)),
        "matches" | "find" | "findAll" => traversal(own.saturating_add(1)).saturating_mul(first.div_ceil(4)),
        "equivalent" | "intersects" => first.saturating_mul(size(args.get(1))),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" | "distinct" | "sort" | "join"
        | "flatten" => own,
        "lowerAscii" | "upperAscii" | "substring" | "trim" | "replace" | "split" | "reverse" | "quote" => {
            traversal(own)
        }
        "url" | "isURL" | "ip" | "isIP" | "cidr" | "isCIDR" | "quantity" | "isQuantity" | "semver"
        | "isSemver" | "validate" | "encode" | "decode" => traversal(first),
        // Asking an authorizer is dear.
        "check" => 350_000,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Catalog;

    fn told(text: &str, variables: &[(&str, Type)]) -> String {
        let names: Vec<&str> = variables.iter().map(|(name, _)| *name).collect();
        let expression = Expression::compile(text, &names).expect(text);
        match check(&expression, variables) {
            Ok(checked) => checked.ty.to_string(),
            Err(why) => why,
        }
    }

    #[test]
    fn fields_of_schemas_have_types() {
        let schema = json!({"type": "object", "properties": {
            "n": {"type": "integer"}, "s": {"type": "string"}, "when": {"type": "string", "format": "date-time"},
            "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
            "map": {"type": "object", "additionalProperties": {"type": "integer"}},
            "x-y": {"type": "boolean"}, "any": {"x-kubernetes-int-or-string": true}, "namespace": {"type": "string"},
        }});
        let variables = [("self", Type::of_schema(&schema, true).unwrap())];
        for (text, expected) in [
            ("self.n > 1 && self.s.startsWith('a')", "bool"),
            ("self.n > 1.5", "bool"),
            ("self.metadata.name", "string"),
            ("self.list.all(i, i.a == 'x')", "bool"),
            ("self.list.map(i, i.a)", "list(string)"),
            ("self.list.filter(i, i.a != '').size()", "int"),
            ("self.map.exists(k, self.map[k] > 3)", "bool"),
            ("self.x__dash__y ? 1 : 2", "int"),
            ("self.__namespace__ + 'x'", "string"),
            ("self.any == 5 || self.any == 'five'", "bool"),
            ("self.?s.orValue('x') == 'x'", "bool"),
            ("has(self.s)", "bool"),
            ("quantity('1Gi').isGreaterThan(quantity('1'))", "bool"),
            ("sets.contains([1], [1])", "bool"),
            ("self.when < timestamp('2020-01-01T00:00:00Z')", "bool"),
            ("self.s in ['a', 'b']", "bool"),
            (
                "self.z == 1",
                "ERROR: <input>:1:5: undefined field 'z'\n | self.z == 1\n | ....^",
            ),
            (
                "has(self.z)",
                "ERROR: <input>:1:9: undefined field 'z'\n | has(self.z)\n | ........^",
            ),
            (
                "self.list.all(i, i.b == 1)",
                "ERROR: <input>:1:19: undefined field 'b'\n | self.list.all(i, i.b == 1)\n | ..................^",
            ),
            (
                "self.n > '1'",
                "ERROR: <input>:1:8: found no matching overload for '_>_' applied to '(int, string)'\n | self.n > '1'\n | .......^",
            ),
            (
                "'a' + self.n",
                "ERROR: <input>:1:5: found no matching overload for '_+_' applied to '(string, int)'\n | 'a' + self.n\n | ....^",
            ),
            (
                "self.n.startsWith('a')",
                "ERROR: <input>:1:8: found no matching overload for 'startsWith' applied to 'int.(string)'\n | self.n.startsWith('a')\n | .......^",
            ),
            (
                "self.n.all(i, i)",
                "ERROR: <input>:1:5: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)\n | self.n.all(i, i)\n | ....^",
            ),
            (
                "nonsense(self.n)",
                "ERROR: <input>:1:1: undeclared reference to 'nonsense' (in container '')\n | nonsense(self.n)\n | ^",
            ),
        ] {
            assert_eq!(told(text, &variables), expected, "{text}");
        }
    }

    #[test]
    fn built_in_kinds_have_types() {
        let catalog = Catalog::builtin();
        let kind = &catalog.resource("apps", "v1", "deployments").unwrap().kind;
        let variables = [(
            "object",
            Type::Object(super::super::types::Shape::Typed(kind.types.clone(), kind.root)),
        )];
        for (text, expected) in [
            ("object.spec.replicas > 1", "bool"),
            (
                "object.spec.template.spec.containers.all(c, c.image.startsWith('x'))",
                "bool",
            ),
            ("object.metadata.labels['a'] == 'b'", "bool"),
            ("object.spec.strategy.rollingUpdate.maxSurge == '25%'", "bool"),
            ("object.metadata.creationTimestamp", "timestamp"),
            (
                "object.spec.replicas > '1'",
                "ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'",
            ),
            (
                "object.spec.replica > 1",
                "ERROR: <input>:1:12: undefined field 'replica'",
            ),
        ] {
            let told = told(text, &variables);
            assert!(told.starts_with(expected), "{text}: {told}");
        }
    }

    #[test]
    fn unbounded_loops_within_loops_are_dear() {
        let schema = |most: Option<u64>| {
            let mut schema = json!({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "string", "maxLength": 10}}}});
            if let Some(most) = most {
                schema["properties"]["list"]["maxItems"] = json!(most);
            }
            schema
        };
        let cost = |text: &str, most| {
            let variables = [("self", Type::of_schema(&schema(most), true).unwrap())];
            let expression = Expression::compile(text, &["self"]).unwrap();
            check(&expression, &variables).unwrap().cost
        };
        let (once, twice) = (
            "self.list.all(i, i == 'x')",
            "self.list.all(i, self.list.all(j, i == j))",
        );
        assert!(cost("true", None) == 0 && cost("self.list.size() > 1", None) < 10);
        assert!(
            (10..100).contains(&cost(once, Some(10))),
            "{}",
            cost(once, Some(10))
        );
        assert!(cost(once, None) < 10_000_000);
        assert!(cost(twice, None) > 10_000_000);
        assert!(cost(twice, Some(100)) < 10_000_000);
    }
}
