//! YAML as kube-apiserver reads it: sigs.k8s.io/yaml, whose parser is go-yaml 2, to JSON.
//!
//! That is YAML 1.1 in its values, without base 60: `0400` is 256, `0o400` too, `1_000` is 1000, `yes` and `off` are booleans,
//! as values and as keys. What is quoted is text. Only the first document counts.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine as _;
use granit_parser::{Event, Options, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Number, Value};

/// All aliases together may stand for so many values: a small document shall not become a large one.
const MAX_ALIASED: usize = 400_000;

/// Reads the first document; also returns what was said about keys that stand twice in a map, of which the last counts.
///
/// # Errors
///
/// The words of the YAML parser, or go-yaml's for what it does not take.
pub fn parse(text: &str) -> Result<(Value, Vec<String>), String> {
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut reader = Reader {
        events: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        aliased: 0,
        repeated: Vec::new(),
    };
    loop {
        match reader.next()?.0 {
            Event::StreamStart | Event::DocumentStart(..) => {}
            Event::StreamEnd | Event::DocumentEnd => return Ok((Value::Null, Vec::new())),
            first => {
                let value = reader.node(first)?.value;
                return Ok((value, reader.repeated));
            }
        }
    }
}

struct Reader<'a> {
    events: Parser<'a, granit_parser::StrInput<'a>>,
    anchors: HashMap<usize, Value>,
    aliased: usize,
    repeated: Vec<String>,
}

/// A value, and whether it is the key `<<`, which takes another map in.
struct Node {
    value: Value,
    merges: bool,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        match self.events.next() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(format!("line {}: {}", error.marker().line(), error.info())),
            None => Err("unexpected end of the document".to_owned()),
        }
    }

    fn node(&mut self, event: Event<'a>) -> Result<Node, String> {
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let merges = style == ScalarStyle::Plain && text == "<<" && tag.is_none();
                let value = scalar(text, style, tag.as_deref())?;
                self.keep(anchor, &value);
                return Ok(Node { value, merges });
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()?.0 {
                        Event::SequenceEnd => break,
                        event => items.push(self.node(event)?.value),
                    }
                }
                (Value::Array(items), anchor)
            }
            Event::MappingStart(_, anchor, _) => (Value::Object(self.mapping()?), anchor),
            Event::Alias(anchor) => {
                let value = self
                    .anchors
                    .get(&anchor)
                    .ok_or("anchor value contains itself")?
                    .clone();
                self.aliased += size(&value);
                if self.aliased > MAX_ALIASED {
                    return Err("document contains excessive aliasing".to_owned());
                }
                (value, 0)
            }
            other => return Err(format!("unexpected {other:?}")),
        };
        self.keep(anchor, &value);
        Ok(Node {
            value,
            merges: false,
        })
    }

    fn keep(&mut self, anchor: usize, value: &Value) {
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
    }

    fn mapping(&mut self) -> Result<Map<String, Value>, String> {
        let mut fields = Map::new();
        let mut own: Vec<String> = Vec::new();
        loop {
            let key = match self.next()?.0 {
                Event::MappingEnd => return Ok(fields),
                event => self.node(event)?,
            };
            let (event, span) = self.next()?;
            let value = self.node(event)?.value;
            if key.merges {
                merge(&mut fields, value)?;
                continue;
            }
            let name = key_text(key.value)?;
            if own.contains(&name) {
                self.repeated.push(format!(
                    "line {}: key {name:?} already set in map",
                    span.start.line()
                ));
            } else {
                own.push(name.clone());
            }
            fields.insert(name, value);
        }
    }
}

/// Takes the fields of another map, or of a list of them in which the first counts most.
fn merge(fields: &mut Map<String, Value>, from: Value) -> Result<(), String> {
    const WRONG: &str = "map merge requires map or sequence of maps as the value";
    match from {
        Value::Object(more) => fields.extend(more),
        Value::Array(list) => {
            for item in list.into_iter().rev() {
                match item {
                    Value::Object(more) => fields.extend(more),
                    _ => return Err(WRONG.to_owned()),
                }
            }
        }
        _ => return Err(WRONG.to_owned()),
    }
    Ok(())
}

/// A key as JSON needs it.
fn key_text(key: Value) -> Result<String, String> {
    match key {
        Value::String(text) => Ok(text),
        Value::Bool(_) | Value::Number(_) => Ok(key.to_string()),
        other => Err(format!("unsupported map key: {other}")),
    }
}

fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.values().map(size).sum(),
        _ => 0,
    }
}

/// The value of a scalar by its tag and its text (goyaml.v2, `resolve.go`).
fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let kind = tag.map(|tag| match tag.handle() {
        "tag:yaml.org,2002:" => tag.suffix(),
        // What is local means nothing here.
        _ => "str",
    });
    let wrong = |kind: &str| Err(format!("cannot decode `{text}` as a !!{kind}"));
    match kind {
        None if style == ScalarStyle::Plain => resolve(&text),
        None | Some("str" | "timestamp") => Ok(Value::String(text.into_owned())),
        Some("binary") => {
            let plain: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
            let bytes = base64::engine::general_purpose::STANDARD
                .decode(plain)
                .map_err(|_| "!!binary value contains invalid base64 data".to_owned())?;
            Ok(String::from_utf8_lossy(&bytes).into_owned().into())
        }
        Some(kind) => {
            let value = resolve(&text)?;
            let fits = match kind {
                "null" => value.is_null(),
                "bool" => value.is_boolean(),
                "int" => value.is_i64() || value.is_u64(),
                "float" => value.is_number(),
                _ => return Ok(Value::String(text.into_owned())),
            };
            if fits { Ok(value) } else { wrong(kind) }
        }
    }
}

