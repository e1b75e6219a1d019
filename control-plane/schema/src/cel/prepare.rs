//! What parsed expressions become before they can be asked: names are known, message literals are maps.

use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::{
    EntryExpr, Expr, IdedEntryExpr, LiteralValue, MapEntryExpr, MapExpr, operators,
};

/// Types, and the namespaces of function libraries.
const KNOWN: [&str; 22] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
    "base64",
    "cel",
    "format",
    "google",
    "ip",
    "cidr",
    "jsonpatch",
    "math",
    "optional",
    "optional_type",
    "sets",
    "strings",
];

/// The error names what is not declared, as cel-go does.
pub(super) fn prepare(tree: &mut IdedExpr, variables: &[&str]) -> Result<(), String> {
    let mut scope: Vec<String> = variables
        .iter()
        .chain(&KNOWN)
        .map(|name| (*name).to_owned())
        .collect();
    visit(tree, &mut scope)
}

fn visit(node: &mut IdedExpr, scope: &mut Vec<String>) -> Result<(), String> {
    match &mut node.expr {
        Expr::Unspecified | Expr::Literal(_) => Ok(()),
        Expr::Ident(name) => match scope.contains(name) {
            true => Ok(()),
            false => Err(undeclared(name)),
        },
        Expr::Select(select) => visit(&mut select.operand, scope),
        Expr::Call(call) => {
            // The evaluator's own fail where nothing is, and nest when they are chained.
            if matches!(
                call.func_name.as_str(),
                operators::OPT_SELECT | operators::OPT_INDEX
            ) {
                call.func_name = super::OPTIONAL.into();
            }
            if let Some(target) = &mut call.target {
                visit(target, scope)?;
            }
            call.args.iter_mut().try_for_each(|arg| visit(arg, scope))
        }
        Expr::List(list) => list.elements.iter_mut().try_for_each(|item| visit(item, scope)),
        Expr::Map(map) => map
            .entries
            .iter_mut()
            .try_for_each(|entry| visit_entry(entry, scope)),
        Expr::Comprehension(loops) => {
            visit(&mut loops.iter_range, scope)?;
            visit(&mut loops.accu_init, scope)?;
            let outer = scope.len();
            scope.extend([loops.iter_var.clone(), loops.accu_var.clone()]);
            scope.extend(loops.iter_var2.clone());
            for part in [&mut loops.loop_cond, &mut loops.loop_step, &mut loops.result] {
                visit(part, scope)?;
            }
            scope.truncate(outer);
            Ok(())
        }
        Expr::Struct(literal) => {
            let root = literal.type_name.split('.').next().unwrap_or_default();
            if !["Object", "JSONPatch"].contains(&root) {
                return Err(undeclared(&literal.type_name));
            }
            let mut entries = std::mem::take(&mut literal.entries);
            for entry in &mut entries {
                as_map_entry(entry);
                visit_entry(entry, scope)?;
            }
            node.expr = Expr::Map(MapExpr { entries });
            Ok(())
        }
    }
}

fn visit_entry(entry: &mut IdedEntryExpr, scope: &mut Vec<String>) -> Result<(), String> {
    match &mut entry.expr {
        EntryExpr::MapEntry(entry) => {
            visit(&mut entry.key, scope)?;
            visit(&mut entry.value, scope)
        }
        EntryExpr::StructField(field) => visit(&mut field.value, scope),
    }
}

fn as_map_entry(entry: &mut IdedEntryExpr) {
    if let EntryExpr::StructField(field) = &mut entry.expr {
        let key = Expr::Literal(LiteralValue::String(field.field.as_str().into()));
        entry.expr = EntryExpr::MapEntry(MapEntryExpr {
            key: IdedExpr {
                id: entry.id,
                expr: key,
            },
            value: std::mem::take(&mut field.value),
            optional: field.optional,
        });
    }
}

fn undeclared(name: &str) -> String {
    format!("undeclared reference to '{name}' (in container '')")
}
