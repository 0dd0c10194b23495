//! Checks an expression before it runs: that its names, fields and functions exist, and that types go together.
//!
//! Messages are cel-go's, with the place in the expression. Where types are not known (`dyn`) nothing is refused.

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SourceInfo,
    operators as op,
};

use super::signatures::{self, NAMESPACES};
use super::types::{BOOL, STRING, Ty};

/// What a check found.
pub struct Checked<'s> {
    /// The type of the whole expression.
    pub ty: Ty<'s>,
    /// Whether it looks at `oldSelf`.
    pub uses_old_self: bool,
    /// The patterns that are written out in it.
    pub patterns: Vec<String>,
}

/// The names that stand for types.
pub const TYPE_NAMES: [&str; 9] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "uint",
];

struct Checker<'s, 'e> {
    info: &'e SourceInfo,
    /// Variables; the last one of a name counts.
    scope: Vec<(&'e str, Ty<'s>)>,
    errors: Vec<String>,
    uses_old_self: bool,
    patterns: Vec<String>,
}

/// Checks an expression with its variables.
///
/// # Errors
///
/// What is wrong, one message after the other.
pub fn check<'s, 'e>(
    expr: &'e IdedExpr,
    info: &'e SourceInfo,
    variables: Vec<(&'e str, Ty<'s>)>,
) -> Result<Checked<'s>, String> {
    let mut checker = Checker {
        info,
        scope: variables,
        errors: Vec::new(),
        uses_old_self: false,
        patterns: Vec::new(),
    };
    let ty = checker.expr(expr);
    if checker.errors.is_empty() {
        Ok(Checked {
            ty,
            uses_old_self: checker.uses_old_self,
            patterns: checker.patterns,
        })
    } else {
        Err(checker.errors.join("\n"))
    }
}

