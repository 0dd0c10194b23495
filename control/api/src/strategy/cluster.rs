//! Namespaces, nodes, leases, service accounts.

use serde_json::{Value, json};

use super::common::{self, object_at, selectable, text};
use super::validation::{Errors, dns_label, finalizer_name, items};
use super::warnings::network;
use super::{Column, Context, Proxied, Strategy};
use crate::registry::names;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Namespaces.
pub struct Namespace;

/// Nodes.
pub struct Node;

/// Leases.
pub struct Lease;

/// Service accounts.
pub struct ServiceAccount;

const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Strategy for Namespace {
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::dns_label(name)
    }

    fn default(&self, object: &mut Value) {
        let name = object["metadata"]["name"].clone();
        if !text(&name).is_empty() {
            object_at(&mut object["metadata"], "labels").insert(NAME_LABEL.to_owned(), name);
        }
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({ "phase": "Active" });
        let finalizers = &mut object["spec"]["finalizers"];
        if !items(finalizers).any(|(_, name)| name == "kubernetes") {
            let list = finalizers.as_array().cloned().unwrap_or_default();
            *finalizers = list.into_iter().chain(["kubernetes".into()]).collect();
        }
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        match sub {
            Some(Subresource::Status) => common::keep(object, old, "spec"),
            Some(Subresource::Finalize) => common::keep(object, old, "status"),
            _ => {
                common::keep(object, old, "status");
                // Only `finalize` may change them.
                common::keep(object_value(object, "spec"), &old["spec"], "finalizers");
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let name = text(&object["metadata"]["name"]);
        errors.invalid(
            "metadata.name",
            name,
            if name.is_empty() {
                Vec::new()
            } else {
                dns_label(name)
            },
        );
        for (_, finalizer) in items(&object["spec"]["finalizers"]) {
            let name = text(finalizer);
            errors.invalid("spec.finalizers", name, finalizer_name(name));
        }
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        _: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors(self.validate(object));
        let phase = &object["status"]["phase"];
        if sub == Some(Subresource::Status) {
            let deleted = !object["metadata"]["deletionTimestamp"].is_null();
            let (wanted, detail) = if deleted {
                (
                    "Terminating",
                    "may only be 'Terminating' if `deletionTimestamp` is not empty",
                )
            } else {
                (
                    "Active",
                    "may only be 'Active' if `deletionTimestamp` is empty",
                )
            };
            if text(phase) != wanted {
                errors.add("status.Phase", &text(phase).into(), detail);
            }
        }
        errors.0
    }

    fn holds(&self, object: &Value) -> bool {
        items(&object["spec"]["finalizers"]).next().is_some()
    }

    fn is_emptied_first(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("status.phase", selectable(object, &["status", "phase"]))]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.phase"]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Status Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        vec![
            table::name(object),
            text(&object["status"]["phase"]).into(),
            table::age(object, now),
        ]
    }
}

/// A field of an object, made an object if it is none.
fn object_value<'a>(object: &'a mut Value, field: &str) -> &'a mut Value {
    object_at(object, field);
    &mut object[field]
}

const ROLE: &str = "node-role.kubernetes.io/";

impl Strategy for Node {
    fn proxied(&self) -> Option<Proxied> {
        Some(Proxied::Node)
    }

