//! `kubectl apply`, `create`, `replace`, `diff` and `edit`.

use super::{BOTH, has, start, web};
use crate::harness::Kubectl;

#[test]
fn apply_create_replace_and_edit_change_what_they_are_told_to() {
    let cluster = start("apply");
    has(
        &cluster.apply(&web(1, ", env: [{name: A, value: a}, {name: B, value: b}]")),
        &["deployment.apps/web created"],
    );
    has(
        &cluster.apply(&web(1, ", env: [{name: A, value: a}, {name: B, value: b}]")),
        &["deployment.apps/web unchanged"],
    );
    // Somebody else's change of another field stays; what the manifest no longer has goes.
    cluster.kubectl(&["label", "deployment", "web", "team=red"]);
    has(
        &cluster.apply(&web(2, ", env: [{name: B, value: c}]")),
        &["deployment.apps/web configured"],
    );
    let is = |path: &str| {
        cluster.kubectl(&[
            "get",
            "deployment",
            "web",
            "-o",
            &format!("jsonpath={path}"),
        ])
    };
    assert_eq!(
        is("{.metadata.labels.team} {.spec.replicas} {.spec.template.spec.containers[0].env}"),
        r#"red 2 [{"name":"B","value":"c"}]"#
    );
    has(
        &cluster.kubectl(&["get", "deployment", "web", "-o", "yaml"]),
        &["kubectl.kubernetes.io/last-applied-configuration"],
    );
    has(
        &cluster.kubectl(&["apply", "view-last-applied", "deployment/web"]),
        &["replicas: 2"],
    );
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // The dry run of the server changes nothing.
    let manifest = cluster.machine().dir().join("web.yaml");
    std::fs::write(&manifest, web(5, "")).expect("write a file");
    let file = manifest.to_str().expect("UTF-8");
    has(
        &cluster.kubectl(&["apply", "-f", file, "--dry-run=server"]),
        &["configured (server dry run)"],
    );
    assert_eq!(is("{.spec.replicas}"), "2");
    has(
        &cluster.kubectl_fails(&["diff", "-f", file]),
        &["exit status: 1", "-  replicas: 2", "+  replicas: 5"],
    );
    has(
        &cluster.kubectl(&["replace", "-f", file]),
        &["deployment.apps/web replaced"],
    );
    assert_eq!(is("{.spec.replicas}"), "5");
    has(
        &cluster.kubectl_fails(&["create", "-f", file]),
        &[
            r#"Error from server (AlreadyExists): error when creating "#,
            r#"deployments.apps "web" already exists"#,
        ],
    );

    // One manifest with a mistake among several: the rest is applied.
    let mut bad = cluster.kubectl_command(Kubectl::Installed);
    std::fs::write(
        &manifest,
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\ndata: {a: b}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: Upper}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: two}\ndata: {a: b}\n",
    )
    .expect("write a file");
    let output = bad
        .args(["apply", "-f", file])
        .output()
        .expect("run kubectl");
    assert!(!output.status.success());
    has(
        &String::from_utf8_lossy(&output.stdout),
        &["configmap/one created", "configmap/two created"],
    );
    has(
        &String::from_utf8_lossy(&output.stderr),
        &[
            r#"The ConfigMap "Upper" is invalid: metadata.name: Invalid value: "Upper": a lowercase RFC 1123 subdomain"#,
        ],
    );
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: three}\ndat: {a: b}\n";
    std::fs::write(&manifest, unknown).expect("write a file");
    has(
        &cluster.kubectl_fails(&["apply", "-f", file]),
        &[r#"strict decoding error: unknown field "dat""#],
    );
    std::fs::write(
        &manifest,
        web(1, "").replace("replicas: 1", "replicas: many"),
    )
    .expect("write a file");
    has(
        &cluster.kubectl_fails(&["apply", "-f", file]),
        &[
            "cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ],
    );

    for which in BOTH {
        let run = |args: &[&str]| cluster.kubectl_with(which, args);
        run(&["create", "namespace", "made"]);
        run(&[
            "-n",
            "made",
            "create",
            "configmap",
            "map",
            "--from-literal=a=b",
        ]);
        run(&[
            "-n",
            "made",
            "create",
            "secret",
            "generic",
            "secret",
            "--from-literal=a=b",
        ]);
        run(&["-n", "made", "create", "serviceaccount", "account"]);
        assert_eq!(
            run(&["-n", "made", "create", "token", "account"])
                .trim()
                .split('.')
                .count(),
            3
        );
        run(&[
            "-n",
            "made",
            "create",
            "service",
            "clusterip",
            "inner",
            "--tcp=80:8080",
        ]);
        run(&[
            "-n",
            "made",
            "create",
            "service",
            "nodeport",
            "outer",
            "--tcp=80:8080",
        ]);
        run(&[
            "-n",
            "made",
            "create",
            "service",
            "externalname",
            "named",
            "--external-name=example.com",
        ]);
        run(&[
            "-n",
            "made",
            "create",
            "deployment",
            "deployed",
            "--image=knarr.local/hello:v1",
            "--port=8080",
        ]);
        run(&[
            "-n",
            "made",
            "wait",
            "deployment/deployed",
            "--for=condition=Available",
            "--timeout=60s",
        ]);
        assert_eq!(
            run(&[
                "-n",
                "made",
                "get",
                "secret",
                "secret",
                "-o",
                "jsonpath={.data.a}"
            ]),
            "Yg=="
        );

        let edit = |editor: &str, args: &[&str]| {
            let output = cluster
                .kubectl_command(which)
                .env("KUBE_EDITOR", editor)
                .args(["-n", "made", "edit"])
                .args(args)
                .output()
                .expect("run kubectl");
            (
                output.status.success(),
                format!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                ),
            )
        };
        assert_eq!(
            edit(
                "sed -i 's/replicas: 1/replicas: 3/'",
                &["deployment", "deployed"]
            ),
            (true, "deployment.apps/deployed edited\n".to_owned())
        );
        run(&[
            "-n",
            "made",
            "wait",
            "deployment/deployed",
            "--for=jsonpath={.status.readyReplicas}=3",
            "--timeout=60s",
        ]);
        has(
            &edit("true", &["deployment", "deployed"]).1,
            &["Edit cancelled, no changes made"],
        );
        let (good, text) = edit(
            "sed -i 's/replicas: 3/replicas: -1/'",
            &["deployment", "deployed"],
        );
        assert!(!good, "{text}");
        has(
            &text,
            &[
                r#"deployments.apps "deployed" is invalid"#,
                "A copy of your changes has been stored to",
            ],
        );
        run(&["-n", "made", "get", "deployment", "deployed"]);
        assert!(edit("sed -i s/Yg==/Yw==/", &["secret", "secret", "-o", "json"]).0);
        assert_eq!(
            run(&[
                "-n",
                "made",
                "get",
                "secret",
                "secret",
                "-o",
                "jsonpath={.data.a}"
            ]),
            "Yw=="
        );
        run(&["delete", "namespace", "made", "--timeout=60s"]);
    }
}
