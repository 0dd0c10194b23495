//! Pods against the standards, with kube-apiserver's messages.

use serde_json::json;

use super::super::testing;
use super::existing::{describe, stricter};
use super::policy::{Level, Version};
use super::*;

const LATEST: Version = Version::Latest;

/// What a spec violates of the standards, as a refusal says it; empty if nothing.
fn violated(level: Level, version: Version, metadata: &Value, spec: &Value) -> String {
    let pod = Pod { metadata, spec };
    details(&violations(LevelVersion { level, version }, pod))
}

/// A spec that follows every standard.
fn good() -> Value {
    json!({
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [{ "name": "a", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
        } }],
    })
}

/// That, with values at these paths.
fn but(changes: &[(&str, Value)]) -> Value {
    let mut spec = good();
    for (path, value) in changes {
        let mut slot = &mut spec;
        for key in path.split('/') {
            slot = match key.parse::<usize>() {
                Ok(index) => &mut slot[index],
                Err(_) => &mut slot[key],
            };
        }
        *slot = value.clone();
    }
    spec
}

#[test]
fn a_pod_without_a_security_context_violates_restricted_as_everybody_knows_it() {
    let spec = json!({ "containers": [{ "name": "c" }], "initContainers": [{ "name": "i" }] });
    assert_eq!(
        violation(
            LevelVersion {
                level: Level::Restricted,
                version: LATEST
            },
            Pod {
                metadata: &Value::Null,
                spec: &spec
            }
        )
        .unwrap_or_default(),
        "PodSecurity \"restricted:latest\": \
         allowPrivilegeEscalation != false (containers \"i\", \"c\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (containers \"i\", \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or containers \"i\", \"c\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or containers \"i\", \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    assert_eq!(violated(Level::Baseline, LATEST, &Value::Null, &spec), "");
    assert_eq!(
        violated(Level::Restricted, LATEST, &Value::Null, &good()),
        ""
    );
}

#[test]
fn baseline_forbids_what_leads_out_of_a_container() {
    let context = "containers/0/securityContext";
    let at = |field: &str| format!("{context}/{field}");
    #[rustfmt::skip] // The columns are compared.
    let table = [
        (but(&[("hostNetwork", json!(true)), ("hostIPC", json!(true))]), "host namespaces (hostNetwork=true, hostIPC=true)"),
        (but(&[("volumes", json!([{ "name": "v", "hostPath": { "path": "/" } }]))]), "hostPath volumes (volume \"v\")"),
        (but(&[("containers/0/ports", json!([{ "hostPort": 80 }, { "hostPort": 443 }]))]), "hostPort (container \"a\" uses hostPorts 443, 80)"),
        (but(&[("containers/0/livenessProbe", json!({ "httpGet": { "host": "10.0.0.1" } }))]),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"10.0.0.1\")"),
        (but(&[(&at("privileged"), json!(true))]), "privileged (container \"a\" must not set securityContext.privileged=true)"),
        (but(&[(&at("procMount"), json!("Unmasked"))]), "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")"),
        (but(&[(&at("procMount"), json!("Unmasked")), ("hostUsers", json!(false))]), ""),
        (but(&[(&at("capabilities/add"), json!(["NET_RAW", "CHOWN"]))]),
            "non-default capabilities (container \"a\" must not include \"NET_RAW\" in securityContext.capabilities.add)"),
        (but(&[("securityContext/seLinuxOptions", json!({ "type": "unconfined_t", "user": "u" }))]),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"unconfined_t\"; user may not be set)"),
        (but(&[("securityContext/seccompProfile/type", json!("Unconfined")), (&at("seccompProfile"), json!({ "type": "Unconfined" }))]),
            "seccompProfile (pod and container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")"),
        (but(&[("securityContext/appArmorProfile", json!({ "type": "Unconfined" }))]),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")"),
        (but(&[("securityContext/sysctls", json!([{ "name": "kernel.msgmax" }, { "name": "net.ipv4.tcp_syncookies" }]))]),
            "forbidden sysctls (kernel.msgmax)"),
        (but(&[("securityContext/windowsOptions", json!({ "hostProcess": true }))]),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)"),
    ];
    for (spec, expected) in table {
        let found = violated(Level::Baseline, LATEST, &Value::Null, &spec);
        assert_eq!(found, expected, "{spec}");
        assert_eq!(violated(Level::Privileged, LATEST, &Value::Null, &spec), "");
    }
}

#[test]
fn restricted_wants_good_practice_and_says_each_thing_once() {
    let context = "containers/0/securityContext";
    let at = |field: &str| format!("{context}/{field}");
    #[rustfmt::skip] // The columns are compared.
    let table = [
        (but(&[("volumes", json!([{ "name": "v", "hostPath": { "path": "/" } }, { "name": "n", "nfs": {} }, { "name": "i", "image": {} }]))]),
            "restricted volume types (volumes \"v\", \"n\" use restricted volume types \"hostPath\", \"nfs\")"),
        (but(&[(&at("capabilities"), json!({ "add": ["NET_RAW", "NET_BIND_SERVICE"] }))]),
            "unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]; \
             container \"a\" must not include \"NET_RAW\" in securityContext.capabilities.add)"),
        (but(&[(&at("procMount"), json!("Unmasked")), ("hostUsers", json!(false))]),
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")"),
        (but(&[(&at("runAsNonRoot"), json!(false))]), "runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false)"),
        (but(&[("securityContext/runAsUser", json!(0))]), "runAsUser=0 (pod must not set runAsUser=0)"),
        (but(&[("securityContext/runAsUser", json!(0)), ("securityContext/runAsNonRoot", json!(false)), ("hostUsers", json!(false))]), ""),
        (but(&[("securityContext/seccompProfile/type", json!("Unconfined"))]),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")"),
        (but(&[(context, Value::Null), ("os", json!({ "name": "windows" })), ("securityContext/seccompProfile", Value::Null)]), ""),
    ];
    for (spec, expected) in table {
        let found = violated(Level::Restricted, LATEST, &Value::Null, &spec);
        assert_eq!(found, expected, "{spec}");
    }
}

#[test]
fn standards_of_a_version_do_not_know_what_came_later() {
    let sysctl = |name: &str| but(&[("securityContext/sysctls", json!([{ "name": name }]))]);
    let context = "containers/0/securityContext";
    let kind = json!({ "type": "container_engine_t" });
    #[rustfmt::skip] // The columns are compared.
    let table = [
        (Level::Restricted, 7, but(&[(context, Value::Null)]), "allowPrivilegeEscalation != false", 8),
        (Level::Restricted, 21, but(&[(context, json!({ "allowPrivilegeEscalation": false }))]), "unrestricted capabilities", 22),
        (Level::Restricted, 22, but(&[("securityContext/runAsUser", json!(0))]), "runAsUser=0", 23),
        (Level::Baseline, 33, but(&[("containers/0/lifecycle", json!({ "preStop": { "tcpSocket": { "host": "h" } } }))]), "probe or lifecycle host", 34),
        (Level::Baseline, 27, sysctl("net.ipv4.ip_local_reserved_ports"), "forbidden sysctls", 26),
        (Level::Baseline, 37, sysctl("net.ipv4.tcp_notsent_lowat"), "forbidden sysctls", 36),
        (Level::Baseline, 31, but(&[("securityContext/seLinuxOptions", kind)]), "seLinuxOptions", 30),
        (Level::Restricted, 35, but(&[("securityContext/runAsNonRoot", json!(false)), ("hostUsers", json!(false))]), "runAsNonRoot != true", 34),
    ];
    for (level, allowed, spec, reason, forbidden) in table {
        let found = |minor| violated(level, Version::Minor(minor), &Value::Null, &spec);
        assert_eq!(found(allowed), "", "v1.{allowed} {spec}");
        let found = found(forbidden);
        assert!(found.starts_with(reason), "v1.{forbidden} {spec}: {found}");
    }
}

#[test]
fn annotations_count_as_profiles() {
    let metadata = json!({ "annotations": {
        "container.apparmor.security.beta.kubernetes.io/a": "unconfined",
        "seccomp.security.alpha.kubernetes.io/pod": "unconfined",
    } });
    let armor = "forbidden AppArmor profile (annotation must not set AppArmor profile type to \
        \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")";
    assert_eq!(violated(Level::Baseline, LATEST, &metadata, &good()), armor);
    assert_eq!(
        violated(Level::Baseline, Version::Minor(18), &metadata, &good()),
        format!(
            "{armor}, seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")"
        )
    );
}

