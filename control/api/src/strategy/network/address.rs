//! IPAddresses (KEP-1880).

use std::net::IpAddr;

use serde_json::Value;

use crate::registry::names;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::Errors;
use crate::strategy::{Column, Strategy};
use crate::table;

/// Addresses that belong to something: to services, mostly.
pub struct IpAddress;

impl Strategy for IpAddress {
    fn check_name(&self, name: &str) -> Result<(), String> {
        let Ok(address) = name.parse::<IpAddr>() else {
            return Err("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned());
        };
        let canonical = address.to_canonical().to_string();
        if canonical == name {
            return Ok(());
        }
        Err(format!("must be in canonical form ({canonical:?})"))
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let parent = &object["spec"]["parentRef"];
        let at = "spec.parentRef";
        if !parent.is_object() {
            errors.required(at, "");
            return errors.0;
        }
        let group = text(&parent["group"]);
        if !group.is_empty()
            && let Err(detail) = names::dns_subdomain(group)
        {
            errors.add(format!("{at}.group"), &parent["group"], &detail);
        }
        for (field, required) in [("resource", true), ("name", true), ("namespace", false)] {
            let path = format!("{at}.{field}");
            match text(&parent[field]) {
                "" if required => errors.required(path, ""),
                "" => {}
                name => {
                    if let Err(detail) = names::path_segment(name) {
                        errors.add(path, &parent[field], &detail);
                    }
                }
            }
        }
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors(self.validate(object));
        errors.immutable(
            "spec.parentRef",
            &object["spec"]["parentRef"],
            &old["spec"]["parentRef"],
        );
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name ParentRef Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let parent = &object["spec"]["parentRef"];
        let shown = if parent.is_object() {
            let mut shown = text(&parent["resource"]).to_lowercase();
            if !text(&parent["group"]).is_empty() {
                shown.push_str(&format!(".{}", text(&parent["group"])));
            }
            for part in ["namespace", "name"].map(|field| text(&parent[field])) {
                if !part.is_empty() {
                    shown.push_str(&format!("/{part}"));
                }
            }
            shown
        } else {
            "<none>".to_owned()
        };
        vec![table::name(object), shown.into(), table::age(object, now)]
    }
}
