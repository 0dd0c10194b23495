//! Webhook configurations, parsed once for each revision of their objects.
//!
//! The defaults are those of `admissionregistration.k8s.io/v1` (kubernetes, `pkg/apis/admissionregistration/v1/defaults.go`). The
//! strategies of the two kinds fill them in and validate the fields; here a missing field still gets its default.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, ClientError};
use super::place::{Place, PlaceError};

/// The longest time that a webhook may ask for, and the shortest.
const TIMEOUTS: std::ops::RangeInclusive<u64> = 1..=30;
/// The operators of label selectors.
const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];

/// What to do about a webhook that cannot be called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum FailurePolicy {
    /// Refuse the request.
    #[default]
    Fail,
    /// Go on as if the webhook were not there.
    Ignore,
}

/// Whether a rule also means the other versions of a resource that it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum MatchPolicy {
    /// It means only what it names.
    Exact,
    /// It means every version of the resource; the webhook sees objects in the version that it names.
    #[default]
    Equivalent,
}

/// What a call changes besides the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum SideEffects {
    /// Nobody knows. Only configurations from before v1 say so.
    Unknown,
    /// Nothing.
    None,
    /// Something.
    Some,
    /// Something, but nothing when the review says that it is a dry run.
    NoneOnDryRun,
}

/// Whether a webhook is called again when a later plugin or webhook changed the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum ReinvocationPolicy {
    /// It is called once.
    #[default]
    Never,
    /// It is called again in the second round.
    IfNeeded,
}

/// Which objects a rule means, by where they live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum RuleScope {
    /// All.
    #[default]
    #[serde(rename = "*")]
    All,
    /// Those of the cluster, and namespaces.
    Cluster,
    /// Those in namespaces.
    Namespaced,
}

/// The requests that a webhook wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT` or `*`.
    pub operations: Vec<String>,
    /// API groups, or `*`.
    pub api_groups: Vec<String>,
    /// API versions, or `*`.
    pub api_versions: Vec<String>,
    /// `pods`, `pods/status`, `pods/*`, `*/status`, `*` (without subresources) or `*/*`.
    pub resources: Vec<String>,
    /// Where the objects live.
    pub scope: RuleScope,
}

/// One webhook of a configuration.
pub struct Hook {
    /// Tells webhooks apart: `<configuration>/<name>/<how many of that name stand before>`.
    pub id: String,
    /// Its name, as messages show it.
    pub name: String,
    /// What it wants to see.
    pub rules: Vec<Rule>,
    /// What happens if it cannot be called.
    pub failure_policy: FailurePolicy,
    /// Whether its rules mean other versions too.
    pub match_policy: MatchPolicy,
    /// Selects the namespaces; null selects all.
    pub namespace_selector: Value,
    /// Selects the objects; null selects all.
    pub object_selector: Value,
    /// What a call changes besides the answer.
    pub side_effects: Option<SideEffects>,
    /// How long a call may take.
    pub timeout: Duration,
    /// The versions of AdmissionReview that it reads, the preferred one first.
    pub review_versions: Vec<String>,
    /// Whether it is called again.
    pub reinvocation_policy: ReinvocationPolicy,
    /// Whether CEL expressions narrow its rules.
    pub has_conditions: bool,
    /// Calls it, if its clientConfig can be used.
    pub client: Result<Client, Arc<ClientError>>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A field has the wrong shape, or a word that the API does not know.
    #[error("read the webhooks")]
    Shape {
        /// Which.
        source: serde_json::Error,
    },
    /// A selector of a webhook has an operator that the API does not know.
    #[error(
        "{operator:?} in the {field} of webhook {webhook:?} is not a valid label selector operator"
    )]
    Operator {
        /// The webhook's name.
        webhook: String,
        /// Which selector.
        field: &'static str,
        /// The operator.
        operator: String,
    },
}

/// A webhook as it stands in its configuration.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    name: String,
    client_config: WrittenClient,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    failure_policy: FailurePolicy,
    #[serde(default)]
    match_policy: MatchPolicy,
    #[serde(default)]
    namespace_selector: Value,
    #[serde(default)]
    object_selector: Value,
    side_effects: Option<SideEffects>,
    timeout_seconds: Option<u64>,
    #[serde(default)]
    admission_review_versions: Vec<String>,
    #[serde(default)]
    reinvocation_policy: ReinvocationPolicy,
    #[serde(default)]
    match_conditions: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenClient {
    url: Option<String>,
    service: Option<WrittenService>,
    #[serde(default)]
    ca_bundle: String,
}

#[derive(Deserialize)]
struct WrittenService {
    namespace: String,
    name: String,
    #[serde(default)]
    path: String,
    port: Option<u16>,
}

/// The webhooks of a configuration object, in its own order.
///
/// # Errors
///
/// If the object is not what the API's validation lets through.
pub fn parse(configuration: &str, object: &Value) -> Result<Vec<Hook>, ConfigError> {
    let written = match &object["webhooks"] {
        Value::Null => Vec::new(),
        webhooks => {
            Vec::<Written>::deserialize(webhooks).map_err(|source| ConfigError::Shape { source })?
        }
    };
    let mut seen = HashMap::<String, usize>::new();
    let mut hooks = Vec::with_capacity(written.len());
    for webhook in written {
        let before = seen.entry(webhook.name.clone()).or_default();
        let id = format!("{configuration}/{}/{before}", webhook.name);
        *before += 1;
        hooks.push(hook(id, webhook)?);
    }
    Ok(hooks)
}

fn hook(id: String, written: Written) -> Result<Hook, ConfigError> {
    let webhook = || written.name.clone();
    for (field, selector) in [
        ("namespaceSelector", &written.namespace_selector),
        ("objectSelector", &written.object_selector),
    ] {
        let mut requirements = selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten();
        let unknown = requirements.find_map(|requirement| {
            let operator = requirement["operator"].as_str().unwrap_or_default();
            (!OPERATORS.contains(&operator)).then(|| operator.to_owned())
        });
        if let Some(operator) = unknown {
            return Err(ConfigError::Operator {
                webhook: webhook(),
                field,
                operator,
            });
        }
    }
    let seconds = written.timeout_seconds.unwrap_or(10);
    let seconds = seconds.clamp(*TIMEOUTS.start(), *TIMEOUTS.end());
    Ok(Hook {
        id,
        name: written.name,
        rules: written.rules,
        failure_policy: written.failure_policy,
        match_policy: written.match_policy,
        namespace_selector: written.namespace_selector,
        object_selector: written.object_selector,
        side_effects: written.side_effects,
        timeout: Duration::from_secs(seconds),
        review_versions: written.admission_review_versions,
        reinvocation_policy: written.reinvocation_policy,
        has_conditions: !written.match_conditions.is_empty(),
        client: client(written.client_config).map_err(Arc::new),
    })
}

fn client(written: WrittenClient) -> Result<Client, ClientError> {
    let place = match (written.url, written.service) {
        (Some(url), None) => Place::url(&url),
        (None, Some(service)) => Ok(Place::service(
            &service.namespace,
            &service.name,
            &service.path,
            service.port.unwrap_or(443),
        )),
        _ => Err(PlaceError::NeitherOrBoth),
    };
    let place = place.map_err(|source| ClientError::Place { source })?;
    let bundle = base64::engine::general_purpose::STANDARD
        .decode(&written.ca_bundle)
        .map_err(|source| ClientError::Bundle { source })?;
    Client::new(place, &bundle)
}
