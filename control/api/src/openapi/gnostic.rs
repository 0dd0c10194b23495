//! The document of version 2 in protobuf: the few messages of gnostic's `openapi.v2` that a Kubernetes document needs.
//!
//! Source: github.com/google/gnostic-models, openapiv2/OpenAPIv2.proto.

use serde_json::Value;

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8 & 0x7f) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A string; an empty one is left out.
    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, values: &Value) {
        for value in values.as_array().into_iter().flatten() {
            self.text(field, value);
        }
    }

    fn boolean(&mut self, field: u32, value: &Value) {
        if value == true {
            self.varint(u64::from(field << 3));
            self.varint(1);
        }
    }

    fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// A named value, such as a NamedSchema: `name = 1`, `value = 2`.
    fn named(&mut self, field: u32, name: &str, value: &Self) {
        let mut entry = Self::default();
        entry.bytes(1, name.as_bytes());
        entry.message(2, value);
        self.message(field, &entry);
    }

    /// The vendor extensions of an object: NamedAny with YAML, of which JSON is a part.
    fn extensions(&mut self, field: u32, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                self.named(field, name, &any(value));
            }
        }
    }
}

fn any(value: &Value) -> Message {
    let mut message = Message::default();
    message.bytes(2, value.to_string().as_bytes());
    message
}

/// Encodes a whole document.
pub fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    out.message(2, &info);
    let mut paths = Message::default();
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        paths.named(2, path, &path_item(item));
    }
    out.message(8, &paths);
    let mut definitions = Message::default();
    for (name, definition) in document["definitions"].as_object().into_iter().flatten() {
        definitions.named(1, name, &schema(definition));
    }
    out.message(9, &definitions);
    out.0
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (field, method) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (8, "patch"),
    ] {
        if !item[method].is_null() {
            out.message(field, &operation(&item[method]));
        }
    }
    for item in item["parameters"].as_array().into_iter().flatten() {
        out.message(9, &parameter(item));
    }
    out.extensions(10, item);
    out
}

fn operation(operation: &Value) -> Message {
    let mut out = Message::default();
    out.texts(6, &operation["produces"]);
    out.texts(7, &operation["consumes"]);
    for item in operation["parameters"].as_array().into_iter().flatten() {
        out.message(8, &parameter(item));
    }
    let mut responses = Message::default();
    for (code, response) in operation["responses"].as_object().into_iter().flatten() {
        let mut inner = Message::default();
        inner.text(1, &response["description"]);
        if !response["schema"].is_null() {
            let mut item = Message::default();
            item.message(1, &schema(&response["schema"]));
            inner.message(2, &item);
        }
        let mut value = Message::default();
        value.message(1, &inner);
        responses.named(1, code, &value);
    }
    out.message(9, &responses);
    out.extensions(13, operation);
    out
}

/// ParametersItem > Parameter > NonBodyParameter > the parameter of a query or a path.
fn parameter(value: &Value) -> Message {
    let mut inner = Message::default();
    inner.boolean(1, &value["required"]);
    inner.text(2, &value["in"]);
    inner.text(3, &value["description"]);
    inner.text(4, &value["name"]);
    let in_path = value["in"] == "path";
    // A query's parameter has `allow_empty_value` before its type.
    inner.text(if in_path { 5 } else { 6 }, &value["type"]);
    let mut non_body = Message::default();
    non_body.message(if in_path { 4 } else { 3 }, &inner);
    let mut parameter = Message::default();
    parameter.message(2, &non_body);
    let mut item = Message::default();
    item.message(1, &parameter);
    item
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &value["$ref"]);
    out.text(2, &value["format"]);
    out.text(4, &value["description"]);
    if !value["default"].is_null() {
        out.message(5, &any(&value["default"]));
    }
    out.texts(19, &value["required"]);
    if value["additionalProperties"].is_object() {
        let mut item = Message::default();
        item.message(1, &schema(&value["additionalProperties"]));
        out.message(21, &item);
    }
    if !value["type"].is_null() {
        let mut item = Message::default();
        item.text(1, &value["type"]);
        out.message(22, &item);
    }
    if value["items"].is_object() {
        let mut item = Message::default();
        item.message(1, &schema(&value["items"]));
        out.message(23, &item);
    }
    if let Some(properties) = value["properties"].as_object() {
        let mut all = Message::default();
        for (name, property) in properties {
            all.named(1, name, &schema(property));
        }
        out.message(25, &all);
    }
    out.extensions(31, value);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_small_document_encodes_to_the_bytes_of_the_specification() {
        let encoded = document(
            &json!({ "swagger": "2.0", "info": { "title": "K", "version": "v" },
            "definitions": { "A": { "type": "string", "x-y": 1 } } }),
        );
        let definition = [
            b"\xb2\x01\x08\x0a\x06string".as_slice(),
            b"\xfa\x01\x0a\x0a\x03x-y\x12\x03\x12\x011",
        ]
        .concat();
        let mut expected = b"\x0a\x032.0\x12\x06\x0a\x01K\x12\x01v\x42\x00".to_vec();
        let entry = [
            b"\x0a\x01A\x12".as_slice(),
            &[definition.len() as u8],
            &definition,
        ]
        .concat();
        expected.extend([0x4a, entry.len() as u8 + 2, 0x0a, entry.len() as u8]);
        expected.extend(entry);
        assert_eq!(encoded, expected);
    }
}
