//! The scenarios of Kubernetes' own tests, on built-in kinds and on objects without a schema.

mod apply;
mod apply_edges;
mod hostile;
mod laws;
mod lists;
mod update;

use serde_json::{Value, json};

use super::managers::Managers;
use super::*;
use crate::resource::GroupVersionKind;
use crate::schema::Schemas;

/// One object and those who write it, second after second.
pub struct World {
    pub schema: Option<Schema>,
    pub api_version: &'static str,
    pub kind: &'static str,
    pub subresource: Option<&'static str>,
    pub reset: FieldSet,
    pub stamp: Stamp,
    pub live: Option<Value>,
    pub second: u32,
}

pub fn schema(group: &str, kind: &str) -> Schema {
    let gvk = GroupVersionKind {
        group: group.into(),
        version: "v1".into(),
        kind: kind.into(),
    };
    Schemas::builtin()
        .find(&gvk)
        .expect("a built-in kind")
        .clone()
}

/// The paths of a set, one beside the other.
pub fn paths(set: &FieldSet) -> String {
    let paths: Vec<String> = set
        .paths()
        .iter()
        .map(|path| set::print_path(path))
        .collect();
    paths.join(" ")
}

pub fn set(fields: Value) -> FieldSet {
    FieldSet::parse(&fields).expect("FieldsV1")
}

impl World {
    pub fn of(group: &str, api_version: &'static str, kind: &'static str) -> Self {
        Self {
            schema: Some(schema(group, kind)),
            api_version,
            kind,
            ..Self::custom()
        }
    }

    pub fn pod() -> Self {
        Self::of("", "v1", "Pod")
    }

    pub fn config_map() -> Self {
        Self::of("", "v1", "ConfigMap")
    }

    /// An object without a schema.
    pub fn custom() -> Self {
        Self {
            schema: None,
            api_version: "example.org/v1",
            kind: "Thing",
            subresource: None,
            reset: FieldSet::default(),
            stamp: Stamp::NewFields,
            live: None,
            second: 0,
        }
    }

    /// The object with its kind and its name.
    fn whole(&self, mut object: Value) -> Value {
        object["apiVersion"] = self.api_version.into();
        object["kind"] = self.kind.into();
        object["metadata"]["name"] = "one".into();
        object["metadata"]["namespace"] = "default".into();
        object
    }

    fn write<T>(&mut self, name: &str, act: impl FnOnce(&Write<'_>, Option<&Value>) -> T) -> T {
        self.second += 1;
        let now = format!("2026-01-01T00:00:{:02}Z", self.second);
        let manager = Manager {
            name: name.into(),
            api_version: self.api_version.into(),
        };
        let write = Write {
            schema: self.schema.as_ref(),
            subresource: self.subresource,
            manager: &manager,
            reset: &self.reset,
            now: &now,
            stamp: self.stamp,
            convert: &|_, _| None,
        };
        act(&write, self.live.as_ref())
    }

    pub fn try_apply(&mut self, name: &str, config: Value, force: bool) -> Result<bool, String> {
        let config = self.whole(config);
        let applied = self.write(name, |write, live| applied(write, live, &config, force));
        let applied = applied.map_err(|err| err.to_string())?;
        self.live = Some(applied.object);
        Ok(applied.changed)
    }

    pub fn apply(&mut self, name: &str, config: Value) -> bool {
        self.try_apply(name, config, false)
            .unwrap_or_else(|err| panic!("{name}: {err}"))
    }

    pub fn force(&mut self, name: &str, config: Value) -> bool {
        self.try_apply(name, config, true)
            .unwrap_or_else(|err| panic!("{name}: {err}"))
    }

    /// Creates the object, or puts another in its place.
    pub fn update(&mut self, name: &str, object: Value) {
        let mut object = self.whole(object);
        if let Some(live) = &self.live {
            object["metadata"]["uid"] = live["metadata"]["uid"].clone();
        } else {
            object["metadata"]["uid"] = "u-1".into();
        }
        self.write(name, |write, live| updated(write, live, &mut object));
        self.live = Some(object);
    }

    /// What the live object has, but for its kind and its metadata.
    pub fn object(&self) -> Value {
        let mut object = self.live.clone().expect("an object");
        let fields = object.as_object_mut().expect("an object");
        for name in ["apiVersion", "kind", "metadata"] {
            fields.remove(name);
        }
        object
    }

    pub fn managers(&self) -> Managers {
        let live = self.live.as_ref().expect("an object");
        managers::of(live).map_or_else(Managers::default, |list| {
            Managers::parse(list).expect("valid entries")
        })
    }

    /// What a manager owns; empty if it has no entry.
    pub fn owns(&self, name: &str) -> String {
        let managers = self.managers();
        let of: Vec<String> = managers
            .entries
            .iter()
            .filter(|(identity, _)| identity.manager == name)
            .map(|(_, entry)| paths(&entry.set))
            .collect();
        of.join(" | ")
    }

    pub fn time(&self, name: &str) -> Option<String> {
        let managers = self.managers();
        let (_, entry) = managers
            .entries
            .iter()
            .find(|(identity, _)| identity.manager == name)?;
        entry.time.clone()
    }
}

/// A pod with these containers.
pub fn containers(list: Value) -> Value {
    json!({ "spec": { "containers": list } })
}
