//! Pods that are invalid, and how the API says so.

use serde_json::{Value, json};

use super::Pod;
use crate::kinds::gvk;
use crate::schema::Schemas;
use crate::strategy::{Deployment, Strategy as _};

const DNS: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const ID: &str = "must be between 0 and 2147483647, inclusive";
const HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";

/// A pod with one good container, changed by merging `spec` into its spec and `container` into the container.
fn pod(spec: &Value, container: &Value) -> Value {
    let mut first = json!({ "name": "c", "image": "i" });
    json_patch::merge(&mut first, container);
    let mut object = json!({ "metadata": { "name": "p" }, "spec": { "containers": [first] } });
    json_patch::merge(&mut object["spec"], spec);
    Schemas::builtin().apply_defaults(&gvk("v1", "Pod"), &mut object);
    Pod.default(&mut object);
    object
}

fn mistakes(object: &Value) -> Vec<String> {
    let errors = Pod.validate(object);
    errors
        .iter()
        .map(|error| format!("{}: {}", error.field, error.message))
        .collect()
}

/// Each pod must have just the mistakes that stand beside it.
fn check(cases: &[(Value, Value, &[&str])]) {
    for (spec, container, wanted) in cases {
        let object = pod(spec, container);
        assert_eq!(mistakes(&object), *wanted, "{spec} {container}");
    }
}

