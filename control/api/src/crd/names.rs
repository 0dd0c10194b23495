//! The status of a definition: which of its names it has, and whether its resources are served.
//!
//! Sources: apiextensions-apiserver, `controller/status/naming_controller.go`, `controller/establish`,
//! `controller/finalizer`, `controller/apiapproval`. Upstream writes `Established` in two steps, with a pause in which the
//! servers of a cluster learn of it; there is one server here.

use serde_json::{Map, Value, json};

use super::spec::{APPROVAL, is_approved, is_protected};
use crate::strategy::common::text;
use crate::strategy::validation::items;

/// The new status of a definition.
///
/// `taken` says whether another definition of the group has a name: a plural, singular, short name, kind or list kind.
/// `now` is in RFC 3339.
pub fn conditions(crd: &Value, taken: impl Fn(&str) -> bool, now: &str) -> Value {
    let mut status = match &crd["status"] {
        Value::Object(fields) => fields.clone(),
        _ => Map::new(),
    };
    let (accepted, conflict) = accept(crd, &taken);
    status.insert("acceptedNames".to_owned(), accepted);
    let mut list: Vec<Value> = items(&crd["status"]["conditions"])
        .map(|(_, condition)| condition.clone())
        .collect();
    let names_are_good = conflict.is_none();
    match conflict {
        None => set(
            &mut list,
            now,
            "NamesAccepted",
            true,
            "NoConflicts",
            "no conflicts found",
        ),
        Some((reason, message)) => {
            set(&mut list, now, "NamesAccepted", false, reason, &message);
        }
    }
    // What is established stays so: its objects are there.
    if !is_established(crd) {
        if names_are_good {
            let message = "the initial names have been accepted";
            set(
                &mut list,
                now,
                "Established",
                true,
                "InitialNamesAccepted",
                message,
            );
        } else {
            let message = "not all names are accepted";
            set(&mut list, now, "Established", false, "NotAccepted", message);
        }
    }
    approve(crd, now, &mut list);
    if !crd["metadata"]["deletionTimestamp"].is_null() {
        let message = "CustomResource deletion is in progress";
        set(
            &mut list,
            now,
            "Terminating",
            true,
            "InstanceDeletionInProgress",
            message,
        );
    }
    status.insert("conditions".to_owned(), list.into());
    Value::Object(status)
}

/// The status of a definition whose objects are all gone, so that its finalizer may go; `now` is in RFC 3339.
pub fn terminating(crd: &Value, now: &str) -> Value {
    let mut status = crd["status"].clone();
    let mut list: Vec<Value> = items(&status["conditions"])
        .map(|(_, condition)| condition.clone())
        .collect();
    let message = "removed all instances";
    set(
        &mut list,
        now,
        "Terminating",
        false,
        "InstanceDeletionCompleted",
        message,
    );
    status["conditions"] = list.into();
    status
}

/// Whether the resources of a definition are served.
pub fn is_established(crd: &Value) -> bool {
    items(&crd["status"]["conditions"])
        .any(|(_, condition)| condition["type"] == "Established" && condition["status"] == "True")
}

/// The names that a definition has from now on, and the last conflict.
fn accept(crd: &Value, taken: &impl Fn(&str) -> bool) -> (Value, Option<(&'static str, String)>) {
    let (wanted, before) = (&crd["spec"]["names"], &crd["status"]["acceptedNames"]);
    let mut accepted = json!({ "plural": "", "kind": "" });
    for (field, value) in before.as_object().into_iter().flatten() {
        accepted[field] = value.clone();
    }
    let mut conflict = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    let mut keep = |accepted: &mut Value, field: &str, reason: &'static str| {
        let (new, old) = (text(&wanted[field]), text(&before[field]));
        if new != old && taken(new) {
            conflict = Some((reason, in_use(new)));
        } else if !new.is_empty() {
            accepted[field] = new.into();
        }
    };
    keep(&mut accepted, "plural", "PluralConflict");
    keep(&mut accepted, "singular", "SingularConflict");
    keep(&mut accepted, "kind", "KindConflict");
    keep(&mut accepted, "listKind", "ListKindConflict");
    let own = |name: &str| items(&before["shortNames"]).any(|(_, known)| known == name);
    let conflicts: Vec<String> = items(&wanted["shortNames"])
        .map(|(_, name)| text(name))
        .filter(|name| !own(name) && before["plural"] != *name && before["singular"] != *name)
        .filter(|name| taken(name))
        .map(in_use)
        .collect();
    match conflicts.as_slice() {
        [] => copy(&mut accepted, wanted, "shortNames"),
        [only] => conflict = Some(("ShortNamesConflict", only.clone())),
        several => conflict = Some(("ShortNamesConflict", format!("[{}]", several.join(", ")))),
    }
    copy(&mut accepted, wanted, "categories");
    (accepted, conflict)
}

fn copy(accepted: &mut Value, wanted: &Value, field: &str) {
    match &wanted[field] {
        Value::Array(names) if !names.is_empty() => accepted[field] = wanted[field].clone(),
        _ => {
            accepted.as_object_mut().map(|fields| fields.remove(field));
        }
    }
}

