//! Runs the functions of [`super::signatures`].
//!
//! A call whose arguments no line of the table allows was refused before; what is left (`dyn`) fails here with
//! `no such overload`.

pub mod format;
mod network;
mod strings;
mod time;

use std::sync::Arc;

use knarr_quantity::Quantity;

use super::eval::{Evaluator, Failure, Outcome, no_overload, overflow};
use super::select::compare;
use super::value::Val;

/// Calls a function; the first argument of a member function is what it is called on.
pub fn call(evaluator: &mut Evaluator<'_>, name: &str, arguments: &[Val]) -> Outcome {
    // Every function may look at all of what it gets.
    let cost: usize = arguments.iter().map(Val::size).sum();
    evaluator.charge(1 + cost)?;
    match arguments.first() {
        Some(Val::String(_)) => {
            if let Some(outcome) = strings::call(evaluator, name, arguments) {
                return outcome;
            }
        }
        Some(Val::List(items)) => {
            if let Some(outcome) = lists(evaluator, name, items, arguments) {
                return outcome;
            }
        }
        Some(Val::Timestamp(_) | Val::Duration(_)) => {
            if let Some(outcome) = time::call(name, arguments) {
                return outcome;
            }
        }
        Some(Val::Quantity(quantity)) => {
            if let Some(outcome) = quantities(name, *quantity, arguments) {
                return outcome;
            }
        }
        Some(Val::Optional(value)) => {
            if let Some(outcome) = optionals(name, value.as_deref(), arguments) {
                return outcome;
            }
        }
        _ => {}
    }
    if let Some(outcome) = network::call(name, arguments) {
        return outcome;
    }
    if let Some(outcome) = format::call(name, arguments) {
        return outcome;
    }
    general(name, arguments)
}

fn general(name: &str, arguments: &[Val]) -> Outcome {
    match (name, arguments) {
        ("size", [Val::Bytes(bytes)]) => Ok(bytes.len().into()),
        ("size", [Val::Map(fields)]) => Ok(fields.len().into()),
        ("timestamp", [Val::Int(seconds)]) => jiff::Timestamp::from_second(*seconds)
            .map(Val::Timestamp)
            .map_err(|_| "timestamp overflow".into()),
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Val::Type(value.type_name())),
        ("int" | "uint" | "double" | "string" | "bool" | "bytes", [value]) => convert(name, value),
        ("quantity", [Val::String(text)]) => text
            .parse()
            .map(Val::Quantity)
            .map_err(|error: knarr_quantity::ParseError| error.to_string().into()),
        ("isQuantity", [Val::String(text)]) => Ok(text.parse::<Quantity>().is_ok().into()),
        ("optional.none", []) => Ok(Val::Optional(None)),
        ("optional.of", [value]) => Ok(Val::Optional(Some(Arc::new(value.clone())))),
        ("optional.ofNonZeroValue", [value]) => {
            let zero = match value {
                Val::Null | Val::Bool(false) | Val::Int(0) | Val::Uint(0) => true,
                Val::Double(n) => *n == 0.0,
                Val::String(text) => text.is_empty(),
                Val::Bytes(bytes) => bytes.is_empty(),
                Val::List(items) => items.is_empty(),
                Val::Map(fields) => fields.is_empty(),
                _ => false,
            };
            Ok(Val::Optional((!zero).then(|| Arc::new(value.clone()))))
        }
        _ => Err(no_overload()),
    }
}

fn convert(into: &str, value: &Val) -> Outcome {
    let range = || Failure::from("range error");
    let syntax = |text: &str| Failure::from(format!("strconv: parsing {text:?}: invalid syntax"));
    Ok(match (into, value) {
        ("int", Val::Int(_)) | ("uint", Val::Uint(_)) | ("double", Val::Double(_)) => value.clone(),
        ("bool", Val::Bool(_)) | ("string", Val::String(_)) | ("bytes", Val::Bytes(_)) => {
            value.clone()
        }
        ("int", Val::Uint(n)) => Val::Int(i64::try_from(*n).map_err(|_| range())?),
        ("int", Val::Double(n)) if n.abs() < 9.2e18 => Val::Int(*n as i64),
        ("int", Val::Double(_)) => return Err(range()),
        ("int", Val::String(text)) => Val::Int(text.parse().map_err(|_| syntax(text))?),
        ("int", Val::Timestamp(time)) => Val::Int(time.as_second()),
        ("int", Val::Duration(nanoseconds)) => Val::Int(*nanoseconds),
        ("uint", Val::Int(n)) => Val::Uint(u64::try_from(*n).map_err(|_| range())?),
        ("uint", Val::Double(n)) if (0.0..1.8e19).contains(n) => Val::Uint(*n as u64),
        ("uint", Val::Double(_)) => return Err(range()),
        ("uint", Val::String(text)) => Val::Uint(text.parse().map_err(|_| syntax(text))?),
        ("double", Val::Int(_) | Val::Uint(_)) => {
            Val::Double(value.as_double().unwrap_or_default())
        }
        ("double", Val::String(text)) => Val::Double(text.parse().map_err(|_| syntax(text))?),
        ("bool", Val::String(text)) => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true.into(),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false.into(),
            text => return Err(syntax(text)),
        },
        ("bytes", Val::String(text)) => Val::Bytes(text.as_bytes().into()),
        ("string", value) => strings::text_of(value).ok_or_else(no_overload)?.into(),
        _ => return Err(no_overload()),
    })
}