impl<'s, 'e> Checker<'s, 'e> {
    fn error(&mut self, id: u64, message: &str) -> Ty<'s> {
        let offset = self.info.offset_for(id).map_or(0, |(start, _)| start);
        let message = super::at_place(&self.info.source, offset as usize, message);
        self.errors.push(message);
        Ty::Dyn
    }

    fn is_bound(&self, name: &str) -> bool {
        self.scope.iter().any(|(bound, _)| *bound == name)
    }

    fn expr(&mut self, expr: &'e IdedExpr) -> Ty<'s> {
        match &expr.expr {
            Expr::Literal(literal) => Ty::Plain(match literal {
                LiteralValue::Boolean(_) => "bool",
                LiteralValue::Bytes(_) => "bytes",
                LiteralValue::Double(_) => "double",
                LiteralValue::Int(_) => "int",
                LiteralValue::Null => "null_type",
                LiteralValue::String(_) => "string",
                LiteralValue::UInt(_) => "uint",
            }),
            Expr::Ident(name) => self.name(expr.id, name),
            Expr::Select(select) => {
                let of = self.expr(&select.operand);
                match of.field(&select.field) {
                    Ok(_) if select.test => BOOL,
                    Ok(ty) => ty,
                    Err(message) => self.error(expr.id, &message),
                }
            }
            Expr::List(list) => {
                let mut of: Option<Ty<'s>> = None;
                for (index, element) in list.elements.iter().enumerate() {
                    let mut ty = self.expr(element);
                    if let (true, Ty::Optional(inner)) =
                        (list.optional_indices.contains(&index), &ty)
                    {
                        ty = (**inner).clone();
                    }
                    of = Some(of.map_or(ty.clone(), |of| join(&of, &ty)));
                }
                Ty::List(Box::new(of.unwrap_or(Ty::Dyn)))
            }
            Expr::Map(map) => {
                let mut of: Option<Ty<'s>> = None;
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        continue;
                    };
                    self.expr(&entry.key);
                    let ty = self.expr(&entry.value);
                    of = Some(of.map_or(ty.clone(), |of| join(&of, &ty)));
                }
                Ty::Map(Box::new(of.unwrap_or(Ty::Dyn)))
            }
            Expr::Struct(made) => {
                let message = format!(
                    "undeclared reference to '{}' (in container '')",
                    made.type_name
                );
                self.error(expr.id, &message)
            }
            Expr::Comprehension(comprehension) => self.comprehension(expr.id, comprehension),
            Expr::Call(call) => self.call(expr.id, call),
            Expr::Unspecified => self.error(expr.id, "unspecified expression"),
        }
    }

    fn name(&mut self, id: u64, name: &str) -> Ty<'s> {
        let found = self.scope.iter().rev().find(|(bound, _)| *bound == name);
        if let Some((_, ty)) = found {
            self.uses_old_self |= name == "oldSelf";
            return ty.clone();
        }
        if TYPE_NAMES.contains(&name) {
            return Ty::Plain("type");
        }
        let message = format!("undeclared reference to '{name}' (in container '')");
        self.error(id, &message)
    }

    fn comprehension(&mut self, id: u64, loop_: &'e ComprehensionExpr) -> Ty<'s> {
        let range = self.expr(&loop_.iter_range);
        let Some(item) = range.item() else {
            let message = format!(
                "expression of type '{range}' cannot be range of a comprehension (must be list, map, or dynamic)"
            );
            return self.error(id, &message);
        };
        if loop_.iter_var2.is_some() {
            return self.error(id, "comprehensions with two variables are not supported");
        }
        let init = self.expr(&loop_.accu_init);
        let depth = self.scope.len();
        self.scope.push((&loop_.accu_var, init.clone()));
        self.scope.push((&loop_.iter_var, item));
        let condition = self.expr(&loop_.loop_cond);
        if !condition.fits("bool") {
            self.error(
                loop_.loop_cond.id,
                &format!("expected type 'bool' but found '{condition}'"),
            );
        }
        let step = self.expr(&loop_.loop_step);
        self.scope.truncate(depth);
        self.scope.push((&loop_.accu_var, join(&init, &step)));
        let result = self.expr(&loop_.result);
        self.scope.truncate(depth);
        result
    }

    fn call(&mut self, id: u64, call: &'e CallExpr) -> Ty<'s> {
        // `sets.contains(a, b)`: the word before the dot is part of the name.
        if let Some(target) = &call.target
            && let Expr::Ident(space) = &target.expr
            && NAMESPACES.contains(&space.as_str())
            && !self.is_bound(space)
        {
            let name = format!("{space}.{}", call.func_name);
            let arguments = self.all(&call.args);
            return self.function(id, &name, false, &arguments);
        }
        let mut arguments: Vec<Ty<'s>> = Vec::new();
        if let Some(target) = &call.target {
            arguments.push(self.expr(target));
        }
        arguments.extend(self.all(&call.args));
        let name = call.func_name.as_str();
        if name == "matches"
            && let Some(IdedExpr {
                expr: Expr::Literal(LiteralValue::String(pattern)),
                ..
            }) = call.args.last()
        {
            self.patterns.push(pattern.inner().to_owned());
        }
        if call.target.is_none()
            && let Some(result) = operator(name, &arguments)
        {
            return match result {
                Ok(ty) => ty,
                Err(Mismatch::Overload) => self.no_overload(id, name, false, &arguments),
                Err(Mismatch::Words(message)) => self.error(id, &message),
            };
        }
        if let (op::OPT_SELECT, [of, _], Some(field)) = (name, &arguments[..], call.args.get(1)) {
            let field = match &field.expr {
                Expr::Literal(LiteralValue::String(field)) => field.inner(),
                _ => "",
            };
            return match of.field(field) {
                Ok(ty @ Ty::Optional(_)) => ty,
                Ok(ty) => Ty::Optional(Box::new(ty)),
                Err(message) => self.error(id, &message),
            };
        }
        self.function(id, name, call.target.is_some(), &arguments)
    }

    fn all(&mut self, arguments: &'e [IdedExpr]) -> Vec<Ty<'s>> {
        arguments
            .iter()
            .map(|argument| self.expr(argument))
            .collect()
    }

    fn function(&mut self, id: u64, name: &str, member: bool, arguments: &[Ty<'s>]) -> Ty<'s> {
        if let Some(ty) = signatures::resolve(name, member, arguments) {
            return ty;
        }
        if signatures::overloads(name).is_empty() {
            let message = format!("undeclared reference to '{name}' (in container '')");
            return self.error(id, &message);
        }
        self.no_overload(id, name, member, arguments)
    }

    fn no_overload(&mut self, id: u64, name: &str, member: bool, arguments: &[Ty<'s>]) -> Ty<'s> {
        let words: Vec<String> = arguments.iter().map(Ty::to_string).collect();
        let applied = match (member, words.split_first()) {
            (true, Some((target, rest))) => format!("{target}.({})", rest.join(", ")),
            _ => format!("({})", words.join(", ")),
        };
        let message = format!("found no matching overload for '{name}' applied to '{applied}'");
        self.error(id, &message)
    }
}

enum Mismatch {
    Overload,
    Words(String),
}

/// The type of what an operator makes; nothing for what is no operator.
fn operator<'s>(name: &str, arguments: &[Ty<'s>]) -> Option<Result<Ty<'s>, Mismatch>> {
    let bools = |result: Ty<'s>| {
        let fit = arguments.iter().all(|ty| ty.fits("bool"));
        if fit {
            Ok(result)
        } else {
            Err(Mismatch::Overload)
        }
    };
    Some(match (name, arguments) {
        (op::LOGICAL_AND | op::LOGICAL_OR | op::LOGICAL_NOT, _) => bools(BOOL),
        (op::NOT_STRICTLY_FALSE, _) => Ok(BOOL),
        (op::CONDITIONAL, [condition, yes, no]) => {
            if condition.fits("bool") {
                Ok(join(yes, no))
            } else {
                Err(Mismatch::Overload)
            }
        }
        (op::EQUALS | op::NOT_EQUALS, [a, b]) => {
            if a.comparable(b) {
                Ok(BOOL)
            } else {
                Err(Mismatch::Overload)
            }
        }
        (op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS, [a, b]) => {
            ordered(a, b).then_some(BOOL).ok_or(Mismatch::Overload)
        }
        (op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO, [a, b]) => {
            arithmetic(name, a, b).ok_or(Mismatch::Overload)
        }
        (op::NEGATE, [a]) => match a {
            Ty::Dyn | Ty::Plain("int" | "double") => Ok(a.clone()),
            _ => Err(Mismatch::Overload),
        },
        (op::IN, [item, range]) => match range {
            Ty::List(of) if !of.comparable(item) => Err(Mismatch::Overload),
            Ty::Map(_) | Ty::Object(..) if !item.comparable(&STRING) => Err(Mismatch::Overload),
            Ty::Dyn | Ty::List(_) | Ty::Map(_) => Ok(BOOL),
            _ => Err(Mismatch::Overload),
        },
        (op::INDEX | op::OPT_INDEX, [of, index]) => {
            let item = match of {
                Ty::Optional(inner) => indexed(inner, index),
                of => indexed(of, index),
            };
            let optional = name == op::OPT_INDEX || matches!(of, Ty::Optional(_));
            match item {
                Some(item) if optional => Ok(Ty::Optional(Box::new(item))),
                Some(item) => Ok(item),
                None if matches!(of, Ty::Plain(_) | Ty::Object(..) | Ty::Metadata) => Err(
                    Mismatch::Words(format!("type '{of}' does not support indexing")),
                ),
                None => Err(Mismatch::Overload),
            }
        }
        _ => return None,
    })
}

fn indexed<'s>(of: &Ty<'s>, index: &Ty<'s>) -> Option<Ty<'s>> {
    match of {
        Ty::Dyn => Some(Ty::Dyn),
        Ty::List(of) => index.fits("int").then(|| (**of).clone()),
        Ty::Map(of) => Some((**of).clone()),
        _ => None,
    }
}

fn is_number(ty: &Ty<'_>) -> bool {
    matches!(ty, Ty::Plain("int" | "uint" | "double"))
}

fn ordered(a: &Ty<'_>, b: &Ty<'_>) -> bool {
    match (a, b) {
        (Ty::Dyn, _) | (_, Ty::Dyn) => true,
        (a, b) if is_number(a) && is_number(b) => true,
        (Ty::Plain(a), Ty::Plain(b)) => {
            a == b && matches!(*a, "bool" | "string" | "bytes" | "timestamp" | "duration")
        }
        _ => false,
    }
}

fn arithmetic<'s>(name: &str, a: &Ty<'s>, b: &Ty<'s>) -> Option<Ty<'s>> {
    let result = match (a, b) {
        (Ty::Dyn, other) | (other, Ty::Dyn) => match other {
            Ty::Plain("timestamp" | "duration") | Ty::Dyn => Ty::Dyn,
            other => arithmetic(name, other, other)?,
        },
        (Ty::List(x), Ty::List(y)) if name == op::ADD => Ty::List(Box::new(join(x, y))),
        (Ty::Plain(x), Ty::Plain(y)) => match (name, *x, *y) {
            (op::MODULO, "int" | "uint", y) if *x == y => a.clone(),
            (op::MODULO, ..) => return None,
            (_, "int" | "uint" | "double", y) if *x == y => a.clone(),
            (op::ADD, "string" | "bytes", y) if *x == y => a.clone(),
            (op::ADD | op::SUBSTRACT, "duration", "duration") => a.clone(),
            (op::ADD, "timestamp", "duration") => a.clone(),
            (op::ADD, "duration", "timestamp") => b.clone(),
            (op::SUBSTRACT, "timestamp", "duration") => a.clone(),
            (op::SUBSTRACT, "timestamp", "timestamp") => Ty::Plain("duration"),
            _ => return None,
        },
        _ => return None,
    };
    Some(result)
}

/// The type of what is one or the other.
fn join<'s>(a: &Ty<'s>, b: &Ty<'s>) -> Ty<'s> {
    match (a, b) {
        // The empty list is a list of whatever the other one holds.
        (Ty::List(x), Ty::List(_)) if matches!(**x, Ty::Dyn) => b.clone(),
        (Ty::List(_), Ty::List(y)) if matches!(**y, Ty::Dyn) => a.clone(),
        (Ty::Optional(x), Ty::Optional(_)) if matches!(**x, Ty::Dyn) => b.clone(),
        (Ty::Plain(x), Ty::Plain(y)) if x == y => a.clone(),
        (Ty::List(x), Ty::List(y)) => Ty::List(Box::new(join(x, y))),
        (Ty::Map(x), Ty::Map(y)) => Ty::Map(Box::new(join(x, y))),
        (Ty::Optional(x), Ty::Optional(y)) => Ty::Optional(Box::new(join(x, y))),
        (Ty::Object(x, _), Ty::Object(y, _)) if std::ptr::eq(*x, *y) => a.clone(),
        _ => Ty::Dyn,
    }
}

/// Whether an expression is a condition, as far as its type is known.
pub fn is_bool(ty: &Ty<'_>) -> bool {
    matches!(ty, Ty::Dyn) || matches!(ty, Ty::Plain("bool"))
}

/// Whether an expression is a text, as far as its type is known.
pub fn is_string(ty: &Ty<'_>) -> bool {
    matches!(ty, Ty::Dyn) || matches!(ty, Ty::Plain("string"))
}
