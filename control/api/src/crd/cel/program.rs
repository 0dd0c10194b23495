//! One expression, compiled.

use std::collections::HashMap;
use std::sync::Arc;

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::parser::Parser;

use super::at_place;
use super::check::{self, Checked};
use super::eval::{Evaluator, Outcome, Scope};
use super::types::Ty;
use crate::crd::pattern::Pattern;

/// How long an expression may be, in bytes.
const MAX_LENGTH: usize = 32 << 10;

/// How many operators and brackets an expression may have: each may nest the tree one level deeper.
const MAX_OPERATORS: usize = 4000;

/// How deep the tree of an expression may be.
const MAX_DEPTH: usize = 200;

/// How deep brackets may nest, of which the parser makes many levels each.
const MAX_BRACKETS: usize = 50;

/// An expression that was checked.
#[derive(Debug)]
pub struct Program {
    expr: IdedExpr,
    /// The patterns that are written out in it.
    patterns: HashMap<String, Arc<Pattern>>,
    /// Whether it looks at `oldSelf`.
    pub uses_old_self: bool,
}

/// What an expression must result in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A rule.
    Condition,
    /// A message.
    Message,
}

impl Program {
    /// Parses and checks an expression with its variables.
    ///
    /// # Errors
    ///
    /// Why it cannot work, in kube-apiserver's words.
    pub fn compile(
        source: &str,
        variables: Vec<(&str, Ty<'_>)>,
        wanted: Wanted,
    ) -> Result<Self, String> {
        let failed = |reason: String| match wanted {
            Wanted::Condition => format!("compilation failed: {reason}"),
            Wanted::Message => format!("messageExpression compilation failed: {reason}"),
        };
        bounded(source).map_err(failed)?;
        let (expr, info) = Parser::new()
            .enable_optional_syntax(true)
            .parse_with_source_info(source)
            .map_err(|errors| failed(syntax(source, &errors)))?;
        if depth(&expr) > MAX_DEPTH {
            return Err(failed(format!(
                "expression recursion limit exceeded: {MAX_DEPTH}"
            )));
        }
        let Checked {
            ty,
            uses_old_self,
            patterns,
        } = check::check(&expr, &info, variables).map_err(failed)?;
        match wanted {
            Wanted::Condition if !check::is_bool(&ty) => {
                return Err("cel expression must evaluate to a bool".to_owned());
            }
            Wanted::Message if !check::is_string(&ty) => {
                return Err("messageExpression must evaluate to a string".to_owned());
            }
            _ => {}
        }
        let mut compiled = HashMap::new();
        for pattern in patterns {
            let regex = Pattern::new(&pattern)
                .map_err(|error| format!("program instantiation failed: {error}"))?;
            compiled.insert(pattern, Arc::new(regex));
        }
        Ok(Self {
            expr,
            patterns: compiled,
            uses_old_self,
        })
    }

    /// The value in a scope, and what is left of the limit.
    pub fn run(&self, scope: &Scope<'_>, limit: u64) -> (Outcome, u64) {
        let mut evaluator = Evaluator::new(limit, &self.patterns);
        let outcome = evaluator.eval(&self.expr, scope);
        (outcome, evaluator.left())
    }
}

/// Refuses what would cost too much to parse.
fn bounded(source: &str) -> Result<(), String> {
    if source.len() > MAX_LENGTH {
        return Err(format!("expression is longer than {MAX_LENGTH} bytes"));
    }
    let (mut operators, mut open, mut deepest) = (0, 0_usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => {
                open += 1;
                deepest = deepest.max(open);
            }
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        operators += usize::from(b"([{.!-+*/%<>=&|?".contains(&byte));
    }
    if deepest > MAX_BRACKETS {
        return Err(format!(
            "expression recursion limit exceeded: {MAX_BRACKETS}"
        ));
    }
    if operators > MAX_OPERATORS {
        return Err(format!(
            "expression has more than {MAX_OPERATORS} operators"
        ));
    }
    Ok(())
}

fn syntax(source: &str, errors: &cel::ParseErrors) -> String {
    let lines = errors.errors.iter().map(|error| {
        // Lines and columns count from 1.
        let (line, column) = error.pos;
        let line = usize::try_from(line).unwrap_or(1).max(1) - 1;
        let column = usize::try_from(column).unwrap_or(1).max(1) - 1;
        let start: usize = source
            .split_inclusive('\n')
            .take(line)
            .map(|line| line.chars().count())
            .sum();
        let message = error.msg.trim_start_matches("Syntax error: ");
        at_place(source, start + column, &format!("Syntax error: {message}"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// How deep a tree is, found without recursion.
fn depth(expr: &IdedExpr) -> usize {
    let mut deepest = 0;
    let mut left = vec![(expr, 1)];
    while let Some((expr, depth)) = left.pop() {
        deepest = deepest.max(depth);
        let mut push = |expr| left.push((expr, depth + 1));
        match &expr.expr {
            Expr::Call(call) => call
                .target
                .iter()
                .map(|t| &**t)
                .chain(&call.args)
                .for_each(push),
            Expr::Select(select) => push(&select.operand),
            Expr::List(list) => list.elements.iter().for_each(push),
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        push(&entry.key);
                        push(&entry.value);
                    }
                }
            }
            Expr::Comprehension(c) => {
                for expr in [
                    &c.iter_range,
                    &c.accu_init,
                    &c.loop_cond,
                    &c.loop_step,
                    &c.result,
                ] {
                    push(expr);
                }
            }
            Expr::Struct(_) | Expr::Literal(_) | Expr::Ident(_) | Expr::Unspecified => {}
        }
    }
    deepest
}
