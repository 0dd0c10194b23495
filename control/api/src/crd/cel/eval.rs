//! Runs an expression, at a bounded cost.
//!
//! Every step costs one unit, and what copies or compares costs by its size, as cel-go counts it. What is over the limit
//! ends the evaluation: neither `||` nor `&&` hides that, as they hide other errors.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, ListExpr, LiteralValue, operators as op,
};

use super::check::TYPE_NAMES;
use super::library;
use super::loops::Step;
use super::select::{compare, field, has, index, of_key, optional};
use super::signatures::NAMESPACES;
use super::value::Val;
use crate::crd::pattern::Pattern;

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The limit was reached.
    Cost,
    /// What went wrong, in cel-go's words.
    Error(String),
}

impl From<&str> for Failure {
    fn from(words: &str) -> Self {
        Self::Error(words.to_owned())
    }
}

impl From<String> for Failure {
    fn from(words: String) -> Self {
        Self::Error(words)
    }
}

/// A value or why there is none.
pub type Outcome = Result<Val, Failure>;

/// What no function or operator takes.
pub fn no_overload() -> Failure {
    "no such overload".into()
}

/// One evaluation.
pub struct Evaluator<'p> {
    left: u64,
    patterns: &'p HashMap<String, Arc<Pattern>>,
    compiled: HashMap<Arc<str>, Arc<Pattern>>,
}

/// A variable, and those around it.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    name: &'a str,
    value: &'a Val,
    outer: Option<&'a Scope<'a>>,
}

impl<'a> Scope<'a> {
    /// A variable inside a scope.
    pub fn new(name: &'a str, value: &'a Val, outer: Option<&'a Scope<'a>>) -> Self {
        Self { name, value, outer }
    }

    fn find(&self, name: &str) -> Option<&'a Val> {
        let mut scope = Some(self);
        while let Some(at) = scope {
            if at.name == name {
                return Some(at.value);
            }
            scope = at.outer;
        }
        None
    }
}

impl<'p> Evaluator<'p> {
    /// An evaluation that may cost so much, with the patterns that were compiled beforehand.
    pub fn new(limit: u64, patterns: &'p HashMap<String, Arc<Pattern>>) -> Self {
        Self {
            left: limit,
            patterns,
            compiled: HashMap::new(),
        }
    }

