//! Content negotiation: what the client reads, what it sent (apiserver, `endpoints/handlers/negotiation`).

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

use crate::schema::Format;
use crate::status::ApiError;

const MEDIA_TYPES: &str = "application/json, application/yaml";

/// What a response is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Output {
    /// The text format.
    pub format: Format,
    /// What becomes of the object.
    pub shape: OutputShape,
    /// Whether JSON is indented.
    pub pretty: bool,
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
        format: Format::Json,
        shape: OutputShape::Object,
        pretty: false,
    };

    /// Picks the first entry of `Accept` that we serve.
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
        for value in headers.get_all(ACCEPT) {
            let Ok(value) = value.to_str() else { continue };
            for part in value.split(',') {
                asked |= !part.trim().is_empty();
                if let Some(output) = accept(part).filter(&serves) {
                    return Ok(output);
                }
            }
        }
        if asked {
            return Err(ApiError::new(
                406,
                "NotAcceptable",
                format!("only the following media types are accepted: {MEDIA_TYPES}"),
            ));
        }
        Ok(Self::JSON)
    }

    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self.format {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
        }
    }
}

fn accept(part: &str) -> Option<Output> {
    let mut words = part.split(';').map(str::trim);
    let format = match words.next()? {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut kind, mut group, mut version) = ("", "", "");
    for word in words {
        match word.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("g", value)) => group = value,
            Some(("v", value)) => version = value,
            _ => {}
        }
    }
    let shape = match (kind, group, version) {
        ("", _, _) => OutputShape::Object,
        ("Table", "meta.k8s.io", "v1") => OutputShape::Table,
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
            OutputShape::Partial
        }
        _ => return None,
    };
    Some(Output {
        format,
        shape,
        pretty: false,
    })
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
            negotiate("application/vnd.kubernetes.protobuf,application/json").unwrap(),
            Output::JSON
        );
        assert_eq!(negotiate("application/yaml").unwrap().format, Format::Yaml);
        assert_eq!(
            negotiate("application/vnd.kubernetes.protobuf")
                .unwrap_err()
                .code,
            406
        );
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
