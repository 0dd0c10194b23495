//! Configurations of webhooks.

use serde_json::Value;

use super::{FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, match_conditions, rule};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::{count, raise_generation};
use crate::strategy::validation::{
    Errors, dns_1035_label, dns_label, items, label_selector, subdomain,
};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Webhooks of one kind: mutating or validating ones, which differ in one field.
pub struct WebhookConfiguration;

const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];
const REVIEWS: &[&str] = &["v1", "v1beta1"];

impl Strategy for WebhookConfiguration {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        _: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        let changed = object["webhooks"] != old["webhooks"];
        raise_generation(object, old, changed);
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let hooks = &object["webhooks"];
        for (index, hook) in items(hooks) {
            let at = format!("webhooks[{index}]");
            webhook(&mut errors, &at, hook);
            let versions = &hook["admissionReviewVersions"];
            review_versions(
                &mut errors,
                &format!("{at}.admissionReviewVersions"),
                versions,
            );
            let name = &hook["name"];
            if !text(name).is_empty()
                && items(hooks)
                    .take(index)
                    .any(|(_, other)| other["name"] == *name)
            {
                errors
                    .0
                    .push(FieldError::duplicate(format!("{at}.name"), name));
            }
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Webhooks# Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let hooks = count(&object["webhooks"]);
        vec![table::name(object), hooks.into(), table::age(object, now)]
    }
}

fn webhook(errors: &mut Errors, at: &str, hook: &Value) {
    let path = |field: &str| format!("{at}.{field}");
    qualified_domain(errors, &path("name"), text(&hook["name"]));
    for (index, value) in items(&hook["rules"]) {
        rule(errors, &path(&format!("rules[{index}]")), value);
    }
    for (field, supported) in [
        ("failurePolicy", FAILURE_POLICIES),
        ("matchPolicy", MATCH_POLICIES),
    ] {
        if !hook[field].is_null() {
            errors.one_of(path(field), &hook[field], supported);
        }
    }
    match &hook["sideEffects"] {
        Value::Null => errors.required(
            path("sideEffects"),
            "must specify one of None, NoneOnDryRun",
        ),
        effects => errors.one_of(path("sideEffects"), effects, SIDE_EFFECTS),
    }
    let seconds = &hook["timeoutSeconds"];
    if seconds
        .as_i64()
        .is_some_and(|seconds| !(1..=30).contains(&seconds))
    {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.add(path("timeoutSeconds"), seconds, detail);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        label_selector(errors, &path(field), &hook[field]);
    }
    let reinvocation = &hook["reinvocationPolicy"];
    if !reinvocation.is_null() {
        errors.one_of(
            path("reinvocationPolicy"),
            reinvocation,
            REINVOCATION_POLICIES,
        );
    }
    client(errors, &path("clientConfig"), &hook["clientConfig"]);
    match_conditions(errors, &path("matchConditions"), &hook["matchConditions"]);
}

/// A name with at least three segments: `hook.example.com`.
fn qualified_domain(errors: &mut Errors, at: &str, name: &str) {
    let wrong = subdomain(name);
    if name.is_empty() {
        errors.required(at, "");
    } else if !wrong.is_empty() {
        errors.add(at, &name.into(), &wrong.join(","));
    } else if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.add(at, &name.into(), detail);
    } else if let Some(label) = name.split('.').find(|label| !dns_label(label).is_empty()) {
        errors.add(at, &label.into(), &dns_label(label).join(","));
    }
}

fn review_versions(errors: &mut Errors, at: &str, versions: &Value) {
    if count(versions) == 0 {
        return errors.required(at, "must specify one of v1, v1beta1");
    }
    for (index, version) in items(versions) {
        let at = format!("{at}[{index}]");
        if items(versions)
            .take(index)
            .any(|(_, other)| other == version)
        {
            errors.add(at, version, "duplicate version");
        } else {
            errors.invalid(&at, text(version), dns_1035_label(text(version)));
        }
    }
    if !items(versions).any(|(_, version)| REVIEWS.contains(&text(version))) {
        errors.add(at, versions, "must include at least one of v1, v1beta1");
    }
}

fn client(errors: &mut Errors, at: &str, client: &Value) {
    match (client["url"].as_str(), client["service"].is_null()) {
        (Some(address), true) => url(errors, &format!("{at}.url"), address),
        (None, false) => service(errors, &format!("{at}.service"), &client["service"]),
        _ => errors.required(at, "exactly one of url or service is required"),
    }
}

