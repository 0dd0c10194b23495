//! Content negotiation: what the client reads, what it sent (apiserver, `endpoints/handlers/negotiation`).

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use crate::schema::Format;
use crate::status::ApiError;

/// The media types of text, which every kind has.
const TEXT_TYPES: &str = "application/json, application/yaml";

/// What a response is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// The format.
    pub format: OutputFormat,
    /// What becomes of the object.
    pub shape: OutputShape,
    /// Whether JSON is indented.
    pub pretty: bool,
    /// The best of the client's other choices, for what has no encoding in protobuf.
    pub otherwise: Option<(OutputFormat, OutputShape)>,
}

/// The format of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// What becomes of an object in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputShape {
    /// It stays what it is.
    Object,
    /// A `meta.k8s.io/v1` Table.
    Table,
    /// A `meta.k8s.io/v1` PartialObjectMetadata, or a list of them.
    Partial,
}

impl Output {
    /// JSON, as it is.
    pub const JSON: Self = Self {
        format: OutputFormat::Json,
        shape: OutputShape::Object,
        pretty: false,
        otherwise: None,
    };

    /// Picks the entry of `Accept` that the client wants most of those that we serve: the first with the highest weight.
    ///
    /// # Errors
    ///
    /// 406 if there is none.
    pub fn negotiate(headers: &HeaderMap) -> Result<Self, ApiError> {
        Self::pick(headers, |_| true)
    }

    /// The same for what exists only as a request, and so has no table.
    ///
    /// # Errors
    ///
    /// 406 if there is none.
    pub fn negotiate_unstored(headers: &HeaderMap) -> Result<Self, ApiError> {
        Self::pick(headers, |output| output.shape != OutputShape::Table)
    }

    fn pick(headers: &HeaderMap, serves: impl Fn(&Self) -> bool) -> Result<Self, ApiError> {
        let mut asked = false;
        let mut best: Option<(f32, Self)> = None;
        let mut best_text = None;
        for value in headers.get_all(ACCEPT) {
            let Ok(value) = value.to_str() else { continue };
            for part in value.split(',') {
                asked |= !part.trim().is_empty();
                let Some((weight, output)) = accept(part).filter(|(_, output)| serves(output))
                else {
                    continue;
                };
                let wins = |over: &Option<(f32, Self)>| over.is_none_or(|(w, _)| weight > w);
                if output.format != OutputFormat::Protobuf && wins(&best_text) {
                    best_text = Some((weight, output));
                }
                if wins(&best) {
                    best = Some((weight, output));
                }
            }
        }
        match best {
            Some((_, mut output)) => {
                if output.format == OutputFormat::Protobuf {
                    output.otherwise = best_text.map(|(_, text)| (text.format, text.shape));
                }
                Ok(output)
            }
            None if asked => Err(not_acceptable(&format!("{TEXT_TYPES}, {PROTOBUF}"))),
            None => Ok(Self::JSON),
        }
    }

    /// What to answer with where protobuf, which the client wants most, has no encoding for it.
    ///
    /// # Errors
    ///
    /// 406 if the client accepts nothing else.
    pub fn without_protobuf(self) -> Result<Self, ApiError> {
        match (self.format, self.otherwise) {
            (OutputFormat::Json | OutputFormat::Yaml, _) => Ok(self),
            (OutputFormat::Protobuf, Some((format, shape))) => Ok(Self {
                format,
                shape,
                otherwise: None,
                ..self
            }),
            (OutputFormat::Protobuf, None) => Err(not_acceptable(TEXT_TYPES)),
        }
    }
}

fn not_acceptable(types: &str) -> ApiError {
    ApiError::new(
        406,
        "NotAcceptable",
        format!("only the following media types are accepted: {types}"),
    )
}

/// One entry of `Accept` and its weight; `None` for what we do not serve, or the client refuses with a weight of zero.
fn accept(part: &str) -> Option<(f32, Output)> {
    let mut words = part.split(';').map(str::trim);
    let format = match words.next()? {
        "application/json" | "*/*" | "application/*" => OutputFormat::Json,
        "application/yaml" => OutputFormat::Yaml,
        PROTOBUF => OutputFormat::Protobuf,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    let mut weight = 1.0;
    for word in words {
        match word.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            // What is no number counts as one (as kube-apiserver's parser has it).
            Some(("q", value)) => weight = value.parse().unwrap_or(1.0),
            _ => {}
        }
    }
    if weight <= 0.0 {
        return None;
    }
    let shape = match (kind, group, version) {
        ("", _, _) => OutputShape::Object,
        // A table is never in protobuf: its cells are any JSON.
        ("Table", "meta.k8s.io", "v1") if format != OutputFormat::Protobuf => OutputShape::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
            OutputShape::Partial
        }
        _ => return None,
    };
    let output = Output {
        format,
        shape,
        pretty: false,
        otherwise: None,
    };
    Some((weight, output))
}

