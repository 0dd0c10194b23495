//! Functions on texts; positions count characters, as in cel-go.

use std::sync::Arc;

use super::super::eval::{Evaluator, Failure, Outcome, no_overload};
use super::super::value::Val;
use crate::crd::formats;

/// Calls a function whose first argument is a text; nothing for one that is not here.
pub fn call(evaluator: &mut Evaluator<'_>, name: &str, arguments: &[Val]) -> Option<Outcome> {
    let Some(Val::String(text)) = arguments.first() else {
        return None;
    };
    Some(match (name, &arguments[1..]) {
        ("size", []) => Ok(text.chars().count().into()),
        ("contains", [Val::String(part)]) => Ok(text.contains(&**part).into()),
        ("startsWith", [Val::String(part)]) => Ok(text.starts_with(&**part).into()),
        ("endsWith", [Val::String(part)]) => Ok(text.ends_with(&**part).into()),
        ("matches", [Val::String(pattern)]) => evaluator
            .pattern(pattern)
            .map(|pattern| pattern.is_match(text).into()),
        ("find", [Val::String(pattern)]) => evaluator.pattern(pattern).map(|pattern| {
            let found = pattern.regex().find(text);
            found.map_or("", |found| found.as_str()).into()
        }),
        ("findAll", [Val::String(pattern), rest @ ..]) => {
            let limit = match rest {
                [Val::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            evaluator.pattern(pattern).map(|pattern| {
                let found = pattern.regex().find_iter(text).take(limit);
                found.map(|found| Val::from(found.as_str())).collect()
            })
        }
        ("lowerAscii", []) => Ok(text.to_ascii_lowercase().into()),
        ("upperAscii", []) => Ok(text.to_ascii_uppercase().into()),
        ("trim", []) => Ok(text.trim().into()),
        ("strings.quote", []) => Ok(format!("{text:?}").into()),
        ("charAt", [Val::Int(at)]) => char_at(text, *at),
        ("substring", [Val::Int(from)]) => substring(text, *from, None),
        ("substring", [Val::Int(from), Val::Int(to)]) => substring(text, *from, Some(*to)),
        ("indexOf", [Val::String(part), rest @ ..]) => index_of(text, part, rest, false),
        ("lastIndexOf", [Val::String(part), rest @ ..]) => index_of(text, part, rest, true),
        ("replace", [Val::String(from), Val::String(to), rest @ ..]) => {
            let limit = match rest {
                [Val::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => usize::MAX,
            };
            replace(evaluator, text, from, to, limit)
        }
        ("split", [Val::String(by), rest @ ..]) => Ok(split(text, by, rest)),
        ("format", [Val::List(values)]) => format(evaluator, text, values),
        ("timestamp", []) => formats::timestamp(text)
            .map(Val::Timestamp)
            .ok_or_else(|| format!("invalid timestamp: {text:?}").into()),
        ("duration", []) => formats::duration(text)
            .map(Val::Duration)
            .ok_or_else(|| format!("time: invalid duration {text:?}").into()),
        _ => return None,
    })
}

fn char_at(text: &str, at: i64) -> Outcome {
    let index = usize::try_from(at).ok();
    let found = index.and_then(|index| text.chars().nth(index));
    match (found, index) {
        (Some(c), _) => Ok(c.to_string().into()),
        (None, Some(index)) if index == text.chars().count() => Ok("".into()),
        _ => Err(format!("index out of range: {at}").into()),
    }
}

fn substring(text: &str, from: i64, to: Option<i64>) -> Outcome {
    let length = text.chars().count();
    let place = |n: i64| {
        let place = usize::try_from(n).ok().filter(|n| *n <= length);
        place.ok_or_else(|| Failure::from(format!("index out of range: {n}")))
    };
    let start = place(from)?;
    let end = to.map_or(Ok(length), place)?;
    if start > end {
        let end = end as i64;
        return Err(format!("invalid substring range. start: {from}, end: {end}").into());
    }
    let part: String = text.chars().skip(start).take(end - start).collect();
    Ok(part.into())
}

fn index_of(text: &str, part: &str, rest: &[Val], last: bool) -> Outcome {
    let length = text.chars().count();
    let bound = match rest {
        [] => None,
        [Val::Int(n)] => Some(
            usize::try_from(*n)
                .ok()
                .filter(|n| *n <= length)
                .ok_or_else(|| Failure::from(format!("index out of range: {n}")))?,
        ),
        _ => return Err(no_overload()),
    };
    let byte = |chars: usize| {
        text.char_indices()
            .nth(chars)
            .map_or(text.len(), |(at, _)| at)
    };
    let found = match (last, bound) {
        (false, None) => text.find(part),
        (false, Some(from)) => text[byte(from)..].find(part).map(|at| at + byte(from)),
        (true, None) => text.rfind(part),
        // The last match that begins no later.
        (true, Some(to)) => {
            let end = (byte(to) + part.len()).min(text.len());
            let end = (end..=text.len()).find(|end| text.is_char_boundary(*end));
            text[..end.unwrap_or(text.len())].rfind(part)
        }
    };
    Ok(found.map_or(Val::Int(-1), |at| text[..at].chars().count().into()))
}

fn replace(
    evaluator: &mut Evaluator<'_>,
    text: &str,
    from: &str,
    to: &str,
    limit: usize,
) -> Outcome {
    // An empty text stands between any two characters.
    let count = if from.is_empty() {
        text.chars().count() + 1
    } else {
        text.matches(from).count()
    };
    evaluator.charge(count.min(limit).saturating_mul(to.len() + 1) / 10)?;
    Ok(text.replacen(from, to, limit).into())
}

fn split(text: &str, by: &str, rest: &[Val]) -> Val {
    let limit = match rest {
        [Val::Int(0)] => return Val::from_iter([]),
        [Val::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    if by.is_empty() {
        let mut rest = text;
        let mut parts: Vec<Val> = Vec::new();
        while let Some(c) = rest.chars().next() {
            let end = if parts.len() + 1 == limit {
                rest.len()
            } else {
                c.len_utf8()
            };
            parts.push(rest[..end].into());
            rest = &rest[end..];
        }
        return parts.into_iter().collect();
    }
    text.splitn(limit, by).map(Val::from).collect()
}

/// A list of texts as one.
pub fn join(evaluator: &mut Evaluator<'_>, items: &[Val], by: Option<&Val>) -> Outcome {
    let by = match by {
        None => "",
        Some(Val::String(by)) => by,
        Some(_) => return Err(no_overload()),
    };
    let mut parts: Vec<&str> = Vec::with_capacity(items.len());
    for item in items {
        let Val::String(text) = item else {
            return Err(no_overload());
        };
        evaluator.charge((text.len() + by.len()) / 10)?;
        parts.push(text);
    }
    Ok(parts.join(by).into())
}

/// `"%s: %d".format([a, b])`.
fn format(evaluator: &mut Evaluator<'_>, text: &str, values: &Arc<Vec<Val>>) -> Outcome {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            let number = digits.parse::<usize>().ok().filter(|n| *n <= 1000);
            precision = Some(number.ok_or("could not parse formatting clause: precision")?);
        }
        let verb = chars
            .next()
            .ok_or("could not parse formatting clause: unexpected end of string")?;
        let value = values
            .next()
            .ok_or_else(|| Failure::from("index out of range: not enough arguments"))?;
        let part = clause(verb, precision, value)?;
        evaluator.charge(part.len() / 10)?;
        out.push_str(&part);
    }
    Ok(out.into())
}

fn clause(verb: char, precision: Option<usize>, value: &Val) -> Result<String, Failure> {
    let wrong = || {
        let name = value.type_name();
        Failure::from(format!(
            "error during formatting: {verb:?} clause cannot be used on a value of type {name}"
        ))
    };
    let precision = precision.unwrap_or(6);
    Ok(match (verb, value) {
        ('s', value) => shown(value).ok_or_else(wrong)?,
        ('d', Val::Int(n)) => n.to_string(),
        ('d', Val::Uint(n)) => n.to_string(),
        ('f', value) => format!("{:.precision$}", value.as_double().ok_or_else(wrong)?),
        ('e', value) => format!("{:.precision$e}", value.as_double().ok_or_else(wrong)?),
        ('b', Val::Int(n)) if *n < 0 => format!("-{:b}", n.unsigned_abs()),
        ('b', Val::Int(n)) => format!("{n:b}"),
        ('b', Val::Uint(n)) => format!("{n:b}"),
        ('b', Val::Bool(value)) => u8::from(*value).to_string(),
        ('o', Val::Int(n)) if *n >= 0 => format!("{n:o}"),
        ('o', Val::Uint(n)) => format!("{n:o}"),
        ('x', Val::Int(n)) if *n >= 0 => format!("{n:x}"),
        ('x', Val::Uint(n)) => format!("{n:x}"),
        ('x', Val::String(text)) => hex::encode(&**text),
        ('x', Val::Bytes(bytes)) => hex::encode(&**bytes),
        ('X', Val::Int(n)) if *n >= 0 => format!("{n:X}"),
        ('X', Val::Uint(n)) => format!("{n:X}"),
        ('X', Val::String(text)) => hex::encode_upper(&**text),
        ('X', Val::Bytes(bytes)) => hex::encode_upper(&**bytes),
        ('d' | 'b' | 'o' | 'x' | 'X', _) => return Err(wrong()),
        (verb, _) => {
            let words = format!(
                "could not parse formatting clause: unrecognized formatting clause \"{verb}\""
            );
            return Err(words.into());
        }
    })
}

/// A value as `%s` shows it: lists and maps too.
fn shown(value: &Val) -> Option<String> {
    Some(match value {
        Val::Null => "null".to_owned(),
        Val::Type(name) => (*name).to_owned(),
        Val::List(items) => {
            let items: Option<Vec<String>> = items.iter().map(shown).collect();
            format!("[{}]", items?.join(", "))
        }
        Val::Map(fields) => {
            let fields: Option<Vec<String>> = fields
                .iter()
                .map(|(key, value)| {
                    let key = match key {
                        super::super::value::Key::Bool(key) => key.to_string(),
                        super::super::value::Key::Int(key) => key.to_string(),
                        super::super::value::Key::Uint(key) => key.to_string(),
                        super::super::value::Key::String(key) => key.to_string(),
                    };
                    Some(format!("{key}: {}", shown(value)?))
                })
                .collect();
            format!("{{{}}}", fields?.join(", "))
        }
        value => return text_of(value),
    })
}

/// A scalar as a text; nothing for what has no such form.
pub fn text_of(value: &Val) -> Option<String> {
    Some(match value {
        Val::Bool(value) => value.to_string(),
        Val::Int(n) => n.to_string(),
        Val::Uint(n) => n.to_string(),
        Val::Double(n) => n.to_string(),
        Val::String(text) => text.to_string(),
        Val::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Val::Timestamp(time) => time.to_string(),
        Val::Duration(nanoseconds) => {
            format!("{}s", *nanoseconds as f64 / 1e9)
        }
        Val::Url(url) => url.text.clone(),
        Val::Ip(address) => address.to_string(),
        Val::Cidr(network) => network.to_string(),
        Val::Quantity(quantity) => quantity.to_string(),
        _ => return None,
    })
}