/// Whether a group of Kubernetes' own is defined with approval.
fn approve(crd: &Value, now: &str, list: &mut Vec<Value>) {
    const TYPE: &str = "KubernetesAPIApprovalPolicyConformant";
    if !is_protected(text(&crd["spec"]["group"])) {
        return;
    }
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match text(&crd["metadata"]["annotations"][APPROVAL]) {
        "" => {
            let message =
                format!("protected groups must have approval annotation {APPROVAL:?}, {see}");
            set(list, now, TYPE, false, "MissingAnnotation", &message);
        }
        reason if reason.starts_with("unapproved") => {
            let message = format!("not approved: {reason:?}");
            set(list, now, TYPE, false, "UnapprovedAnnotation", &message);
        }
        page if is_approved(page) => {
            set(
                list,
                now,
                TYPE,
                true,
                "ApprovedAnnotation",
                &format!("approved in {page}"),
            );
        }
        _ => {
            let message = format!(
                "protected groups must have approval annotation {APPROVAL:?} with either a URL or a reason starting with \"unapproved\", {see}"
            );
            set(list, now, TYPE, false, "InvalidAnnotation", &message);
        }
    }
}

/// Puts a condition in its place; its time changes only with its status.
fn set(list: &mut Vec<Value>, now: &str, kind: &str, holds: bool, reason: &str, message: &str) {
    let status = if holds { "True" } else { "False" };
    let old = list.iter_mut().find(|condition| condition["type"] == kind);
    let since = match &old {
        Some(old) if old["status"] == status => old["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    let new = json!({
        "type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message,
    });
    match old {
        Some(old) => *old = new,
        None => list.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-02T03:04:05Z";

    fn crd() -> Value {
        json!({ "metadata": { "name": "widgets.example.com" }, "spec": { "group": "example.com", "names": {
            "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList", "shortNames": ["w", "wd"],
            "categories": ["all"] } }, "status": { "storedVersions": ["v1"] } })
    }

    fn condition<'v>(status: &'v Value, kind: &str) -> &'v Value {
        items(&status["conditions"])
            .map(|(_, condition)| condition)
            .find(|condition| condition["type"] == kind)
            .unwrap_or_else(|| panic!("no {kind} in {status}"))
    }

    #[test]
    fn names_that_nobody_has_are_accepted() {
        let status = conditions(&crd(), |_| false, NOW);
        assert_eq!(status["acceptedNames"], crd()["spec"]["names"]);
        assert_eq!(condition(&status, "NamesAccepted")["reason"], "NoConflicts");
        assert_eq!(condition(&status, "Established")["status"], "True");
        assert_eq!(status["storedVersions"], json!(["v1"]));
    }

    #[test]
    fn a_conflict_keeps_the_rest_and_what_is_established_stays_so() {
        let status = conditions(&crd(), |name| name == "Widget" || name == "w", NOW);
        let names = condition(&status, "NamesAccepted");
        assert_eq!(
            (&names["status"], &names["reason"]),
            (&json!("False"), &json!("ShortNamesConflict"))
        );
        assert_eq!(names["message"], "\"w\" is already in use");
        assert_eq!(status["acceptedNames"]["kind"], "");
        assert_eq!(status["acceptedNames"]["plural"], "widgets");
        assert_eq!(condition(&status, "Established")["reason"], "NotAccepted");

        let mut established = crd();
        established["status"] = conditions(&crd(), |_| false, "2026-01-01T00:00:00Z");
        established["spec"]["names"]["shortNames"] = json!(["x"]);
        let status = conditions(&established, |name| name == "x", NOW);
        assert_eq!(
            condition(&status, "NamesAccepted")["lastTransitionTime"],
            NOW
        );
        assert_eq!(
            condition(&status, "Established")["lastTransitionTime"],
            "2026-01-01T00:00:00Z"
        );
        assert_eq!(condition(&status, "Established")["status"], "True");
        assert_eq!(status["acceptedNames"]["shortNames"], json!(["w", "wd"]));
    }

    #[test]
    fn a_definition_that_goes_says_so_to_the_end() {
        let mut crd = crd();
        crd["metadata"]["deletionTimestamp"] = NOW.into();
        crd["status"] = conditions(&crd, |_| false, NOW);
        assert_eq!(condition(&crd["status"], "Terminating")["status"], "True");
        let status = terminating(&crd, NOW);
        assert_eq!(
            condition(&status, "Terminating")["reason"],
            "InstanceDeletionCompleted"
        );
    }

    #[test]
    fn groups_of_kubernetes_need_an_approval() {
        let mut crd = crd();
        crd["spec"]["group"] = "gateway.networking.k8s.io".into();
        crd["metadata"]["annotations"] =
            json!({ APPROVAL: "https://github.com/kubernetes-sigs/gateway-api/pull/1" });
        let status = conditions(&crd, |_| false, NOW);
        let approved = condition(&status, "KubernetesAPIApprovalPolicyConformant");
        assert_eq!(approved["reason"], "ApprovedAnnotation");
    }
}
