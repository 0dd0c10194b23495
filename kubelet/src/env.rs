//! A container's environment and arguments: references resolved, `$(VAR)` expanded.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::go;
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
    /// Stands in for a limit that neither the container nor the pod has.
    pub(crate) allocatable: Allocatable,
}

/// What the node has for its pods.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocatable {
    pub(crate) milli_cpu: i64,
    pub(crate) memory_bytes: i64,
    pub(crate) disk_bytes: i64,
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
///
/// Source: kubernetes, pkg/fieldpath, `FormatMap`.
fn map_text(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", go::quote(v)))
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
    // Thousandths of a CPU; bytes of the rest.
    let (read, one): (fn(&Quantity) -> i64, i64) = match name {
        "cpu" => (millis, 1000),
        "memory" | "ephemeral-storage" => (units, 1),
        pages if pages.starts_with("hugepages-") => (units, 1),
        _ => {
            return Err(EnvError::Resource {
                resource: selector.resource.clone(),
            });
        }
    };
    let amount = match value {
        Some(value) => read(value),
        None if side == "limits" => default_limit(pod, name, around, read),
        None => 0,
    };
    let divisor = selector.divisor.as_ref().map(read).filter(|d| *d > 0);
    let divisor = i128::from(divisor.unwrap_or(one));
    Ok(((i128::from(amount) + divisor - 1) / divisor).to_string())
}

/// What holds for a container that has no limit of its own: the pod's, else what the node has.
///
/// Source: kubernetes, pkg/kubelet/kubelet_resources.go, `defaultPodLimitsForDownwardAPI`.
fn default_limit(
    pod: &Pod,
    name: &str,
    around: &Surroundings<'_>,
    read: fn(&Quantity) -> i64,
) -> i64 {
    let node = match name {
        "cpu" => around.allocatable.milli_cpu,
        "memory" => around.allocatable.memory_bytes,
        // A pod as a whole has no limit of it.
        "ephemeral-storage" => return around.allocatable.disk_bytes,
        _ => return 0,
    };
    resources::pod_level_limit(pod, name).map_or(node, read)
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

    fn around() -> Surroundings<'static> {
        Surroundings {
            node_name: "n1",
            node_ips: &[],
            pod_ips: &[],
            allocatable: Allocatable {
                milli_cpu: 2000,
                memory_bytes: 3 << 30,
                disk_bytes: (5 << 30) + 1,
            },
        }
    }

    #[test]
    fn resources_fall_back_to_the_pod_and_the_node_and_are_divided_upwards() {
        let pod = |level: serde_json::Value| -> Pod {
            let containers = serde_json::json!([
                {"name": "bare", "resources": {"limits": {"cpu": "0", "memory": "0"}}},
                {"name": "full", "resources": {
                    "limits": {"cpu": "1500m", "memory": "1Gi", "ephemeral-storage": "1.5Gi", "hugepages-2Mi": "4Mi"},
                    "requests": {"cpu": "250m", "memory": "64M", "ephemeral-storage": "1Ki", "hugepages-2Mi": "4Mi"}}},
                {"name": "huge", "resources": {"limits": {"memory": "7Ei"}}},
            ]);
            let init = serde_json::json!([{"name": "init"}]);
            serde_json::from_value(serde_json::json!({"spec": {
                "resources": level, "containers": containers, "initContainers": init,
            }}))
            .expect("a pod")
        };
        let (none, level) = (
            pod(serde_json::Value::Null),
            pod(serde_json::json!({"limits": {"cpu": "500m", "memory": "1Mi"}})),
        );
        for (of, name, field, divisor, expected) in [
            (&none, "bare", "limits.cpu", "0", Ok("2")),
            (&none, "bare", "limits.cpu", "1m", Ok("2000")),
            (&none, "bare", "limits.memory", "1Mi", Ok("3072")),
            (&none, "bare", "limits.ephemeral-storage", "1Gi", Ok("6")),
            (
                &none,
                "bare",
                "limits.ephemeral-storage",
                "1",
                Ok("5368709121"),
            ),
            (&none, "bare", "limits.hugepages-2Mi", "1", Ok("0")),
            (&none, "bare", "requests.cpu", "1m", Ok("0")),
            (&none, "bare", "requests.memory", "1", Ok("0")),
            (&none, "bare", "requests.ephemeral-storage", "1", Ok("0")),
            (&none, "init", "limits.memory", "1Gi", Ok("3")),
            (&none, "full", "limits.cpu", "1", Ok("2")),
            (&none, "full", "limits.memory", "1M", Ok("1074")),
            (&none, "full", "limits.ephemeral-storage", "1Gi", Ok("2")),
            (&none, "full", "limits.hugepages-2Mi", "1Mi", Ok("4")),
            (&none, "full", "requests.cpu", "1m", Ok("250")),
            (&none, "full", "requests.memory", "1k", Ok("64000")),
            (&none, "full", "requests.ephemeral-storage", "1Ki", Ok("1")),
            (&none, "full", "requests.hugepages-2Mi", "1Ki", Ok("4096")),
            (&none, "huge", "limits.memory", "1Ei", Ok("7")),
            (&level, "bare", "limits.cpu", "1m", Ok("500")),
            (&level, "bare", "limits.memory", "1Ki", Ok("1024")),
            (&level, "bare", "limits.ephemeral-storage", "1Gi", Ok("6")),
            (&level, "full", "limits.cpu", "1m", Ok("1500")),
            (
                &none,
                "gone",
                "limits.cpu",
                "1",
                Err("container gone not found"),
            ),
            (
                &none,
                "bare",
                "limits.nothing",
                "1",
                Err("unsupported container resource : limits.nothing"),
            ),
            (
                &none,
                "bare",
                "cpu",
                "1",
                Err("unsupported container resource : cpu"),
            ),
        ] {
            let selector = ResourceFieldSelector {
                container_name: Some(name.to_owned()),
                divisor: Some(Quantity(divisor.to_owned())),
                resource: field.to_owned(),
            };
            let got = resource(of, None, &selector, &around()).map_err(|e| e.to_string());
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(got, expected, "{name} {field} {divisor}");
        }
    }

    #[test]
    fn labels_and_annotations_are_quoted_as_in_go() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"metadata": {"annotations": {
            "b": "two\nlines", "a": "bell\u{7} nbsp\u{a0} zwsp\u{200b} it's \"é\"",
        }}}))
        .expect("a pod");
        assert_eq!(
            field(&pod, "metadata.annotations", &around()).expect("known"),
            "a=\"bell\\a nbsp\\u00a0 zwsp\\u200b it's \\\"é\\\"\"\nb=\"two\\nlines\""
        );
    }
}
