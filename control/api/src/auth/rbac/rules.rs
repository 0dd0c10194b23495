//! The rules of a role, and what they allow.

use std::fmt;

use serde_json::{Map, Value};

use crate::auth::authorize::Attributes;

/// What stands for everything in a list of verbs, groups, resources or paths.
pub(super) const ALL: &str = "*";

/// One rule of a role: verbs on resources, or on paths that are no resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyRule {
    /// `get`, `list`, …, or `*`.
    pub verbs: Vec<String>,
    /// The groups of the resources; the core group is empty, `*` is every group.
    pub api_groups: Vec<String>,
    /// `pods`, `pods/exec`, `*/scale` for that subresource of everything, or `*`.
    pub resources: Vec<String>,
    /// The names for which the rule holds; all if there is none.
    pub resource_names: Vec<String>,
    /// Paths such as `/version`; a `*` at the end stands for every continuation.
    pub non_resource_urls: Vec<String>,
}

impl PolicyRule {
    /// Reads a rule.
    ///
    /// A rule that is not well formed allows nothing: if only its wrong parts were left out, a rule whose `resourceNames`
    /// cannot be read would hold for every name.
    pub fn parse(rule: &Value) -> Self {
        Self::try_parse(rule).unwrap_or_default()
    }

    /// Reads a rule, if it is well formed.
    pub fn try_parse(rule: &Value) -> Option<Self> {
        let rule = rule.as_object()?;
        Some(Self {
            verbs: strings(rule, "verbs")?,
            api_groups: strings(rule, "apiGroups")?,
            resources: strings(rule, "resources")?,
            resource_names: strings(rule, "resourceNames")?,
            non_resource_urls: strings(rule, "nonResourceURLs")?,
        })
    }

    /// Reads a role's `rules`; a missing list has no rules.
    pub fn parse_all(rules: &Value) -> Vec<Self> {
        rules
            .as_array()
            .into_iter()
            .flatten()
            .map(Self::parse)
            .collect()
    }

    /// The rule as the API has it: without its empty lists, except that of the verbs.
    pub fn to_json(&self) -> Value {
        let mut rule = Map::new();
        rule.insert("verbs".to_owned(), self.verbs.clone().into());
        for (key, list) in [
            ("apiGroups", &self.api_groups),
            ("resources", &self.resources),
            ("resourceNames", &self.resource_names),
            ("nonResourceURLs", &self.non_resource_urls),
        ] {
            if !list.is_empty() {
                rule.insert(key.to_owned(), list.clone().into());
            }
        }
        rule.into()
    }

    /// Whether the rule allows a request.
    pub fn allows(&self, attributes: &Attributes<'_>) -> bool {
        if !has_or_all(&self.verbs, attributes.verb) {
            return false;
        }
        if attributes.resource.is_empty() {
            return self
                .non_resource_urls
                .iter()
                .any(|url| url_covers(url, attributes.path));
        }
        has_or_all(&self.api_groups, attributes.group)
            && self
                .resources
                .iter()
                .any(|resource| resource_matches(resource, attributes))
            && (self.resource_names.is_empty() || has(&self.resource_names, attributes.name))
    }
}

/// The short text of messages about escalation: `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}`.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        let mut separator = "";
        for (name, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                write!(f, "{separator}{name}:{}", quoted(list))?;
                separator = ", ";
            }
        }
        f.write_str("}")
    }
}

/// A list as Go prints it with `%q`: `["a" "b"]`.
pub(super) fn quoted(list: &[String]) -> String {
    let words: Vec<String> = list.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

/// The strings of a list; none if it is missing, no list at all if something else stands there.
fn strings(object: &Map<String, Value>, key: &str) -> Option<Vec<String>> {
    match object.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|word| word.as_str().map(str::to_owned))
            .collect(),
        Some(_) => None,
    }
}

pub(super) fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|own| own == word)
}

fn has_or_all(list: &[String], word: &str) -> bool {
    list.iter().any(|own| own == ALL || own == word)
}

/// Whether a path of a rule stands for `path`, which is a path or a path of another rule.
pub(super) fn url_covers(own: &str, path: &str) -> bool {
    own == path || (own.ends_with('*') && path.starts_with(own.trim_end_matches('*')))
}

