//! Label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// A label selector, as a view on the API's own type.
#[derive(Clone, Copy, Debug)]
pub struct Selector<'a>(pub &'a LabelSelector);

impl Selector<'_> {
    /// Whether it has no condition at all, and so would match everything.
    pub fn is_empty(self) -> bool {
        self.0.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
            && self.0.match_expressions.as_ref().is_none_or(Vec::is_empty)
    }

    /// Whether the labels fulfil every condition.
    pub fn matches(self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let get = |key: &str| labels.and_then(|labels| labels.get(key));
        (self.0.match_labels.iter().flatten()).all(|(key, value)| get(key) == Some(value))
            && self
                .0
                .match_expressions
                .iter()
                .flatten()
                .all(|rule| fulfils(rule, get(&rule.key)))
    }
}

/// One condition. Source: Kubernetes, "Labels and Selectors": `NotIn` and `DoesNotExist` also match objects without the key.
fn fulfils(rule: &LabelSelectorRequirement, value: Option<&String>) -> bool {
    let listed = || value.is_some_and(|value| rule.values.iter().flatten().any(|one| one == value));
    match rule.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_means_what_the_api_says() {
        let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
        let rule = |key: &str, operator: &str, values: &[&str]| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|text| (*text).to_owned()).collect()),
            }]),
            ..LabelSelector::default()
        };
        for (key, operator, values, expected) in [
            ("app", "In", &["web", "db"][..], true),
            ("app", "In", &["db"], false),
            ("app", "NotIn", &["db"], true),
            ("app", "NotIn", &["web"], false),
            ("tier", "NotIn", &["web"], true),
            ("app", "Exists", &[], true),
            ("tier", "Exists", &[], false),
            ("tier", "DoesNotExist", &[], true),
            ("app", "Strange", &["web"], false),
        ] {
            let selector = rule(key, operator, values);
            assert_eq!(
                Selector(&selector).matches(Some(&labels)),
                expected,
                "{key} {operator} {values:?}"
            );
        }
        assert!(Selector(&LabelSelector::default()).is_empty());
    }
}
