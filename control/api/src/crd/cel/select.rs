//! Fields, items, and the order of values.

use std::cmp::Ordering;
use std::sync::Arc;

use super::eval::{Failure, Outcome, no_overload};
use super::value::{Key, Val};

/// The order of two values; nothing for what has none.
pub fn compare(a: &Val, b: &Val) -> Option<Ordering> {
    match (a, b) {
        (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
        (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
        (Val::Uint(a), Val::Uint(b)) => Some(a.cmp(b)),
        (Val::Int(a), Val::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Val::Uint(a), Val::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Val::String(a), Val::String(b)) => Some(a.cmp(b)),
        (Val::Bytes(a), Val::Bytes(b)) => Some(a.cmp(b)),
        (Val::Duration(a), Val::Duration(b)) => Some(a.cmp(b)),
        (Val::Timestamp(a), Val::Timestamp(b)) => Some(a.cmp(b)),
        (a, b) => a.as_double()?.partial_cmp(&b.as_double()?),
    }
}

/// A key as a value.
pub fn of_key(key: &Key) -> Val {
    match key {
        Key::Bool(value) => Val::Bool(*value),
        Key::Int(n) => Val::Int(*n),
        Key::Uint(n) => Val::Uint(*n),
        Key::String(text) => Val::String(text.clone()),
    }
}

/// A field of a map: `of.name`.
pub fn field(of: &Val, name: &str) -> Outcome {
    match of {
        Val::Map(fields) => fields
            .get(&Key::String(name.into()))
            .cloned()
            .ok_or_else(|| format!("no such key: {name}").into()),
        Val::Optional(_) => optional(of, |of| field(of, name)),
        _ => Err(no_overload()),
    }
}

/// Whether a map has a field: `has(of.name)`.
pub fn has(of: &Val, name: &str) -> Outcome {
    match of {
        Val::Map(fields) => Ok(Val::Bool(fields.contains_key(&Key::String(name.into())))),
        Val::Optional(None) => Ok(Val::Bool(false)),
        Val::Optional(Some(of)) => has(of, name),
        _ => Err(no_overload()),
    }
}

/// An item of a list or a value of a map: `of[at]`.
pub fn index(of: &Val, at: &Val) -> Outcome {
    match of {
        Val::List(items) => {
            let Some(Key::Int(at)) = at.key() else {
                return Err(no_overload());
            };
            let found = usize::try_from(at).ok().and_then(|at| items.get(at));
            found
                .cloned()
                .ok_or_else(|| format!("index out of bounds: {at}").into())
        }
        Val::Map(fields) => {
            let key = at.key().ok_or_else(no_overload)?;
            let shown = match &key {
                Key::Bool(value) => value.to_string(),
                Key::Int(n) => n.to_string(),
                Key::Uint(n) => n.to_string(),
                Key::String(text) => text.to_string(),
            };
            (fields.get(&key).cloned()).ok_or_else(|| format!("no such key: {shown}").into())
        }
        Val::Optional(_) => optional(of, |of| index(of, at)),
        _ => Err(no_overload()),
    }
}

/// What a selection finds, as an optional value.
pub fn optional(of: &Val, select: impl Fn(&Val) -> Outcome) -> Outcome {
    let found = match of {
        Val::Optional(None) => return Ok(Val::Optional(None)),
        Val::Optional(Some(of)) => select(of),
        of => select(of),
    };
    Ok(match found {
        Ok(found @ Val::Optional(_)) => found,
        Ok(found) => Val::Optional(Some(Arc::new(found))),
        Err(Failure::Cost) => return Err(Failure::Cost),
        Err(Failure::Error(_)) => Val::Optional(None),
    })
}