/// The value of a plain scalar.
fn resolve(text: &str) -> Result<Value, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            true.into()
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            false.into()
        }
        ".nan" | ".NaN" | ".NAN" => return Err("json: unsupported value: NaN".to_owned()),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Err("json: unsupported value: +Inf".to_owned());
        }
        "-.inf" | "-.Inf" | "-.INF" => return Err("json: unsupported value: -Inf".to_owned()),
        _ => number(text).map_or_else(|| text.into(), Value::Number),
    })
}

fn number(text: &str) -> Option<Number> {
    match text.as_bytes().first()? {
        b'.' => text.parse().ok().and_then(float),
        b'+' | b'-' | b'0'..=b'9' => {
            let plain = text.replace('_', "");
            integer(&plain).or_else(|| {
                is_float(&plain)
                    .then(|| plain.parse().ok())
                    .flatten()
                    .and_then(float)
            })
        }
        _ => None,
    }
}

/// As Go's `ParseInt` and `ParseUint` with base 0: the prefix says the base, and a zero before digits is octal.
fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (base, digits) = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.bytes().all(|digit| digit.is_ascii_alphanumeric()) {
        return None;
    }
    let value = i128::from_str_radix(digits, base).ok()?;
    let value = if negative { -value } else { value };
    match (i64::try_from(value), u64::try_from(value)) {
        (Ok(value), _) => Some(value.into()),
        // Go takes no sign before the numbers that need the last bit.
        (_, Ok(value)) if text.starts_with(|c: char| c.is_ascii_digit()) => Some(value.into()),
        _ => float(value as f64),
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
        None => digits(mantissa),
    };
    mantissa
        && exponent
            .is_none_or(|exponent| digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)))
}

/// Go writes a whole number without a point.
fn float(value: f64) -> Option<Number> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Some((value as i64).into());
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scalars_mean_what_they_mean_to_kube_apiserver() {
        #[rustfmt::skip] // One scalar a line.
        let cases = [
            ("0400", json!(256)), ("0o400", json!(256)), ("0O17", json!(15)), ("-0400", json!(-256)), ("08", json!(8)),
            ("0x1F", json!(31)), ("0b101", json!(5)), ("-0b11", json!(-3)), ("1_000", json!(1000)), ("+7", json!(7)),
            ("0", json!(0)), ("00", json!(0)), ("1.0", json!(1)), ("1.5", json!(1.5)), (".5", json!(0.5)), ("1.", json!(1)),
            ("1e3", json!(1000)), ("1E-2", json!(0.01)), ("9223372036854775807", json!(i64::MAX)),
            ("18446744073709551615", json!(u64::MAX)), ("190:20:30", json!("190:20:30")), ("1:30", json!("1:30")),
            ("0x", json!("0x")), ("0_", json!(0)), ("-", json!([null])), ("1.2.3", json!("1.2.3")), ("-a", json!("-a")),
            ("2001-12-14", json!("2001-12-14")), ("2001-12-14T21:59:43Z", json!("2001-12-14T21:59:43Z")),
            ("yes", json!(true)), ("On", json!(true)), ("y", json!(true)), ("TRUE", json!(true)), ("tRUE", json!("tRUE")),
            ("no", json!(false)), ("OFF", json!(false)), ("N", json!(false)), ("nO", json!("nO")),
            ("~", json!(null)), ("null", json!(null)), ("", json!(null)), ("nil", json!("nil")),
            ("\"0400\"", json!("0400")), ("'yes'", json!("yes")), ("!!str 0400", json!("0400")), ("!!int 010", json!(8)),
            ("!!float 1", json!(1)), ("!!binary aGk=", json!("hi")), ("!local 1", json!("1")), ("|\n  1\n", json!("1\n")),
            ("1Gi", json!("1Gi")), ("100m", json!("100m")), ("0.5", json!(0.5)), ("1e400", json!("1e400")),
        ];
        for (text, wanted) in cases {
            let value = parse(text).map(|(value, _)| value);
            assert_eq!(value.as_ref(), Ok(&wanted), "{text:?}");
        }
        for text in [".inf", ".NaN", "!!int x", "!!bool 1", "!!binary *"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn keys_aliases_and_merges_are_read() {
        let read = |text: &str| parse(text).map(|(value, _)| value);
        assert_eq!(
            read("on: 1\n2: a\n1.5: b\n'y': c"),
            Ok(json!({ "true": 1, "2": "a", "1.5": "b", "y": "c" }))
        );
        assert_eq!(
            read("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}\nc: {<<: [{k: 4}, {k: 5, m: 6}]}\nd: *x"),
            Ok(
                json!({ "a": { "k": 1, "l": 2 }, "b": { "k": 3, "l": 2 }, "c": { "k": 4, "m": 6 }, "d": { "k": 1, "l": 2 } })
            )
        );
        assert!(read("~: 1").is_err());
        assert!(read("a: {<<: 1}").is_err());
        assert_eq!(read("---\na: 1\n---\n{{{"), Ok(json!({ "a": 1 })));
        assert_eq!(read("# nothing\n"), Ok(Value::Null));
        assert!(read("a: [1").is_err());
    }

    #[test]
    fn a_key_that_stands_twice_is_noted_and_the_last_counts() {
        let (value, repeated) = parse("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n").expect("a document");
        assert_eq!(value, json!({ "a": 3, "b": { "c": 2 } }));
        assert_eq!(
            repeated,
            [
                r#"line 4: key "c" already set in map"#,
                r#"line 5: key "a" already set in map"#
            ]
        );
    }

    #[test]
    fn a_small_document_does_not_become_a_large_one() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let before = format!("*a{}", level - 1);
            let items = vec![before; 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{items}]\n"));
        }
        assert_eq!(
            parse(&text).expect_err("too large"),
            "document contains excessive aliasing"
        );
    }
}
