//! The class that is marked as the default one; of several the newest.

use serde_json::Value;

use crate::registry::{Registry, meta};

/// The name of the class of this collection that one of the annotations marks.
///
/// A class that was made later takes over; of those of one second, the first by name does.
pub(super) fn find(registry: &Registry, prefix: &str, annotations: &[&str]) -> Option<String> {
    let entries = registry.collection(prefix)?.snapshot("", "").entries;
    let classes: Vec<Value> = entries.iter().map(|entry| entry.parse()).collect();
    newest(&classes, annotations)
}

fn newest(classes: &[Value], annotations: &[&str]) -> Option<String> {
    let marked = |class: &&Value| {
        let present = &class["metadata"]["annotations"];
        annotations.iter().any(|key| present[*key] == "true")
    };
    let mut newest: Option<&Value> = None;
    for class in classes.iter().filter(marked) {
        let key = |class| {
            (
                meta::text(class, "creationTimestamp"),
                meta::text(class, "name"),
            )
        };
        let (made, name) = key(class);
        // Timestamps have one form, in which their order is that of their text.
        let wins = newest
            .map(key)
            .is_none_or(|(other, other_name)| made > other || made == other && name < other_name);
        if wins {
            newest = Some(class);
        }
    }
    newest.map(|class| meta::text(class, "name").to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_of_the_marked_classes_is_the_default() {
        let class = |name: &str, made: &str, mark: &str| json!({ "metadata": { "name": name, "creationTimestamp": made, "annotations": { "default": mark } } });
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        for (classes, expected) in [
            (vec![], None),
            (vec![class("a", old, "false")], None),
            (
                vec![class("a", old, "true"), class("b", new, "false")],
                Some("a"),
            ),
            (
                vec![class("a", old, "true"), class("b", new, "true")],
                Some("b"),
            ),
            (
                vec![class("b", new, "true"), class("a", new, "true")],
                Some("a"),
            ),
        ] {
            let found = newest(&classes, &["default", "beta"]);
            assert_eq!(found.as_deref(), expected, "{classes:?}");
        }
    }
}
