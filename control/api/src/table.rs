//! Tables, as `kubectl get` prints them (`meta.k8s.io/v1` Table).

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::strategy::Column;

/// How much of each object a row carries (the query parameter `includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// A PartialObjectMetadata: the default.
    Metadata,
    /// The object.
    Object,
}

impl Include {
    /// The value of the query parameter; empty is the default.
    ///
    /// # Errors
    ///
    /// The value, if it is none of the three.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(other.to_owned()),
        }
    }
}

/// What a table shows beside its rows.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of each object a row carries.
    pub include: Include,
    /// Whether the columns are described; in a watch only the first event does so.
    pub headers: bool,
    /// The table's `metadata`: `resourceVersion`, and `continue` and `remainingItemCount` of a chunked list.
    pub metadata: Value,
    /// Now, for ages.
    pub now: jiff::Timestamp,
}

/// The table of some objects of a resource.
pub fn render<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    options: &Options,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| row(resource, object, options))
        .collect();
    let columns = if options.headers {
        headers(&resource.strategy.columns())
    } else {
        Value::Null
    };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": options.metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

fn headers(columns: &[Column]) -> Value {
    columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": column.description,
                "priority": column.priority,
            })
        })
        .collect()
}

/// One row of a table.
pub fn row(resource: &Resource, object: &Value, options: &Options) -> Value {
    let mut row = json!({ "cells": resource.strategy.cells(object, options.now) });
    match options.include {
        Include::None => {}
        Include::Metadata => row["object"] = partial_metadata(object),
        Include::Object => row["object"] = object.clone(),
    }
    row
}

/// An object as `meta.k8s.io/v1` PartialObjectMetadata.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// A column; the first is the name, and `date` columns are ages.
pub fn column(name: &str, kind: &str, priority: i32) -> Column {
    Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: if name == "Name" {
            "name".to_owned()
        } else {
            String::new()
        },
        description: String::new(),
        priority,
    }
}

/// Name and age, for kinds that show nothing else.
pub fn default_columns() -> Vec<Column> {
    columns("Name Age")
}

/// Name and age.
pub fn default_cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// Columns from their names; `_` stands for a space, a trailing `*` for `-o wide`, a trailing `#` for integers, `?` for booleans.
pub fn columns(names: &str) -> Vec<Column> {
    names
        .split_whitespace()
        .map(|word| {
            let wide = i32::from(word.ends_with('*'));
            let word = word.trim_end_matches('*');
            let kind = match word.chars().last() {
                Some('#') => "integer",
                Some('?') => "boolean",
                _ => "string",
            };
            column(
                &word.trim_end_matches(['#', '?']).replace('_', " "),
                kind,
                wide,
            )
        })
        .collect()
}

/// `metadata.name`.
pub fn name(object: &Value) -> Value {
    object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .into()
}

/// The age of an object.
pub fn age(object: &Value, now: jiff::Timestamp) -> Value {
    since(object["metadata"]["creationTimestamp"].as_str(), now).into()
}

/// The time since a timestamp in kubectl's short form, or `<unknown>`.
pub fn since(time: Option<&str>, now: jiff::Timestamp) -> String {
    time.and_then(|time| time.parse::<jiff::Timestamp>().ok())
        .map_or_else(
            || "<unknown>".to_owned(),
            |time| human_duration(now.as_second() - time.as_second()),
        )
}

/// Seconds as kubectl shows them: `5s`, `2m3s`, `45m`, `3h20m`, `2d4h`, `45d`, `2y10d`, `9y` (apimachinery `util/duration`).
pub fn human_duration(seconds: i64) -> String {
    match seconds {
        ..-1 => return "<invalid>".into(),
        -1..=0 => return "0s".into(),
        1..120 => return format!("{seconds}s"),
        _ => {}
    }
    let minutes = seconds / 60;
    let hours = minutes / 60;
    let days = hours / 24;
    let years = days / 365;
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{small_unit}")
        }
    };
    match (minutes, hours, years) {
        (..10, _, _) => pair(minutes, "m", seconds % 60, "s"),
        (..180, _, _) => format!("{minutes}m"),
        (_, ..8, _) => pair(hours, "h", minutes % 60, "m"),
        (_, ..48, _) => format!("{hours}h"),
        (_, ..192, _) => pair(days, "d", hours % 24, "h"),
        (_, _, ..2) => format!("{days}d"),
        (_, _, ..8) => pair(years, "y", days % 365, "d"),
        _ => format!("{years}y"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubectls() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (123, "2m3s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_000, "3h20m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_936_000, "2y10d"),
            (283_824_000, "9y"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}
