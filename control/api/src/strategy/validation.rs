//! The checks that several kinds share, with Kubernetes' messages (apimachinery `util/validation` and `api/validation`).

use serde_json::Value;

use crate::status::FieldError;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED: &str = "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str = "a valid environment variable name must consist only of printable ASCII characters other than '='";

/// What may not change after creation.
pub const IMMUTABLE: &str = "field is immutable";

const UNDERSCORED: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn is_label(text: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.iter().all(|c| alphanumeric(*c) || *c == b'-')
        && bytes.first().copied().is_some_and(alphanumeric)
        && bytes.last().copied().is_some_and(alphanumeric)
}

/// What is wrong with `name` as a DNS subdomain.
pub fn subdomain(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > 253 {
        wrong.push(too_long(253));
    }
    if !name.split('.').all(is_label) {
        wrong.push(SUBDOMAIN.to_owned());
    }
    wrong
}

/// What is wrong with `name` as a DNS subdomain in which underscores may stand, as in those of some networks' hosts.
pub fn underscored_subdomain(name: &str) -> Vec<String> {
    let good = |label: &str| {
        let label = label.strip_prefix('_').unwrap_or(label);
        is_label(&label.replace('_', "-"))
    };
    let mut wrong = Vec::new();
    if name.len() > 253 {
        wrong.push(too_long(253));
    }
    if !name.split('.').all(good) {
        wrong.push(UNDERSCORED.to_owned());
    }
    wrong
}

/// What is wrong with `text` as an IP address.
pub fn ip_address(text: &str) -> Vec<String> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec![IP.to_owned()],
    }
}

/// What is wrong with a path that must not leave its directory by `..`.
pub fn no_backsteps(path: &str) -> Vec<String> {
    if path.split('/').any(|part| part == "..") {
        vec!["must not contain '..'".to_owned()]
    } else {
        Vec::new()
    }
}

/// What is wrong with a path below a directory.
pub fn descending_path(path: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if path.starts_with('/') {
        wrong.push("must be a relative path".to_owned());
    }
    wrong.extend(no_backsteps(path));
    wrong
}

/// What is wrong with the path of a file that the kubelet writes, among which names that start with `..` are its own.
pub fn file_path(path: &str) -> Vec<String> {
    let mut wrong = descending_path(path);
    if path.starts_with("..") && !path.starts_with("../") {
        wrong.push("must not start with '..'".to_owned());
    }
    wrong
}

/// What is wrong with `name` as a DNS label.
pub fn dns_label(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > 63 {
        wrong.push(too_long(63));
    }
    if !is_label(name) {
        wrong.push(LABEL.to_owned());
    }
    wrong
}

/// What is wrong with `name` as a DNS label of RFC 1035, which starts with a letter.
pub fn dns_1035_label(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > 63 {
        wrong.push(too_long(63));
    }
    if !is_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        wrong.push(LABEL_1035.to_owned());
    }
    wrong
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes
        .iter()
        .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(c))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// What is wrong with a label's key, a resource's name and the like.
pub fn qualified_name(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let parts: Vec<&str> = name.split('/').collect();
    let part = match parts.as_slice() {
        [part] => part,
        [prefix, part] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(
                    subdomain(prefix)
                        .into_iter()
                        .map(|text| format!("prefix part {text}")),
                );
            }
            part
        }
        _ => return vec![QUALIFIED.to_owned()],
    };
    if part.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if part.len() > 63 {
        wrong.push(format!("name part {}", too_long(63)));
    }
    if !is_name_part(part) {
        wrong.push(NAME_PART.to_owned());
    }
    wrong
}

/// What is wrong with the name of a finalizer: it must be qualified, unless it is one of Kubernetes' own.
pub fn finalizer_name(name: &str) -> Vec<String> {
    let wrong = qualified_name(name);
    if wrong.is_empty()
        && !name.contains('/')
        && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion")
    {
        return vec![
            "name is neither a standard finalizer name nor is it fully qualified".to_owned(),
        ];
    }
    wrong
}

/// What is wrong with a label's value.
pub fn label_value(value: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if value.len() > 63 {
        wrong.push(too_long(63));
    }
    if !value.is_empty() && !is_name_part(value) {
        wrong.push(LABEL_VALUE.to_owned());
    }
    wrong
}

/// What is wrong with a key of a ConfigMap or Secret.
pub fn config_key(key: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if key.len() > 253 {
        wrong.push(too_long(253));
    }
    if key.is_empty()
        || !key
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
    {
        wrong.push(CONFIG_KEY.to_owned());
    }
    match key {
        "." => wrong.push("must not be '.'".to_owned()),
        ".." => wrong.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => wrong.push("must not start with '..'".to_owned()),
        _ => {}
    }
    wrong
}

/// What is wrong with the name of an environment variable.
pub fn env_name(name: &str) -> Vec<String> {
    if !name.is_empty()
        && name
            .bytes()
            .all(|c| (b' '..=b'~').contains(&c) && c != b'=')
    {
        Vec::new()
    } else {
        vec![ENV_NAME.to_owned()]
    }
}

