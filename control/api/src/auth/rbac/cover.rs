//! Which of a role's rights somebody lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::rules::{ALL, PolicyRule, has, url_covers};

/// How many comparisons of strings [`uncovered`] makes at most.
///
/// Ordinary roles need some hundred thousand. A role that somebody writes to exhaust the server needs more than anybody
/// could wait for: four lists of a thousand words are 10^12 combinations.
const MAX_COMPARISONS: usize = 10_000_000;

/// How many missing rules [`uncovered`] lists one by one.
const MAX_MISSING: usize = 2_000;

/// What it costs to make one combination, counted in comparisons: it allocates.
const COMBINATION: usize = 16;

/// What `wanted` allows and `owner` does not, as rules of one verb, one resource and at most one name each.
///
/// The work is bounded. A rule with too many combinations to try counts as uncovered and is returned as it is; only an owner
/// of whom a single rule allows all of it has it even then, as an administrator does.
pub fn uncovered(owner: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut comparisons = 0_usize;
    let mut missing: Vec<PolicyRule> = Vec::new();
    for rule in wanted {
        // A rule for paths and for named resources at once is two rules, of which each needs its own answer.
        let uniform = rule.non_resource_urls.is_empty() || rule.resource_names.is_empty();
        let mut covers = |rule: &PolicyRule| {
            for own in owner {
                comparisons = comparisons.saturating_add(cost(own, rule));
                if comparisons > MAX_COMPARISONS {
                    return None;
                }
                if rule_covers(own, rule) {
                    return Some(true);
                }
            }
            comparisons = comparisons.saturating_add(COMBINATION);
            Some(false)
        };
        if uniform && covers(rule) == Some(true) {
            continue;
        }
        let before = missing.len();
        let tried = each_combination(rule, |single| {
            match covers(&single) {
                Some(true) => {}
                Some(false) if missing.len() < MAX_MISSING => missing.push(single),
                Some(false) | None => return ControlFlow::Break(()),
            }
            ControlFlow::Continue(())
        });
        if tried.is_break() {
            missing.truncate(before);
            missing.push(rule.clone());
        }
    }
    missing
}

/// The short texts of rules, sorted and each once; rules that differ only in their verbs become one.
pub fn describe(rules: &[PolicyRule]) -> Vec<String> {
    let mut texts: BTreeSet<String> = BTreeSet::new();
    let mut simple: BTreeMap<(&str, &str), PolicyRule> = BTreeMap::new();
    for rule in rules {
        match (&*rule.api_groups, &*rule.resources) {
            ([group], [resource])
                if rule.resource_names.is_empty() && rule.non_resource_urls.is_empty() =>
            {
                simple
                    .entry((group, resource))
                    .and_modify(|known| known.verbs.extend(rule.verbs.iter().cloned()))
                    .or_insert_with(|| rule.clone());
            }
            _ => {
                texts.insert(rule.to_string());
            }
        }
    }
    texts.extend(simple.values().map(ToString::to_string));
    texts.into_iter().collect()
}

/// Calls `visit` with every combination of a rule's words, one of each list, until it breaks.
fn each_combination(
    rule: &PolicyRule,
    mut visit: impl FnMut(PolicyRule) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let one = |word: &String| vec![word.clone()];
    for group in &rule.api_groups {
        for resource in &rule.resources {
            for verb in &rule.verbs {
                let single = PolicyRule {
                    verbs: one(verb),
                    api_groups: one(group),
                    resources: one(resource),
                    ..PolicyRule::default()
                };
                if rule.resource_names.is_empty() {
                    visit(single)?;
                    continue;
                }
                for name in &rule.resource_names {
                    visit(PolicyRule {
                        resource_names: one(name),
                        ..single.clone()
                    })?;
                }
            }
        }
    }
    for url in &rule.non_resource_urls {
        for verb in &rule.verbs {
            visit(PolicyRule {
                verbs: one(verb),
                non_resource_urls: one(url),
                ..PolicyRule::default()
            })?;
        }
    }
    ControlFlow::Continue(())
}

/// Whether `own` allows everything that `rule` allows.
fn rule_covers(own: &PolicyRule, rule: &PolicyRule) -> bool {
    let all_in = |own: &[String], wanted: &[String]| {
        has(own, ALL) || wanted.iter().all(|word| has(own, word))
    };
    let names = if rule.resource_names.is_empty() {
        own.resource_names.is_empty()
    } else {
        own.resource_names.is_empty()
            || rule
                .resource_names
                .iter()
                .all(|name| has(&own.resource_names, name))
    };
    names
        && all_in(&own.verbs, &rule.verbs)
        && all_in(&own.api_groups, &rule.api_groups)
        && rule
            .resources
            .iter()
            .all(|resource| covers_resource(&own.resources, resource))
        && rule
            .non_resource_urls
            .iter()
            .all(|url| own.non_resource_urls.iter().any(|own| url_covers(own, url)))
}

/// Whether one of a rule's resources stands for a resource of another rule.
fn covers_resource(own: &[String], resource: &str) -> bool {
    own.iter().any(|own| {
        own == ALL
            || own == resource
            || matches!(
                (own.strip_prefix("*/"), resource.split_once('/')),
                (Some(own), Some((_, wanted))) if own == wanted
            )
    })
}