fn lists(
    evaluator: &mut Evaluator<'_>,
    name: &str,
    items: &Arc<Vec<Val>>,
    arguments: &[Val],
) -> Option<Outcome> {
    Some(match (name, arguments) {
        ("size", [_]) => Ok(items.len().into()),
        ("join", [_, rest @ ..]) => strings::join(evaluator, items, rest.first()),
        ("isSorted", [_]) => items
            .windows(2)
            .map(|pair| compare(&pair[0], &pair[1]).ok_or_else(no_overload))
            .try_fold(true, |sorted, order| Ok(sorted && order?.is_le()))
            .map(Val::Bool),
        ("sum", [_]) => items
            .split_first()
            .map_or(Ok(Val::Int(0)), |(first, rest)| {
                rest.iter().try_fold(first.clone(), |sum, item| {
                    super::arithmetic::compute(cel::common::ast::operators::ADD, &sum, item)
                })
            }),
        ("min" | "max", [_]) => extreme(name, items),
        ("indexOf", [_, item]) => place(evaluator, items.iter().enumerate(), item),
        ("lastIndexOf", [_, item]) => place(evaluator, items.iter().enumerate().rev(), item),
        ("sets.contains", [a, Val::List(_)]) => subset(evaluator, &arguments[1], a).map(Val::Bool),
        ("sets.equivalent", [a, b @ Val::List(_)]) => subset(evaluator, a, b)
            .and_then(|within| Ok(within && subset(evaluator, b, a)?))
            .map(Val::Bool),
        ("sets.intersects", [_, b @ Val::List(_)]) => {
            let found = items.iter().try_fold(false, |found, item| {
                Ok(found || evaluator.contains(b, item)?)
            });
            found.map(Val::Bool)
        }
        _ => return None,
    })
}

fn extreme(name: &str, items: &[Val]) -> Outcome {
    let Some((first, rest)) = items.split_first() else {
        return Err(format!("{name} called on empty list").into());
    };
    rest.iter()
        .try_fold(first, |best, item| {
            let order = compare(item, best).ok_or_else(no_overload)?;
            let better = if name == "min" {
                order.is_lt()
            } else {
                order.is_gt()
            };
            Ok(if better { item } else { best })
        })
        .cloned()
}

fn place<'v>(
    evaluator: &mut Evaluator<'_>,
    items: impl Iterator<Item = (usize, &'v Val)>,
    item: &Val,
) -> Outcome {
    for (index, candidate) in items {
        if evaluator.equal(candidate, item)? {
            return Ok(index.into());
        }
    }
    Ok(Val::Int(-1))
}

fn subset(evaluator: &mut Evaluator<'_>, part: &Val, of: &Val) -> Result<bool, Failure> {
    let Val::List(items) = part else {
        return Err(no_overload());
    };
    for item in items.iter() {
        if !evaluator.contains(of, item)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn quantities(name: &str, quantity: Quantity, arguments: &[Val]) -> Option<Outcome> {
    const BILLION: i128 = 1_000_000_000;
    let nano = quantity.nano();
    let made = |nano: i128| -> Outcome {
        // The family of suffixes is the first one's, as in apimachinery.
        let text = format!("{}n", nano);
        text.parse()
            .map(Val::Quantity)
            .map_err(|error: knarr_quantity::ParseError| error.to_string().into())
    };
    Some(match (name, arguments) {
        ("sign", [_]) => Ok(Val::Int(nano.signum() as i64)),
        ("isInteger", [_]) => Ok((nano % BILLION == 0).into()),
        ("asInteger", [_]) if nano % BILLION == 0 => i64::try_from(nano / BILLION)
            .map(Val::Int)
            .map_err(|_| overflow()),
        ("asInteger", [_]) => Err("cannot convert value to integer".into()),
        ("asApproximateFloat", [_]) => Ok(Val::Double(nano as f64 / 1e9)),
        ("add" | "sub", [_, other]) => {
            let other = match other {
                Val::Quantity(other) => other.nano(),
                Val::Int(n) => i128::from(*n) * BILLION,
                _ => return None,
            };
            made(if name == "add" {
                nano + other
            } else {
                nano - other
            })
        }
        ("isLessThan", [_, Val::Quantity(other)]) => Ok((nano < other.nano()).into()),
        ("isGreaterThan", [_, Val::Quantity(other)]) => Ok((nano > other.nano()).into()),
        ("compareTo", [_, Val::Quantity(other)]) => Ok(Val::Int(nano.cmp(&other.nano()) as i64)),
        _ => return None,
    })
}

fn optionals(name: &str, value: Option<&Val>, arguments: &[Val]) -> Option<Outcome> {
    Some(match (name, arguments) {
        ("hasValue", [_]) => Ok(value.is_some().into()),
        ("value", [_]) => value
            .cloned()
            .ok_or_else(|| "optional.none() dereference".into()),
        ("or", [of, other @ Val::Optional(_)]) => Ok(if value.is_some() {
            of.clone()
        } else {
            other.clone()
        }),
        ("orValue", [_, other]) => Ok(value.unwrap_or(other).clone()),
        _ => return None,
    })
}
