//! Kinds that users define: CustomResourceDefinitions, and the resources that they make.
//!
//! A definition's schema becomes a [`crate::schema::Schema`] (which fields there are) and a [`structural::Structural`]
//! (what their values may be), so that a custom resource takes the same path as a built-in kind. Reading order:
//! `structural` (the model), `checks` and `lists` (what a schema may say), `defaults`, `rules` and `cel` (what an object
//! must satisfy), `compile`, `definition` and `names` (the kind CustomResourceDefinition), `custom` and `resources` (the
//! kinds that it defines).

pub mod cel;
mod checks;
mod compile;
mod custom;
mod defaults;
mod definition;
mod field_path;
mod formats;
mod jsonpath;
mod lists;
mod names;
mod numbers;
mod pattern;
mod read;
mod resources;
mod rules;
mod scale;
mod spec;
pub mod structural;
mod version;

pub use compile::compile;
pub use custom::Custom;
pub use definition::{CLEANUP_FINALIZER, CustomResourceDefinition};
pub use jsonpath::JsonPath;
pub use names::{conditions, is_established, terminating};
pub use resources::{DefinitionError, resources};

use serde_json::Value;

use crate::status::FieldError;

/// Reads a version's `openAPIV3Schema` and checks it; `path` is that of the schema in the definition.
///
/// # Errors
///
/// Everything that is wrong with it, in kube-apiserver's words.
pub fn parse(schema: &Value, path: &str) -> Result<structural::Structural, Vec<FieldError>> {
    let mut structural = structural::Structural::read(schema, path)?;
    if structural.nullable {
        let detail = "nullable cannot be true at the root";
        return Err(vec![FieldError::forbidden(
            format!("{path}.nullable"),
            detail,
        )]);
    }
    let mut errors = checks::structural(&structural, path);
    if errors.is_empty() {
        defaults::check(&structural, path, &mut errors);
    }
    errors.extend(checks::keywords(&structural, path));
    if !errors.is_empty() {
        return Err(errors);
    }
    cel::compile(&mut structural, path)?;
    Ok(structural)
}
