//! A structural schema as a [`Schema`]: what decoding, patching and merging ask about the fields of a custom resource.
//!
//! Types and defaults are not in it: a custom resource's values are judged by its rules, with 422, where a built-in kind
//! refuses them while decoding, with 400. Only metadata is read as the built-in `ObjectMeta`, at the root and in
//! embedded resources.

use std::sync::Arc;

use super::structural::{Additional, Kind, Structural};
use crate::kinds::gvk;
use crate::schema::{Field, FieldDefault, ListType, Reading, Schema, Schemas, Shape, Type, TypeId};

/// The schema of a kind; `name` is that of its definition, such as `com.example.v1.Widget`.
pub fn compile(structural: &Structural, name: &str) -> Schema {
    let mut types = Types::with_metadata();
    let root = types.object(structural, name, true);
    Schema::new(types.all, root)
}

/// The types made so far; the first ones are those of `ObjectMeta`.
struct Types {
    all: Vec<Type>,
    metadata: TypeId,
}

impl Types {
    /// Copies `ObjectMeta` and what it refers to.
    fn with_metadata() -> Self {
        let builtin = Schemas::builtin();
        let pod = builtin.find(&gvk("v1", "Pod")).expect("pods have a schema");
        let metadata = pod.root().field("metadata").expect("pods have metadata");
        let Shape::Object(id) = metadata.shape else {
            unreachable!("metadata is an object");
        };
        let mut from = vec![id];
        let mut all: Vec<Type> = Vec::new();
        // Every type that a copied one names is copied too, and named by its new place.
        while all.len() < from.len() {
            let mut copy = pod.get(from[all.len()]).clone();
            for field in &mut copy.fields {
                renumber(&mut field.shape, &mut from);
            }
            all.push(copy);
        }
        Self {
            all,
            metadata: TypeId::new(0),
        }
    }

    fn object(&mut self, schema: &Structural, name: &str, resource: bool) -> TypeId {
        let index = self.all.len();
        // Holds the place: what is inside comes behind it.
        self.all.push(Type {
            name: name.into(),
            atomic: schema.map_type.as_deref() == Some("atomic"),
            reading: Reading::Pruned,
            fields: Box::new([]),
        });
        let mut fields: Vec<Field> = Vec::new();
        for (field, schema) in &schema.properties {
            let own = matches!(field.as_str(), "apiVersion" | "kind" | "metadata");
            if !(resource && own) {
                let shape = self.shape(schema, &format!("{name}.{field}"));
                fields.push(self.field(field, schema, shape));
            }
        }
        if resource {
            let none = Structural::default();
            for (name, shape) in [
                ("apiVersion", Shape::String),
                ("kind", Shape::String),
                ("metadata", Shape::Object(self.metadata)),
            ] {
                fields.push(self.field(name, &none, shape));
            }
        }
        fields.sort_by(|a, b| a.name.cmp(&b.name));
        let made = &mut self.all[index];
        made.fields = fields.into();
        if schema.preserves() {
            made.reading = Reading::Preserved;
        }
        TypeId::new(index)
    }

    fn field(&self, name: &str, schema: &Structural, shape: Shape) -> Field {
        let keys = schema.list_map_keys.iter().map(|key| Arc::from(&**key));
        Field {
            name: name.into(),
            shape,
            required: false,
            by_value: false,
            atomic: schema.map_type.as_deref() == Some("atomic"),
            list: match schema.list_type.as_deref() {
                Some("map") => ListType::Map,
                Some("set") => ListType::Set,
                _ => ListType::Atomic,
            },
            keys: keys.collect(),
            merge: false,
            retain_keys: false,
            merge_key: "".into(),
            default: FieldDefault::None,
        }
    }

    fn shape(&mut self, schema: &Structural, name: &str) -> Shape {
        if schema.int_or_string {
            return Shape::IntOrString;
        }
        match schema.kind {
            None if schema.properties.is_empty() => Shape::Any,
            None => Shape::Object(self.object(schema, name, schema.embedded)),
            Some(Kind::String) => Shape::String,
            Some(Kind::Integer) => Shape::Int64,
            Some(Kind::Number) => Shape::Number,
            Some(Kind::Boolean) => Shape::Bool,
            Some(Kind::Array) => Shape::List(Box::new(match &schema.items {
                Some(items) => self.shape(items, &format!("{name}.items")),
                None => Shape::Any,
            })),
            Some(Kind::Object) => match &schema.additional {
                Some(Additional::Schema(values)) => {
                    Shape::Map(Box::new(self.shape(values, &format!("{name}.values"))))
                }
                Some(Additional::Allowed(true)) if schema.properties.is_empty() => {
                    Shape::Map(Box::new(Shape::Any))
                }
                _ => Shape::Object(self.object(schema, name, schema.embedded)),
            },
        }
    }
}

