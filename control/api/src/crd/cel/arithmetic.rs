//! The arithmetic of CEL: on 64 bits, and what overflows is an error.

use std::sync::Arc;

use cel::common::ast::operators as op;
use jiff::SignedDuration;

use super::eval::{Outcome, no_overload, overflow};
use super::value::Val;

/// `a` and `b` under an operator.
pub fn compute(operator: &str, a: &Val, b: &Val) -> Outcome {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => integers(operator, *a, *b),
        (Val::Uint(a), Val::Uint(b)) => naturals(operator, *a, *b),
        (Val::Double(a), Val::Double(b)) => Ok(Val::Double(match operator {
            op::ADD => a + b,
            op::SUBSTRACT => a - b,
            op::MULTIPLY => a * b,
            op::DIVIDE => a / b,
            _ => return Err(no_overload()),
        })),
        (Val::String(a), Val::String(b)) if operator == op::ADD => Ok(format!("{a}{b}").into()),
        (Val::Bytes(a), Val::Bytes(b)) if operator == op::ADD => {
            Ok(Val::Bytes([&a[..], &b[..]].concat().into()))
        }
        (Val::List(a), Val::List(b)) if operator == op::ADD => {
            Ok(Val::List(Arc::new([&a[..], &b[..]].concat())))
        }
        _ => times(operator, a, b),
    }
}

fn integers(operator: &str, a: i64, b: i64) -> Outcome {
    let result = match operator {
        op::ADD => a.checked_add(b),
        op::SUBSTRACT => a.checked_sub(b),
        op::MULTIPLY => a.checked_mul(b),
        op::DIVIDE if b == 0 => return Err("division by zero".into()),
        op::DIVIDE => a.checked_div(b),
        op::MODULO if b == 0 => return Err("modulus by zero".into()),
        op::MODULO => a.checked_rem(b),
        _ => return Err(no_overload()),
    };
    result.map(Val::Int).ok_or_else(overflow)
}

fn naturals(operator: &str, a: u64, b: u64) -> Outcome {
    let result = match operator {
        op::ADD => a.checked_add(b),
        op::SUBSTRACT => a.checked_sub(b),
        op::MULTIPLY => a.checked_mul(b),
        op::DIVIDE if b == 0 => return Err("division by zero".into()),
        op::DIVIDE => a.checked_div(b),
        op::MODULO if b == 0 => return Err("modulus by zero".into()),
        op::MODULO => a.checked_rem(b),
        _ => return Err(no_overload()),
    };
    (result.map(Val::Uint)).ok_or_else(|| "unsigned integer overflow".into())
}

fn times(operator: &str, a: &Val, b: &Val) -> Outcome {
    let later = |time: &jiff::Timestamp, by: i64| {
        time.checked_add(SignedDuration::from_nanos(by))
            .map(Val::Timestamp)
            .map_err(|_| "timestamp overflow".into())
    };
    match (operator, a, b) {
        (op::ADD, Val::Duration(a), Val::Duration(b)) => {
            a.checked_add(*b).map(Val::Duration).ok_or_else(overflow)
        }
        (op::SUBSTRACT, Val::Duration(a), Val::Duration(b)) => {
            a.checked_sub(*b).map(Val::Duration).ok_or_else(overflow)
        }
        (op::ADD, Val::Timestamp(time), Val::Duration(by))
        | (op::ADD, Val::Duration(by), Val::Timestamp(time)) => later(time, *by),
        (op::SUBSTRACT, Val::Timestamp(time), Val::Duration(by)) => {
            later(time, by.checked_neg().ok_or_else(overflow)?)
        }
        (op::SUBSTRACT, Val::Timestamp(a), Val::Timestamp(b)) => {
            let nanos = a.duration_since(*b).as_nanos();
            i64::try_from(nanos)
                .map(Val::Duration)
                .map_err(|_| overflow())
        }
        _ => Err(no_overload()),
    }
}
