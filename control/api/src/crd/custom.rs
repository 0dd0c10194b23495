//! What is special about a custom resource: what its definition says.
//!
//! Source: apiextensions-apiserver, `registry/customresource/{strategy,status_strategy}.go` and `…/tableconvertor`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};

use super::jsonpath::JsonPath;
use super::scale::Scale;
use super::structural::Structural;
use super::{cel, defaults, lists};
use crate::resource::{GroupVersionKind, Subresource};
use crate::status::{ApiError, FieldError};
use crate::strategy::common::{self, text};
use crate::strategy::validation::items;
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// One version of a kind that a definition defines.
pub struct Custom {
    schema: Arc<Structural>,
    has_status: bool,
    scale: Option<Scale>,
    columns: Vec<(Column, JsonPath)>,
    selectable: &'static [&'static str],
    deprecation: Option<&'static str>,
}

impl Custom {
    /// The strategy of a version (`spec.versions[…]`) with its schema.
    pub fn new(gvk: &GroupVersionKind, version: &Value, schema: Structural) -> Self {
        let selectable = items(&version["selectableFields"])
            .map(|(_, field)| text(&field["jsonPath"]).trim_start_matches('.').to_owned());
        let deprecation = (version["deprecated"] == true).then(|| {
            let words = match version["deprecationWarning"].as_str() {
                Some(words) => words.to_owned(),
                None => format!("{} {} is deprecated", gvk.api_version(), gvk.kind),
            };
            kept(vec![words])[0]
        });
        Self {
            schema: Arc::new(schema),
            has_status: !version["subresources"]["status"].is_null(),
            scale: Scale::read(&version["subresources"]["scale"]),
            columns: columns(&version["additionalPrinterColumns"]),
            selectable: kept(selectable.collect()),
            deprecation,
        }
    }

    /// Mistakes of an object in the sight of the schema; `old` is the one that it replaces.
    fn check(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = match old {
            Some(old) => self.schema.validate_update(object, old),
            None => self.schema.validate(object),
        };
        if let Some(scale) = &self.scale {
            scale.check(object, &mut errors);
        }
        defaults::check_embedded(&self.schema, object, "", &mut errors);
        let twice = |object: &Value| {
            let mut errors = Vec::new();
            lists::duplicates(&self.schema, object, "", &mut errors);
            errors
        };
        // What was there twice before may stay so.
        let duplicates = twice(object);
        if !duplicates.is_empty() && old.is_none_or(|old| twice(old).is_empty()) {
            errors.extend(duplicates);
        }
        if !self.schema.has_rules {
            return errors;
        }
        if errors.iter().any(blocks) {
            let detail = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(FieldError::invalid("<nil>", &"null".into(), detail));
        } else {
            errors.extend(cel::validate(&self.schema, object, old));
        }
        errors
    }
}

/// Whether a mistake makes it pointless to run rules in CEL.
fn blocks(error: &FieldError) -> bool {
    matches!(
        error.reason,
        "FieldValueNotSupported"
            | "FieldValueRequired"
            | "FieldValueTooLong"
            | "FieldValueTooMany"
            | "FieldValueTypeInvalid"
    )
}

