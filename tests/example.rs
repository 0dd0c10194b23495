//! The example of the README: a Deployment behind Services, driven by both kubectls.

use std::collections::BTreeSet;

use crate::harness::{Cluster, Kubectl, hello_image};

const EXAMPLE: &str = include_str!("../examples/hello.yaml");

/// Names that `count` requests to a URL were answered with.
fn answers(cluster: &Cluster, url: &str, count: usize) -> BTreeSet<String> {
    let script = format!(
        "for i in $(seq {count}); do curl --silent --fail --max-time 5 {url} || exit 1; done"
    );
    cluster
        .machine()
        .sh_ok(&script)
        .lines()
        .map(str::to_owned)
        .collect()
}

/// The names of the three pods, once those before them are gone: a rollout does not wait for that.
fn pods(cluster: &Cluster) -> BTreeSet<String> {
    let what = "jsonpath={.items[*].metadata.name}";
    cluster.wait("three pods", || {
        let names = cluster.try_kubectl(&["get", "pods", "-l", "app=hello", "-o", what])?;
        let pods: BTreeSet<String> = names.split_whitespace().map(str::to_owned).collect();
        if pods.len() == 3 {
            Ok(pods)
        } else {
            Err(names)
        }
    })
}

fn start(name: &str) -> Cluster {
    let cluster = Cluster::start(name);
    cluster.import(&hello_image("v1"));
    cluster.import(&hello_image("v2"));
    cluster.apply(EXAMPLE);
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    cluster
}

