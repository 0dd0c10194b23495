//! What the loops do that the parser makes of macros.
//!
//! `all` and `exists` stop at the item that decides, and `map` and `filter` append in place: taken as the expressions that
//! they are, each item would cost a copy of all before it.

use cel::common::ast::{ComprehensionExpr, Expr, IdedExpr, operators as op};

/// What a macro's loop does with each item.
pub enum Step<'a> {
    /// `all` (decided by false) and `exists` (by true).
    Decides { by: bool, condition: &'a IdedExpr },
    /// `map` and `filter`.
    Appends {
        when: Option<&'a IdedExpr>,
        element: &'a IdedExpr,
    },
    /// Whatever the expression of the loop says.
    Other,
}

impl<'a> Step<'a> {
    /// Looks at what the parser made of a macro.
    pub fn of(loop_: &'a ComprehensionExpr) -> Self {
        let accumulates =
            |expr: &IdedExpr| matches!(&expr.expr, Expr::Ident(name) if *name == loop_.accu_var);
        let appended = |expr: &'a IdedExpr| -> Option<&'a IdedExpr> {
            let Expr::Call(call) = &expr.expr else {
                return None;
            };
            match (call.func_name.as_str(), call.args.as_slice()) {
                (op::ADD, [accu, added]) if accumulates(accu) => match &added.expr {
                    Expr::List(list) if list.optional_indices.is_empty() => {
                        match list.elements.as_slice() {
                            [element] => Some(element),
                            _ => None,
                        }
                    }
                    _ => None,
                },
                _ => None,
            }
        };
        let Expr::Call(call) = &loop_.loop_step.expr else {
            return Self::Other;
        };
        match (call.func_name.as_str(), call.args.as_slice()) {
            (op::LOGICAL_AND, [accu, condition]) if accumulates(accu) => Self::Decides {
                by: false,
                condition,
            },
            (op::LOGICAL_OR, [accu, condition]) if accumulates(accu) => Self::Decides {
                by: true,
                condition,
            },
            (op::CONDITIONAL, [when, added, kept]) if accumulates(kept) => match appended(added) {
                Some(element) => Self::Appends {
                    when: Some(when),
                    element,
                },
                None => Self::Other,
            },
            _ => match appended(&loop_.loop_step) {
                Some(element) => Self::Appends {
                    when: None,
                    element,
                },
                None => Self::Other,
            },
        }
    }
}