/// Keeps words for the life of the process, as [`Strategy`] asks for them; equal ones are kept once, so that a definition
/// may change again and again.
fn kept(words: Vec<String>) -> &'static [&'static str] {
    type Kept = Mutex<HashMap<Vec<String>, &'static [&'static str]>>;
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let table = KEPT.get_or_init(Kept::default);
    let mut table = table
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    table.entry(words).or_insert_with_key(|words| {
        let words = words.iter().map(|word| &*word.clone().leak());
        Box::leak(words.collect::<Box<[&'static str]>>())
    })
}

/// The columns that follow the name: the age where the definition names none.
fn columns(columns: &Value) -> Vec<(Column, JsonPath)> {
    let age = json!([{
        "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "CreationTimestamp is a timestamp representing the server time when this object was created.",
    }]);
    let columns = match columns {
        Value::Array(list) if !list.is_empty() => columns,
        _ => &age,
    };
    let mut made = Vec::new();
    for (_, column) in items(columns) {
        let path = text(&column["jsonPath"]);
        // A path that is none ends the table, as it does upstream.
        let Ok(parsed) = JsonPath::parse(path) else {
            break;
        };
        let described = match text(&column["description"]) {
            "" => format!("Custom resource definition column (in JSONPath format): {path}"),
            words => words.to_owned(),
        };
        let priority = column["priority"]
            .as_i64()
            .and_then(|n| i32::try_from(n).ok());
        let column = Column {
            name: text(&column["name"]).to_owned(),
            kind: text(&column["type"]).to_owned(),
            format: text(&column["format"]).to_owned(),
            description: described,
            priority: priority.unwrap_or(0),
        };
        made.push((column, parsed));
    }
    made
}

fn cell(kind: &str, value: Option<&Value>, now: jiff::Timestamp) -> Value {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Value::Null;
    };
    match (kind, value) {
        ("string", Value::String(_)) => value.clone(),
        ("string", Value::Number(number)) => super::numbers::go_number(number).into(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(number)) => match number.as_i64() {
            Some(_) => value.clone(),
            None => number.as_f64().map_or(Value::Null, |n| (n as i64).into()),
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(time)) => match time.parse::<jiff::Timestamp>() {
            Ok(_) => table::since(Some(time), now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

impl Strategy for Custom {
    fn has_plain_finalizers(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        defaults::apply(&self.schema, object);
    }

    fn has_status(&self) -> bool {
        self.has_status
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        if self.has_status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        subresource: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        if subresource == Some(Subresource::Status) {
            // All but the status is the old one's; of metadata what the request itself brings about stays.
            let status = object.get("status").cloned();
            let meta = object["metadata"].clone();
            *object = old.clone();
            for field in ["managedFields", "resourceVersion"] {
                if let Some(value) = meta.get(field) {
                    object["metadata"][field] = value.clone();
                }
            }
            match (status, object.as_object_mut()) {
                (Some(status), Some(fields)) => {
                    fields.insert("status".to_owned(), status);
                }
                (None, Some(fields)) => {
                    fields.remove("status");
                }
                (_, None) => {}
            }
            return;
        }
        if self.has_status {
            common::keep(object, old, "status");
        }
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let raised = i64::from(differs(object, old));
        object["metadata"]["generation"] = (before + raised).into();
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        self.check(object, None)
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        self.check(object, Some(old))
    }

    fn deprecation(&self) -> Option<&'static str> {
        self.deprecation
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        self.selectable
            .iter()
            .map(|name| {
                let path: Vec<&str> = name.split('.').collect();
                (*name, common::selectable(object, &path))
            })
            .collect()
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        self.selectable
    }

    fn columns(&self) -> Vec<Column> {
        let mut name = table::column("Name", "string", 0);
        name.description = "Name must be unique within a namespace.".to_owned();
        let own = self.columns.iter().map(|(column, _)| column.clone());
        std::iter::once(name).chain(own).collect()
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let own = self
            .columns
            .iter()
            .map(|(column, path)| cell(&column.kind, path.find(object).first().copied(), now));
        std::iter::once(table::name(object)).chain(own).collect()
    }

    fn scale(&self, object: &Value) -> Option<Value> {
        self.scale.as_ref().map(|scale| scale.of(object))
    }

    fn set_scale(&self, object: &mut Value, scale: &Value) -> Result<(), ApiError> {
        match &self.scale {
            Some(paths) => paths.set(object, scale),
            None => Ok(()),
        }
    }
}

/// Whether anything but metadata differs; the status counts, where it is no subresource.
fn differs(object: &Value, old: &Value) -> bool {
    fn rest(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
        let fields = object.as_object().into_iter().flatten();
        fields.filter(|(name, _)| *name != "metadata")
    }
    // The order of fields means nothing.
    let of_old = |name: &str| old.get(name);
    rest(object).count() != rest(old).count()
        || rest(object).any(|(name, value)| of_old(name) != Some(value))
}

#[cfg(test)]
mod tests;