#[test]
fn requests_to_a_service_are_answered_by_all_of_its_pods() {
    let cluster = start("service");
    let pods = pods(&cluster);
    assert_eq!(pods.len(), 3, "{pods:?}");

    let address = cluster.kubectl(&[
        "get",
        "service",
        "hello",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ]);
    assert_eq!(answers(&cluster, &format!("http://{address}/"), 60), pods);
    assert_eq!(answers(&cluster, "http://192.168.77.2:30080/", 60), pods);

    cluster.kubectl(&["scale", "deployment/hello", "--replicas=1"]);
    cluster.wait_for("deployment/hello", "{.status.replicas}", "1");
    cluster.wait("the other endpoints to be gone", || {
        let left = answers(&cluster, &format!("http://{address}/"), 20);
        if left.len() == 1 {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
    cluster.kubectl(&["scale", "deployment/hello", "--replicas=0"]);
    cluster.wait(
        "requests to a service without endpoints to be refused",
        || {
            let output = cluster
                .machine()
                .sh(&format!("curl --silent --max-time 5 http://{address}/"));
            // 7 is curl's "failed to connect": refused at once, not dropped.
            if output.status.code() == Some(7) {
                Ok(())
            } else {
                Err(output.status.to_string())
            }
        },
    );
}

#[test]
fn a_rollout_goes_forward_and_back_without_losing_a_request() {
    let cluster = start("rollout");
    let address = cluster.kubectl(&[
        "get",
        "service",
        "hello",
        "-o",
        "jsonpath={.spec.clusterIP}",
    ]);
    cluster.kubectl(&[
        "set",
        "image",
        "deployment/hello",
        "hello=knarr.local/hello:v2",
    ]);
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    let after = pods(&cluster);
    assert_eq!(
        cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=hello",
            "-o",
            "jsonpath={.items[*].spec.containers[0].image}"
        ]),
        "knarr.local/hello:v2 knarr.local/hello:v2 knarr.local/hello:v2",
    );
    assert_eq!(answers(&cluster, &format!("http://{address}/"), 30), after);

    let history = cluster.kubectl(&["rollout", "history", "deployment/hello"]);
    assert!(
        history.contains("1  ") && history.contains("2  "),
        "{history}"
    );
    cluster.kubectl(&["rollout", "undo", "deployment/hello"]);
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    assert_eq!(
        cluster.kubectl(&[
            "get",
            "deployment",
            "hello",
            "-o",
            "jsonpath={.spec.template.spec.containers[0].image}"
        ]),
        "knarr.local/hello:v1",
    );
    let before = pods(&cluster);
    cluster.kubectl(&["rollout", "restart", "deployment/hello"]);
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
    assert!(pods(&cluster).is_disjoint(&before));
}

#[test]
fn both_kubectls_print_what_they_print_on_any_cluster() {
    let cluster = start("kubectl");
    for which in [Kubectl::Installed, Kubectl::New] {
        let run = |args: &[&str]| cluster.kubectl_with(which, args);
        assert!(run(&["version"]).contains("Server Version: v1.37.0"));
        assert!(run(&["cluster-info"]).contains("is running at"));
        let resources = run(&["api-resources"]);
        for kind in [
            "Pod",
            "Deployment",
            "EndpointSlice",
            "Lease",
            "CertificateSigningRequest",
        ] {
            assert!(resources.contains(kind), "{kind} is not in\n{resources}");
        }
        let nodes = run(&["get", "nodes", "-o", "wide"]);
        assert!(
            nodes.contains("Ready") && nodes.contains("192.168.77.2"),
            "{nodes}"
        );
        for kinds in [
            "pods,deploy,rs,svc,endpointslices",
            "events",
            "namespaces",
            "leases",
        ] {
            for output in ["wide", "yaml", "json", "name"] {
                assert!(
                    !run(&["get", kinds, "-A", "-o", output]).is_empty(),
                    "{kinds} -o {output}"
                );
            }
        }
        let table = run(&["get", "pods", "-l", "app=hello"]);
        assert!(table.starts_with("NAME"), "{table}");
        assert_eq!(table.matches("1/1     Running   0").count(), 3, "{table}");
        assert_eq!(
            run(&[
                "get",
                "pods",
                "--field-selector",
                "status.phase=Failed",
                "-o",
                "name"
            ]),
            ""
        );
        for what in ["deployment/hello", "pod", "node", "service/hello"] {
            let described = run(&["describe", what]);
            assert!(described.contains("Name:"), "{described}");
        }
        let one = run(&["get", "pods", "-l", "app=hello", "-o", "name"]);
        let described = run(&["describe", one.lines().next().expect("a pod")]);
        for event in ["Scheduled", "Pulled", "Created", "Started"] {
            assert!(described.contains(event), "{event} is not in\n{described}");
        }
        for path in ["/healthz", "/readyz", "/livez"] {
            assert_eq!(run(&["get", "--raw", path]), "ok");
        }
        assert!(run(&["get", "--raw", "/metrics"]).contains("apiserver_request"));

        run(&["label", "deployment/hello", "tier=front", "--overwrite"]);
        run(&["annotate", "deployment/hello", "note=seen", "--overwrite"]);
        run(&[
            "patch",
            "deployment/hello",
            "--type=merge",
            "-p",
            r#"{"metadata":{"labels":{"merge":"1"}}}"#,
        ]);
        run(&[
            "patch",
            "deployment/hello",
            "--type=json",
            "-p",
            r#"[{"op":"add","path":"/metadata/labels/json","value":"1"}]"#,
        ]);
        run(&[
            "patch",
            "deployment/hello",
            "-p",
            r#"{"spec":{"template":{"spec":{"containers":[{"name":"hello","env":[{"name":"A","value":"b"}]}]}}}}"#,
        ]);
        run(&["rollout", "status", "deployment/hello", "--timeout=60s"]);
        assert_eq!(
            run(&[
                "get",
                "deployment",
                "hello",
                "-o",
                "jsonpath={.metadata.labels.merge}{.metadata.labels.json}"
            ]),
            "11"
        );

        run(&[
            "run",
            "once",
            "--image=knarr.local/hello:v1",
            "--restart=Never",
        ]);
        run(&["wait", "pod/once", "--for=condition=Ready", "--timeout=60s"]);
        run(&[
            "expose",
            "pod",
            "once",
            "--port=80",
            "--target-port=8080",
            "--name=once",
        ]);
        run(&["delete", "pod/once", "service/once", "--timeout=60s"]);
        let gone = cluster.kubectl_fails(&["get", "pod", "once"]);
        assert!(gone.contains(r#"pods "once" not found"#), "{gone}");
    }
}