    /// What is left of the limit.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes a cost from what is left.
    pub fn charge(&mut self, cost: usize) -> Result<(), Failure> {
        let cost = u64::try_from(cost).unwrap_or(u64::MAX);
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Failure::Cost)
            }
        }
    }

    /// A pattern, compiled once in an evaluation.
    pub fn pattern(&mut self, text: &Arc<str>) -> Result<Arc<Pattern>, Failure> {
        if let Some(pattern) = self.patterns.get(&**text) {
            return Ok(pattern.clone());
        }
        if let Some(pattern) = self.compiled.get(text) {
            return Ok(pattern.clone());
        }
        self.charge(10_000 + text.len() * 100)?;
        let pattern = Arc::new(Pattern::new(text)?);
        self.compiled.insert(text.clone(), pattern.clone());
        Ok(pattern)
    }

    /// The value of an expression.
    pub fn eval(&mut self, expr: &IdedExpr, scope: &Scope<'_>) -> Outcome {
        self.charge(1)?;
        match &expr.expr {
            Expr::Literal(literal) => Ok(match literal {
                LiteralValue::Boolean(value) => Val::Bool(*value.inner()),
                LiteralValue::Bytes(bytes) => Val::Bytes(bytes.inner().into()),
                LiteralValue::Double(number) => Val::Double(*number.inner()),
                LiteralValue::Int(number) => Val::Int(*number.inner()),
                LiteralValue::Null => Val::Null,
                LiteralValue::String(text) => Val::String(text.inner().into()),
                LiteralValue::UInt(number) => Val::Uint(*number.inner()),
            }),
            Expr::Ident(name) => match scope.find(name) {
                Some(value) => Ok(value.clone()),
                None => TYPE_NAMES
                    .iter()
                    .find(|known| *known == name)
                    .map(|name| Val::Type(name))
                    .ok_or_else(|| format!("no such attribute(s): {name}").into()),
            },
            Expr::Select(select) => {
                let of = self.eval(&select.operand, scope)?;
                if select.test {
                    return has(&of, &select.field);
                }
                field(&of, &select.field)
            }
            Expr::List(list) => self.list(list, scope),
            Expr::Map(map) => {
                let mut fields = BTreeMap::new();
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        return Err(no_overload());
                    };
                    let key = self.eval(&entry.key, scope)?;
                    let key = key.key().ok_or("unsupported key type")?;
                    let value = self.eval(&entry.value, scope)?;
                    let value = match (entry.optional, value) {
                        (false, value) => value,
                        (true, Val::Optional(Some(value))) => (*value).clone(),
                        (true, _) => continue,
                    };
                    if fields.insert(key, value).is_some() {
                        return Err("Failed with repeated key".into());
                    }
                }
                Ok(Val::Map(Arc::new(fields)))
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, scope),
            Expr::Call(call) => self.call(call, scope),
            Expr::Struct(_) | Expr::Unspecified => Err("unsupported expression".into()),
        }
    }

    fn list(&mut self, list: &ListExpr, scope: &Scope<'_>) -> Outcome {
        let mut items = Vec::with_capacity(list.elements.len());
        for (index, element) in list.elements.iter().enumerate() {
            let value = self.eval(element, scope)?;
            match (list.optional_indices.contains(&index), value) {
                (false, value) => items.push(value),
                (true, Val::Optional(Some(value))) => items.push((*value).clone()),
                (true, _) => {}
            }
        }
        Ok(items.into_iter().collect())
    }

    fn comprehension(&mut self, loop_: &ComprehensionExpr, scope: &Scope<'_>) -> Outcome {
        let range = self.eval(&loop_.iter_range, scope)?;
        let items: Vec<Val> = match &range {
            Val::List(items) => items.to_vec(),
            Val::Map(fields) => fields.keys().map(of_key).collect(),
            _ => return Err(no_overload()),
        };
        self.charge(items.len())?;
        let accumulated = match Step::of(loop_) {
            Step::Decides { by, condition } => {
                Val::Bool(self.decide(loop_, &items, scope, by, condition)?)
            }
            Step::Appends { when, element } => {
                let mut out = Vec::new();
                for item in &items {
                    let inner = Scope::new(&loop_.iter_var, item, Some(scope));
                    if let Some(condition) = when
                        && !self.condition(condition, &inner)?
                    {
                        continue;
                    }
                    out.push(self.eval(element, &inner)?);
                }
                out.into_iter().collect()
            }
            Step::Other => {
                let mut accumulated = self.eval(&loop_.accu_init, scope)?;
                for item in &items {
                    let with_accu = Scope::new(&loop_.accu_var, &accumulated, Some(scope));
                    let inner = Scope::new(&loop_.iter_var, item, Some(&with_accu));
                    if !self.condition(&loop_.loop_cond, &inner)? {
                        break;
                    }
                    accumulated = self.eval(&loop_.loop_step, &inner)?;
                }
                accumulated
            }
        };
        let with_accu = Scope::new(&loop_.accu_var, &accumulated, Some(scope));
        self.eval(&loop_.result, &with_accu)
    }

    fn condition(&mut self, expr: &IdedExpr, scope: &Scope<'_>) -> Result<bool, Failure> {
        match self.eval(expr, scope)? {
            Val::Bool(value) => Ok(value),
            _ => Err(no_overload()),
        }
    }

    /// `all` and `exists`: the first item that says `by` decides, also when an earlier one failed.
    fn decide(
        &mut self,
        loop_: &ComprehensionExpr,
        items: &[Val],
        scope: &Scope<'_>,
        by: bool,
        condition: &IdedExpr,
    ) -> Result<bool, Failure> {
        let mut failure = None;
        for item in items {
            let inner = Scope::new(&loop_.iter_var, item, Some(scope));
            match self.condition(condition, &inner) {
                Ok(value) if value == by => return Ok(by),
                Ok(_) => {}
                Err(Failure::Cost) => return Err(Failure::Cost),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(!by), Err)
    }

    fn call(&mut self, call: &CallExpr, scope: &Scope<'_>) -> Outcome {
        match (call.func_name.as_str(), call.args.as_slice()) {
            (op::CONDITIONAL, [condition, yes, no]) => {
                let chosen = if self.condition(condition, scope)? {
                    yes
                } else {
                    no
                };
                return self.eval(chosen, scope);
            }
            (op::LOGICAL_AND, [a, b]) => return self.either(a, b, scope, false),
            (op::LOGICAL_OR, [a, b]) => return self.either(a, b, scope, true),
            (op::NOT_STRICTLY_FALSE, [a]) => {
                return match self.condition(a, scope) {
                    Err(Failure::Cost) => Err(Failure::Cost),
                    outcome => Ok(Val::Bool(outcome.unwrap_or(true))),
                };
            }
            _ => {}
        }
        let mut arguments = Vec::with_capacity(call.args.len() + 1);
        let mut name = std::borrow::Cow::Borrowed(call.func_name.as_str());
        if let Some(target) = &call.target {
            match &target.expr {
                Expr::Ident(space)
                    if NAMESPACES.contains(&space.as_str()) && scope.find(space).is_none() =>
                {
                    name = format!("{space}.{name}").into();
                }
                _ => arguments.push(self.eval(target, scope)?),
            }
        }
        for argument in &call.args {
            arguments.push(self.eval(argument, scope)?);
        }
        match arguments.as_slice() {
            [a, b] if call.target.is_none() => match self.binary(&name, a, b) {
                Some(outcome) => outcome,
                None => library::call(self, &name, &arguments),
            },
            [a] if call.target.is_none() && name == op::LOGICAL_NOT => match a {
                Val::Bool(value) => Ok(Val::Bool(!value)),
                _ => Err(no_overload()),
            },
            [a] if call.target.is_none() && name == op::NEGATE => match a {
                Val::Int(n) => n.checked_neg().map(Val::Int).ok_or_else(overflow),
                Val::Double(n) => Ok(Val::Double(-n)),
                _ => Err(no_overload()),
            },
            _ => library::call(self, &name, &arguments),
        }
    }

    /// `&&` and `||`: a side that says `by` decides, also when the other one fails.
    fn either(&mut self, a: &IdedExpr, b: &IdedExpr, scope: &Scope<'_>, by: bool) -> Outcome {
        let left = match self.condition(a, scope) {
            Ok(value) if value == by => return Ok(Val::Bool(by)),
            Err(Failure::Cost) => return Err(Failure::Cost),
            other => other,
        };
        match (left, self.condition(b, scope)?) {
            (_, right) if right == by => Ok(Val::Bool(by)),
            (left, right) => left.map(|_| Val::Bool(right)),
        }
    }

    fn binary(&mut self, name: &str, a: &Val, b: &Val) -> Option<Outcome> {
        Some(match name {
            op::EQUALS => self.equal(a, b).map(Val::Bool),
            op::NOT_EQUALS => self.equal(a, b).map(|equal| Val::Bool(!equal)),
            op::LESS => self.ordered(a, b, Ordering::is_lt),
            op::LESS_EQUALS => self.ordered(a, b, Ordering::is_le),
            op::GREATER => self.ordered(a, b, Ordering::is_gt),
            op::GREATER_EQUALS => self.ordered(a, b, Ordering::is_ge),
            op::IN => self.contains(b, a).map(Val::Bool),
            op::INDEX => index(a, b),
            op::OPT_INDEX => optional(a, |a| index(a, b)),
            op::OPT_SELECT => match b {
                Val::String(name) => optional(a, |a| field(a, name)),
                _ => Err(no_overload()),
            },
            op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO => {
                let cost = a.size() + b.size();
                self.charge(cost)
                    .and_then(|()| super::arithmetic::compute(name, a, b))
            }
            _ => return None,
        })
    }

    /// Whether two values are equal; numbers of different types may be.
    pub fn equal(&mut self, a: &Val, b: &Val) -> Result<bool, Failure> {
        self.charge(1 + a.size().min(b.size()))?;
        Ok(match (a, b) {
            (Val::List(a), Val::List(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for (a, b) in a.iter().zip(b.iter()) {
                    if !self.equal(a, b)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Val::Map(a), Val::Map(b)) => {
                if a.len() != b.len() {
                    return Ok(false);
                }
                for (key, a) in a.iter() {
                    match b.get(key) {
                        Some(b) if self.equal(a, b)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Val::Optional(Some(a)), Val::Optional(Some(b))) => self.equal(a, b)?,
            (Val::Optional(a), Val::Optional(b)) => a.is_none() && b.is_none(),
            (Val::Null, Val::Null) => true,
            (Val::Quantity(a), Val::Quantity(b)) => a.nano() == b.nano(),
            (Val::Url(a), Val::Url(b)) => a == b,
            (Val::Ip(a), Val::Ip(b)) => a == b,
            (Val::Cidr(a), Val::Cidr(b)) => a == b,
            (Val::Type(a), Val::Type(b)) => a == b,
            (Val::Format(a), Val::Format(b)) => a == b,
            (a, b) => compare(a, b) == Some(Ordering::Equal),
        })
    }

    fn ordered(&mut self, a: &Val, b: &Val, is: impl Fn(Ordering) -> bool) -> Outcome {
        self.charge(a.size().min(b.size()))?;
        match compare(a, b) {
            Some(order) => Ok(Val::Bool(is(order))),
            // Not a number is neither less nor greater.
            None if a.as_double().is_some() && b.as_double().is_some() => Ok(Val::Bool(false)),
            None => Err(no_overload()),
        }
    }

    /// Whether a list or a map contains a value.
    pub fn contains(&mut self, range: &Val, item: &Val) -> Result<bool, Failure> {
        match range {
            Val::List(items) => {
                for candidate in items.iter() {
                    if self.equal(candidate, item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Val::Map(fields) => Ok(item.key().is_some_and(|key| fields.contains_key(&key))),
            _ => Err(no_overload()),
        }
    }
}

/// More than 64 bits.
pub fn overflow() -> Failure {
    "integer overflow".into()
}
