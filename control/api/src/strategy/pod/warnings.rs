//! Warnings about pods: what is allowed, but hardly meant (`pkg/api/pod/warnings.go`, `pkg/api/node/util.go`).

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::ParseQuantity as _;
use crate::strategy::common::text;
use crate::strategy::validation::{dns_label, items, label_value};
use crate::strategy::warnings::{address, go_list};

#[rustfmt::skip] // One label a line.
const OLD_LABELS: &[(&str, &str)] = &[
    ("beta.kubernetes.io/arch", r#"deprecated since v1.14; use "kubernetes.io/arch" instead"#),
    ("beta.kubernetes.io/os", r#"deprecated since v1.14; use "kubernetes.io/os" instead"#),
    ("failure-domain.beta.kubernetes.io/region", r#"deprecated since v1.17; use "topology.kubernetes.io/region" instead"#),
    ("failure-domain.beta.kubernetes.io/zone", r#"deprecated since v1.17; use "topology.kubernetes.io/zone" instead"#),
    ("beta.kubernetes.io/instance-type", r#"deprecated since v1.17; use "node.kubernetes.io/instance-type" instead"#),
    ("app.kubernetes.io/created-by", "deprecated since v1.9"),
    ("scheduler.alpha.kubernetes.io/preferAvoidPods", "deprecated since v1.22; use Taints and Tolerations instead"),
    ("node-role.kubernetes.io/master", r#"use "node-role.kubernetes.io/control-plane" instead"#),
];

#[rustfmt::skip] // One annotation a line.
const OLD_ANNOTATIONS: &[(&str, &str)] = &[
    ("scheduler.alpha.kubernetes.io/critical-pod", r#"non-functional in v1.16+; use the "priorityClassName" field instead"#),
    ("security.alpha.kubernetes.io/sysctls", r#"non-functional in v1.11+; use the "sysctls" field instead"#),
    ("security.alpha.kubernetes.io/unsafe-sysctls", r#"non-functional in v1.11+; use the "sysctls" field instead"#),
];

#[rustfmt::skip] // One kind of volume a line.
const OLD_VOLUMES: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephFS", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
const APPARMOR_OF_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";
const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// The warnings of a new pod.
pub fn of_pod(pod: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let wrong = dns_label(text(&pod["metadata"]["name"]));
    if !wrong.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: {}",
            go_list(&wrong)
        ));
    }
    of_template(&mut warnings, "", pod);
    warnings
}

/// The warnings of a workload whose template is at `spec.template`. Another template warns, the same one does not again.
pub fn of_workload(workload: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    let template = &workload["spec"]["template"];
    if let Some(old) = old {
        if old["metadata"]["generation"] == workload["metadata"]["generation"] {
            return warnings;
        }
    } else {
        let wrong = dns_label(text(&workload["metadata"]["name"]));
        if !wrong.is_empty() {
            warnings.push(format!(
                "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: {}",
                go_list(&wrong)
            ));
        }
    }
    of_template(&mut warnings, "spec.template.", template);
    warnings
}

fn old_label(key: &str) -> Option<&'static str> {
    let found = OLD_LABELS.iter().find(|(label, _)| *label == key);
    found.map(|(_, message)| *message)
}

/// Init containers, containers, ephemeral containers, with their paths.
fn containers<'a>(spec: &'a Value, at: &str) -> Vec<(String, &'a Value)> {
    ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| {
            items(&spec[*list])
                .map(move |(index, container)| (format!("{at}spec.{list}[{index}]"), container))
        })
        .collect()
}

/// The warnings of a template; `at` is its path and a dot, or empty for a pod.
pub fn of_template(warnings: &mut Vec<String>, at: &str, template: &Value) {
    let (spec, annotations) = (&template["spec"], &template["metadata"]["annotations"]);
    labels_of_nodes(warnings, at, spec);
    for (key, message) in OLD_ANNOTATIONS {
        if annotations.get(key).is_some() {
            warnings.push(format!("{at}metadata.annotations[{key}]: {message}"));
        }
    }
    volumes(warnings, at, spec);
    addresses(warnings, at, spec);
    names(warnings, at, spec);
    for resource in ["memory", "ephemeral-storage"] {
        fraction(
            warnings,
            format!("{at}spec.overhead[{resource}]"),
            &spec["overhead"][resource],
        );
    }
    let context = &spec["securityContext"];
    if context["seccompProfile"].is_null() && annotations.get(SECCOMP_OF_POD).is_some() {
        warnings.push(format!(
            r#"{at}metadata.annotations[{SECCOMP_OF_POD}]: non-functional in v1.27+; use the "seccompProfile" field instead"#
        ));
    }
    let containers = containers(spec, at);
    for (path, container) in &containers {
        profiles(warnings, at, container, annotations, context);
        for list in ["limits", "requests"] {
            for resource in ["memory", "ephemeral-storage"] {
                fraction(
                    warnings,
                    format!("{path}.resources.{list}[{resource}]"),
                    &container["resources"][list][resource],
                );
            }
        }
        hidden_variables(warnings, path, &container["env"]);
    }
    ports(warnings, &containers);
    if spec["terminationGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds < 0)
    {
        warnings.push(format!(
            "{at}spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    affinity_without_selector(warnings, at, spec);
}

fn labels_of_nodes(warnings: &mut Vec<String>, at: &str, spec: &Value) {
    for (key, _) in spec["nodeSelector"].as_object().into_iter().flatten() {
        if let Some(message) = old_label(key) {
            warnings.push(format!("{at}spec.nodeSelector[{key}]: {message}"));
        }
    }
    let affinity = &spec["affinity"]["nodeAffinity"];
    let base = format!("{at}spec.affinity.nodeAffinity");
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    for (index, term) in items(&affinity[required]["nodeSelectorTerms"]) {
        let path = format!("{base}.{required}.nodeSelectorTerms[{index}]");
        node_term(warnings, &path, term, false);
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (index, term) in items(&affinity[preferred]) {
        let path = format!("{base}.{preferred}[{index}].preference");
        node_term(warnings, &path, &term["preference"], true);
    }
    for (index, constraint) in items(&spec["topologySpreadConstraints"]) {
        let path = format!("{at}spec.topologySpreadConstraints[{index}]");
        let key = text(&constraint["topologyKey"]);
        if let Some(message) = old_label(key) {
            warnings.push(format!("{path}.topologyKey: {key} is {message}"));
        }
        if constraint["labelSelector"].is_null() {
            warnings.push(format!("{path}.labelSelector: {NO_SELECTOR}"));
        }
    }
}

fn node_term(warnings: &mut Vec<String>, at: &str, term: &Value, check_values: bool) {
    for (index, expression) in items(&term["matchExpressions"]) {
        let path = format!("{at}.matchExpressions[{index}]");
        let key = text(&expression["key"]);
        if let Some(message) = old_label(key) {
            warnings.push(format!("{path}.key: {key} is {message}"));
        }
        for (number, value) in items(&expression["values"]).filter(|_| check_values) {
            for message in label_value(text(value)) {
                warnings.push(format!(
                    "{path}.values[{number}]: {} is invalid, {message}",
                    text(value)
                ));
            }
        }
    }
}

fn volumes(warnings: &mut Vec<String>, at: &str, spec: &Value) {
    for (index, volume) in items(&spec["volumes"]) {
        for (kind, message) in OLD_VOLUMES {
            // The API spells this one field in lower case only in its paths.
            let (field, shown) = match *kind {
                "cephFS" => ("cephfs", "cephfs"),
                "storageOS" => ("storageos", "storageOS"),
                other => (other, other),
            };
            if !volume[field].is_null() {
                warnings.push(format!("{at}spec.volumes[{index}].{shown}: {message}"));
            }
        }
    }
    for (_, volume) in items(&spec["volumes"]) {
        let name = text(&volume["name"]);
        for (field, what) in [
            (
                "configMap",
                format!("ConfigMap {:?}", text(&volume["configMap"]["name"])),
            ),
            (
                "secret",
                format!("Secret {:?}", text(&volume["secret"]["secretName"])),
            ),
            ("downwardAPI", "DownwardAPI".to_owned()),
        ] {
            let message = format!("volume {name:?} ({what}): overlapping paths");
            overlaps(warnings, &message, &paths(&volume[field]["items"]));
        }
        let mut all: BTreeSet<String> = BTreeSet::new();
        for (_, source) in items(&volume["projected"]["sources"]) {
            projected(warnings, name, source, &mut all);
        }
    }
}

fn paths(list: &Value) -> Vec<String> {
    items(list)
        .map(|(_, item)| text(&item["path"]).to_owned())
        .collect()
}

fn projected(warnings: &mut Vec<String>, volume: &str, source: &Value, all: &mut BTreeSet<String>) {
    if source.as_object().is_none_or(serde_json::Map::is_empty) {
        warnings.push(format!(
            "volume {volume:?} (Projected) has no sources provided"
        ));
        return;
    }
    let (what, own) = if !source["configMap"]["items"].is_null() {
        let map = &source["configMap"];
        (
            format!("ConfigMap {:?}", text(&map["name"])),
            paths(&map["items"]),
        )
    } else if !source["secret"]["items"].is_null() {
        let secret = &source["secret"];
        (
            format!("Secret {:?}", text(&secret["name"])),
            paths(&secret["items"]),
        )
    } else if !source["downwardAPI"]["items"].is_null() {
        (
            "DownwardAPI".to_owned(),
            paths(&source["downwardAPI"]["items"]),
        )
    } else if let Some(path) = source["serviceAccountToken"]["path"].as_str() {
        ("ServiceAccountToken".to_owned(), vec![path.to_owned()])
    } else if let Some(path) = source["clusterTrustBundle"]["path"].as_str() {
        let bundle = &source["clusterTrustBundle"];
        let name = bundle["name"].as_str().or(bundle["signerName"].as_str());
        (
            format!("ClusterTrustBundle {:?}", name.unwrap_or_default()),
            vec![path.to_owned()],
        )
    } else {
        return;
    };
    let message = format!("volume {volume:?} (Projected {what}): overlapping paths");
    overlaps(warnings, &message, &own);
    let own: BTreeSet<String> = own.into_iter().collect();
    let mut together: Vec<String> = own.iter().chain(all.iter()).cloned().collect();
    together.sort();
    overlaps(warnings, &message, &together);
    all.extend(own);
}

/// Paths of which one is another, or begins with it.
fn overlaps(warnings: &mut Vec<String>, message: &str, paths: &[String]) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for path in paths {
        let path = path.trim_end_matches('/');
        let collides = |other: &&&str| {
            format!("{other}/").starts_with(path) || format!("{path}/").starts_with(**other)
        };
        if !path.is_empty()
            && !seen.contains("")
            && let Some(other) = seen.iter().find(collides)
        {
            warnings.push(format!("{message}: {path:?} with {other:?}"));
        }
        seen.insert(path);
    }
}

fn addresses(warnings: &mut Vec<String>, at: &str, spec: &Value) {
    for (index, server) in items(&spec["dnsConfig"]["nameservers"]) {
        let path = format!("{at}spec.dnsConfig.nameservers[{index}]");
        warnings.extend(address(&path, text(server)));
    }
    for (index, alias) in items(&spec["hostAliases"]) {
        let path = format!("{at}spec.hostAliases[{index}].ip");
        warnings.extend(address(&path, text(&alias["ip"])));
    }
}

/// Names that stand twice in lists that are merged by them, or are empty.
fn names(warnings: &mut Vec<String>, at: &str, spec: &Value) {
    for (list, field) in [("hostAliases", "ip"), ("imagePullSecrets", "name")] {
        for (index, item) in items(&spec[list]) {
            if items(&spec[list])
                .take(index)
                .any(|(_, other)| other[field] == item[field])
            {
                warnings.push(format!(
                    "{at}spec.{list}[{index}].{field}: duplicate {field} {:?}",
                    text(&item[field])
                ));
            }
        }
    }
    for (index, secret) in items(&spec["imagePullSecrets"]) {
        if text(&secret["name"]).is_empty() {
            warnings.push(format!(
                "{at}spec.imagePullSecrets[{index}].name: invalid empty name \"\""
            ));
        }
    }
}

/// Bytes come whole.
fn fraction(warnings: &mut Vec<String>, path: String, value: &Value) {
    let quantity = text(value).parse_quantity();
    if quantity.is_some_and(|quantity| quantity.nano() % 1_000_000_000 != 0) {
        warnings.push(format!(
            "{path}: fractional byte value {:?} is invalid, must be an integer",
            text(value)
        ));
    }
}

fn profiles(
    warnings: &mut Vec<String>,
    at: &str,
    container: &Value,
    annotations: &Value,
    pod: &Value,
) {
    let (name, context) = (text(&container["name"]), &container["securityContext"]);
    let key = format!("{SECCOMP_OF_CONTAINER}{name}");
    if context["seccompProfile"].is_null() && annotations.get(&key).is_some() {
        warnings.push(format!(
            r#"{at}metadata.annotations[{key}]: non-functional in v1.27+; use the "seccompProfile" field instead"#
        ));
    }
    let key = format!("{APPARMOR_OF_CONTAINER}{name}");
    if context["appArmorProfile"].is_null()
        && pod["appArmorProfile"].is_null()
        && annotations.get(&key).is_some()
    {
        warnings.push(format!(
            r#"{at}metadata.annotations[{key}]: deprecated since v1.30; use the "appArmorProfile" field instead"#
        ));
    }
}

/// A variable that is set again loses what it was, unless its new value has the old one in it.
fn hidden_variables(warnings: &mut Vec<String>, at: &str, env: &Value) {
    for (index, variable) in items(env) {
        let name = text(&variable["name"]);
        if !items(env)
            .take(index)
            .any(|(_, other)| other["name"] == name)
        {
            continue;
        }
        let (reference, value) = (format!("$({name})"), text(&variable["value"]));
        if !variable["valueFrom"].is_null() || value == reference || !value.contains(&reference) {
            warnings.push(format!(
                "{at}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

fn ports(warnings: &mut Vec<String>, containers: &[(String, &Value)]) {
    let mut all: HashMap<(i64, &str), Vec<(String, &Value)>> = HashMap::new();
    for (path, container) in containers {
        for (index, port) in items(&container["ports"]) {
            let here = format!("{path}.ports[{index}]");
            let host_port = |port: &Value| port["hostPort"].as_i64().unwrap_or(0);
            let host_ip = text(&port["hostIP"]);
            if !host_ip.is_empty() && host_port(port) == 0 {
                warnings.push(format!(
                    "{here}: hostIP set without hostPort: {{Name:{} HostPort:0 ContainerPort:{} Protocol:{} HostIP:{host_ip}}}",
                    text(&port["name"]),
                    port["containerPort"],
                    text(&port["protocol"])
                ));
            }
            let number = port["containerPort"].as_i64().unwrap_or(0);
            let others = all.entry((number, text(&port["protocol"]))).or_default();
            for (other_path, other) in &*others {
                let other_ip = text(&other["hostIP"]);
                let (own, its) = (host_port(port), host_port(other));
                let what = if host_ip == other_ip && own == its {
                    "duplicate"
                } else if own == 0 || its == 0 {
                    "overlapping"
                } else if own == its && host_ip.is_empty() != other_ip.is_empty() {
                    "dangerously ambiguous"
                } else {
                    continue;
                };
                warnings.push(format!("{here}: {what} port definition with {other_path}"));
            }
            others.push((here, port));
        }
    }
}

fn affinity_without_selector(warnings: &mut Vec<String>, at: &str, spec: &Value) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let affinity = &spec["affinity"][kind];
        for (list, inner) in [
            ("requiredDuringSchedulingIgnoredDuringExecution", ""),
            (
                "preferredDuringSchedulingIgnoredDuringExecution",
                "podAffinityTerm",
            ),
        ] {
            for (index, term) in items(&affinity[list]) {
                let (term, inner) = match inner {
                    "" => (term, String::new()),
                    inner => (&term[inner], format!("{inner}.")),
                };
                if term["labelSelector"].is_null() {
                    warnings.push(format!(
                        "{at}spec.affinity.{kind}.{list}[{index}].{inner}labelSelector: {NO_SELECTOR}"
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(spec: Value) -> Vec<String> {
        of_workload(
            &json!({ "metadata": { "name": "w" }, "spec": { "template": { "spec": spec } } }),
            None,
        )
    }

    #[test]
    fn a_variable_that_is_set_twice_is_warned_about() {
        let env = |second: Value| {
            template(json!({ "containers": [{ "env": [
                { "name": "AN", "value": "qa" }, { "name": "AY", "value": "2" }, second] }] }))
        };
        let warning = "spec.template.spec.containers[0].env[2]: hides previous definition of \"AN\", which may be dropped when using apply";
        assert_eq!(env(json!({ "name": "AN", "value": "qa" })), [warning]);
        assert_eq!(env(json!({ "name": "AN", "value": "$(AN)" })), [warning]);
        assert_eq!(env(json!({ "name": "AN", "valueFrom": {} })), [warning]);
        assert!(env(json!({ "name": "AN", "value": "$(AN),more" })).is_empty());
        assert!(env(json!({ "name": "AX", "value": "1" })).is_empty());
    }

    #[test]
    fn ports_that_say_the_same_are_warned_about() {
        let ports = |ports: Value| template(json!({ "containers": [{ "ports": ports }] }));
        let at = "spec.template.spec.containers[0].ports";
        let tcp = |host: i64, ip: &str| json!({ "containerPort": 53, "protocol": "TCP", "hostPort": host, "hostIP": ip });
        #[rustfmt::skip] // One pair a line.
        let cases = [
            (json!([tcp(0, ""), tcp(0, "")]), vec![format!("{at}[1]: duplicate port definition with {at}[0]")]),
            (json!([tcp(0, ""), tcp(99, "")]), vec![format!("{at}[1]: overlapping port definition with {at}[0]")]),
            (json!([tcp(99, ""), tcp(99, "192.0.2.1")]), vec![format!("{at}[1]: dangerously ambiguous port definition with {at}[0]")]),
            (json!([tcp(99, "192.0.2.1"), tcp(99, "192.0.2.2")]), vec![]),
            (json!([tcp(0, ""), { "containerPort": 53, "protocol": "UDP" }]), vec![]),
            (json!([tcp(0, "192.0.2.1")]), vec![format!("{at}[0]: hostIP set without hostPort: {{Name: HostPort:0 ContainerPort:53 Protocol:TCP HostIP:192.0.2.1}}")]),
        ];
        for (list, wanted) in cases {
            assert_eq!(ports(list.clone()), wanted, "{list}");
        }
    }

    #[test]
    fn what_is_old_or_does_nothing_is_warned_about() {
        let warnings = of_pod(&json!({
            "metadata": { "name": "a.b", "annotations": { "scheduler.alpha.kubernetes.io/critical-pod": "" } },
            "spec": {
                "nodeSelector": { "beta.kubernetes.io/os": "linux" },
                "terminationGracePeriodSeconds": -1,
                "imagePullSecrets": [{ "name": "s" }, { "name": "s" }, {}],
                "hostAliases": [{ "ip": "2001:DB8::1" }],
                "volumes": [{ "name": "v", "gitRepo": {} }, { "name": "c", "configMap": { "name": "m", "items": [
                    { "key": "k", "path": "a" }, { "key": "l", "path": "a/b" }] } }],
                "topologySpreadConstraints": [{ "topologyKey": "kubernetes.io/hostname" }],
                "containers": [{ "name": "c", "resources": { "limits": { "memory": "100m" } } }],
                "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 1, "podAffinityTerm": {} }] } },
            },
        }));
        let label = &dns_label("a.b")[0];
        assert_eq!(
            warnings,
            [
                &*format!(
                    "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{label}]"
                ),
                r#"spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead"#,
                "spec.topologySpreadConstraints[0].labelSelector: a null labelSelector results in matching no pod",
                r#"metadata.annotations[scheduler.alpha.kubernetes.io/critical-pod]: non-functional in v1.16+; use the "priorityClassName" field instead"#,
                "spec.volumes[0].gitRepo: deprecated in v1.11, and disabled by default in v1.33+",
                r#"volume "c" (ConfigMap "m"): overlapping paths: "a/b" with "a""#,
                r#"spec.hostAliases[0].ip: IPv6 address "2001:DB8::1" should be in RFC 5952 canonical format ("2001:db8::1")"#,
                r#"spec.imagePullSecrets[1].name: duplicate name "s""#,
                r#"spec.imagePullSecrets[2].name: invalid empty name """#,
                r#"spec.containers[0].resources.limits[memory]: fractional byte value "100m" is invalid, must be an integer"#,
                "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1",
                "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm.labelSelector: a null labelSelector results in matching no pod",
            ]
        );
    }

    #[test]
    fn a_template_that_did_not_change_does_not_warn_again() {
        let workload = json!({ "metadata": { "name": "w", "generation": 2 }, "spec": { "template": {
            "spec": { "terminationGracePeriodSeconds": -1 } } } });
        assert!(of_workload(&workload, Some(&workload)).is_empty());
        let old = json!({ "metadata": { "name": "w", "generation": 1 } });
        assert_eq!(of_workload(&workload, Some(&old)).len(), 1);
    }
}