#[test]
fn labels_that_cannot_be_read_are_refused_when_they_are_new() {
    let labelled = |level: &str| json!({ "metadata": { "labels": { "pod-security.kubernetes.io/enforce": level } } });
    let error = check_labels(&labelled("x"), None, "n").unwrap_err();
    assert_eq!(
        (error.code, &*error.message),
        (
            422,
            "Namespace \"n\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": \
             must be one of privileged, baseline, restricted"
        )
    );
    assert_eq!(
        check_labels(&labelled("x"), Some(&labelled("x")), "n"),
        Ok(())
    );
    assert!(check_labels(&labelled("x"), Some(&labelled("y")), "n").is_err());
    assert_eq!(check_labels(&labelled("baseline"), None, "n"), Ok(()));
}

#[test]
fn only_stricter_standards_are_held_against_pods_that_are_there() {
    let at = |level, version| LevelVersion { level, version };
    let (old, older) = (Version::Minor(25), Version::Minor(24));
    for (before, after, expected) in [
        (
            at(Level::Privileged, LATEST),
            at(Level::Baseline, LATEST),
            true,
        ),
        (
            at(Level::Restricted, LATEST),
            at(Level::Baseline, LATEST),
            false,
        ),
        (at(Level::Restricted, old), at(Level::Baseline, older), true),
        (
            at(Level::Baseline, LATEST),
            at(Level::Baseline, LATEST),
            false,
        ),
        (
            at(Level::Baseline, LATEST),
            at(Level::Privileged, old),
            false,
        ),
    ] {
        assert_eq!(
            stricter(before, after).is_some(),
            expected,
            "{before} {after}"
        );
    }
}

