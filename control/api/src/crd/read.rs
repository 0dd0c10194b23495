//! Reads a schema from JSON.
//!
//! This fails only for what no model can hold: a keyword of the wrong type, a pattern that is none, a schema too deep or
//! too large.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Number, Value};

use super::cel::Rule;
use super::pattern::Pattern;
use super::structural::{Additional, Kind, Structural};
use crate::status::FieldError;

/// How many schemas may stand inside each other.
const MAX_DEPTH: usize = 60;

/// How many schemas one version may have; the largest known definitions have about 20,000.
const MAX_NODES: usize = 100_000;

/// How many different patterns one version may have.
const MAX_PATTERNS: usize = 1000;

/// How many rules in CEL one version may have; the largest known definitions have a few hundred.
const MAX_RULES: usize = 2000;

/// How long all expressions of one version may be, in bytes: the parser takes about a second for a megabyte.
const MAX_RULE_BYTES: usize = 256 << 10;

impl Structural {
    /// Reads a schema; `path` is that of the schema in the definition.
    ///
    /// # Errors
    ///
    /// What no model can hold: keywords of the wrong type, patterns that are none, too much of everything.
    pub fn read(schema: &Value, path: &str) -> Result<Self, Vec<FieldError>> {
        let mut reader = Reader {
            errors: Vec::new(),
            nodes: 0,
            patterns: HashMap::new(),
            rules: 0,
            rule_bytes: 0,
        };
        let structural = reader.schema(schema, path, 0);
        if reader.errors.is_empty() {
            Ok(structural)
        } else {
            Err(reader.errors)
        }
    }
}

/// The state of a reading: what went wrong, how much was read, and the patterns, of which equal ones are kept once.
struct Reader {
    errors: Vec<FieldError>,
    nodes: usize,
    patterns: HashMap<String, Arc<Pattern>>,
    rules: usize,
    rule_bytes: usize,
}

impl Reader {
    fn schema(&mut self, schema: &Value, path: &str, depth: usize) -> Structural {
        let mut out = Structural::default();
        self.nodes += 1;
        if depth > MAX_DEPTH || self.nodes > MAX_NODES {
            // Once: every schema beyond the limit would say the same.
            if depth > MAX_DEPTH || self.nodes == MAX_NODES + 1 {
                let detail = if depth > MAX_DEPTH {
                    format!("must not nest schemas deeper than {MAX_DEPTH} levels")
                } else {
                    format!("must not have more than {MAX_NODES} schemas")
                };
                self.errors.push(FieldError::forbidden(path, &detail));
            }
            return out;
        }
        let Value::Object(keywords) = schema else {
            self.wrong(path, "object", schema);
            return out;
        };
        for (keyword, value) in keywords {
            if !value.is_null() {
                self.keyword(&mut out, keyword, value, path, depth + 1);
            }
        }
        out
    }

    #[rustfmt::skip] // One keyword a line, so that the eye finds it.
    fn keyword(&mut self, out: &mut Structural, word: &str, value: &Value, path: &str, depth: usize) {
        let at = || format!("{path}.{word}");
        let values = &mut out.values;
        match word {
            "type" => out.kind = self.text(value, at).filter(|text| !text.is_empty()).and_then(|text| self.kind(text, path)),
            "title" | "description" => out.described |= value.as_str() != Some(""),
            "externalDocs" => out.external_docs = true,
            "default" => out.default = Some(value.clone()),
            "nullable" => out.nullable = self.flag(value, at),
            "properties" => out.properties = self.properties(value, &at(), depth),
            "additionalProperties" => out.additional = Some(self.additional(value, &at(), depth)),
            "items" if value.is_array() => out.unsupported.push("items"),
            "items" => out.items = Some(Box::new(self.schema(value, &at(), depth))),
            "x-kubernetes-preserve-unknown-fields" => out.preserve = Some(self.flag(value, at)),
            "x-kubernetes-embedded-resource" => out.embedded = self.flag(value, at),
            "x-kubernetes-int-or-string" => out.int_or_string = self.flag(value, at),
            "x-kubernetes-list-type" => out.list_type = self.text(value, at).map(str::to_owned),
            "x-kubernetes-list-map-keys" => out.list_map_keys = self.texts(value, at),
            "x-kubernetes-map-type" => out.map_type = self.text(value, at).map(str::to_owned),
            "x-kubernetes-validations" => out.rules = self.rules(value, &at()),
            "format" => values.format = self.text(value, at).unwrap_or_default().to_owned(),
            "minimum" => values.minimum = self.number(value, at),
            "exclusiveMinimum" => values.exclusive_minimum = self.flag(value, at),
            "maximum" => values.maximum = self.number(value, at),
            "exclusiveMaximum" => values.exclusive_maximum = self.flag(value, at),
            "multipleOf" => values.multiple_of = self.number(value, at),
            "minLength" => values.min_length = self.count(value, at),
            "maxLength" => values.max_length = self.count(value, at),
            "pattern" => values.pattern = self.pattern(value, at),
            "minItems" => values.min_items = self.count(value, at),
            "maxItems" => values.max_items = self.count(value, at),
            "uniqueItems" => values.unique_items = self.flag(value, at),
            "minProperties" => values.min_properties = self.count(value, at),
            "maxProperties" => values.max_properties = self.count(value, at),
            "required" => values.required = self.texts(value, at),
            "enum" => values.allowed = self.list(value, at).to_vec(),
            "allOf" => values.all_of = self.schemas(value, &at(), depth),
            "anyOf" => values.any_of = self.schemas(value, &at(), depth),
            "oneOf" => values.one_of = self.schemas(value, &at(), depth),
            "not" => values.not = Some(Box::new(self.schema(value, &at(), depth))),
            "id" | "$schema" if value.as_str() == Some("") => {}
            "id" => out.unsupported.push("id"),
            "$schema" => out.unsupported.push("$schema"),
            "$ref" => out.unsupported.push("$ref"),
            "additionalItems" => out.unsupported.push("additionalItems"),
            "patternProperties" => out.unsupported.push("patternProperties"),
            "definitions" => out.unsupported.push("definitions"),
            "dependencies" => out.unsupported.push("dependencies"),
            // Examples and extensions of others mean nothing to the server.
            _ => {}
        }
    }