    fn default(&self, object: &mut Value) {
        let status = &mut object["status"];
        if status["allocatable"].is_null() && status["capacity"].is_object() {
            status["allocatable"] = status["capacity"].clone();
        }
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        if sub == Some(Subresource::Status) {
            common::keep(object, old, "spec");
        } else {
            common::keep(object, old, "status");
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        for (index, taint) in items(&object["spec"]["taints"]) {
            let at = format!("spec.taints[{index}]");
            let key = text(&taint["key"]);
            errors.invalid(
                &format!("{at}.key"),
                key,
                super::validation::qualified_name(key),
            );
            let value = text(&taint["value"]);
            errors.invalid(
                &format!("{at}.value"),
                value,
                super::validation::label_value(value),
            );
            errors.one_of(
                format!("{at}.effect"),
                &taint["effect"],
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            );
            let same =
                |other: &Value| other["key"] == taint["key"] && other["effect"] == taint["effect"];
            if items(&object["spec"]["taints"])
                .take(index)
                .any(|(_, other)| same(other))
            {
                errors.0.push(FieldError::duplicate(at, taint));
            }
        }
        for (index, cidr) in items(&object["spec"]["podCIDRs"]) {
            if text(cidr).parse::<ipnet::IpNet>().is_err() {
                errors.add(
                    format!("spec.podCIDRs[{index}]"),
                    cidr,
                    "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                );
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
        let mut errors = self.validate(object);
        let changed = |field: &str| {
            let (old, new) = (&old["spec"][field], &object["spec"][field]);
            !old.is_null() && old != new && *old != json!([]) && *old != ""
        };
        if changed("podCIDRs") {
            errors.push(FieldError::forbidden(
                "spec.podCIDRs",
                "node updates may not change podCIDR except from \"\" to valid",
            ));
        }
        if changed("providerID") {
            errors.push(FieldError::forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            ));
        }
        errors
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let spec = &object["spec"];
        let mut warnings = Vec::new();
        if !spec["configSource"].is_null() {
            warnings.push("spec.configSource: the feature is removed".to_owned());
        }
        if !text(&spec["externalID"]).is_empty() {
            warnings.push(
                "spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned(),
            );
        }
        for (index, cidr) in items(&spec["podCIDRs"]) {
            warnings.extend(network(&format!("spec.podCIDRs[{index}]"), text(cidr)));
        }
        warnings
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![(
            "spec.unschedulable",
            (object["spec"]["unschedulable"] == true).to_string(),
        )]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns(
            "Name Status Roles Age Version Internal-IP* External-IP* OS-Image* Kernel-Version* Container-Runtime*",
        )
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let status = &object["status"];
        let ready = items(&status["conditions"]).find(|(_, c)| c["type"] == "Ready");
        let mut states = vec![match ready {
            Some((_, condition)) if condition["status"] == "True" => "Ready",
            Some(_) => "NotReady",
            None => "Unknown",
        }];
        if object["spec"]["unschedulable"] == true {
            states.push("SchedulingDisabled");
        }
        let mut roles: Vec<&str> = Vec::new();
        for (key, value) in object["metadata"]["labels"]
            .as_object()
            .into_iter()
            .flatten()
        {
            if let Some(role) = key.strip_prefix(ROLE).filter(|role| !role.is_empty()) {
                roles.push(role);
            } else if key == "kubernetes.io/role" && !text(value).is_empty() {
                roles.push(text(value));
            }
        }
        roles.sort_unstable();
        roles.dedup();
        let address = |kind: &str| {
            let found = items(&status["addresses"]).find(|(_, a)| a["type"] == kind);
            found
                .map_or("<none>", |(_, address)| text(&address["address"]))
                .to_owned()
        };
        let info = |field: &str| match text(&status["nodeInfo"][field]) {
            "" => "<unknown>".to_owned(),
            value => value.to_owned(),
        };
        vec![
            table::name(object),
            states.join(",").into(),
            common::none_if_empty(roles.join(",")).into(),
            table::age(object, now),
            text(&status["nodeInfo"]["kubeletVersion"]).into(),
            address("InternalIP").into(),
            address("ExternalIP").into(),
            info("osImage").into(),
            info("kernelVersion").into(),
            info("containerRuntimeVersion").into(),
        ]
    }
}

impl Strategy for Lease {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        if spec["leaseDurationSeconds"]
            .as_i64()
            .is_some_and(|n| n <= 0)
        {
            errors.add(
                "spec.leaseDurationSeconds",
                &spec["leaseDurationSeconds"],
                "must be greater than 0",
            );
        }
        errors.not_negative("spec.leaseTransitions", &spec["leaseTransitions"]);
        errors.0
    }

    /// Another `renewTime` and nothing else.
    ///
    /// After a crash the Lease looks older than it is. Nobody takes it for that: controllers and candidates count from when they
    /// saw it change by their own clocks, and the holder renews it within seconds. Who holds it is always durable.
    fn is_renewal(&self, object: &Value, old: &Value) -> bool {
        let rest = |lease: &Value| {
            let mut lease = lease.clone();
            if let Some(spec) = lease["spec"].as_object_mut() {
                spec.remove("renewTime");
            }
            // Whoever renews it, owns the time: that says no more than the time itself.
            if let Some(metadata) = lease["metadata"].as_object_mut() {
                metadata.remove("managedFields");
            }
            lease
        };
        object["spec"]["renewTime"] != old["spec"]["renewTime"] && rest(object) == rest(old)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Holder Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        vec![
            table::name(object),
            text(&object["spec"]["holderIdentity"]).into(),
            table::age(object, now),
        ]
    }
}

const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

impl Strategy for ServiceAccount {
    fn returns_deleted(&self) -> bool {
        true
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let limits = |object: &Value| object["metadata"]["annotations"].get(MOUNTABLE).is_some();
        if !limits(object) || old.is_some_and(limits) {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
        )]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Secrets Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let secrets = object["secrets"].as_array().map_or(0, Vec::len);
        vec![table::name(object), secrets.into(), table::age(object, now)]
    }
}