/// How many comparisons [`rule_covers`] makes at most.
fn cost(own: &PolicyRule, rule: &PolicyRule) -> usize {
    [
        (&own.verbs, &rule.verbs),
        (&own.api_groups, &rule.api_groups),
        (&own.resources, &rule.resources),
        (&own.resource_names, &rule.resource_names),
        (&own.non_resource_urls, &rule.non_resource_urls),
    ]
    .iter()
    .map(|(own, wanted)| {
        if own.first().is_some_and(|word| word == ALL) {
            1
        } else {
            own.len().saturating_mul(wanted.len())
        }
    })
    .fold(1, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(prefix: &str, count: usize) -> Vec<String> {
        (0..count)
            .map(|number| format!("{prefix}{number}"))
            .collect()
    }

    /// Rules, each `verbs groups resources [names]` or `verbs urls paths`, between semicolons; `core` is the empty group.
    fn rules(text: &str) -> Vec<PolicyRule> {
        let list = |word: &str| -> Vec<String> {
            word.split(',')
                .map(|word| word.replace("core", ""))
                .collect()
        };
        text.split(';')
            .filter(|rule| !rule.is_empty())
            .map(
                |rule| match rule.split_whitespace().collect::<Vec<_>>()[..] {
                    [verbs, "urls", urls] => PolicyRule {
                        verbs: list(verbs),
                        non_resource_urls: list(urls),
                        ..PolicyRule::default()
                    },
                    [verbs, groups, resources, ref names @ ..] => PolicyRule {
                        verbs: list(verbs),
                        api_groups: list(groups),
                        resources: list(resources),
                        resource_names: names.first().map(|names| list(names)).unwrap_or_default(),
                        ..PolicyRule::default()
                    },
                    _ => panic!("{rule}"),
                },
            )
            .collect()
    }

    #[test]
    #[rustfmt::skip] // One case a line.
    fn what_is_missing_is_found_word_by_word() {
        for (owner, wanted, missing) in [
            ("", "", ""),
            ("", "get core pods", "get core pods"),
            ("get core pods", "get core pods", ""),
            ("get,list core pods", "get core pods", ""),
            ("get core pods", "get,list core pods", "list core pods"),
            ("get core pods;list core pods", "get,list core pods", ""),
            ("get core pods;get apps deployments", "get core,apps pods,deployments", "get core deployments;get apps pods"),
            ("* * *", "get,list core,apps pods,pods/exec a", ""),
            ("get * *", "* core pods", "* core pods"),
            ("get core *", "get * pods", "get * pods"),
            ("get * */scale", "get apps deployments/scale,deployments", "get apps deployments"),
            ("get core pods/scale", "get core */scale", "get core */scale"),
            ("get core pods a,b", "get core pods a", ""),
            ("get core pods a", "get core pods a,b", "get core pods b"),
            ("get core pods a", "get core pods", "get core pods"),
            ("get core pods", "get core pods a", ""),
            ("get urls /api/*", "get urls /api/v1,/apis", "get urls /apis"),
            ("get urls *", "get urls /api,/api/*", ""),
            ("get urls /api/*", "get urls /api/v1/*", ""),
            ("get urls /api/v1/*", "get urls /api/*", "get urls /api/*"),
            ("* * *", "get urls /api", "get urls /api"),
            ("* urls *", "get core pods", "get core pods"),
        ] {
            assert_eq!(uncovered(&rules(owner), &rules(wanted)), rules(missing), "{owner} | {wanted}");
        }
    }

    #[test]
    fn a_rule_for_paths_and_names_is_two_rules() {
        let both = PolicyRule {
            non_resource_urls: vec!["/a".to_owned()],
            ..rules("get core pods x").remove(0)
        };
        let same = std::slice::from_ref(&both);
        assert_eq!(uncovered(same, same), rules("get urls /a"));
    }

    #[test]
    fn huge_rules_end_in_bounded_time() {
        let huge = PolicyRule {
            verbs: words("v", 3_000),
            api_groups: words("g", 3_000),
            resources: words("r", 3_000),
            resource_names: words("n", 3_000),
            non_resource_urls: Vec::new(),
        };
        let wanted = [huge.clone(), huge.clone()];
        assert_eq!(uncovered(&[], &wanted), wanted);
        // Every combination is allowed, but only by rules that together are too many to try.
        let halves: Vec<PolicyRule> = huge
            .verbs
            .chunks(1_500)
            .map(|verbs| PolicyRule {
                verbs: verbs.to_vec(),
                ..huge.clone()
            })
            .collect();
        assert_eq!(uncovered(&halves, &wanted), wanted);
        assert!(uncovered(&rules("* * *"), &wanted).is_empty());
        let behind: Vec<PolicyRule> = [rules("get core pods"), rules("* * *")].concat();
        assert!(uncovered(&behind, &wanted).is_empty());
        // The bound is for all rules together, so a long list of rules is no way around it.
        let many = vec![huge; 50];
        assert_eq!(uncovered(&halves, &many).len(), 50);
    }

    #[test]
    fn many_missing_rules_are_listed_as_they_are() {
        let wide = PolicyRule {
            verbs: words("v", 100),
            resources: words("r", 100),
            ..rules("x core x").remove(0)
        };
        assert_eq!(uncovered(&[], std::slice::from_ref(&wide)), [wide]);
    }

    #[test]
    #[rustfmt::skip] // One text a line.
    fn descriptions_join_the_verbs_of_a_resource() {
        let missing = uncovered(&[], &rules("list,get apps deployments;get core pods x;get urls /b,/a;watch apps deployments"));
        assert_eq!(describe(&missing), [
            r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["x"], Verbs:["get"]}"#,
            r#"{APIGroups:["apps"], Resources:["deployments"], Verbs:["list" "get" "watch"]}"#,
            r#"{NonResourceURLs:["/a"], Verbs:["get"]}"#,
            r#"{NonResourceURLs:["/b"], Verbs:["get"]}"#,
        ]);
        assert!(describe(&[]).is_empty());
    }
}
