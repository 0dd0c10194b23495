//! Regular expressions: Go's syntax (RE2), which schemas are written in, on Rust's engine, which is linear too.
//!
//! The two differ in what `\d`, `\w`, `\s` and `\b` mean (ASCII in Go), and in what a bracket or two dashes mean inside a
//! class. [`translate`] writes the one in terms of the other.

use regex::{Regex, RegexBuilder};

/// How large an expression may become in memory, compiled.
const MAX_SIZE: usize = 1 << 20;

/// A `pattern` of a schema.
#[derive(Debug)]
pub struct Pattern {
    source: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    /// The same text is the same expression.
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Pattern {
    /// Compiles an expression in Go's syntax.
    ///
    /// # Errors
    ///
    /// Why it is none, in the engine's words.
    pub fn new(source: &str) -> Result<Self, String> {
        let regex = RegexBuilder::new(&translate(source))
            .size_limit(MAX_SIZE)
            .dfa_size_limit(MAX_SIZE)
            .build()
            .map_err(|error| match error {
                regex::Error::Syntax(text) => {
                    // The first lines draw the expression; the last one says what is wrong.
                    let last = text.lines().last().unwrap_or_default();
                    let reason = last.trim_start_matches("error: ");
                    format!("error parsing regexp: {reason}: `{source}`")
                }
                other => format!("error parsing regexp: {other}: `{source}`"),
            })?;
        let source = source.to_owned();
        Ok(Self { source, regex })
    }

    /// Whether the text has a match somewhere.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The compiled expression.
    pub fn regex(&self) -> &Regex {
        &self.regex
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// Go's syntax in Rust's.
fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut chars = source.chars().peekable();
    // Where a class began in `out`, just behind its `[` or `[^`.
    let mut class: Option<usize> = None;
    while let Some(c) = chars.next() {
        match (c, class) {
            ('\\', _) => match chars.next() {
                Some('Q') => quoted(&mut chars, &mut out),
                Some(escaped) => out.push_str(&escape(escaped, class.is_some())),
                None => out.push('\\'),
            },
            ('[', None) => {
                out.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
                class = Some(out.len());
            }
            // A bracket that comes first is one of the class.
            (']', Some(start)) if out.len() == start => out.push_str("\\]"),
            (']', Some(_)) => {
                out.push(']');
                class = None;
            }
            ('[', Some(_)) if chars.peek() == Some(&':') => {
                // `[:alpha:]` is the same in both.
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            ('-', Some(_)) if chars.peek() == Some(&'-') => {
                out.push('-');
                out.push_str("\\-");
                chars.next();
            }
            ('[' | '&' | '~', Some(_)) => {
                out.push('\\');
                out.push(c);
            }
            _ => out.push(c),
        }
    }
    out
}

/// `\Q...\E`: the text itself.
fn quoted(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    let mut text = String::new();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next_if_eq(&'E').is_some() {
            break;
        }
        text.push(c);
    }
    out.push_str(&regex::escape(&text));
}

fn escape(c: char, in_class: bool) -> String {
    let class = match c {
        'd' => "0-9",
        'w' => "0-9A-Za-z_",
        's' => "\\t\\n\\f\\r ",
        'D' => "^0-9",
        'W' => "^0-9A-Za-z_",
        'S' => "^\\t\\n\\f\\r ",
        'b' if !in_class => return "(?-u:\\b)".to_owned(),
        'B' if !in_class => return "(?-u:\\B)".to_owned(),
        _ => return format!("\\{c}"),
    };
    if in_class && !class.starts_with('^') {
        class.to_owned()
    } else {
        format!("[{class}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_what_they_mean_in_go() {
        for (pattern, text, matches) in [
            (r"^\d+$", "12", true),
            (r"^\d+$", "١٢", false),
            (r"^[\w.-]+$", "a_b.c-d", true),
            (r"^\w$", "é", false),
            (r"^[[]$", "[", true),
            (r"^[]a]+$", "]a", true),
            (r"^[^\s]+$", "a b", false),
            (r"^[\S]+$", "ab", true),
            (r"^[+--]+$", "+,-", true),
            (r"^[a&&b]+$", "a&b", true),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^.$", "é", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^(([0-9]+)|([0-9]+[smhd]))(\/[a-z]*)?$", "10m/x", true),
        ] {
            let compiled = Pattern::new(pattern).unwrap_or_else(|e| panic!("{pattern}: {e}"));
            assert_eq!(compiled.is_match(text), matches, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn a_pattern_that_explodes_elsewhere_is_linear_here() {
        let pattern = Pattern::new("^(a+)+$").expect("valid");
        let text = format!("{}b", "a".repeat(100_000));
        assert!(!pattern.is_match(&text));
    }

    #[test]
    fn a_pattern_that_would_fill_the_memory_is_refused() {
        assert!(Pattern::new(r"((\pL{100}){100}){100}").is_err());
        let error = Pattern::new("(").expect_err("unclosed");
        assert_eq!(error, "error parsing regexp: unclosed group: `(`");
    }
}
