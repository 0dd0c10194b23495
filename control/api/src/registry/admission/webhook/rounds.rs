//! Which webhooks are called again (apiserver, `plugin/webhook/mutating/reinvocationcontext.go`).
//!
//! When a webhook has changed an object, all mutating plugins look at it once more: in-tree plugins always, a webhook only if its
//! reinvocationPolicy is `IfNeeded`, it was called in the first round, and something changed the object after it.

use std::collections::BTreeSet;

use serde_json::Value;

/// What one request remembers of its rounds.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    second: bool,
    called: BTreeSet<String>,
    due: BTreeSet<String>,
    output: Option<Value>,
}

impl Rounds {
    /// Starts the second round.
    pub fn start_second(&mut self) {
        self.second = true;
    }

    /// Notes, at the start of the webhooks' turn, whether other plugins changed the object since the webhooks saw it.
    pub fn resume(&mut self, object: Option<&Value>) {
        if self.second && self.output.as_ref() != object {
            self.changed();
        }
    }

    /// Keeps the object as the webhooks of the first round left it.
    pub fn pause(&mut self, object: Option<&Value>) {
        if !self.second {
            self.output = object.cloned();
        }
    }

    /// Whether the webhook is to be called in this round.
    pub fn wants(&self, hook: &str) -> bool {
        !self.second || self.due.contains(hook)
    }

    /// The object changed: those called before have not seen this.
    pub fn changed(&mut self) {
        self.due.append(&mut self.called);
    }

    /// A webhook was called that may be called again.
    pub fn called(&mut self, hook: &str) {
        self.called.insert(hook.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_webhooks_before_a_change_are_called_again() {
        let mut rounds = Rounds::default();
        rounds.called("a");
        rounds.changed();
        rounds.called("b");
        let object = json!({ "x": 1 });
        rounds.pause(Some(&object));
        rounds.start_second();
        rounds.resume(Some(&object));
        assert!(rounds.wants("a"), "b changed the object after a");
        assert!(!rounds.wants("b"), "nothing changed after b");
        assert!(!rounds.wants("c"), "c was not called before");
    }

    #[test]
    fn a_change_by_another_plugin_makes_all_of_them_due() {
        let mut rounds = Rounds::default();
        rounds.called("a");
        rounds.pause(Some(&json!({ "x": 1 })));
        rounds.start_second();
        rounds.resume(Some(&json!({ "x": 2 })));
        assert!(rounds.wants("a"));
    }
}