    fn kind(&mut self, word: &str, path: &str) -> Option<Kind> {
        let kind = Kind::parse(word);
        if kind.is_none() {
            let at = format!("{path}.type");
            self.errors
                .push(FieldError::not_supported(&at, &word.into(), &Kind::NAMES));
            if word == "null" {
                let detail = "type cannot be set to null, use nullable as an alternative";
                self.errors.push(FieldError::forbidden(at, detail));
            }
        }
        kind
    }

    fn properties(
        &mut self,
        value: &Value,
        path: &str,
        depth: usize,
    ) -> BTreeMap<String, Structural> {
        let fields = self.object(value, path);
        fields
            .iter()
            .map(|(name, schema)| {
                let schema = self.schema(schema, &format!("{path}[{name}]"), depth);
                (name.clone(), schema)
            })
            .collect()
    }

    fn additional(&mut self, value: &Value, path: &str, depth: usize) -> Additional {
        match value {
            Value::Bool(allowed) => Additional::Allowed(*allowed),
            schema => Additional::Schema(Box::new(self.schema(schema, path, depth))),
        }
    }

    fn schemas(&mut self, value: &Value, path: &str, depth: usize) -> Vec<Structural> {
        let list = self.list(value, || path.to_owned());
        list.iter()
            .enumerate()
            .map(|(index, schema)| self.schema(schema, &format!("{path}[{index}]"), depth))
            .collect()
    }

    fn rules(&mut self, value: &Value, path: &str) -> Vec<Rule> {
        let list = self.list(value, || path.to_owned());
        let Some(rules) = list.iter().map(Rule::read).collect::<Option<Vec<Rule>>>() else {
            self.wrong(path, "a list of validation rules", value);
            return Vec::new();
        };
        let bytes = |rule: &Rule| rule.rule.len() + rule.message_expression.len();
        self.rules += rules.len();
        self.rule_bytes += rules.iter().map(bytes).sum::<usize>();
        if self.rules > MAX_RULES || self.rule_bytes > MAX_RULE_BYTES {
            let detail = format!(
                "must not have more than {MAX_RULES} validation rules of {MAX_RULE_BYTES} bytes in all"
            );
            self.errors.push(FieldError::forbidden(path, &detail));
            return Vec::new();
        }
        rules
    }

    fn pattern(&mut self, value: &Value, at: impl Fn() -> String) -> Option<Arc<Pattern>> {
        let text = self.text(value, &at).filter(|text| !text.is_empty())?;
        if let Some(known) = self.patterns.get(text) {
            return Some(known.clone());
        }
        if self.patterns.len() == MAX_PATTERNS {
            let detail = format!("must not have more than {MAX_PATTERNS} different patterns");
            self.errors.push(FieldError::forbidden(at(), &detail));
            return None;
        }
        match Pattern::new(text) {
            Ok(pattern) => {
                let pattern = Arc::new(pattern);
                self.patterns.insert(text.to_owned(), pattern.clone());
                Some(pattern)
            }
            Err(reason) => {
                let detail = format!("must be a valid regular expression, but isn't: {reason}");
                self.errors.push(FieldError::invalid(at(), value, &detail));
                None
            }
        }
    }

    fn text<'v>(&mut self, value: &'v Value, at: impl Fn() -> String) -> Option<&'v str> {
        let text = value.as_str();
        if text.is_none() {
            self.wrong(&at(), "string", value);
        }
        text
    }

    fn flag(&mut self, value: &Value, at: impl Fn() -> String) -> bool {
        value.as_bool().unwrap_or_else(|| {
            self.wrong(&at(), "boolean", value);
            false
        })
    }

    fn number(&mut self, value: &Value, at: impl Fn() -> String) -> Option<Number> {
        let Value::Number(number) = value else {
            self.wrong(&at(), "number", value);
            return None;
        };
        Some(number.clone())
    }

    fn count(&mut self, value: &Value, at: impl Fn() -> String) -> Option<i64> {
        let count = value.as_i64();
        if count.is_none() {
            self.wrong(&at(), "integer", value);
        }
        count
    }

    fn texts(&mut self, value: &Value, at: impl Fn() -> String) -> Vec<String> {
        let list = self.list(value, &at);
        list.iter()
            .filter_map(|item| self.text(item, &at).map(str::to_owned))
            .collect()
    }

    fn list<'v>(&mut self, value: &'v Value, at: impl Fn() -> String) -> &'v [Value] {
        let Value::Array(items) = value else {
            self.wrong(&at(), "array", value);
            return &[];
        };
        items
    }

    fn object<'v>(&mut self, value: &'v Value, path: &str) -> &'v Map<String, Value> {
        static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        let Value::Object(fields) = value else {
            self.wrong(path, "object", value);
            return &NONE;
        };
        fields
    }

    fn wrong(&mut self, path: &str, wanted: &str, value: &Value) {
        let name = super::rules::type_of(value);
        let detail = format!("must be of type {wanted}: {name:?}");
        self.errors.push(FieldError {
            reason: "FieldValueTypeInvalid",
            field: path.to_owned(),
            message: format!("Invalid value: {name:?}: {detail}"),
        });
    }
}
