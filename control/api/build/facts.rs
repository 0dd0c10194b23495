//! Reads `src/schema/facts.txt`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// What is known of one field beyond its schema.
#[derive(Clone, Debug, Default)]
pub struct Field {
    pub name: String,
    /// `atomic`, `set`, `map` or empty; a map or a struct can be `atomic` too.
    pub list: String,
    /// The keys of a list of type `map`.
    pub keys: Vec<String>,
    pub strategy: String,
    pub merge_key: String,
    /// `=JSON` where only a missing field gets it, `?JSON` where a zero value does too.
    pub default: String,
    /// Whether it is a pointer in Go, where its default says otherwise.
    pub pointer: bool,
}

/// All facts, by definition.
pub struct Facts(BTreeMap<String, Vec<Field>>);

/// Stands for the type itself where a field's name is expected.
const ITSELF: &str = ".";

/// One line is `type field word…`; the words are `atomic`, `set`, `map=k1,k2`, `merge[=key]`, `strategy=…`, `=default`, `?default` and
/// `pointer`.
pub fn parse(text: &str) -> Facts {
    let mut all: BTreeMap<String, Vec<Field>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (Some(kind), Some(names)) = (words.next(), words.next()) else {
            continue;
        };
        let words: Vec<&str> = words.collect();
        for kind in kind.split('|') {
            for name in names.split('|') {
                let fields = all.entry(full_name(kind)).or_default();
                let index = fields
                    .iter()
                    .position(|f| f.name == name)
                    .unwrap_or_else(|| {
                        fields.push(Field {
                            name: name.into(),
                            ..Field::default()
                        });
                        fields.len() - 1
                    });
                words.iter().for_each(|word| fields[index].add(word, line));
            }
        }
    }
    Facts(all)
}

fn full_name(kind: &str) -> String {
    let package = match kind.split('.').next() {
        Some("meta") => "apimachinery.pkg.apis",
        Some("apiextensions") => "apiextensions-apiserver.pkg.apis",
        Some("apiregistration") => "kube-aggregator.pkg.apis",
        _ => "api",
    };
    format!("io.k8s.{package}.{kind}")
}

impl Field {
    fn add(&mut self, word: &str, line: &str) {
        if word.starts_with('=') || word.starts_with('?') {
            serde_json::from_str::<Value>(&word[1..])
                .ok()
                .filter(|value| !value.is_null())
                .or_else(|| word[1..].starts_with('@').then_some(Value::Null))
                .unwrap_or_else(|| panic!("a default of facts.txt is not JSON: {line}"));
            self.default = word.into();
        } else if let Some(keys) = word.strip_prefix("map=") {
            self.list = "map".into();
            self.keys = keys.split(',').map(str::to_owned).collect();
        } else if let Some(key) = word.strip_prefix("merge=") {
            self.merge_key = key.into();
            if self.strategy.is_empty() {
                self.strategy = "merge".into();
            }
        } else if let Some(strategy) = word.strip_prefix("strategy=") {
            self.strategy = strategy.into();
        } else {
            match word {
                "atomic" | "set" => self.list = word.into(),
                "pointer" => self.pointer = true,
                "merge" => self.strategy = "merge".into(),
                _ => panic!("facts.txt has an unknown word {word:?}: {line}"),
            }
        }
    }
}

impl Facts {
    pub fn field(&self, definition: &str, field: &str) -> Field {
        let found = self
            .0
            .get(definition)
            .and_then(|fields| fields.iter().find(|f| f.name == field));
        found.cloned().unwrap_or_default()
    }

    /// Whether a value of the type changes as a whole, as `x-kubernetes-map-type: atomic` says.
    pub fn is_atomic(&self, definition: &str) -> bool {
        self.field(definition, ITSELF).list == "atomic"
    }

    /// Every fact must be about a field that exists, so that a typo or a field that Kubernetes drops is seen.
    pub fn check(&self, definitions: &Map<String, Value>) -> BTreeMap<String, Vec<Field>> {
        for (name, fields) in &self.0 {
            for field in fields {
                let definition = definitions.get(name);
                let known = definition.and_then(|d| match field.name.as_str() {
                    ITSELF => Some(d),
                    name => d["properties"].get(name),
                });
                assert!(
                    known.is_some(),
                    "facts.txt names {name}.{}, which does not exist",
                    field.name
                );
            }
        }
        self.0.clone()
    }
}
