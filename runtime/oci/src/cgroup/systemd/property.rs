//! Values of properties, from numbers and from the text of annotations.

/// A value of one of the kinds that properties of scopes have.
#[derive(Clone, Debug, PartialEq)]
pub enum Property {
    /// `b`
    Bool(bool),
    /// `i`
    Int32(i32),
    /// `x`
    Int64(i64),
    /// `u`
    Uint32(u32),
    /// `t`
    Uint64(u64),
    /// `d`
    Double(f64),
    /// `s`
    Text(String),
    /// `as`
    Texts(Vec<String>),
    /// `ay`
    Bytes(Vec<u8>),
    /// `au`
    Numbers(Vec<u32>),
}

/// A property from an annotation: name and value as in `systemctl show`, the value in the text form of GVariant, with which
/// runc began it. Times in seconds become microseconds, because that is what goes over the bus.
pub(crate) fn from_annotation(name: &str, value: &str) -> Option<(String, Property)> {
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return None;
    }
    let value = parse(value.trim())?;
    match name.strip_suffix("Sec") {
        Some(stem) if !stem.ends_with('U') => {
            let seconds = match value {
                Property::Int32(seconds) => f64::from(seconds),
                Property::Uint32(seconds) => f64::from(seconds),
                Property::Int64(seconds) => seconds as f64,
                Property::Uint64(seconds) => seconds as f64,
                Property::Double(seconds) => seconds,
                _ => return None,
            };
            // Casting saturates: below zero is none, above all is for ever.
            let micros = Property::Uint64((seconds * 1e6) as u64);
            Some((format!("{stem}USec"), micros))
        }
        _ => Some((name.to_owned(), value)),
    }
}

/// The subset of the text form that such properties need: booleans, numbers with or without a type, strings, and arrays of
/// strings.
fn parse(text: &str) -> Option<Property> {
    if let Some((kind, number)) = text.split_once(' ') {
        let number = number.trim();
        match kind {
            "boolean" => return number.parse().ok().map(Property::Bool),
            "int32" => return number.parse().ok().map(Property::Int32),
            "int64" => return number.parse().ok().map(Property::Int64),
            "uint32" => return number.parse().ok().map(Property::Uint32),
            "uint64" => return number.parse().ok().map(Property::Uint64),
            "double" => return number.parse().ok().map(Property::Double),
            "string" => return quoted(number).map(Property::Text),
            "@as" => return strings(number),
            _ => {}
        }
    }
    match text {
        "true" => Some(Property::Bool(true)),
        "false" => Some(Property::Bool(false)),
        _ if text.starts_with('[') => strings(text),
        _ => quoted(text).map(Property::Text).or_else(|| {
            let whole = text.parse().ok().map(Property::Int32);
            whole.or_else(|| text.parse().ok().map(Property::Double))
        }),
    }
}

fn quoted(text: &str) -> Option<String> {
    let (value, rest) = one_quoted(text)?;
    rest.is_empty().then_some(value)
}

/// The string at the beginning, and what follows.
fn one_quoted(text: &str) -> Option<(String, &str)> {
    let mut chars = text.char_indices();
    let (_, quote) = chars
        .next()
        .filter(|(_, first)| matches!(first, '\'' | '"'))?;
    let mut value = String::new();
    while let Some((at, next)) = chars.next() {
        match next {
            '\\' => value.push(chars.next()?.1),
            next if next == quote => return Some((value, text[at + 1..].trim_start())),
            next => value.push(next),
        }
    }
    None
}

fn strings(text: &str) -> Option<Property> {
    let mut rest = text.strip_prefix('[')?.strip_suffix(']')?.trim();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let (value, after) = one_quoted(rest)?;
        all.push(value);
        rest = match after.strip_prefix(',') {
            Some(more) if !more.trim().is_empty() => more.trim_start(),
            None if after.is_empty() => after,
            _ => return None,
        };
    }
    Some(Property::Texts(all))
}

/// A list like `0-3,7` as a bit mask, lowest first; none if it is no such list.
pub(crate) fn bits(list: &str) -> Option<Vec<u8>> {
    /// More processors than any kernel can have; a typing error shall not cost gigabytes.
    const HIGHEST: usize = 8191;
    let mut mask = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last > HIGHEST {
            return None;
        }
        if mask.len() <= last / 8 {
            mask.resize(last / 8 + 1, 0);
        }
        for bit in first..=last {
            mask[bit / 8] |= 1u8 << (bit % 8);
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_understood() {
        assert_eq!(parse("true"), Some(Property::Bool(true)));
        assert_eq!(parse("7"), Some(Property::Int32(7)));
        assert_eq!(parse("1.5"), Some(Property::Double(1.5)));
        assert_eq!(parse("uint64 7"), Some(Property::Uint64(7)));
        assert_eq!(
            parse(r#""it's \"so\"""#),
            Some(Property::Text(r#"it's "so""#.into()))
        );
        assert_eq!(
            parse("['a, b', \"c\"]"),
            Some(Property::Texts(vec!["a, b".into(), "c".into()]))
        );
        assert_eq!(parse("@as []"), Some(Property::Texts(Vec::new())));
        for wrong in [
            "",
            "'a",
            "'a' b",
            "uint32 -1",
            "['a',]",
            "['a' 'b']",
            "word",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lists_become_masks() {
        assert_eq!(bits("0-3,8"), Some(vec![15, 1]));
        assert_eq!(bits("3-1"), None);
        assert_eq!(bits("0-99999999999"), None);
        assert_eq!(bits("x"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_annotation_makes_the_parser_panic(name in "[A-Za-z]{0,8}(Sec)?", value in ".{0,60}") {
            from_annotation(&name, &value);
            bits(&value);
        }
    }
}
