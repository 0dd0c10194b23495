//! Paths of fields as rules and selectable fields write them: `.spec.a`, `.spec['a.b']`.
//!
//! Source: apiextensions-apiserver, `apiserver/schema/cel/validation.go`, `ValidFieldPath`.

use super::structural::Structural;

/// Where a path leads: its parts, and the schema of the field.
pub type Found<'s> = (Vec<String>, &'s Structural);

/// Follows a path through a schema.
///
/// # Errors
///
/// Why it leads nowhere, in kube-apiserver's words.
pub fn resolve<'s>(
    path: &str,
    schema: &'s Structural,
    brackets: bool,
) -> Result<Found<'s>, String> {
    let mut rest = path;
    let (mut parts, mut at) = (Vec::new(), schema);
    while !rest.is_empty() {
        let name = if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() {
                return Err("unexpected end of JSON path".to_owned());
            }
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            // A delimiter right behind the dot is a token of its own.
            let (name, after) = after.split_at(end.max(1));
            rest = after;
            name.to_owned()
        } else if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let (name, after) = quoted(after)?;
            rest = after;
            name
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len());
            let token = &rest[..end.max(1)];
            return Err(format!("expected [ or . but got: {token}"));
        };
        let nowhere = || "does not refer to a valid field".to_owned();
        at = if at.properties.is_empty() {
            at.values_schema().ok_or_else(nowhere)?
        } else {
            at.properties.get(&name).ok_or_else(nowhere)?
        };
        parts.push(name);
    }
    Ok((parts, at))
}

fn quoted(text: &str) -> Result<(String, &str), String> {
    if text.is_empty() {
        return Err("unexpected end of JSON path".to_owned());
    }
    let Some(inner) = text.strip_prefix('\'') else {
        let end = text.find(['.', '[', ']']).unwrap_or(text.len());
        let token = &text[..end];
        return Err(format!("expected single quoted string but got {token}"));
    };
    let mut name = String::new();
    let mut chars = inner.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '\'' => {
                let after = &inner[index + 1..];
                return match after.strip_prefix(']') {
                    Some(after) => Ok((name, after)),
                    None if after.is_empty() => Err("unexpected end of JSON path".to_owned()),
                    None => Err(format!("expected ] but got {after}")),
                };
            }
            '\\' => match chars.next() {
                Some((_, 'a')) => name.push('\u{7}'),
                Some((_, 'b')) => name.push('\u{8}'),
                Some((_, 'f')) => name.push('\u{c}'),
                Some((_, 'n')) => name.push('\n'),
                Some((_, 'r')) => name.push('\r'),
                Some((_, 't')) => name.push('\t'),
                Some((_, 'v')) => name.push('\u{b}'),
                Some((_, c @ ('\'' | '\\'))) => name.push(c),
                other => {
                    let c = other.map(|(_, c)| c.to_string()).unwrap_or_default();
                    return Err(format!("invalid string literal: invalid escape char \\{c}"));
                }
            },
            c => name.push(c),
        }
    }
    Err("unexpected end of JSON path".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_followed_or_refused_in_upstreams_words() {
        let schema = json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": {
            "a.b": { "type": "string" }, "m": { "type": "object", "additionalProperties": { "type": "integer" } } } } } });
        let schema = Structural::read(&schema, "s").expect("a schema");
        let resolved = |path: &str, brackets| {
            resolve(path, &schema, brackets)
                .map(|(parts, found)| (parts.join("|"), found.type_name()))
        };
        let good = |text: &str, kind| Ok((text.to_owned(), kind));
        let bad = |words: &str| Err(words.to_owned());
        assert_eq!(resolved(".spec.m.k", true), good("spec|m|k", "integer"));
        assert_eq!(resolved(".spec['a.b']", true), good("spec|a.b", "string"));
        assert_eq!(
            resolved(".spec['a.b']", false),
            bad("array notation is not allowed")
        );
        assert_eq!(
            resolved(".none", true),
            bad("does not refer to a valid field")
        );
        assert_eq!(resolved("spec", true), bad("expected [ or . but got: spec"));
        assert_eq!(
            resolved(".spec[0]", true),
            bad("expected single quoted string but got 0")
        );
        assert_eq!(resolved(".spec.", true), bad("unexpected end of JSON path"));
    }
}