/// Whether a resource of a rule is that of the request; nothing is allocated to compare `pods` and `exec` to `pods/exec`.
fn resource_matches(own: &str, attributes: &Attributes<'_>) -> bool {
    if own == ALL {
        return true;
    }
    if attributes.subresource.is_empty() {
        return own == attributes.resource;
    }
    [ALL, attributes.resource].iter().any(|resource| {
        own.strip_prefix(resource)
            .and_then(|rest| rest.strip_prefix('/'))
            == Some(attributes.subresource)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A request: verb, group, resource, subresource and name, or a verb and a path.
    fn request(words: &str) -> Attributes<'_> {
        match words.split(' ').collect::<Vec<_>>()[..] {
            [verb, path] => Attributes {
                verb,
                path,
                ..Attributes::default()
            },
            [verb, group, resource, subresource, name] => Attributes {
                verb,
                group: group.trim_matches('-'),
                resource,
                subresource: subresource.trim_matches('-'),
                name: name.trim_matches('-'),
                ..Attributes::default()
            },
            _ => panic!("{words}"),
        }
    }

    #[test]
    #[rustfmt::skip] // One case a line.
    fn a_rule_allows_what_all_its_lists_name() {
        let pods = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] });
        let log = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods/log"] });
        let scale = json!({ "verbs": ["get"], "apiGroups": ["*"], "resources": ["*/scale"] });
        let everything = json!({ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] });
        let named = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["a", "b"] });
        let urls = json!({ "verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*", "/x**"] });
        let any_url = json!({ "verbs": ["*"], "nonResourceURLs": ["*"] });
        let odd = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods/*", "*/", "/"] });
        for (rule, words, allowed) in [
            (&pods, "get - pods - a", true),
            (&pods, "list - pods - a", false),
            (&pods, "get apps pods - a", false),
            (&pods, "get - services - a", false),
            (&pods, "get - pods log a", false),
            (&pods, "get /pods", false),
            (&log, "get - pods log a", true),
            (&log, "get - pods - a", false),
            (&log, "get - pods exec a", false),
            (&log, "get - podsx log a", false),
            (&scale, "get apps deployments scale a", true),
            (&scale, "get apps deployments - a", false),
            (&scale, "get apps deployments scales a", false),
            (&scale, "get apps deployments cale a", false),
            (&everything, "escalate a.b c d e", true),
            (&everything, "get /healthz", false),
            (&named, "get - pods - b", true),
            (&named, "get - pods - c", false),
            (&named, "get - pods - -", false),
            (&urls, "get /healthz", true),
            (&urls, "get /healthz/", false),
            (&urls, "get /apis/a/b", true),
            (&urls, "get /apis", false),
            (&urls, "get /xy", true),
            (&urls, "post /healthz", false),
            (&urls, "get - pods - a", false),
            (&any_url, "delete /a", true),
            (&any_url, "get - pods - a", false),
            (&odd, "get - pods log a", false),
            (&odd, "get - pods - a", false),
        ] {
            assert_eq!(PolicyRule::parse(rule).allows(&request(words)), allowed, "{rule} {words}");
        }
    }

    #[test]
    fn a_rule_that_is_not_well_formed_allows_nothing() {
        let words = "get - pods - a";
        let good = json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": null });
        assert!(PolicyRule::parse(&good).allows(&request(words)));
        for (field, value) in [
            ("verbs", json!("*")),
            ("verbs", json!(["get", 5])),
            ("apiGroups", json!({ "0": "" })),
            ("resources", json!([["pods"]])),
            ("resourceNames", json!([null])),
            ("resourceNames", json!("b")),
            ("resourceNames", json!({})),
            ("nonResourceURLs", json!(true)),
        ] {
            let mut rule = good.clone();
            rule[field] = value;
            assert!(!PolicyRule::parse(&rule).allows(&request(words)), "{rule}");
        }
        for rule in [json!(null), json!([]), json!("*"), json!({})] {
            assert!(!PolicyRule::parse(&rule).allows(&request(words)), "{rule}");
            assert!(
                !PolicyRule::parse(&rule).allows(&request("get /a")),
                "{rule}"
            );
        }
        for rules in [json!(null), json!({}), json!("x"), json!([])] {
            assert!(PolicyRule::parse_all(&rules).is_empty(), "{rules}");
        }
    }

    #[test]
    fn a_rule_is_written_as_it_was_read() {
        let rule = json!({ "verbs": ["get"], "apiGroups": ["", "apps"], "resources": ["a"], "resourceNames": ["n"] });
        assert_eq!(PolicyRule::parse(&rule).to_json(), rule);
        assert_eq!(PolicyRule::default().to_json(), json!({ "verbs": [] }));
        assert_eq!(
            PolicyRule::parse(&rule).to_string(),
            r#"{APIGroups:["" "apps"], Resources:["a"], ResourceNames:["n"], Verbs:["get"]}"#
        );
        let urls = json!({ "verbs": ["get", "put"], "nonResourceURLs": ["/a\"b"] });
        assert_eq!(
            PolicyRule::parse(&urls).to_string(),
            r#"{NonResourceURLs:["/a\"b"], Verbs:["get" "put"]}"#
        );
        assert_eq!(PolicyRule::default().to_string(), "{}");
    }
}
