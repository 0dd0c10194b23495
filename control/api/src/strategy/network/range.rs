//! ServiceCIDRs (KEP-1880).

use ipnet::IpNet;
use serde_json::Value;

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::{CIDR, count, joined};
use crate::strategy::validation::{Errors, IMMUTABLE, items};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Ranges from which services get their addresses.
pub struct ServiceCidr;

fn ranges(errors: &mut Errors, list: &Value) {
    let at = "spec.cidrs";
    match count(list) {
        0 => return errors.required(at, "at least one CIDR required"),
        1 | 2 => {}
        _ => return errors.add(at, list, "may only hold up to 2 values"),
    }
    let mut families = Vec::new();
    for (index, range) in items(list) {
        let at = format!("{at}[{index}]");
        let Ok(parsed) = text(range).parse::<IpNet>() else {
            errors.add(at, range, CIDR);
            continue;
        };
        if parsed.addr() != parsed.network() {
            let detail = "must not have bits set beyond the prefix length";
            errors.add(at, range, detail);
        } else if parsed.to_string() != text(range) {
            let detail = format!("must be in canonical form ({:?})", parsed.to_string());
            errors.add(at, range, &detail);
        }
        families.push(parsed.addr().is_ipv4());
    }
    if families.len() == 2 && families[0] == families[1] {
        let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.add(at, list, detail);
    }
}

impl Strategy for ServiceCidr {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = Value::Object(serde_json::Map::new());
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, false);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        ranges(&mut errors, &object["spec"]["cidrs"]);
        errors.0
    }

    /// A second range may join the first, for the other family of addresses; nothing else may change.
    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if sub == Some(Subresource::Status) {
            return errors.0;
        }
        let (new, before) = (&object["spec"]["cidrs"], &old["spec"]["cidrs"]);
        let joins = count(before) == 1 && count(new) == 2;
        if !joins && count(before) != count(new) {
            errors.add("spec.cidrs", new, IMMUTABLE);
            return errors.0;
        }
        for (index, range) in items(before) {
            errors.immutable(&format!("spec.cidrs[{index}]"), &new[index], range);
        }
        if joins {
            ranges(&mut errors, new);
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name CIDRs Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let ranges = joined(&object["spec"]["cidrs"], ",");
        vec![table::name(object), ranges.into(), table::age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update};

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_range_may_get_a_second_of_the_other_family() {
        let good = json!({ "spec": { "cidrs": ["10.96.0.0/16"] } });
        let twice = "spec.cidrs: Invalid value: [\"10.96.0.0/16\",\"10.97.0.0/16\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        check_new(&ServiceCidr, &good, &[
            ("/spec/cidrs", Value::Null, &["spec.cidrs: Required value: at least one CIDR required"]),
            ("/spec/cidrs", json!(["10.96.0.0"]), &[&format!("spec.cidrs[0]: Invalid value: \"10.96.0.0\": {CIDR}")]),
            ("/spec/cidrs", json!(["10.96.0.0/16", "10.97.0.0/16"]), &[twice]),
            ("/spec/cidrs", json!(["fd00::/112", "10.0.0.0/8", "11.0.0.0/8"]), &["spec.cidrs: Invalid value: [\"fd00::/112\",\"10.0.0.0/8\",\"11.0.0.0/8\"]: may only hold up to 2 values"]),
        ]);
        check_update(&ServiceCidr, &good, &[
            ("/spec/cidrs", json!(["10.96.0.0/16", "fd00::/112"]), &[]),
            ("/spec/cidrs", json!(["10.96.0.0/16", "10.97.0.0/16"]), &[twice]),
            ("/spec/cidrs", json!(["10.97.0.0/16"]), &["spec.cidrs[0]: Invalid value: \"10.97.0.0/16\": field is immutable"]),
            ("/spec/cidrs", json!([]), &["spec.cidrs: Invalid value: []: field is immutable"]),
        ]);
    }
}
