//! A container's environment and arguments: references resolved, `$(VAR)` expanded.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::objects::{Kind, ObjectError};
use crate::pod;
use crate::resources::{self, millis, units};

/// Why a container cannot be configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvError {
    /// A ConfigMap or Secret is not there; the message is the object's.
    #[error("{source}")]
    Object {
        /// What is missing.
        source: ObjectError,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        key: String,
        kind: &'static str,
        namespace: String,
        name: String,
    },
    /// The reference names no field of a pod.
    #[error("unsupported fieldPath: {path}")]
    Field { path: String },
    /// The reference names no resource of a container.
    #[error("unsupported container resource : {resource}")]
    Resource { resource: String },
    /// The reference names no container of the pod.
    #[error("container {name} not found")]
    Container { name: String },
}

/// What the pod's surroundings contribute.
pub(crate) struct Surroundings<'a> {
    pub(crate) node_name: &'a str,
    pub(crate) node_ips: &'a [IpAddr],
    pub(crate) pod_ips: &'a [IpAddr],
    /// Stands in for a limit that the container does not have: thousandths of a CPU and bytes.
    pub(crate) allocatable: (i64, i64),
}

/// The value of one `fieldRef`.
pub(crate) fn field(pod: &Pod, path: &str, around: &Surroundings<'_>) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let spec = pod::spec(pod);
    let join = crate::runtime::join_ips;
    let ips = if spec.host_network == Some(true) {
        around.node_ips
    } else {
        around.pod_ips
    };
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => {
                return Err(EnvError::Field {
                    path: path.to_owned(),
                });
            }
        };
        return Ok(map
            .as_ref()
            .and_then(|m| m.get(key))
            .cloned()
            .unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => map_text(meta.labels.as_ref()),
        "metadata.annotations" => map_text(meta.annotations.as_ref()),
        "spec.nodeName" => around.node_name.to_owned(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(around.node_ips),
        "status.hostIPs" => join(around.node_ips),
        "status.podIP" => first(ips),
        "status.podIPs" => join(ips),
        _ => {
            return Err(EnvError::Field {
                path: path.to_owned(),
            });
        }
    })
}

/// `metadata.labels['key']` in its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// Labels or annotations as a downward API file shows them: `key="value"`, one a line, sorted.
fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={v:?}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// The value of one `resourceFieldRef`, divided by its divisor and rounded up.
pub(crate) fn resource(
    pod: &Pod,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
    around: &Surroundings<'_>,
) -> Result<String, EnvError> {
    let other = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => Some(
            pod::find_container(pod::spec(pod), name)
                .ok_or_else(|| EnvError::Container {
                    name: name.to_owned(),
                })?
                .0,
        ),
        None => None,
    };
    let container = other
        .as_ref()
        .or(container)
        .ok_or_else(|| EnvError::Container {
            name: String::new(),
        })?;
    let (side, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| EnvError::Resource {
            resource: selector.resource.clone(),
        })?;
    let value = match side {
        "limits" => resources::limit(container, name),
        "requests" => resources::request(container, name),
        _ => {
            return Err(EnvError::Resource {
                resource: selector.resource.clone(),
            });
        }
    };
    let divisor = selector
        .divisor
        .as_ref()
        .map(|divisor| i128::from(millis(divisor)))
        .filter(|d| *d > 0)
        .unwrap_or(1000);
    let milli_value: i128 = match (name, value) {
        ("cpu", Some(v)) => millis(v).into(),
        ("cpu", None) if side == "limits" => around.allocatable.0.into(),
        ("memory", None) if side == "limits" => i128::from(around.allocatable.1) * 1000,
        (_, Some(v)) => i128::from(units(v)) * 1000,
        (_, None) => 0,
    };
    Ok(((milli_value + divisor - 1) / divisor).to_string())
}

/// Replaces `$(NAME)` by its value; an unknown name stays as it stands, and `$$` is one `$`.
///
/// Source: kubernetes, third_party/forked/golang/expansion.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix('$') {
            out.push('$');
            rest = next;
        } else if let Some((name, next)) = after.strip_prefix('(').and_then(|a| a.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = next;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Gives the content of the objects that variables refer to.
pub(crate) trait Source: Sync {
    /// One object's content, by key.
    fn read(
        &self,
        kind: Kind,
        name: &str,
    ) -> impl Future<Output = Result<crate::objects::Data, ObjectError>> + Send;
}

/// The container's variables in order: those of `envFrom`, then its own, then the services' that nothing else set.
pub(crate) async fn variables(
    pod: &Pod,
    container: &Container,
    services: BTreeMap<String, String>,
    around: &Surroundings<'_>,
    source: &impl Source,
) -> Result<Vec<(String, String)>, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut result: Vec<(String, String)> = Vec::new();
    let mut set = |name: String, value: String| match result.iter_mut().find(|(n, _)| *n == name) {
        Some(entry) => entry.1 = value,
        None => result.push((name, value)),
    };
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    for from in container.env_from.iter().flatten() {
        let (kind, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(r), _) => (Kind::ConfigMap, &r.name, r.optional),
            (None, Some(r)) => (Kind::Secret, &r.name, r.optional),
            (None, None) => continue,
        };
        let data = match source.read(kind, name).await {
            Ok(data) => data,
            Err(ObjectError::NotFound { .. }) if optional == Some(true) => continue,
            Err(source) => return Err(EnvError::Object { source }),
        };
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in data.iter() {
            let name = format!("{prefix}{key}");
            let value = String::from_utf8_lossy(value).into_owned();
            known.insert(name.clone(), value.clone());
            set(name, value);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = if let Some(from) = &variable.value_from {
            if let Some(selector) = &from.field_ref {
                Some(field(pod, &selector.field_path, around)?)
            } else if let Some(selector) = &from.resource_field_ref {
                Some(resource(pod, Some(container), selector, around)?)
            } else {
                let (kind, name, key, optional) =
                    match (&from.config_map_key_ref, &from.secret_key_ref) {
                        (Some(r), _) => (Kind::ConfigMap, &r.name, &r.key, r.optional),
                        (None, Some(r)) => (Kind::Secret, &r.name, &r.key, r.optional),
                        (None, None) => continue,
                    };
                key_value(source, namespace, kind, name, key, optional == Some(true)).await?
            }
        } else {
            let text = variable.value.as_deref().unwrap_or_default();
            Some(expand(text, |n| {
                known.get(n).or_else(|| services.get(n)).cloned()
            }))
        };
        // An optional reference that leads nowhere sets nothing.
        if let Some(value) = value {
            known.insert(variable.name.clone(), value.clone());
            set(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if !known.contains_key(&name) {
            result.push((name, value));
        }
    }
    Ok(result)
}

async fn key_value(
    source: &impl Source,
    namespace: &str,
    kind: Kind,
    name: &str,
    key: &str,
    optional: bool,
) -> Result<Option<String>, EnvError> {
    let data = match source.read(kind, name).await {
        Ok(data) => data,
        Err(ObjectError::NotFound { .. }) if optional => return Ok(None),
        Err(source) => return Err(EnvError::Object { source }),
    };
    match data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional => Ok(None),
        None => Err(EnvError::Key {
            key: key.to_owned(),
            kind: match kind {
                Kind::ConfigMap => "ConfigMap",
                Kind::Secret => "Secret",
            },
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansion_knows_escapes_and_leaves_unknown_names() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("cost: 5$", "cost: 5$"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }
}
