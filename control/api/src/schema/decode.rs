//! Request bodies to checked objects, in kube-apiserver's words.
//!
//! Sources: apiserver `endpoints/handlers/{create,rest}.go` (transformDecodeError), apimachinery
//! `runtime/serializer/json`, sigs.k8s.io/json and Go's encoding/json for the words.

use base64::Engine as _;
use knarr_quantity::{ParseError, Quantity};
use serde_json::Value;

use super::json::{self, join};
use super::yaml;
use super::{Field, Reading, Schema, Schemas, Shape, TypeId};
use crate::resource::GroupVersionKind;
use crate::status::ApiError;

/// The text format of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
}

/// What to do about unknown and duplicate fields (the query parameter `fieldValidation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them, with warnings.
    Warn,
    /// Refuse the request.
    Strict,
}

/// A checked object.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object, with `apiVersion` and `kind`.
    pub object: Value,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

pub fn decode(
    schemas: &Schemas,
    gvk: &GroupVersionKind,
    body: &[u8],
    format: Format,
    mode: FieldValidation,
) -> Result<Decoded, ApiError> {
    let parsed = match format {
        Format::Json => json::parse(body)
            .map(|(value, paths)| {
                let repeated = paths.iter().map(|path| format!("duplicate field {path:?}"));
                (value, repeated.collect())
            })
            .map_err(|err| syntax_error(&err, body)),
        Format::Yaml => parse_yaml(body, mode),
    };
    let (object, repeated) = parsed.map_err(|reason| unrecognized(gvk, &reason, body))?;
    finish(schemas, gvk, object, repeated, mode, body)
}

pub fn check(
    schemas: &Schemas,
    gvk: &GroupVersionKind,
    object: Value,
    mode: FieldValidation,
) -> Result<Decoded, ApiError> {
    finish(schemas, gvk, object, Vec::new(), mode, b"")
}

fn finish(
    schemas: &Schemas,
    gvk: &GroupVersionKind,
    mut object: Value,
    repeated: Vec<String>,
    mode: FieldValidation,
    body: &[u8],
) -> Result<Decoded, ApiError> {
    check_kind(schemas, gvk, &object, body)?;
    let mut unknown = Vec::new();
    if let Some(schema) = schemas.find(gvk) {
        let mut walk = Walk {
            schema,
            unknown,
            reading: Reading::Strict,
        };
        walk.object(schema.root, &mut object, &mut Path::default())
            .map_err(|reason| cannot_be_handled(gvk, &reason))?;
        unknown = walk.unknown;
    }
    object["apiVersion"] = gvk.api_version().into();
    object["kind"] = gvk.kind.as_str().into();

    let mut mistakes = repeated;
    mistakes.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
    let warnings = match mode {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => mistakes,
        FieldValidation::Strict if mistakes.is_empty() => mistakes,
        FieldValidation::Strict => {
            let reason = format!("strict decoding error: {}", mistakes.join(", "));
            return Err(cannot_be_handled(gvk, &reason));
        }
    };
    Ok(Decoded { object, warnings })
}

/// A missing kind or apiVersion is that of the request's path; a wrong one is refused.
fn check_kind(
    schemas: &Schemas,
    gvk: &GroupVersionKind,
    object: &Value,
    body: &[u8],
) -> Result<(), ApiError> {
    let Some(fields) = object.as_object() else {
        let reason = format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            go_kind(object)
        );
        return Err(unrecognized(gvk, &reason, body));
    };
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(other) => {
            let reason = format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go struct field .{name} of type string",
                go_kind(other)
            );
            Err(unrecognized(gvk, &reason, body))
        }
    };
    let (api_version, kind) = (text("apiVersion")?, text("kind")?);
    let wanted = gvk.api_version();
    let version = if api_version.is_empty() {
        &wanted
    } else {
        api_version
    };
    let kind = if kind.is_empty() { &gvk.kind } else { kind };
    if version == wanted && kind == gvk.kind {
        return Ok(());
    }
    let (group, version_only) = version.split_once('/').unwrap_or(("", version));
    let found = GroupVersionKind {
        group: group.to_owned(),
        version: version_only.to_owned(),
        kind: kind.to_owned(),
    };
    if schemas.find(&found).is_none() {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version_only:?} cannot be handled as a {}: no kind {kind:?} is registered for version {version:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            gvk.kind
        )));
    }
    if version != wanted {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({wanted})"
        )));
    }
    Err(ApiError::bad_request(format!(
        "{kind} in version {version_only:?} cannot be handled as a {}: converting ({}.{kind}) to ({}.{}): unknown conversion",
        gvk.kind,
        version_only,
        if group.is_empty() {
            "core"
        } else {
            group.split('.').next().unwrap_or(group)
        },
        gvk.kind
    )))
}

