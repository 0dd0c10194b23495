//! `kubectl patch`, `label`, `annotate`, `scale` and `set`.

use super::{BOTH, has, start, web};

#[test]
fn patch_label_annotate_scale_and_set_change_one_thing_each() {
    let cluster = start("patch");
    cluster.apply(&web(1, ", env: [{name: A, value: a}, {name: B, value: b}]"));
    for which in BOTH {
        let run = |args: &[&str]| cluster.kubectl_with(which, args);
        let is = |path: &str| {
            run(&[
                "get",
                "deployment",
                "web",
                "-o",
                &format!("jsonpath={path}"),
            ])
        };
        let patch = |kind: &str, patch: &str| {
            run(&["patch", "deployment", "web", "--type", kind, "-p", patch])
        };

        has(
            &patch(
                "strategic",
                r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"A","value":"x"},{"name":"C","value":"c"}]}]}}}}"#,
            ),
            &["deployment.apps/web patched"],
        );
        assert_eq!(is("{range .spec.template.spec.containers[0].env[*]}{.name}={.value} {end}{.spec.template.spec.containers[0].image}").split_whitespace().collect::<std::collections::BTreeSet<_>>(),
            ["A=x", "B=b", "C=c", "knarr.local/hello:v1"].into());
        patch(
            "strategic",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"web","env":[{"name":"C","$patch":"delete"},{"name":"A","value":"a"}]}]}}}}"#,
        );
        assert!(!is("{.spec.template.spec.containers[0].env[*].name}").contains('C'));
        has(
            &patch("merge", r#"{"metadata":{"labels":{"m":"1"}}}"#),
            &["patched"],
        );
        has(
            &patch("merge", r#"{"metadata":{"labels":{"m":"1"}}}"#),
            &["patched (no change)"],
        );
        patch("merge", r#"{"metadata":{"labels":{"m":null}}}"#);
        assert_eq!(is("{.metadata.labels.m}"), "");
        patch(
            "json",
            r#"[{"op":"test","path":"/spec/replicas","value":1},{"op":"replace","path":"/spec/replicas","value":2}]"#,
        );
        assert_eq!(is("{.spec.replicas}"), "2");
        let refused = cluster.kubectl_fails(&[
            "patch",
            "deployment",
            "web",
            "--type=json",
            "-p",
            r#"[{"op":"test","path":"/spec/replicas","value":7}]"#,
        ]);
        has(
            &refused,
            &[
                "The request is invalid: the server rejected our request due to an error in our request",
                "/spec/replicas",
            ],
        );
        let refused = cluster.kubectl_fails(&[
            "patch",
            "deployment",
            "web",
            "--type=merge",
            "-p",
            r#"{"spec":{"selector":{"matchLabels":{"app":"other"}}}}"#,
        ]);
        has(&refused, &["is invalid", "selector"]);

        has(
            &run(&[
                "scale",
                "deployment/web",
                "--replicas=1",
                "--current-replicas=2",
            ]),
            &["deployment.apps/web scaled"],
        );
        let refused = cluster.kubectl_fails(&[
            "scale",
            "deployment/web",
            "--replicas=9",
            "--current-replicas=4",
        ]);
        has(&refused, &["Expected replicas to be 4, was 1"]);
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);

        run(&["label", "pods", "-l", "app=web", "colour=red"]);
        let refused = cluster.kubectl_fails(&["label", "pods", "-l", "app=web", "colour=blue"]);
        has(
            &refused,
            &["already has a value (red), and --overwrite is false"],
        );
        run(&[
            "label",
            "pods",
            "-l",
            "app=web",
            "colour=blue",
            "--overwrite",
        ]);
        has(
            &run(&["label", "pods", "-l", "colour=blue", "colour-"]),
            &["unlabeled"],
        );
        run(&["annotate", "deployment/web", "note=one two"]);
        assert_eq!(is("{.metadata.annotations.note}"), "one two");
        run(&["annotate", "deployment/web", "note-"]);
        assert_eq!(is("{.metadata.annotations.note}"), "");
        has(
            &cluster.kubectl_fails(&["label", "deployment/web", "a=b c"]),
            &["a valid label must be"],
        );

        run(&["set", "env", "deployment/web", "MODE=test"]);
        assert!(is("{.spec.template.spec.containers[0].env[*].name}").contains("MODE"));
        run(&["set", "env", "deployment/web", "MODE-"]);
        run(&[
            "set",
            "resources",
            "deployment/web",
            "--requests=cpu=10m,memory=8Mi",
            "--limits=memory=64Mi",
        ]);
        run(&["set", "image", "deployment/web", "web=knarr.local/hello:v2"]);
        assert_eq!(
            is(
                "{.spec.template.spec.containers[0].image} {.spec.template.spec.containers[0].resources.limits.memory}"
            ),
            "knarr.local/hello:v2 64Mi"
        );
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["set", "image", "deployment/web", "*=knarr.local/hello:v1"]);
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    }
}
