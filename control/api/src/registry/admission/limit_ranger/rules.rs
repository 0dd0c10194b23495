//! What a limit range allows: least and most, and the ratio of limit to request.

use knarr_quantity::Quantity;
use serde_json::Value;

use super::super::amounts::{self, Amounts, Basis, List};
use super::CONTAINERS;
use crate::strategy::validation::items;

/// The requests and limits that one rule is about.
#[derive(Default)]
struct Asked {
    requests: Amounts,
    limits: Amounts,
}

impl Asked {
    fn by_container(container: &Value) -> Self {
        Self {
            requests: amounts::read(&container["resources"]["requests"]),
            limits: amounts::read(&container["resources"]["limits"]),
        }
    }

    fn by_pod(pod: &Value) -> Self {
        Self {
            requests: amounts::of_pod(pod, List::Requests, Basis::Spec),
            limits: amounts::of_pod(pod, List::Limits, Basis::Spec),
        }
    }

    fn same(&self, other: &Self, resource: &str) -> bool {
        let nano = |amounts: &Amounts| amounts.get(resource).map(|amount| amount.nano());
        nano(&self.requests) == nano(&other.requests) && nano(&self.limits) == nano(&other.limits)
    }
}

/// What an object does that a limit range does not allow. What it asked for before is not looked at again.
pub fn violations(range: &Value, plural: &str, new: &Value, old: Option<&Value>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (_, limit) in items(&range["spec"]["limits"]) {
        match (limit["type"].as_str().unwrap_or_default(), plural) {
            ("Container", "pods") => {
                for (list, _) in CONTAINERS {
                    for (_, container) in items(&new["spec"][list]) {
                        let before = old.and_then(|old| {
                            items(&old["spec"][list])
                                .map(|(_, before)| before)
                                .find(|before| before["name"] == container["name"])
                        });
                        let before = before.map(Asked::by_container);
                        let asked = Asked::by_container(container);
                        check(&mut wrong, limit, &asked, before.as_ref());
                    }
                }
            }
            ("Pod", "pods") => {
                let before = old.map(Asked::by_pod);
                check(&mut wrong, limit, &Asked::by_pod(new), before.as_ref());
            }
            ("PersistentVolumeClaim", "persistentvolumeclaims") => {
                let requests = |claim: &Value| Asked {
                    requests: amounts::read(&claim["spec"]["resources"]["requests"]),
                    limits: Amounts::new(),
                };
                let before = old.map(requests);
                check(&mut wrong, limit, &requests(new), before.as_ref());
            }
            _ => {}
        }
    }
    wrong
}

fn check(wrong: &mut Vec<String>, limit: &Value, asked: &Asked, before: Option<&Asked>) {
    let kind = limit["type"].as_str().unwrap_or_default();
    for (field, rule) in [
        ("min", least as Rule),
        ("max", most as Rule),
        ("maxLimitRequestRatio", ratio as Rule),
    ] {
        // A claim has no limits.
        if field == "maxLimitRequestRatio" && kind == "PersistentVolumeClaim" {
            continue;
        }
        for (resource, bound) in amounts::read(&limit[field]) {
            let unchanged = before.is_some_and(|before| {
                asked.same(before, &resource)
                    && (kind != "PersistentVolumeClaim" || asked.requests.contains_key(&resource))
            });
            if !unchanged {
                let request = asked.requests.get(&resource).copied();
                let limit = asked.limits.get(&resource).copied();
                wrong.extend(rule(kind, &resource, bound, request, limit));
            }
        }
    }
}

/// What is wrong with a request and a limit, for a kind of object and a resource.
type Rule = fn(&str, &str, Quantity, Option<Quantity>, Option<Quantity>) -> Option<String>;

fn least(
    kind: &str,
    resource: &str,
    min: Quantity,
    request: Option<Quantity>,
    limit: Option<Quantity>,
) -> Option<String> {
    let what = format!("minimum {resource} usage per {kind} is {min}");
    match (request, limit) {
        (None, _) => Some(format!("{what}.  No request is specified")),
        (Some(request), _) if request.nano() < min.nano() => {
            Some(format!("{what}, but request is {request}"))
        }
        (_, Some(limit)) if limit.nano() < min.nano() => {
            Some(format!("{what}, but limit is {limit}"))
        }
        _ => None,
    }
}

fn most(
    kind: &str,
    resource: &str,
    max: Quantity,
    request: Option<Quantity>,
    limit: Option<Quantity>,
) -> Option<String> {
    let what = format!("maximum {resource} usage per {kind} is {max}");
    let of_claim = kind == "PersistentVolumeClaim";
    match (request, limit) {
        (None, _) if of_claim => Some(format!("{what}.  No request is specified")),
        (_, None) if !of_claim => Some(format!("{what}.  No limit is specified")),
        (_, Some(limit)) if limit.nano() > max.nano() => {
            Some(format!("{what}, but limit is {limit}"))
        }
        (Some(request), _) if request.nano() > max.nano() => {
            Some(format!("{what}, but request is {request}"))
        }
        _ => None,
    }
}

fn ratio(
    kind: &str,
    resource: &str,
    max: Quantity,
    request: Option<Quantity>,
    limit: Option<Quantity>,
) -> Option<String> {
    let what = format!("{resource} max limit to request ratio per {kind} is {max}");
    let nano = |amount: Option<Quantity>| {
        let nano = amount.map_or(0, Quantity::nano).abs();
        (nano != 0).then_some(nano)
    };
    let Some(request) = nano(request) else {
        return Some(format!(
            "{what}, but no request is specified or request is 0"
        ));
    };
    let Some(limit) = nano(limit) else {
        return Some(format!("{what}, but no limit is specified or limit is 0"));
    };
    // A product that does not fit is larger than any limit.
    let allowed = request.checked_mul(max.nano());
    let exceeded = allowed.is_some_and(|allowed| limit * 1_000_000_000 > allowed);
    exceeded.then(|| format!("{what}, but provided ratio is {}", decimals(limit, request)))
}

/// A quotient with six decimals, rounded half to even.
pub(super) fn decimals(dividend: i128, divisor: i128) -> String {
    let millionths = dividend * 1_000_000;
    let (mut quotient, rest) = (millionths / divisor, millionths % divisor);
    let half = (rest * 2).cmp(&divisor);
    if half.is_gt() || half.is_eq() && quotient % 2 == 1 {
        quotient += 1;
    }
    format!("{}.{:06}", quotient / 1_000_000, quotient % 1_000_000)
}
