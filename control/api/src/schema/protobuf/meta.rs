//! Bodies of what is not known to be an object of a resource: metadata alone, a Status, the events of a watch.

use std::borrow::Borrow;
use std::sync::Arc;

use serde_json::Value;

use super::encode::{self, EncodeError};
use super::wire::bytes;
use crate::resource::GroupVersionKind;
use crate::schema::{Schema, Schemas, Shape, TypeId};

/// The group and version of partial metadata.
const META: &str = "meta.k8s.io/v1";

/// Writes an object of a built-in kind as a body, by the kind that the object itself names: a Status or a Scale, say.
///
/// # Errors
///
/// As [`encode::encode`]; for an object of another kind, that it has no encoding.
pub fn encode_by_kind(object: &Value) -> Result<Vec<u8>, EncodeError> {
    let text = |name: &str| object[name].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if (api_version, kind) == (META, "PartialObjectMetadata") {
        return encode_partial(object);
    }
    let gvk = crate::kinds::gvk(api_version, kind);
    encode::encode(Schemas::builtin().find(&gvk), &gvk, object)
}

/// Writes an object as `PartialObjectMetadata`, whatever its kind: only its metadata is looked at.
///
/// # Errors
///
/// If the metadata has a field without a number or of another type than the schema's.
pub fn encode_partial(object: &Value) -> Result<Vec<u8>, EncodeError> {
    encode::body(&gvk("PartialObjectMetadata"), |out| partial(object, out))
}

/// Writes objects as a `PartialObjectMetadataList`.
///
/// # Errors
///
/// As [`encode_partial`], of any of the items.
pub fn encode_partial_list(
    metadata: &Value,
    items: impl IntoIterator<Item = impl Borrow<Value>>,
) -> Result<Vec<u8>, EncodeError> {
    encode::body(&gvk("PartialObjectMetadataList"), |out| {
        encode::nested(out, 1, |out| list_meta(metadata, out))?;
        for item in items {
            encode::nested(out, 2, |out| partial(item.borrow(), out))?;
        }
        Ok(())
    })
}

/// One frame of a watch: a `WatchEvent` behind its length in four bytes, most significant first.
///
/// `object` is a whole body, magic and all; the event itself has no magic (apimachinery, `serializer/protobuf`: the raw
/// serializer writes the stream).
pub fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(object.len() + 8);
    bytes(&mut raw, 1, object);
    let mut out = vec![0; 4];
    bytes(&mut out, 1, kind.as_bytes());
    bytes(&mut out, 2, &raw);
    let length = u32::try_from(out.len() - 4).expect("an object has less than 4 GiB");
    out[..4].copy_from_slice(&length.to_be_bytes());
    out
}

/// Writes what is inside of a `ListMeta`.
pub(super) fn list_meta(metadata: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let schemas = Schemas::builtin();
    let (schema, id) = metadata_of(&schemas, "Status");
    encode::object(schema, id, metadata, "metadata", out, 0)
}

fn partial(object: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let schemas = Schemas::builtin();
    let (schema, id) = metadata_of(&schemas, "Namespace");
    let Some(metadata) = object.get("metadata") else {
        return Ok(());
    };
    encode::nested(out, 1, |out| {
        encode::object(schema, id, metadata, "metadata", out, 0)
    })
}

/// The type of the metadata of a kind of the core group.
fn metadata_of<'a>(schemas: &'a Arc<Schemas>, kind: &str) -> (&'a Schema, TypeId) {
    let schema = schemas.find(&crate::kinds::gvk("v1", kind));
    let schema = schema.expect("a built-in kind has a schema");
    let field = schema.root().field("metadata").map(|field| &field.shape);
    let Some(Shape::Object(id)) = field else {
        unreachable!("the metadata of a built-in kind is an object");
    };
    (schema, *id)
}

fn gvk(kind: &str) -> GroupVersionKind {
    crate::kinds::gvk(META, kind)
}