fn renumber(shape: &mut Shape, from: &mut Vec<TypeId>) {
    match shape {
        Shape::Object(id) => {
            let index = from
                .iter()
                .position(|known| known == id)
                .unwrap_or_else(|| {
                    from.push(*id);
                    from.len() - 1
                });
            *id = TypeId::new(index);
        }
        Shape::List(of) | Shape::Map(of) => renumber(of, from),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::schema::{FieldValidation, Format};

    fn read(schema: Value, object: Value) -> Result<(Value, Vec<String>), String> {
        let structural = Structural::read(&schema, "s").expect("a schema");
        let gvk = gvk("example.com/v1", "Widget");
        let mut schemas = Schemas::default();
        schemas.insert(gvk.clone(), compile(&structural, "com.example.v1.Widget"));
        let body = serde_json::to_vec(&object).expect("JSON");
        schemas
            .decode(&gvk, &body, Format::Json, FieldValidation::Warn)
            .map(|decoded| (decoded.object, decoded.warnings))
            .map_err(|error| error.message)
    }

    #[test]
    fn unknown_fields_go_and_values_stay_as_they_are() {
        let schema = json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": {
            "a": { "type": "integer" },
            "list": { "type": "array", "items": { "type": "object", "properties": { "x": { "type": "string" } } } },
            "open": { "type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": { "in": { "type": "object" } } },
            "map": { "type": "object", "additionalProperties": { "type": "string" } },
            "any": { "x-kubernetes-preserve-unknown-fields": true },
        } } } });
        let (object, warnings) = read(schema, json!({
            "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "x", "labels": {}, "bad": 1 },
            "spec": { "a": "no integer", "b": 1, "list": [{ "x": null, "y": 1 }, "odd"], "map": {}, "any": [null],
                "open": { "kept": [1], "in": { "dropped": 1 } } },
        }))
        .expect("decodes");
        assert_eq!(
            object,
            json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": "x" },
                "spec": { "a": "no integer", "list": [{ "x": null }, "odd"], "map": {}, "any": [null],
                    "open": { "kept": [1], "in": {} } } })
        );
        let unknown = [
            "metadata.bad",
            "spec.b",
            "spec.list[0].y",
            "spec.open.in.dropped",
        ];
        let mut expected: Vec<String> = unknown.map(|f| format!("unknown field {f:?}")).into();
        expected.sort();
        let mut warnings = warnings;
        warnings.sort();
        assert_eq!(warnings, expected);
    }

    #[test]
    fn metadata_is_the_built_in_one_also_in_embedded_resources() {
        let schema = json!({ "type": "object", "properties": { "template": {
            "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true } } });
        let good = json!({ "metadata": { "name": "x" }, "template": { "kind": "Pod", "metadata": { "name": "p", "odd": 1 }, "spec": {} } });
        let (object, warnings) = read(schema.clone(), good).expect("decodes");
        assert_eq!(
            object["template"],
            json!({ "kind": "Pod", "metadata": { "name": "p" }, "spec": {} })
        );
        assert_eq!(warnings, ["unknown field \"template.metadata.odd\""]);
        let bad = json!({ "metadata": { "name": 1 } });
        let error = read(schema, bad).expect_err("a name is text");
        assert!(error.contains("cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string"), "{error}");
    }

    #[test]
    fn lists_keep_how_their_items_are_told_apart() {
        let schema = json!({ "type": "object", "properties": { "l": { "type": "array", "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["k"], "items": { "type": "object" } } } });
        let structural = Structural::read(&schema, "s").expect("a schema");
        let schema = compile(&structural, "n");
        let field = schema.root().field("l").expect("there");
        assert_eq!((field.list, &*field.keys[0]), (ListType::Map, "k"));
    }
}