fn parse_yaml(body: &[u8], mode: FieldValidation) -> Result<(Value, Vec<String>), String> {
    let failed = |err: String| format!("error converting YAML to JSON: yaml: {err}");
    let text = std::str::from_utf8(body).map_err(|_| failed("invalid UTF-8".to_owned()))?;
    let (value, repeated) = yaml::parse(text).map_err(failed)?;
    // A refusal quotes go-yaml as it is; warnings come one by one.
    let repeated = match mode {
        FieldValidation::Strict if !repeated.is_empty() => {
            vec![format!(
                "yaml: unmarshal errors:\n  {}",
                repeated.join("\n  ")
            )]
        }
        _ => repeated,
    };
    Ok((value, repeated))
}

fn syntax_error(err: &serde_json::Error, body: &[u8]) -> String {
    let what = if body.is_empty() || err.is_eof() {
        "unexpected end of JSON input".to_owned()
    } else {
        let at = body
            .split(|b| *b == b'\n')
            .nth(err.line().saturating_sub(1))
            .unwrap_or_default();
        match at.get(err.column().saturating_sub(1)) {
            Some(byte) if byte.is_ascii_graphic() => {
                format!(
                    "invalid character '{}' looking for beginning of value",
                    *byte as char
                )
            }
            _ => err.to_string(),
        }
    };
    format!("couldn't get version/kind; json parse error: {what}")
}

fn unrecognized(gvk: &GroupVersionKind, reason: &str, body: &[u8]) -> ApiError {
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {reason} ({})",
        gvk.kind,
        summary(body)
    ))
}

/// The beginning of a body as kube-apiserver shows it: text if it looks like JSON, else hexadecimal.
fn summary(body: &[u8]) -> String {
    let Some(first) = body.first() else {
        return "<empty>".to_owned();
    };
    let head = &body[..body.len().min(30)];
    let shown = if *first == b'{' {
        String::from_utf8_lossy(head).into_owned()
    } else {
        hex::encode(head)
    };
    if body.len() > 30 {
        format!("{shown} ...")
    } else {
        shown
    }
}

fn cannot_be_handled(gvk: &GroupVersionKind, reason: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{} in version {:?} cannot be handled as a {}: {reason}",
        gvk.kind, gvk.version, gvk.kind
    ))
}

/// Where a walk is: the path with indices for unknown fields, and Go's words for type errors.
#[derive(Default)]
struct Path<'a> {
    json: String,
    go: Vec<&'a str>,
    owner: &'a str,
}

struct Walk<'a> {
    schema: &'a Schema,
    unknown: Vec<String>,
    /// That of the type around the value at hand.
    reading: Reading,
}

impl<'a> Walk<'a> {
    /// Checks the fields of an object and drops unknown ones, nulls, and empty lists and maps that Go would omit.
    fn object(&mut self, id: TypeId, value: &mut Value, path: &mut Path<'a>) -> Result<(), String> {
        let kind = self.schema.get(id);
        let Value::Object(fields) = value else {
            if kind.reading != Reading::Strict {
                return Ok(());
            }
            return Err(mismatch(value, kind.go_type(), path));
        };
        let (length, outer) = (
            path.json.len(),
            std::mem::replace(&mut path.owner, kind.go_name()),
        );
        let around = std::mem::replace(&mut self.reading, kind.reading);
        let mut failure = None;
        fields.retain(|name, value| {
            if failure.is_some() {
                return true;
            }
            let Some(field) = kind.field(name) else {
                if kind.reading == Reading::Preserved {
                    return true;
                }
                self.unknown.push(join(&path.json, name));
                return false;
            };
            if value.is_null() {
                return kind.reading != Reading::Strict && !self.is_strict(field);
            }
            if !path.json.is_empty() {
                path.json.push('.');
            }
            path.json.push_str(name);
            path.go.push(&field.name);
            failure = self.shape(&field.shape, value, path).err();
            path.go.pop();
            path.json.truncate(length);
            if kind.reading != Reading::Strict {
                return true;
            }
            match value {
                // What a field of any shape holds is not for Go to omit: the default `[]` of a custom resource's field.
                Value::Array(items) if items.is_empty() => {
                    field.required || field.shape == Shape::Any
                }
                Value::Object(fields) if fields.is_empty() => {
                    field.required || !matches!(field.shape, Shape::Map(_))
                }
                _ => true,
            }
        });
        self.reading = around;
        path.owner = outer;
        failure.map_or(Ok(()), Err)
    }

    /// Whether a field holds a Go struct, as the metadata of a custom resource does.
    fn is_strict(&self, field: &Field) -> bool {
        matches!(field.shape, Shape::Object(id) if self.schema.get(id).reading == Reading::Strict)
    }