/// Whether the client asks for aggregated discovery, and in which version.
pub fn wants_aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    for part in accept.flat_map(|value| value.split(',')) {
        let part = part.replace(' ', "");
        if part.contains("g=apidiscovery.k8s.io") && part.contains("as=APIGroupDiscoveryList") {
            match part.split(';').find_map(|word| word.strip_prefix("v=")) {
                Some("v2") => return Some("v2"),
                Some("v2beta1") => return Some("v2beta1"),
                _ => {}
            }
        } else if part == "application/json" {
            return None;
        }
    }
    None
}

/// The media type of a request's body, without its parameters; JSON if it says nothing.
pub fn media_type(headers: &HeaderMap) -> &str {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map_or("", |value| {
            value.split(';').next().unwrap_or_default().trim()
        })
}

/// Kubernetes' protobuf encoding.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// The text format of a request's body.
///
/// # Errors
///
/// 415 for a media type that we do not read.
pub fn input(headers: &HeaderMap) -> Result<Format, ApiError> {
    match media_type(headers) {
        "" | "application/json" | "*/*" => Ok(Format::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Format::Yaml),
        _ => Err(ApiError::unsupported_media_type(&[
            "application/json",
            "application/yaml",
            PROTOBUF,
        ])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiate(accept: &str) -> Result<Output, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        Output::negotiate(&headers)
    }

    #[test]
    fn the_first_entry_that_is_served_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(negotiate(table).unwrap().shape, OutputShape::Table);
        assert_eq!(
            negotiate("application/yaml").unwrap().format,
            OutputFormat::Yaml
        );
        assert_eq!(negotiate("application/xml").unwrap_err().code, 406);
        assert_eq!(negotiate("*/*").unwrap(), Output::JSON);
        let unstored = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            Output::negotiate_unstored(&headers)
        };
        assert_eq!(unstored(table).unwrap(), Output::JSON);
        let only = "application/json;as=Table;v=v1;g=meta.k8s.io";
        assert_eq!(unstored(only).unwrap_err().code, 406);
    }

    #[test]
    fn the_highest_weight_wins_and_zero_refuses() {
        use OutputFormat::{Json, Protobuf, Yaml};
        #[rustfmt::skip] // A table.
        let rows = [
            ("application/json;q=0.5,application/yaml",                 Some(Yaml)),
            ("application/json;q=0.5, application/yaml;q=0.5",          Some(Json)),
            ("application/json, application/vnd.kubernetes.protobuf",   Some(Json)),
            ("application/vnd.kubernetes.protobuf;q=0.4,*/*;q=0.3",     Some(Protobuf)),
            ("application/vnd.kubernetes.protobuf;q=0,application/json;q=0.1", Some(Json)),
            ("application/json;q=0",                                    None),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", None),
        ];
        for (accept, expected) in rows {
            let format = negotiate(accept).ok().map(|output| output.format);
            assert_eq!(format, expected, "{accept}");
        }
    }

    #[test]
    fn the_best_text_stands_in_for_protobuf() {
        let stands_in = |accept: &str| {
            let output = negotiate(accept).unwrap();
            assert_eq!(output.format, OutputFormat::Protobuf, "{accept}");
            output.without_protobuf().map(|output| output.format)
        };
        let both = "application/vnd.kubernetes.protobuf,application/json;q=0.5,application/yaml";
        assert_eq!(stands_in(both), Ok(OutputFormat::Yaml));
        let error = stands_in("application/vnd.kubernetes.protobuf").unwrap_err();
        assert_eq!(error.code, 406);
        let metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        assert_eq!(negotiate(metadata).unwrap().shape, OutputShape::Partial);
    }

    #[test]
    fn aggregated_discovery_is_recognised() {
        let mut headers = HeaderMap::new();
        headers.insert(
            ACCEPT,
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
                .parse()
                .unwrap(),
        );
        assert_eq!(wants_aggregated(&headers), Some("v2"));
        headers.insert(ACCEPT, "application/json".parse().unwrap());
        assert_eq!(wants_aggregated(&headers), None);
    }
}
