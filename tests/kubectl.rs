//! Every verb of the stock kubectl that people use, with its flags, and what it prints.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::harness::{Cluster, DEADLINE, Kubectl, busybox_image, hello_image};

const BOTH: [Kubectl; 2] = [Kubectl::Installed, Kubectl::New];

/// A Deployment of one pod that ends at once on SIGTERM; `container` is more of its container, in YAML's flow style.
fn web(replicas: u32, container: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, labels: {{app: web}}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      containers:\n      \
         - {{name: web, image: 'knarr.local/hello:v1'{container}}}\n"
    )
}

/// A pod with one busybox container `main` that runs a script.
fn shell(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: main\n    image: knarr.local/busybox:1\n    command: [sh, -c, \"{script}\"]\n"
    )
}

fn start(name: &str) -> Cluster {
    let cluster = Cluster::start(name);
    cluster.import(&hello_image("v1"));
    cluster.import(&hello_image("v2"));
    cluster.import(&busybox_image());
    cluster
}

/// Parts that must all be in a text.
#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

/// A kubectl that goes on: its lines are read one at a time, and it dies with the test.
struct Running<'a> {
    cluster: &'a Cluster,
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl<'a> Running<'a> {
    fn start(cluster: &'a Cluster, which: Kubectl, args: &[&str]) -> Self {
        let mut child = cluster
            .kubectl_command(which)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("run kubectl");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            cluster,
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line with this in it.
    fn expect(&mut self, part: &str) {
        let end = std::time::Instant::now() + DEADLINE;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(std::time::Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line);
                    if self.seen.last().is_some_and(|line| line.contains(part)) {
                        return;
                    }
                }
                Err(error) => self.cluster.fail(&format!(
                    "no line with {part:?} ({error}): {:#?}",
                    self.seen
                )),
            }
        }
    }

    /// Waits for its end; all that it printed.
    fn end(mut self) -> String {
        let status = self.child.wait().expect("wait for kubectl");
        self.seen.extend(self.lines.iter());
        assert!(status.success(), "{status}: {:#?}", self.seen);
        self.seen.join("\n")
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // `nsenter` forked before it became kubectl; without its reader kubectl would end at its next line only.
            let children = format!("/proc/{0}/task/{0}/children", self.child.id());
            let pid = std::fs::read_to_string(children)
                .ok()
                .and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid {
                let pid = nix::unistd::Pid::from_raw(pid);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)
                    .expect("end kubectl");
            }
            self.child.wait().expect("wait for kubectl");
        }
    }
}

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

#[test]
fn get_w_shows_changes_as_they_come() {
    let cluster = start("watch");
    for which in BOTH {
        let mut all = Running::start(
            &cluster,
            which,
            &["get", "pods", "-w", "--output-watch-events"],
        );
        let mut one = Running::start(
            &cluster,
            which,
            &[
                "get",
                "pods",
                "-w",
                "-l",
                "app=seen",
                "-o",
                "jsonpath={.metadata.name} {.status.phase}{'\\n'}",
            ],
        );
        cluster.apply(&shell("other", "exec sleep 1000"));
        cluster.apply(&shell("seen", "exec sleep 1000"));
        all.expect("ADDED");
        one.expect("seen Running");
        cluster.kubectl(&["delete", "pods", "--all", "--now"]);
        all.expect("DELETED");
        all.expect("DELETED");
        assert!(
            one.seen.iter().all(|line| !line.contains("other")),
            "{:?}",
            one.seen
        );
    }
}

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

