//! `kubectl get`, `describe` and what finds out about kinds.

use serde_json::Value;

use super::{BOTH, has, start, web};

#[test]
fn get_and_describe_show_every_kind_in_every_form() {
    let cluster = start("get");
    cluster.apply(&web(2, ", ports: [{containerPort: 8080, name: http}]"));
    cluster.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--port=80",
        "--target-port=http",
    ]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.wait("two endpoints", || {
        let ready = cluster.try_kubectl(&[
            "get",
            "endpointslices",
            "-l",
            "kubernetes.io/service-name=web",
            "-o",
            "jsonpath={.items[*].endpoints[*].conditions.ready}",
        ])?;
        if ready == "true true" {
            Ok(())
        } else {
            Err(ready)
        }
    });
    for which in BOTH {
        let run = |args: &[&str]| cluster.kubectl_with(which, args);
        let tables: [(&str, &[&str], &[&str]); 7] = [
            (
                "nodes",
                &["NAME", "STATUS", "ROLES", "AGE", "VERSION"],
                &[
                    "INTERNAL-IP",
                    "OS-IMAGE",
                    "KERNEL-VERSION",
                    "CONTAINER-RUNTIME",
                ],
            ),
            (
                "pods",
                &[
                    "NAME",
                    "READY",
                    "STATUS",
                    "RESTARTS",
                    "AGE",
                    "1/1     Running",
                ],
                &["IP", "NODE", "NOMINATED NODE", "10.42."],
            ),
            (
                "deploy",
                &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "2/2"],
                &["CONTAINERS", "IMAGES", "SELECTOR", "app=web"],
            ),
            (
                "rs",
                &["NAME", "DESIRED", "CURRENT", "READY", "AGE"],
                &["CONTAINERS", "IMAGES", "SELECTOR"],
            ),
            (
                "svc",
                &[
                    "NAME",
                    "TYPE",
                    "CLUSTER-IP",
                    "EXTERNAL-IP",
                    "PORT(S)",
                    "80/TCP",
                ],
                &["SELECTOR", "app=web"],
            ),
            (
                "endpointslices",
                &["NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "8080"],
                &["IPv4"],
            ),
            (
                "events",
                &[
                    "LAST SEEN",
                    "TYPE",
                    "REASON",
                    "OBJECT",
                    "MESSAGE",
                    "Scheduled",
                ],
                &["SUBOBJECT", "SOURCE", "FIRST SEEN", "COUNT", "NAME"],
            ),
        ];
        for (kind, columns, wide) in tables {
            has(&run(&["get", kind]), columns);
            let all = run(&["get", kind, "-A"]);
            assert!(kind == "nodes" || all.starts_with("NAMESPACE"), "{all}");
            let table = run(&["get", kind, "-o", "wide"]);
            has(&table, columns);
            has(&table, wide);
            let json: Value =
                serde_json::from_str(&run(&["get", kind, "-A", "-o", "json"])).expect("JSON");
            let items = json["items"].as_array().expect("a list");
            assert!(!items.is_empty(), "{kind}");
            for item in items {
                assert!(
                    item["kind"].is_string() && item["metadata"]["uid"].is_string(),
                    "{item}"
                );
            }
            has(
                &run(&["get", kind, "-A", "-o", "yaml"]),
                &["apiVersion: v1\nitems:\n- ", "  metadata:\n", "kind: List"],
            );
            let names = run(&["get", kind, "-A", "-o", "name"]);
            let path = run(&[
                "get",
                kind,
                "-A",
                "-o",
                "jsonpath={range .items[*]}{.metadata.name}{'\\n'}{end}",
            ]);
            let short: Vec<_> = names
                .lines()
                .map(|line| line.split_once('/').expect("kind/name").1)
                .collect();
            assert_eq!(short, path.lines().collect::<Vec<_>>());
        }
        let one = run(&["get", "pods", "-o", "name"]);
        let one = one.lines().next().expect("a pod");
        let name = one.trim_start_matches("pod/");
        has(
            &run(&["get", one, "-o", "yaml"]),
            &["apiVersion: v1\nkind: Pod\n", "phase: Running"],
        );
        has(
            &run(&[
                "get",
                "nodes,pods,deploy,rs,svc,endpointslices,events",
                "-A",
            ]),
            &[
                "node/get",
                "pod/web-",
                "deployment.apps/web",
                "replicaset.apps/web-",
                "service/web",
                "endpointslice.discovery.k8s.io/web-",
            ],
        );
        has(
            &run(&["get", "all"]),
            &["pod/web-", "service/kubernetes", "deployment.apps/web"],
        );
        has(
            &run(&["get", "pods", "--show-labels"]),
            &["LABELS", "app=web", "pod-template-hash="],
        );
        has(&run(&["get", "pods", "-L", "app"]), &["APP"]);
        assert_eq!(
            run(&[
                "get",
                "pods",
                "-o",
                "custom-columns=N:.metadata.name",
                "--no-headers",
                "--sort-by=.metadata.name"
            ])
            .lines()
            .count(),
            2
        );
        for (selector, count) in [
            ("app=web", 2),
            ("app in (web,other)", 2),
            ("app!=web", 0),
            ("!app", 0),
            ("app,pod-template-hash", 2),
        ] {
            assert_eq!(
                run(&["get", "pods", "-l", selector, "-o", "name"])
                    .lines()
                    .count(),
                count,
                "{selector}"
            );
        }
        for (selector, count) in [
            (format!("metadata.name={name}"), 1),
            (format!("metadata.name!={name}"), 1),
            ("spec.nodeName=get,status.phase=Running".to_owned(), 2),
            ("status.phase!=Running".to_owned(), 0),
        ] {
            assert_eq!(
                run(&["get", "pods", "--field-selector", &selector, "-o", "name"])
                    .lines()
                    .count(),
                count,
                "{selector}"
            );
        }
        let events = run(&[
            "get",
            "events",
            "--field-selector",
            &format!("involvedObject.name={name},reason=Started"),
            "--no-headers",
        ]);
        assert_eq!(events.lines().count(), 1, "{events}");
        has(&run(&["events", "--for", one]), &["Scheduled", "Started"]);

        has(
            &run(&["describe", "node", "get"]),
            &[
                "Conditions:",
                "Capacity:",
                "Allocatable:",
                "System Info:",
                "PodCIDR:",
                "Non-terminated Pods:",
                name,
                "Allocated resources:",
            ],
        );
        has(
            &run(&["describe", one]),
            &[
                "Controlled By:  ReplicaSet/web-",
                "Container ID:",
                "Image ID:",
                "Ready:          True",
                "Conditions:",
                "QoS Class:",
                "Events:",
            ],
        );
        has(
            &run(&["describe", "deployment", "web"]),
            &[
                "Replicas:               2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
                "StrategyType:           RollingUpdate",
                "NewReplicaSet:",
                "ScalingReplicaSet",
            ],
        );
        has(
            &run(&["describe", "rs"]),
            &["Controlled By:  Deployment/web", "SuccessfulCreate"],
        );
        has(
            &run(&["describe", "service", "web"]),
            &["Endpoints:", ":8080"],
        );
        has(
            &run(&["describe", "endpointslices"]),
            &["AddressType:", "8080"],
        );
        has(
            &run(&["describe", "namespace", "default"]),
            &["Status:       Active"],
        );
        has(
            &run(&["explain", "pod.spec.containers.image"]),
            &["KIND:       Pod", "FIELD: image <string>"],
        );
        has(
            &run(&["api-versions"]),
            &["apps/v1", "discovery.k8s.io/v1", "events.k8s.io/v1"],
        );
        has(&run(&["auth", "whoami"]), &["system:masters"]);
        assert_eq!(run(&["auth", "can-i", "delete", "pods"]), "yes\n");
    }
    let error = cluster.kubectl_fails(&["get", "sheep"]);
    has(
        &error,
        &[r#"the server doesn't have a resource type "sheep""#],
    );
}