    fn shape(
        &mut self,
        shape: &'a Shape,
        value: &mut Value,
        path: &mut Path<'a>,
    ) -> Result<(), String> {
        if value.is_null() {
            if self.reading != Reading::Strict {
                return Ok(());
            }
            // Only inside lists and maps, where Go leaves the zero value.
            *value = zero(shape);
            return Ok(());
        }
        let length = path.json.len();
        match (shape, &mut *value) {
            (Shape::Object(id), _) => return self.object(*id, value, path),
            (Shape::List(item), Value::Array(items)) => {
                for (index, value) in items.iter_mut().enumerate() {
                    path.json.push_str(&format!("[{index}]"));
                    self.shape(item, value, path)?;
                    path.json.truncate(length);
                }
                return Ok(());
            }
            (Shape::Map(of), Value::Object(fields)) => {
                for (name, value) in fields {
                    path.json = join(&path.json, name);
                    self.shape(of, value, path)?;
                    path.json.truncate(length);
                }
                return Ok(());
            }
            (Shape::Any, _) => return Ok(()),
            _ if self.reading != Reading::Strict => return Ok(()),
            _ => {}
        }
        scalar(shape, value, path, self.schema)
    }
}

/// Checks a scalar, and brings it to the form that Kubernetes stores.
fn scalar(
    shape: &Shape,
    value: &mut Value,
    path: &Path<'_>,
    schema: &Schema,
) -> Result<(), String> {
    match (shape, &*value) {
        (Shape::String, Value::String(_))
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Number, Value::Number(_)) => {}
        (Shape::Int32, Value::Number(n))
            if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
        (Shape::Int64, Value::Number(n)) if n.is_i64() => {}
        (Shape::IntOrString, Value::String(_)) => {}
        (Shape::IntOrString, Value::Number(n))
            if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => {}
        (Shape::IntOrString, other) => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type int32",
                go_literal(other)
            ));
        }
        (Shape::Bytes, Value::String(text)) => {
            let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            base64::engine::general_purpose::STANDARD
                .decode(&text)
                .map_err(|err| {
                    let at = match err {
                        base64::DecodeError::InvalidByte(at, _)
                        | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                        base64::DecodeError::InvalidLength(length) => length / 4 * 4,
                        base64::DecodeError::InvalidPadding => text.len(),
                    };
                    format!("illegal base64 data at input byte {at}")
                })?;
            *value = text.into();
        }
        (Shape::Quantity, Value::String(text)) => *value = canonical_quantity(text)?.into(),
        (Shape::Quantity, Value::Number(number)) => {
            *value = canonical_quantity(&number.to_string())?.into()
        }
        (Shape::Quantity, _) => return Err(ParseError::Format.to_string()),
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            let form = if *shape == Shape::Time {
                "%Y-%m-%dT%H:%M:%SZ"
            } else {
                "%Y-%m-%dT%H:%M:%S.%6fZ"
            };
            let layout = if *shape == Shape::Time {
                "2006-01-02T15:04:05Z07:00"
            } else {
                "2006-01-02T15:04:05.000000Z07:00"
            };
            let time: jiff::Timestamp = text.parse().map_err(|_| {
                format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
            })?;
            *value = time.strftime(form).to_string().into();
        }
        (Shape::Time | Shape::MicroTime, other) => {
            return Err(format!(
                "json: cannot unmarshal {} into Go value of type string",
                go_literal(other)
            ));
        }
        _ => return Err(mismatch(value, &go_type(shape, schema), path)),
    }
    Ok(())
}

fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::String | Shape::Bytes => "".into(),
        Shape::Int32 | Shape::Int64 | Shape::Number | Shape::IntOrString => 0.into(),
        Shape::Bool => false.into(),
        Shape::Quantity => "0".into(),
        Shape::Object(_) | Shape::Map(_) => Value::Object(serde_json::Map::new()),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Time | Shape::MicroTime | Shape::Any => Value::Null,
    }
}

fn mismatch(value: &Value, into: &str, path: &Path<'_>) -> String {
    let what = go_literal(value);
    if path.go.is_empty() {
        return format!("json: cannot unmarshal {what} into Go value of type {into}");
    }
    format!(
        "json: cannot unmarshal {what} into Go struct field {}.{} of type {into}",
        path.owner,
        path.go.join(".")
    )
}

/// Go's word for a JSON value; numbers are shown where they are the right kind but do not fit.
fn go_literal(value: &Value) -> String {
    match value {
        Value::Number(number) if !number.is_i64() => format!("number {number}"),
        other => go_kind(other).to_owned(),
    }
}

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn go_type(shape: &Shape, schema: &Schema) -> String {
    match shape {
        Shape::String => "string".into(),
        Shape::Int32 => "int32".into(),
        Shape::Int64 => "int64".into(),
        Shape::Number => "float64".into(),
        Shape::Bool => "bool".into(),
        Shape::Time => "v1.Time".into(),
        Shape::MicroTime => "v1.MicroTime".into(),
        Shape::Bytes => "[]uint8".into(),
        Shape::Quantity => "resource.Quantity".into(),
        Shape::IntOrString => "intstr.IntOrString".into(),
        Shape::Any => "interface {}".into(),
        Shape::Object(id) => schema.get(*id).go_type().into(),
        Shape::List(item) => format!("[]{}", go_type(item, schema)),
        Shape::Map(of) => format!("map[string]{}", go_type(of, schema)),
    }
}

/// The form in which a quantity is stored.
fn canonical_quantity(text: &str) -> Result<String, String> {
    (text.parse::<Quantity>())
        .map(|quantity| quantity.to_string())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