#[test]
fn a_rollout_has_a_history_and_can_be_paused_undone_and_stuck() {
    let cluster = start("history");
    cluster.apply(&web(2, ""));
    cluster.kubectl(&[
        "annotate",
        "deployment/web",
        "kubernetes.io/change-cause=first",
    ]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["set", "image", "deployment/web", "web=knarr.local/hello:v2"]);
    cluster.kubectl(&[
        "annotate",
        "deployment/web",
        "kubernetes.io/change-cause=second",
        "--overwrite",
    ]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    for which in BOTH {
        cluster.wait("the causes", || {
            let history = cluster.kubectl_with(which, &["rollout", "history", "deployment/web"]);
            if history.contains("first") && history.contains("second") {
                Ok(())
            } else {
                Err(history)
            }
        });
    }
    has(
        &cluster.kubectl(&["rollout", "history", "deployment/web", "--revision=1"]),
        &["with revision #1", "knarr.local/hello:v1"],
    );
    let rolled = cluster.kubectl(&["rollout", "undo", "deployment/web", "--to-revision=1"]);
    has(&rolled, &["deployment.apps/web rolled back"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]);
    has(&history, &["\n2 ", "\n3 "]);
    assert!(!history.contains("\n1 "), "{history}");
    has(
        &cluster.kubectl_fails(&["rollout", "undo", "deployment/web", "--to-revision=17"]),
        &["unable to find specified revision 17"],
    );

    cluster.kubectl(&["rollout", "pause", "deployment/web"]);
    cluster.kubectl(&["set", "image", "deployment/web", "web=knarr.local/hello:v2"]);
    cluster.wait_for(
        "deployment/web",
        "{.status.updatedReplicas}{.status.conditions[?(@.type==\"Progressing\")].reason}",
        "DeploymentPaused",
    );
    has(
        &cluster.kubectl_fails(&["rollout", "restart", "deployment/web"]),
        &["can't restart paused deployment"],
    );
    cluster.kubectl(&["rollout", "resume", "deployment/web"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // An image that is not there: the old pods stay, and the rollout says that it is stuck.
    cluster.kubectl(&[
        "patch",
        "deployment",
        "web",
        "-p",
        r#"{"spec":{"progressDeadlineSeconds":2}}"#,
    ]);
    cluster.kubectl(&["set", "image", "deployment/web", "web=127.0.0.1:1/none:1"]);
    has(
        &cluster.kubectl_fails(&["rollout", "status", "deployment/web", "--timeout=60s"]),
        &["exceeded its progress deadline"],
    );
    cluster.wait_for("deployment/web", "{.status.availableReplicas}", "2");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}

#[test]
fn logs_are_followed_cut_stamped_and_kept_for_one_restart() {
    let cluster = start("logs");
    cluster.apply(&shell(
        "follow",
        "echo one; until [ -e /tmp/go ]; do sleep 0.05; done; echo two; echo three >&2",
    ));
    cluster.wait_for("pod/follow", "{.status.phase}", "Running");
    let mut following: Vec<_> = BOTH
        .into_iter()
        .map(|which| Running::start(&cluster, which, &["logs", "-f", "follow"]))
        .collect();
    for one in &mut following {
        one.expect("one");
    }
    cluster.kubectl(&["exec", "follow", "--", "touch", "/tmp/go"]);
    for one in following {
        // It ends by itself when the container has ended, with everything.
        let mut lines: Vec<_> = one.end().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["one", "three", "two"]);
    }
    for which in BOTH {
        let logs = |args: &[&str]| cluster.kubectl_with(which, &[&["logs"], args].concat());
        assert_eq!(logs(&["follow", "--tail=2"]).lines().count(), 2);
        assert_eq!(logs(&["follow", "--tail=0"]), "");
        assert_eq!(logs(&["follow", "--limit-bytes=3"]), "one");
        assert_eq!(
            logs(&["follow", "--since=1h", "-c", "main"])
                .lines()
                .count(),
            3
        );
        assert_eq!(logs(&["follow", "--since-time=2099-01-01T00:00:00Z"]), "");
        for line in logs(&["follow", "--timestamps"]).lines() {
            let (stamp, text) = line.split_once(' ').expect("a stamp and a text");
            assert!(
                stamp.ends_with('Z')
                    && stamp.contains('.')
                    && ["one", "two", "three"].contains(&text),
                "{line}"
            );
        }
        assert_eq!(
            logs(&["-l", "app=follow", "--prefix"])
                .lines()
                .filter(|line| line.starts_with("[pod/follow/main] "))
                .count(),
            3
        );
        assert_eq!(logs(&["follow", "--all-containers"]).lines().count(), 3);
    }
    has(
        &cluster.kubectl_fails(&["logs", "follow", "-c", "absent"]),
        &["container absent is not valid for pod follow"],
    );
    has(
        &cluster.kubectl_fails(&["logs", "follow", "--previous"]),
        &[r#"previous terminated container "main" in pod "follow" not found"#],
    );
    has(
        &cluster.kubectl_fails(&["logs", "absent"]),
        &[r#"pods "absent" not found"#],
    );

    cluster.apply(&web(1, ""));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["logs", "deployment/web", "--since=1h"]);
    cluster.apply(&shell("again", "n=$(cat /keep/n 2>/dev/null || echo 0); echo run $n; echo $((n+1)) > /keep/n; [ $n -gt 0 ] && exec sleep 1000; exit 1")
        .replace("restartPolicy: Never", "restartPolicy: Always\n  volumes: [{name: keep, emptyDir: {}}]")
        .replace("    command:", "    volumeMounts: [{name: keep, mountPath: /keep}]\n    command:"));
    cluster.wait_for("pod/again", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt.x}", "1 ");
    cluster.wait("the log of the second run", || {
        let log = cluster.try_kubectl(&["logs", "again"])?;
        if log == "run 1\n" { Ok(()) } else { Err(log) }
    });
    assert_eq!(cluster.kubectl(&["logs", "again", "-p"]), "run 0\n");
}

#[test]
fn run_expose_wait_delete_and_drain() {
    let cluster = start("life");
    let slow = "trap 'echo asked; sleep 1; exit 0' TERM; while true; do sleep 0.1; done";
    for which in BOTH {
        let run = |args: &[&str]| cluster.kubectl_with(which, args);
        has(
            &run(&[
                "run",
                "web",
                "--image=knarr.local/hello:v1",
                "--port=8080",
                "--labels=app=web,tier=front",
                "--env=A=b",
            ]),
            &["pod/web created"],
        );
        run(&["wait", "pod/web", "--for=condition=Ready", "--timeout=60s"]);
        has(
            &run(&[
                "expose",
                "pod",
                "web",
                "--port=80",
                "--target-port=8080",
                "--type=NodePort",
            ]),
            &["service/web exposed"],
        );
        let address = run(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
        cluster.wait("the service to answer", || {
            let output = cluster.machine().sh(&format!(
                "curl --silent --fail --max-time 5 http://{address}/"
            ));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.trim() == "web" {
                Ok(())
            } else {
                Err(text)
            }
        });
        assert_eq!(
            run(&[
                "run",
                "once",
                "--image=knarr.local/busybox:1",
                "--restart=Never",
                "--rm",
                "-i",
                "--quiet",
                "--command",
                "--",
                "echo",
                "hello"
            ])
            .lines()
            .next(),
            Some("hello")
        );
        run(&["wait", "pod/once", "--for=delete", "--timeout=60s"]);

        // The grace period: asked with SIGTERM, waited for, gone; meanwhile Terminating.
        cluster.apply(&shell("slow", slow));
        cluster.wait_for("pod/slow", "{.status.phase}", "Running");
        let mut log = Running::start(&cluster, which, &["logs", "-f", "slow"]);
        has(
            &run(&["delete", "pod", "slow", "--grace-period=20", "--wait=false"]),
            &[r#"pod "slow" deleted"#],
        );
        log.expect("asked");
        has(&run(&["get", "pod", "slow"]), &["Terminating"]);
        assert_eq!(
            run(&[
                "get",
                "pod",
                "slow",
                "-o",
                "jsonpath={.metadata.deletionGracePeriodSeconds}"
            ]),
            "20"
        );
        run(&["wait", "pod/slow", "--for=delete", "--timeout=60s"]);
        log.end();

        cluster.apply(&shell(
            "stubborn",
            "trap : TERM; while true; do sleep 0.1; done",
        ));
        cluster.wait_for("pod/stubborn", "{.status.phase}", "Running");
        let begun = std::time::Instant::now();
        run(&["delete", "pod", "stubborn", "--force", "--timeout=60s"]);
        assert!(
            begun.elapsed() < std::time::Duration::from_secs(5),
            "--force waited"
        );
        has(
            &cluster.kubectl_fails(&["delete", "pod", "absent"]),
            &[r#"pods "absent" not found"#],
        );
        run(&["delete", "pod", "absent", "--ignore-not-found"]);
        run(&["delete", "pods,services", "-l", "app=web", "--timeout=60s"]);
        assert_eq!(run(&["get", "pods", "-o", "name"]), "");

        // Owners: orphans stay, the foreground waits.
        cluster.apply(&web(1, ""));
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["delete", "deployment", "web", "--cascade=orphan"]);
        cluster.wait("an orphan", || {
            let owners = cluster.try_kubectl(&[
                "get",
                "rs",
                "-o",
                "jsonpath={.items[*].metadata.ownerReferences}",
            ])?;
            if owners.is_empty() {
                Ok(())
            } else {
                Err(owners)
            }
        });
        assert_eq!(run(&["get", "rs,pods", "-o", "name"]).lines().count(), 2);
        run(&[
            "delete",
            "rs",
            "--all",
            "--cascade=foreground",
            "--timeout=60s",
        ]);
        assert_eq!(run(&["get", "rs,pods", "-o", "name"]), "");

        // Nothing is put on a node that is cordoned, and a drain evicts what is there.
        cluster.apply(&web(1, ""));
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["cordon", "life"]);
        has(&run(&["get", "nodes"]), &["Ready,SchedulingDisabled"]);
        has(
            &run(&["drain", "life", "--timeout=60s"]),
            &["evicted", "drained"],
        );
        cluster.wait("the pod to wait for a node", || {
            let events = cluster.try_kubectl(&[
                "get",
                "events",
                "--field-selector",
                "reason=FailedScheduling",
            ])?;
            let pods = cluster.try_kubectl(&["get", "pods"])?;
            if events.contains("1 node(s) were unschedulable") && pods.contains("Pending") {
                Ok(())
            } else {
                Err(events + &pods)
            }
        });
        run(&["uncordon", "life"]);
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["taint", "node", "life", "dedicated=x:NoExecute"]);
        cluster.wait("the pod to be evicted", || {
            let pods = cluster.try_kubectl(&["get", "pods"])?;
            if pods.contains("Running") {
                Err(pods)
            } else {
                Ok(())
            }
        });
        run(&["taint", "node", "life", "dedicated-"]);
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["delete", "deployment", "web", "--timeout=60s"]);
        run(&[
            "wait",
            "pods",
            "-l",
            "app=web",
            "--for=delete",
            "--timeout=60s",
        ]);
    }
}

#[test]
fn the_server_tells_its_version_health_and_metrics() {
    let cluster = Cluster::start("health");
    for which in BOTH {
        let run = |args: &[&str]| cluster.kubectl_with(which, args);
        has(
            &run(&["version"]),
            &["Client Version: v1.", "Server Version: v1.37."],
        );
        let version: Value = serde_json::from_str(&run(&["version", "-o", "json"])).expect("JSON");
        assert_eq!(version["serverVersion"]["major"], "1");
        has(
            &run(&["cluster-info"]),
            &["Kubernetes control plane", "is running at"],
        );
        has(
            &run(&["api-resources", "-o", "wide"]),
            &[
                "VERBS",
                "deployments",
                "deploy",
                "apps/v1",
                "create,delete,deletecollection,get,list,patch,update,watch",
            ],
        );
        has(
            &run(&["api-resources", "--namespaced=false", "-o", "name"]),
            &[
                "nodes",
                "namespaces",
                "certificatesigningrequests.certificates.k8s.io",
            ],
        );
        for path in ["/healthz", "/readyz", "/livez"] {
            assert_eq!(run(&["get", "--raw", path]), "ok");
            has(
                &run(&["get", "--raw", &format!("{path}?verbose")]),
                &["ok\n", "check passed"],
            );
        }
        has(
            &run(&["get", "--raw", "/metrics"]),
            &[
                "# TYPE apiserver_request counter",
                "apiserver_request_total{",
                "apiserver_request_duration_seconds_bucket",
            ],
        );
        has(&run(&["get", "--raw", "/openapi/v3"]), &["apis/apps/v1"]);
    }
}

#[test]
fn an_expired_watch_is_told_so_and_those_who_follow_start_anew() {
    let mut cluster = start("expired");
    cluster.kubectl(&["create", "configmap", "old"]);
    let version = cluster.kubectl(&[
        "get",
        "configmap",
        "old",
        "-o",
        "jsonpath={.metadata.resourceVersion}",
    ]);
    cluster.kubectl(&["label", "configmap", "old", "a=b"]);
    cluster.apply(&web(1, "").replace("hello:v1", "absent:1"));
    // A rollout that cannot end yet: these follow the deployment from a version that the restart makes too old.
    let follow = |which: Kubectl, cluster: &Cluster| {
        cluster
            .kubectl_command(which)
            .args(["rollout", "status", "deployment/web", "--timeout=100s"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run kubectl")
    };
    let mut following = BOTH.map(|which| follow(which, &cluster));
    for child in &mut following {
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.as_mut().expect("a pipe"))
            .read_line(&mut line)
            .expect("read from kubectl");
        has(&line, &["Waiting for deployment"]);
    }
    cluster.kill();
    cluster.up();
    cluster.wait_ready();
    let path = format!(
        "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={version}&timeoutSeconds=5"
    );
    let frame: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path]))
        .expect("one frame, then the end");
    assert_eq!(frame["type"], "ERROR", "{frame}");
    let status = &frame["object"];
    assert_eq!(
        (&status["kind"], &status["code"], &status["reason"]),
        (&"Status".into(), &410.into(), &"Expired".into()),
        "{frame}"
    );
    has(
        &status["message"].to_string(),
        &["too old resource version"],
    );

    for which in BOTH {
        let mut watch = Running::start(&cluster, which, &["get", "configmaps", "-w", "-o", "name"]);
        watch.expect("configmap/old");
        let name = format!("new-{which:?}").to_lowercase();
        cluster.kubectl(&["create", "configmap", &name]);
        watch.expect(&name);
    }
    cluster.kubectl(&["set", "image", "deployment/web", "web=knarr.local/hello:v1"]);
    for child in following {
        let output = child.wait_with_output().expect("wait for kubectl");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        has(&text, &["successfully rolled out"]);
    }
}
