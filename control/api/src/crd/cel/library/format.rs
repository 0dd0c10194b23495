//! Named formats (apiserver, `pkg/cel/library/format.go`): `format.dns1123Label().validate(self)` lists mistakes.

use std::sync::Arc;

use super::super::eval::Outcome;
use super::super::value::Val;
use crate::crd::formats;
use crate::strategy::validation;

/// A format by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named(&'static str);

const NAMES: [&str; 10] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

fn named(name: &str) -> Option<Named> {
    NAMES
        .iter()
        .find(|known| **known == name)
        .map(|name| Named(name))
}

/// Calls a function; nothing for one that is not here.
pub fn call(name: &str, arguments: &[Val]) -> Option<Outcome> {
    match (name, arguments) {
        ("format.named", [Val::String(name)]) => {
            let found = named(name).map(|format| Arc::new(Val::Format(format)));
            Some(Ok(Val::Optional(found)))
        }
        ("validate", [Val::Format(format), Val::String(text)]) => {
            let mistakes = mistakes(*format, text);
            let list = || Arc::new(mistakes.iter().map(|text| Val::from(&**text)).collect());
            Some(Ok(Val::Optional((!mistakes.is_empty()).then(list))))
        }
        (name, []) => named(name.strip_prefix("format.")?).map(|format| Ok(Val::Format(format))),
        _ => None,
    }
}

fn mistakes(format: Named, text: &str) -> Vec<String> {
    match format.0 {
        "dns1123Label" => validation::dns_label(text),
        "dns1123Subdomain" => validation::subdomain(text),
        "dns1035Label" => validation::dns_1035_label(text),
        "qualifiedName" => validation::qualified_name(text),
        "labelValue" => validation::label_value(text),
        name => match formats::check(name, text) {
            Some(false) => vec![match name {
                "byte" => "invalid base64".to_owned(),
                "uuid" => "does not match the UUID format".to_owned(),
                "uri" => "invalid URI".to_owned(),
                name => format!("invalid {name}"),
            }],
            _ => Vec::new(),
        },
    }
}