#[test]
fn where_a_pod_may_run_is_checked() {
    let term = "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0]";
    let required =
        "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]";
    let node = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    let none = json!({});
    let web = json!({ "matchLabels": { "a": "w" } });
    let required_node = |terms: Value| json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } });
    let spread = |constraint: Value| json!({ "topologySpreadConstraints": [constraint] });
    let tolerate = |toleration: Value| json!({ "tolerations": [toleration] });
    #[rustfmt::skip] // One pod a line, or two.
    check(&[
        (json!({ "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{ "podAffinityTerm": { "topologyKey": "kubernetes.io/hostname", "labelSelector": web } }] } } }), none.clone(),
            &[&format!("{term}.weight: Invalid value: 0: must be in the range 1-100")]),
        (json!({ "affinity": { "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 101, "podAffinityTerm": { "topologyKey": "k", "labelSelector": web } }] } } }), none.clone(),
            &[&format!("{term}.weight: Invalid value: 101: must be in the range 1-100")]),
        (json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "", "labelSelector": web }] } } }), none.clone(),
            &[&format!("{required}.topologyKey: Required value: can not be empty"),
              &format!("{required}.topologyKey: Invalid value: \"\": name part must be non-empty"),
              &format!("{required}.topologyKey: Invalid value: \"\": {NAME}")]),
        (json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "k", "matchLabelKeys": ["a"] }] } } }), none.clone(),
            &[&format!("{required}.matchLabelKeys: Forbidden: must not be specified when labelSelector is not set")]),
        (json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "k", "labelSelector": web, "matchLabelKeys": ["b"], "mismatchLabelKeys": ["b"] }] } } }), none.clone(),
            &[&format!("{required}.matchLabelKeys[0]: Invalid value: \"b\": exists in both matchLabelKeys and mismatchLabelKeys")]),
        (required_node(json!([])), none.clone(), &[&format!("{node}: Required value: must have at least one node selector term")]),
        (required_node(json!([{ "matchExpressions": [{ "key": "disk", "operator": "Equals", "values": ["ssd"] }] }])), none.clone(),
            &[&format!("{node}[0].matchExpressions[0].operator: Invalid value: \"Equals\": not a valid selector operator")]),
        (required_node(json!([{ "matchExpressions": [{ "key": "disk", "operator": "In" }] }])), none.clone(),
            &[&format!("{node}[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'")]),
        (required_node(json!([{ "matchExpressions": [{ "key": "disk", "operator": "Gt", "values": ["1", "2"] }] }])), none.clone(),
            &[&format!("{node}[0].matchExpressions[0].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'")]),
        (required_node(json!([{ "matchFields": [{ "key": "metadata.uid", "operator": "In", "values": ["1"] }] }])), none.clone(),
            &[&format!("{node}[0].matchFields[0].key: Invalid value: \"metadata.uid\": not a valid field selector key")]),
        (spread(json!({ "maxSkew": 0, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "Sometimes" })), none.clone(),
            &["spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
              "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Sometimes\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\""]),
        (spread(json!({ "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 2 })), none.clone(),
            &["spec.topologySpreadConstraints[0].minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway"]),
        (json!({ "topologySpreadConstraints": [{ "maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule" }, { "maxSkew": 2, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule" }] }), none.clone(),
            &["spec.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{z, DoNotSchedule}\""]),
        (tolerate(json!({ "operator": "Equal" })), none.clone(),
            &["spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \"match all values and all keys\""]),
        (tolerate(json!({ "key": "k", "operator": "Exists", "value": "v" })), none.clone(),
            &["spec.tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'"]),
        (tolerate(json!({ "key": "k", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 1 })), none.clone(),
            &["spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set"]),
        (json!({ "readinessGates": [{ "conditionType": "not a type!" }] }), none.clone(),
            &[&format!("spec.readinessGates[0].conditionType: Invalid value: \"not a type!\": {NAME}")]),
        (json!({ "schedulingGates": [{ "name": "a" }, { "name": "a" }] }), none.clone(),
            &["spec.schedulingGates[1]: Duplicate value: \"a\""]),
        (json!({ "schedulingGates": [{ "name": "a" }], "nodeName": "n" }), none.clone(),
            &["spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared"]),
    ]);
}

#[test]
fn names_addresses_and_identities_are_checked() {
    let none = json!({});
    #[rustfmt::skip] // One pod a line, or two.
    check(&[
        (json!({ "dnsConfig": { "nameservers": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "not-an-ip"] } }), none.clone(),
            &["spec.dnsConfig.nameservers: Invalid value: [\"192.0.2.1\",\"192.0.2.2\",\"192.0.2.3\",\"not-an-ip\"]: must not have more than 3 nameservers",
              &format!("spec.dnsConfig.nameservers[3]: Invalid value: \"not-an-ip\": {IP}")]),
        (json!({ "dnsPolicy": "None" }), none.clone(), &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"]),
        (json!({ "dnsConfig": { "searches": [".", "a_b.example."], "options": [{ "value": "1" }] } }), none.clone(),
            &["spec.dnsConfig.options[0]: Required value: must not be empty"]),
        (json!({ "hostAliases": [{ "ip": "192.0.2.9", "hostnames": ["under_score.example", "a b"] }] }), none.clone(),
            &[&format!("spec.hostAliases[0].hostnames[0]: Invalid value: \"under_score.example\": {DNS}"),
              &format!("spec.hostAliases[0].hostnames[1]: Invalid value: \"a b\": {DNS}")]),
        (json!({ "hostAliases": [{ "ip": "x" }] }), none.clone(), &[&format!("spec.hostAliases[0].ip: Invalid value: \"x\": {IP}")]),
        (json!({ "securityContext": { "runAsUser": -5, "fsGroup": -1, "sysctls": [{ "name": "kernel.msgmax", "value": "1" }, { "name": "kernel.msgmax", "value": "2" }] } }), none.clone(),
            &[&format!("spec.securityContext.fsGroup: Invalid value: -1: {ID}"),
              &format!("spec.securityContext.runAsUser: Invalid value: -5: {ID}"),
              "spec.securityContext.sysctls[1].name: Duplicate value: \"kernel.msgmax\""]),
        (json!({ "securityContext": { "supplementalGroups": [1, -1], "fsGroupChangePolicy": "Never" } }), none.clone(),
            &[&format!("spec.securityContext.supplementalGroups[1]: Invalid value: -1: {ID}"),
              "spec.securityContext.fsGroupChangePolicy: Unsupported value: \"Never\": supported values: \"Always\", \"OnRootMismatch\""]),
        (json!({ "hostNetwork": true, "securityContext": { "sysctls": [{ "name": "net.ipv4.ip_forward", "value": "1" }] } }), none.clone(),
            &["spec.securityContext.sysctls[0].name: Invalid value: \"net.ipv4.ip_forward\": may not be specified when 'hostNetwork' is true"]),
        (json!({ "securityContext": { "sysctls": [{ "name": "Kernel.X", "value": "1" }] } }), none.clone(),
            &["spec.securityContext.sysctls[0].name: Invalid value: \"Kernel.X\": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"]),
        (json!({ "securityContext": { "seccompProfile": { "type": "Localhost" } } }), none.clone(),
            &["spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"]),
        (json!({}), json!({ "securityContext": { "seccompProfile": { "type": "Localhost", "localhostProfile": "../x" } } }),
            &["spec.containers[0].securityContext.seccompProfile.localhostProfile: Invalid value: \"../x\": must not contain '..'"]),
        (json!({}), json!({ "securityContext": { "procMount": "Unmasked", "runAsGroup": -2 } }),
            &[&format!("spec.containers[0].securityContext.runAsGroup: Invalid value: -2: {ID}"),
              "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`"]),
        (json!({ "hostUsers": false, "hostPID": true }), none.clone(), &["spec.HostPID: Forbidden: when `pod.Spec.HostUsers` is false"]),
        (json!({ "os": { "name": "plan9" } }), none.clone(), &["spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\""]),
        (json!({ "os": { "name": "windows" }, "securityContext": { "runAsUser": 1 } }), none.clone(),
            &["spec.securityContext.runAsUser: Forbidden: cannot be set for a windows pod"]),
        (json!({ "hostname": "a.b" }), none.clone(),
            &["spec.hostname: Invalid value: \"a.b\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]),
        (json!({ "overhead": { "cpu": "-1" } }), none.clone(), &["spec.overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"]),
        (json!({ "preemptionPolicy": "Always" }), none.clone(),
            &["spec.preemptionPolicy: Unsupported value: \"Always\": supported values: \"PreemptLowerPriority\", \"Never\""]),
        (json!({ "resourceClaims": [{ "name": "a" }] }), none.clone(),
            &["spec.resourceClaims[0]: Invalid value: {\"name\":\"a\"}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"]),
    ]);
}

#[test]
fn volumes_are_checked() {
    let none = json!({});
    let volume = |source: Value| {
        let mut volume = json!({ "name": "v" });
        json_patch::merge(&mut volume, &source);
        json!({ "volumes": [volume] })
    };
    let mount = |mount: Value| {
        let mut all = json!({ "name": "v", "mountPath": "/v" });
        json_patch::merge(&mut all, &mount);
        json!({ "volumeMounts": [all] })
    };
    let empty = volume(json!({ "emptyDir": {} }));
    #[rustfmt::skip] // One pod a line, or two.
    check(&[
        (volume(json!({ "projected": { "sources": [{ "configMap": { "name": "a", "items": [{ "key": "x", "path": "same" }] } }, { "secret": { "name": "b", "items": [{ "key": "k2", "path": "same" }] } }] } })), none.clone(),
            &["spec.volumes[0].projected: Invalid value: \"b\": conflicting duplicate paths"]),
        (volume(json!({ "projected": { "sources": [{ "configMap": { "name": "a" }, "secret": { "name": "b" } }] } })), none.clone(),
            &["spec.volumes[0].projected.sources[0]: Forbidden: may not specify more than 1 volume type per source"]),
        (volume(json!({ "projected": { "sources": [{ "serviceAccountToken": { "path": "t", "expirationSeconds": 5 } }] } })), none.clone(),
            &["spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes"]),
        (volume(json!({ "configMap": { "name": "a", "items": [{ "path": "only-a-path" }] } })), none.clone(),
            &["spec.volumes[0].configMap.items[0].key: Required value"]),
        (volume(json!({ "secret": { "secretName": "a", "items": [{ "key": "k", "path": "..x" }] } })), none.clone(),
            &["spec.volumes[0].secret.items[0].path: Invalid value: \"..x\": must not start with '..'"]),
        (volume(json!({ "secret": { "secretName": "a", "defaultMode": 512 } })), none.clone(),
            &["spec.volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive"]),
        (volume(json!({ "downwardAPI": { "items": [{ "path": "cpu", "resourceFieldRef": { "resource": "limits.cpu" } }, { "path": "nothing" }] } })), none.clone(),
            &["spec.volumes[0].downwardAPI.resourceFieldRef.containerName: Required value",
              "spec.volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required"]),
        (volume(json!({ "downwardAPI": { "items": [{ "path": "x", "fieldRef": { "fieldPath": "spec.nodeName" } }] } })), none.clone(),
            &["spec.volumes[0].downwardAPI.fieldRef.fieldPath: Unsupported value: \"spec.nodeName\": supported values: \"metadata.annotations\", \"metadata.labels\", \"metadata.name\", \"metadata.namespace\", \"metadata.uid\""]),
        (volume(json!({ "nfs": { "server": "s", "path": "relative" } })), none.clone(),
            &["spec.volumes[0].nfs.path: Invalid value: \"relative\": must be an absolute path"]),
        (volume(json!({ "hostPath": { "path": "/a/../b", "type": "Dir" } })), none.clone(),
            &["spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
              "spec.volumes[0].hostPath.type: Unsupported value: \"Dir\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\""]),
(volume(json!({ "emptyDir": {}, "hostPath": { "path": "/" } })), none.clone(),
            &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"]),
        (empty.clone(), mount(json!({ "mountPropagation": "Bidirectional" })),
            &["spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers"]),
        (empty.clone(), json!({ "securityContext": { "privileged": true }, "volumeMounts": [{ "name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional" }] }), &[]),
        (empty.clone(), mount(json!({ "recursiveReadOnly": "Enabled" })),
            &["spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true"]),
        (empty.clone(), mount(json!({ "subPath": "/abs" })),
            &["spec.containers[0].volumeMounts.subPath: Invalid value: \"/abs\": must be a relative path"]),
        (empty.clone(), mount(json!({ "name": "w" })), &["spec.containers[0].volumeMounts[0].name: Not found: \"w\""]),
        (empty.clone(), json!({ "volumeDevices": [{ "name": "v", "devicePath": "/dev/x" }] }),
            &["spec.containers[0].volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"]),
    ]);
}

#[test]
fn containers_are_checked() {
    let none = json!({});
    let env = |from: Value| json!({ "env": [{ "name": "M", "valueFrom": from }] });
    let at = "spec.containers[0]";
    #[rustfmt::skip] // One pod a line, or two.
    check(&[
        (none.clone(), json!({ "livenessProbe": { "httpGet": { "port": 80, "path": "/", "httpHeaders": [{ "name": "X-Probe:", "value": "1" }] } } }),
            &[&format!("{at}.livenessProbe.httpGet.httpHeaders: Invalid value: \"X-Probe:\": {HEADER}")]),
        (none.clone(), env(json!({ "resourceFieldRef": { "resource": "limits.memory", "divisor": "3Mi" } })),
            &[&format!("{at}.env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.memory\": only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource")]),
        (none.clone(), env(json!({ "resourceFieldRef": { "resource": "requests.cpu", "divisor": "2" } })),
            &[&format!("{at}.env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"requests.cpu\": only divisor's values 1m and 1 are supported with the cpu resource")]),
        (none.clone(), env(json!({ "fieldRef": { "fieldPath": "spec.what" } })),
            &[&format!("{at}.env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.what\": error converting fieldPath: field label not supported: spec.what")]),
        (none.clone(), env(json!({ "configMapKeyRef": { "name": "m", "key": "a/b" } })),
            &[&format!("{at}.env[0].valueFrom.configMapKeyRef.key: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')")]),
        (none.clone(), env(json!({ "fieldRef": { "fieldPath": "metadata.labels['a b']" } })),
            &[&format!("{at}.env[0].valueFrom.fieldRef: Invalid value: \"a b\": {NAME}")]),
        (json!({ "terminationGracePeriodSeconds": 5 }), json!({ "lifecycle": { "preStop": { "sleep": { "seconds": 60 } } } }),
            &[&format!("{at}.lifecycle.preStop.sleep: Invalid value: 60: must be non-negative and less than terminationGracePeriodSeconds (5)")]),
        (none.clone(), json!({ "lifecycle": { "preStop": {} } }), &[&format!("{at}.lifecycle.preStop: Required value: must specify a handler type")]),
        (none.clone(), json!({ "readinessProbe": { "exec": { "command": ["x"] }, "terminationGracePeriodSeconds": 5 } }),
            &[&format!("{at}.readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes")]),
        (none.clone(), json!({ "livenessProbe": { "exec": { "command": ["x"] }, "terminationGracePeriodSeconds": -1, "successThreshold": 2 } }),
            &[&format!("{at}.livenessProbe.successThreshold: Invalid value: 2: must be 1"),
              &format!("{at}.livenessProbe.terminationGracePeriodSeconds: Invalid value: -1: must be greater than 0")]),
        (none.clone(), json!({ "livenessProbe": { "exec": { "command": ["x"] }, "tcpSocket": { "port": 1 } } }),
            &[&format!("{at}.livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type")]),
        (none.clone(), json!({ "resources": { "requests": { "cpu": "2" }, "limits": { "cpu": "1" } } }),
            &[&format!("{at}.resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1")]),
        (none.clone(), json!({ "resources": { "limits": { "example.com/gpu": "1500m" } } }),
            &[&format!("{at}.resources.limits[example.com/gpu]: Invalid value: \"1500m\": must be an integer"),
              &format!("{at}.resources.requests[example.com/gpu]: Invalid value: \"1500m\": must be an integer")]),
        (none.clone(), json!({ "resources": { "limits": { "hugepages-2Mi": "2Mi" } } }), &[&format!("{at}.resources: Forbidden: HugePages require cpu or memory")]),
        (none.clone(), json!({ "resources": { "limits": { "gpu": "1" } } }),
            &[&format!("{at}.resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers"),
              &format!("{at}.resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for containers")]),
        (none.clone(), json!({ "ports": [{ "containerPort": 80, "protocol": "TCP", "hostPort": 70000 }] }),
            &[&format!("{at}.ports[0].hostPort: Invalid value: 70000: must be between 1 and 65535, inclusive")]),
        (json!({ "hostNetwork": true }), json!({ "ports": [{ "containerPort": 80, "protocol": "TCP", "hostPort": 81 }] }),
            &[&format!("{at}.ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true")]),
        (json!({ "initContainers": [{ "name": "c", "image": "i" }] }), none.clone(), &["spec.initContainers[0].name: Duplicate value: \"c\""]),
        (json!({ "initContainers": [{ "name": "d", "image": "i", "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } } }] }), none.clone(),
            &["spec.initContainers[0].lifecycle: Forbidden: may not be set for init containers without restartPolicy=Always"]),
        (json!({ "restartPolicy": "Never" }), json!({ "resizePolicy": [{ "resourceName": "cpu", "restartPolicy": "RestartContainer" }] }),
            &[&format!("{at}.resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when `restartPolicy` is 'Never'")]),
        (json!({ "terminationGracePeriodSeconds": -1 }), none, &[]),
    ]);
}

#[test]
fn ephemeral_containers_may_not_have_what_needs_a_start() {
    let object = pod(
        &json!({ "ephemeralContainers": [{ "name": "e", "image": "i", "targetContainerName": "x", "ports": [{ "containerPort": 1, "protocol": "TCP" }],
            "resources": { "limits": { "cpu": "1" } }, "livenessProbe": { "exec": { "command": ["x"] } } }] }),
        &json!({}),
    );
    let mut mistakes = mistakes(&object);
    assert_eq!(
        mistakes.pop().as_deref(),
        Some("spec.ephemeralContainers: Forbidden: cannot be set on create")
    );
    assert_eq!(
        mistakes,
        [
            "spec.ephemeralContainers[0].targetContainerName: Not found: \"x\"",
            "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
            "spec.ephemeralContainers[0].resources: Forbidden: cannot be set for an Ephemeral Container",
            "spec.ephemeralContainers[0].livenessProbe: Forbidden: cannot be set for an Ephemeral Container",
        ]
    );
}

#[test]
fn templates_are_checked_as_pods_are() {
    let template = pod(
        &json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [] } } } }),
        &json!({ "image": " spaced" }),
    );
    let mut object = json!({ "metadata": { "name": "d" }, "spec": { "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": template["spec"] } } });
    Schemas::builtin().apply_defaults(&gvk("apps/v1", "Deployment"), &mut object);
    let errors = Deployment.validate(&object);
    let fields: Vec<&str> = errors.iter().map(|error| &*error.field).collect();
    assert_eq!(
        fields,
        [
            "spec.template.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
        ],
        "and a template's image may be anything"
    );
}

#[test]
fn the_annotations_that_controllers_read_are_checked() {
    let cost = |text: &str| {
        let mut object = pod(&json!({}), &json!({}));
        object["metadata"]["annotations"] =
            json!({ "controller.kubernetes.io/pod-deletion-cost": text });
        mistakes(&object)
    };
    for good in ["0", "100", "-7"] {
        assert_eq!(cost(good), [""; 0], "{good}");
    }
    for bad in ["+1", "007", "x", "3000000000", ""] {
        assert_eq!(
            cost(bad),
            [format!(
                "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: {bad:?}: must be a 32bit integer"
            )]
        );
    }
}