/// What is wrong with the name of a port (IANA_SVC_NAME).
pub fn port_name(name: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if name.len() > 15 {
        wrong.push("must be no more than 15 characters".to_owned());
    }
    if !name
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    {
        wrong.push(
            "must contain only alphanumeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !name.bytes().any(|c| c.is_ascii_lowercase()) {
        wrong.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        wrong.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        wrong.push("must not begin or end with a hyphen".to_owned());
    }
    wrong
}

/// The mistakes of a list of mistakes collected so far.
#[derive(Debug, Default)]
pub struct Errors(pub Vec<FieldError>);

impl Errors {
    /// Adds one `Invalid value` per message.
    pub fn invalid(&mut self, field: &str, value: impl Into<Value>, messages: Vec<String>) {
        let value = value.into();
        self.0.extend(
            messages
                .iter()
                .map(|text| FieldError::invalid(field, &value, text)),
        );
    }

    /// Adds an `Invalid value`.
    pub fn add(&mut self, field: impl Into<String>, value: &Value, detail: &str) {
        self.0.push(FieldError::invalid(field, value, detail));
    }

    /// Adds a `Required value`.
    pub fn required(&mut self, field: impl Into<String>, detail: &str) {
        self.0.push(FieldError::required(field, detail));
    }

    /// Adds an `Unsupported value` unless `value` is one of `supported`.
    pub fn one_of(&mut self, field: impl Into<String>, value: &Value, supported: &[&str]) {
        if !value.as_str().is_some_and(|text| supported.contains(&text)) {
            self.0
                .push(FieldError::not_supported(field, value, supported));
        }
    }

    /// Adds a `Not found`.
    pub fn not_found(&mut self, field: impl Into<String>, value: &Value) {
        let message = format!("Not found: {value}");
        self.0.push(FieldError {
            reason: "FieldValueNotFound",
            field: field.into(),
            message,
        });
    }

    /// Adds `field is immutable` if the two differ.
    pub fn immutable(&mut self, field: &str, new: &Value, old: &Value) {
        if new != old {
            self.add(field, new, IMMUTABLE);
        }
    }

    /// Refuses numbers below zero; a missing one is fine.
    pub fn not_negative(&mut self, field: impl Into<String>, value: &Value) {
        if value.as_i64().is_some_and(|n| n < 0) {
            self.add(field, value, "must be greater than or equal to 0");
        }
    }

    /// Refuses what is no port number.
    pub fn port(&mut self, field: impl Into<String>, value: &Value) {
        if !value.as_i64().is_some_and(|n| (1..=65535).contains(&n)) {
            self.add(field, value, "must be between 1 and 65535, inclusive");
        }
    }
}

/// Mistakes in the names of labels, and in their values.
pub fn labels(errors: &mut Errors, field: &str, labels: &Value) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        errors.invalid(field, key.as_str(), qualified_name(key));
        let value = value.as_str().unwrap_or_default();
        errors.invalid(field, value, label_value(value));
    }
}

/// Mistakes in a label selector.
pub fn label_selector(errors: &mut Errors, field: &str, selector: &Value) {
    labels(
        errors,
        &format!("{field}.matchLabels"),
        &selector["matchLabels"],
    );
    for (index, requirement) in items(&selector["matchExpressions"]) {
        let at = format!("{field}.matchExpressions[{index}]");
        let empty = requirement["values"].as_array().is_none_or(Vec::is_empty);
        match requirement["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if empty => {
                errors.required(
                    format!("{at}.values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                );
            }
            "Exists" | "DoesNotExist" if !empty => errors.0.push(FieldError::forbidden(
                format!("{at}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.add(
                format!("{at}.operator"),
                &requirement["operator"],
                "not a valid selector operator",
            ),
        }
        let key = requirement["key"].as_str().unwrap_or_default();
        errors.invalid(&format!("{at}.key"), key, qualified_name(key));
        for (number, value) in items(&requirement["values"]) {
            let value = value.as_str().unwrap_or_default();
            errors.invalid(&format!("{at}.values[{number}]"), value, label_value(value));
        }
    }
}

/// Whether a label selector matches labels; an empty selector matches everything.
pub fn selector_matches(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| label(key) == value.as_str())
        && items(&selector["matchExpressions"]).all(|(_, requirement)| {
            let value = label(requirement["key"].as_str().unwrap_or_default());
            let listed =
                value.is_some_and(|value| items(&requirement["values"]).any(|(_, v)| v == value));
            match requirement["operator"].as_str().unwrap_or_default() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// The items of a list with their indices; nothing if it is none.
pub fn items(list: &Value) -> impl Iterator<Item = (usize, &Value)> {
    list.as_array().into_iter().flatten().enumerate()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_follow_the_rules_of_dns() {
        assert!(subdomain("a-b.c1").is_empty());
        assert_eq!(subdomain("A"), [SUBDOMAIN]);
        assert_eq!(subdomain("a..b"), [SUBDOMAIN]);
        assert_eq!(dns_1035_label("1a"), [LABEL_1035]);
        assert_eq!(
            dns_label(&"a".repeat(64)),
            ["must be no more than 63 bytes"]
        );
        assert!(qualified_name("example.com/My_Name.1").is_empty());
        assert_eq!(qualified_name("a/b/c"), [QUALIFIED]);
        assert_eq!(qualified_name("/b"), ["prefix part must be non-empty"]);
        assert_eq!(config_key("..x"), ["must not start with '..'"]);
    }

    #[test]
    fn selectors_match_by_all_their_requirements() {
        let selector = json!({ "matchLabels": { "a": "1" }, "matchExpressions": [
            { "key": "b", "operator": "NotIn", "values": ["x"] }, { "key": "c", "operator": "Exists" } ] });
        assert!(selector_matches(&selector, &json!({ "a": "1", "c": "" })));
        assert!(!selector_matches(&selector, &json!({ "a": "1" })));
        assert!(!selector_matches(
            &selector,
            &json!({ "a": "1", "b": "x", "c": "" })
        ));
    }
}