#[test]
fn pods_that_violate_new_standards_are_named_by_their_violations() {
    let enforce = LevelVersion {
        level: Level::Baseline,
        version: LATEST,
    };
    let found = [
        ("privileged", ("b", 1)),
        ("hostPort", ("a", 2)),
        ("host namespaces", ("c", 4)),
    ];
    let found = found.map(|(reasons, (pod, count))| (reasons.to_owned(), (pod.to_owned(), count)));
    assert_eq!(
        describe("n", enforce, found.into(), 7, 9),
        [
            "new PodSecurity enforce level only checked against the first 7 of 9 existing pods",
            "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 1 other pod): hostPort",
            "b: privileged",
            "c (and 3 other pods): host namespaces",
        ]
    );
}

#[test]
fn a_pod_is_judged_anew_when_something_else_runs_in_it() {
    let pod = |spec: Value| json!({ "metadata": {}, "spec": spec });
    let old = pod(json!({ "containers": [{ "name": "a", "image": "x" }] }));
    let image = pod(json!({ "containers": [{ "name": "a", "image": "y" }] }));
    let debug = pod(
        json!({ "containers": [{ "name": "a", "image": "x" }], "ephemeralContainers": [{ "name": "d", "image": "x" }] }),
    );
    let mut labelled = old.clone();
    labelled["metadata"]["labels"] = json!({ "a": "b" });
    assert!(is_significant(&image, &old));
    assert!(is_significant(&debug, &old));
    assert!(!is_significant(&labelled, &old));
    assert!(!is_significant(&debug, &debug));
}

#[tokio::test]
async fn namespaces_refuse_pods_and_warn_of_templates_and_of_pods_that_are_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = testing::registry(&directory, &[]).await;
    let labels = json!({ "pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "baseline" });
    let strict = json!({ "metadata": { "name": "strict", "labels": labels } });
    testing::create(&registry, "namespaces", "", strict.clone()).await;
    let spec = json!({ "hostPID": true, "containers": [{ "name": "a", "image": "i" }] });
    let pod = json!({ "metadata": { "name": "p" }, "spec": spec });
    let detail = "violate PodSecurity \"baseline:latest\": host namespaces (hostPID=true)";

    let operation = testing::creation(&registry, "pods", "strict", pod.clone());
    assert!(PodSecurity.handles(&operation));
    let error = PodSecurity
        .validate(&registry, &operation)
        .await
        .unwrap_err();
    let detail_of_pod = detail.replacen("violate", "violates", 1);
    assert_eq!(
        error.message,
        format!("pods \"p\" is forbidden: {detail_of_pod}")
    );
    let elsewhere = testing::creation(&registry, "pods", "shop", pod);
    assert_eq!(PodSecurity.validate(&registry, &elsewhere).await, Ok(()));

    let deployment =
        json!({ "metadata": { "name": "d" }, "spec": { "template": { "spec": spec } } });
    let operation = testing::creation(&registry, "deployments", "strict", deployment);
    assert!(PodSecurity.handles(&operation));
    assert_eq!(PodSecurity.validate(&registry, &operation).await, Ok(()));
    let warnings = warnings(&registry, &operation);
    assert_eq!(warnings, [format!("would {detail}")]);

    let account = json!({ "metadata": { "name": "default" } });
    testing::create(&registry, "serviceaccounts", "shop", account).await;
    let mut there = elsewhere.new.expect("the pod stays");
    there["spec"]["restartPolicy"] = "Always".into();
    testing::create(&registry, "pods", "shop", there).await;
    let mut operation = testing::creation(&registry, "namespaces", "", strict);
    (operation.action, operation.name) = (Action::Update, "shop".to_owned());
    operation.old = Some(json!({ "metadata": { "name": "shop" } }));
    assert_eq!(
        super::warnings(&registry, &operation),
        [
            "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "p: host namespaces",
        ]
    );
}
