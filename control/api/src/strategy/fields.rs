//! What the validations of several kinds say of a field: that it must be there, may not change, or has the wrong form.

use serde_json::{Value, json};

use super::common::text;
use super::validation::{Errors, dns_label, subdomain};
use crate::registry::names;
use crate::status::FieldError;

/// A CIDR that cannot be read.
pub const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// What is wrong with a name, in Kubernetes' words.
pub type Check = fn(&str) -> Vec<String>;

/// Requires a text, and that `check` finds nothing wrong with it.
pub fn required_text(errors: &mut Errors, at: &str, value: &Value, check: Check) {
    match text(value) {
        "" => errors.required(at, ""),
        name => errors.invalid(at, name, check(name)),
    }
}

/// Checks a text that may be missing.
pub fn optional_text(errors: &mut Errors, at: &str, value: &Value, check: Check) {
    if !value.is_null() {
        errors.invalid(at, text(value), check(text(value)));
    }
}

/// What is wrong with a text: nothing.
pub fn anything(_: &str) -> Vec<String> {
    Vec::new()
}

/// What is wrong with `name` as a segment of a path.
pub fn path_segment(name: &str) -> Vec<String> {
    names::path_segment(name).err().into_iter().collect()
}

/// Refuses any change of the fields, with `updates to <field> are forbidden.`.
pub fn forbid_updates(errors: &mut Errors, object: &Value, old: &Value, fields: &[&str]) {
    for field in fields {
        if object[*field] != old[*field] {
            errors.0.push(FieldError::forbidden(
                *field,
                &format!("updates to {field} are forbidden."),
            ));
        }
    }
}

/// The fields in which two objects differ, one a line, as the messages about immutable specs list them.
pub fn changes(old: &Value, new: &Value) -> String {
    let (old, new) = (old.as_object(), new.as_object());
    let mut names: Vec<&String> = old
        .into_iter()
        .chain(new)
        .flat_map(|map| map.keys())
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut lines = String::new();
    for name in names {
        let (before, after) = (old.and_then(|m| m.get(name)), new.and_then(|m| m.get(name)));
        if before != after {
            for (sign, value) in [('-', before), ('+', after)] {
                if let Some(value) = value {
                    lines.push_str(&format!("{sign} {name}: {value}\n"));
                }
            }
        }
    }
    lines
}

/// Carries `metadata.generation` over, and raises it if something that counts has changed.
///
/// A kind whose objects start without a generation gets one with its first change.
pub fn raise_generation(object: &mut Value, old: &Value, changed: bool) {
    let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
    let now = before + i64::from(changed);
    if now > 0 {
        object["metadata"]["generation"] = now.into();
    }
}

/// The texts of a list, for tables.
pub fn joined(list: &Value, separator: &str) -> String {
    let texts: Vec<&str> = super::validation::items(list)
        .map(|(_, item)| text(item))
        .collect();
    texts.join(separator)
}

/// How many items a list has.
pub fn count(list: &Value) -> usize {
    list.as_array().map_or(0, Vec::len)
}

/// Whether a list has the item `*`.
pub fn has_wildcard(list: &Value) -> bool {
    list.as_array()
        .is_some_and(|list| list.contains(&json!("*")))
}

/// Mistakes in the name of a driver of volumes or devices: a subdomain in any case, as long as a label at most.
pub fn driver_name(errors: &mut Errors, at: &str, name: &Value) {
    const LONGEST: usize = 63;
    if text(name).len() > LONGEST {
        errors.0.push(FieldError::too_long(at, LONGEST, "bytes"));
    }
    required_text(errors, at, name, |name| subdomain(&name.to_lowercase()));
}

/// Mistakes in the name of a signer: `example.com/signer-name`.
pub fn signer_name(errors: &mut Errors, at: &str, value: &Value) {
    let name = text(value);
    if name.is_empty() {
        return errors.required(at, "");
    }
    let Some((domain, path)) = name.split_once('/').filter(|(_, path)| !path.contains('/')) else {
        let detail =
            "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errors.add(at, value, detail);
    };
    for (part, check) in [(domain, dns_label as Check), (path, subdomain as Check)] {
        let wrong = part.split('.').map(|label| (label, check(label)));
        if let Some((label, wrong)) = wrong.into_iter().find(|(_, wrong)| !wrong.is_empty()) {
            for detail in wrong {
                errors.add(
                    at,
                    &part.into(),
                    &format!("validating label {label:?}: {detail}"),
                );
            }
        }
    }
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.add(at, &domain.into(), detail);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::strategy::Strategy;

    /// One change of a good object, by a path such as `/spec/rules/0/host`, and the mistakes that it makes, as `field: message`.
    pub type Case<'a> = (&'a str, Value, &'a [&'a str]);

    /// Mistakes as text.
    pub fn shown(errors: &[FieldError]) -> Vec<String> {
        let line = |error: &FieldError| format!("{}: {}", error.field, error.message);
        errors.iter().map(line).collect()
    }

    /// `object` with another value at `path`, or without it if the value is null.
    pub fn with(object: &Value, path: &str, value: Value) -> Value {
        let mut object = object.clone();
        let (parent, last) = path.rsplit_once('/').expect("a path has a slash");
        let mut place = &mut object;
        for segment in parent.split('/').skip(1) {
            place = child(place, segment);
        }
        match place.as_object_mut() {
            Some(fields) if value.is_null() => {
                fields.remove(last);
            }
            _ => *child(place, last) = value,
        }
        object
    }

    fn child<'a>(place: &'a mut Value, segment: &str) -> &'a mut Value {
        match segment.parse::<usize>() {
            Ok(index) if place.is_array() => &mut place[index],
            _ => &mut place[segment],
        }
    }

    /// Checks that `good` has no mistakes, and that each case has the mistakes it lists.
    pub fn check_new(strategy: &dyn Strategy, good: &Value, cases: &[Case<'_>]) {
        assert_eq!(shown(&strategy.validate(good)), [""; 0]);
        for (path, value, wanted) in cases {
            let object = with(good, path, value.clone());
            let found = shown(&strategy.validate(&object));
            assert_eq!(&found, wanted, "{path} is {value}");
        }
    }

    /// Checks that an update without a change has no mistakes, and that each change has the mistakes it lists.
    pub fn check_update(strategy: &dyn Strategy, old: &Value, cases: &[Case<'_>]) {
        assert_eq!(shown(&strategy.validate_update(None, old, old)), [""; 0]);
        for (path, value, wanted) in cases {
            let object = with(old, path, value.clone());
            let found = shown(&strategy.validate_update(None, &object, old));
            assert_eq!(&found, wanted, "{path} becomes {value}");
        }
    }

    #[test]
    fn a_signer_has_a_domain_and_a_path() {
        for (name, wanted) in [
            ("example.com/a", vec![]),
            ("", vec!["at: Required value"]),
            (
                "a/b/c",
                vec![
                    "at: Invalid value: \"a/b/c\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
                ],
            ),
            (
                "example/a",
                vec![
                    "at: Invalid value: \"example\": should be a domain with at least two segments separated by dots",
                ],
            ),
        ] {
            let mut errors = Errors::default();
            signer_name(&mut errors, "at", &name.into());
            assert_eq!(shown(&errors.0), wanted, "{name}");
        }
    }

    #[test]
    fn a_difference_lists_the_fields_that_changed() {
        let (old, new) = (json!({ "a": 1, "b": 2 }), json!({ "a": 1, "b": 3, "c": 4 }));
        assert_eq!(changes(&old, &new), "- b: 2\n+ b: 3\n+ c: 4\n");
    }
}