fn url(errors: &mut Errors, at: &str, address: &str) {
    let form = "; desired format: https://host[/path]";
    let (scheme, rest) = address.split_once(':').unwrap_or(("", address));
    if scheme != "https" {
        let detail = format!("'https' is the only allowed URL scheme{form}");
        errors.add(at, &scheme.into(), &detail);
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let host = rest.strip_prefix("//").unwrap_or("");
    let host = host.split('/').next().unwrap_or("");
    let (user, host) = host
        .rsplit_once('@')
        .map_or((None, host), |(user, host)| (Some(user), host));
    if host.is_empty() {
        errors.add(at, &"".into(), &format!("host must be provided{form}"));
    }
    for (part, what) in [
        (user.unwrap_or(""), "user information is"),
        (fragment, "fragments are"),
        (query, "query parameters are"),
    ] {
        if !part.is_empty() {
            errors.add(
                at,
                &part.into(),
                &format!("{what} not permitted in the URL"),
            );
        }
    }
}

fn service(errors: &mut Errors, at: &str, service: &Value) {
    // kube-apiserver confuses the two: it says of a missing name that the namespace is missing, and the other way round.
    if text(&service["namespace"]).is_empty() {
        errors.required(format!("{at}.name"), "service name is required");
    }
    if text(&service["name"]).is_empty() {
        errors.required(format!("{at}.namespace"), "service namespace is required");
    }
    let port = service["port"].as_i64().unwrap_or(443);
    if !(1..=65535).contains(&port) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.add(format!("{at}.port"), &service["port"], detail);
    }
    let (at, path) = (format!("{at}.path"), text(&service["path"]));
    if matches!(path, "" | "/") {
        return;
    }
    if path == "//" {
        return errors.add(at, &path.into(), "segment[0] may not be empty");
    }
    if !path.starts_with('/') {
        errors.add(&at, &path.into(), "must start with a '/'");
    }
    let segments = path.get(1..).unwrap_or("");
    for (index, segment) in segments
        .strip_suffix('/')
        .unwrap_or(segments)
        .split('/')
        .enumerate()
    {
        if segment.is_empty() {
            errors.add(
                &at,
                &path.into(),
                &format!("segment[{index}] may not be empty"),
            );
            continue;
        }
        for detail in subdomain(segment) {
            errors.add(&at, &path.into(), &format!("segment[{index}]: {detail}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::check_new;

    fn configuration() -> Value {
        json!({ "webhooks": [{ "name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": { "service": { "name": "a", "namespace": "b", "path": "/c", "port": 443 } },
            "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] }] }] })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_webhook_says_what_it_is_asked_and_where_it_is() {
        let path = |field: &str| format!("/webhooks/0/{field}");
        let form = "; desired format: https://host[/path]";
        check_new(&WebhookConfiguration, &configuration(), &[
            (&path("name"), json!("a.b"), &["webhooks[0].name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots"]),
            (&path("name"), Value::Null, &["webhooks[0].name: Required value"]),
            (&path("sideEffects"), Value::Null, &["webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun"]),
            (&path("sideEffects"), json!("Some"), &["webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\""]),
            (&path("timeoutSeconds"), json!(31), &["webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"]),
            (&path("failurePolicy"), json!("Retry"), &["webhooks[0].failurePolicy: Unsupported value: \"Retry\": supported values: \"Fail\", \"Ignore\""]),
            (&path("matchPolicy"), json!("Loose"), &["webhooks[0].matchPolicy: Unsupported value: \"Loose\": supported values: \"Equivalent\", \"Exact\""]),
            (&path("reinvocationPolicy"), json!("Always"), &["webhooks[0].reinvocationPolicy: Unsupported value: \"Always\": supported values: \"IfNeeded\", \"Never\""]),
            (&path("admissionReviewVersions"), json!([]), &["webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1"]),
            (&path("admissionReviewVersions"), json!(["v2"]), &["webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1"]),
            (&path("admissionReviewVersions"), json!(["v1", "v1"]), &["webhooks[0].admissionReviewVersions[1]: Invalid value: \"v1\": duplicate version"]),
            (&path("rules/0/operations"), json!(["*", "CREATE"]), &["webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations"]),
            (&path("rules/0/operations"), json!(["GET"]), &["webhooks[0].rules[0].operations[0]: Unsupported value: \"GET\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\""]),
            (&path("rules/0/apiVersions"), json!([]), &["webhooks[0].rules[0].apiVersions: Required value"]),
            (&path("rules/0/scope"), json!("All"), &["webhooks[0].rules[0].scope: Unsupported value: \"All\": supported values: \"*\", \"Cluster\", \"Namespaced\""]),
            (&path("clientConfig"), json!({}), &["webhooks[0].clientConfig: Required value: exactly one of url or service is required"]),
            (&path("clientConfig"), json!({ "url": "https://a/b" }), &[]),
            (&path("clientConfig"), json!({ "url": "http://a" }), &[&format!("webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme{form}")]),
            (&path("clientConfig"), json!({ "url": "https://" }), &[&format!("webhooks[0].clientConfig.url: Invalid value: \"\": host must be provided{form}")]),
            (&path("clientConfig"), json!({ "url": "https://u@a/#f" }), &["webhooks[0].clientConfig.url: Invalid value: \"u\": user information is not permitted in the URL", "webhooks[0].clientConfig.url: Invalid value: \"f\": fragments are not permitted in the URL"]),
            (&path("clientConfig/service/name"), Value::Null, &["webhooks[0].clientConfig.service.namespace: Required value: service namespace is required"]),
            (&path("clientConfig/service/port"), json!(0), &["webhooks[0].clientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive"]),
            (&path("clientConfig/service/path"), json!("/a//b"), &["webhooks[0].clientConfig.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"]),
            (&path("matchConditions"), json!([{ "name": "a", "expression": "true" }, { "name": "a", "expression": " " }]), &["webhooks[0].matchConditions[1].expression: Required value", "webhooks[0].matchConditions[1].name: Duplicate value: \"a\""]),
        ]);
        let hook = configuration()["webhooks"][0].clone();
        check_new(&WebhookConfiguration, &configuration(), &[
            ("/webhooks", json!([hook, hook]), &["webhooks[1].name: Duplicate value: \"a.example.com\""]),
        ]);
    }
}
