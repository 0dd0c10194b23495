//! `kubectl get -w` and everything else that follows changes, also through restarts and when history is gone.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{BOTH, Running, has, shell, start, web};
use crate::api::Curl;
use crate::harness::Cluster;

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

/// What a list of the default namespace's config maps says of its version.
fn version(cluster: &Cluster) -> String {
    let list = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces/default/configmaps"]);
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let version = list["metadata"]["resourceVersion"].as_str();
    version.expect("a version").to_owned()
}

/// What a watch from a version sends in two seconds: (type, name, version).
fn changes_since(cluster: &Cluster, version: &str) -> Vec<(String, String, String)> {
    let path = format!(
        "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion={version}&timeoutSeconds=2"
    );
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (cluster.kubectl(&["get", "--raw", &path]).lines())
        .map(|frame| serde_json::from_str::<Value>(frame).expect("a frame"))
        .map(|frame| {
            let metadata = &frame["object"]["metadata"];
            (
                text(&frame["type"]),
                text(&metadata["name"]),
                text(&metadata["resourceVersion"]),
            )
        })
        .collect()
}

#[test]
fn a_restart_ends_get_w_and_those_who_know_where_they_were_go_on() {
    let cluster = start("again");
    for (n, signal) in [Signal::SIGTERM, Signal::SIGKILL].into_iter().enumerate() {
        for name in ["stays", "goes"] {
            cluster.kubectl(&["create", "configmap", &format!("{name}{n}")]);
        }
        // These ask for nothing but what comes; they must be told of the end, as with any Kubernetes.
        let mut watches: Vec<_> = BOTH
            .into_iter()
            .map(|which| {
                Running::start(&cluster, which, &["get", "configmaps", "-w", "-o", "name"])
            })
            .collect();
        for watch in &mut watches {
            watch.expect(&format!("configmap/stays{n}"));
        }
        // What was there comes from a list; only a change tells that they watch.
        let before = version(&cluster);
        cluster.kubectl(&["delete", "configmap", &format!("goes{n}")]);
        let at = version(&cluster);
        for watch in &mut watches {
            watch.expect(&format!("configmap/goes{n}"));
        }
        cluster.signal(signal);
        for watch in watches {
            watch.end();
        }
        cluster.forget();
        cluster.up();
        cluster.wait_ready();

        // One who was told everything up to the end goes on from there, and misses nothing.
        let next = format!("next{n}");
        cluster.kubectl(&["create", "configmap", &next]);
        let seen = changes_since(&cluster, &at);
        assert_eq!(
            (seen.len(), &*seen[0].0, &seen[0].1),
            (1, "ADDED", &next),
            "{seen:?}"
        );
        assert_eq!(changes_since(&cluster, &seen[0].2), []);
        // One who missed a deletion is told to read anew: it happened in the life before.
        let seen = changes_since(&cluster, &before);
        assert_eq!((seen.len(), &*seen[0].0), (1, "ERROR"), "{seen:?}");
    }
}

/// So many changes of so many bytes that the window of the past moves on; `spec` is more of each object.
fn overflow(cluster: &Cluster, api_version: &str, kind: &str, spec: &Value) {
    let text = "x".repeat(40_000);
    let items: Vec<_> = (0..300)
        .map(|n| {
            let mut item = json!({
                "apiVersion": api_version, "kind": kind,
                "metadata": { "name": format!("many-{n:03}"), "annotations": { "text": text } },
            });
            if !spec.is_null() {
                item["spec"] = spec.clone();
            }
            item
        })
        .collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    cluster.kubectl_stdin(&["create", "-f", "-"], &list.to_string());
}

const TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new \
    list without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
    results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
    deleted between the time the first chunk was returned and now may show up in the list.";

#[test]
fn who_is_behind_the_window_of_the_past_is_told_so_and_starts_anew() {
    let cluster = start("expired");
    let maps = "/api/v1/namespaces/default/configmaps";
    let raw = |path: &str| -> Value {
        let said = cluster.kubectl(&["get", "--raw", &format!("{maps}{path}")]);
        serde_json::from_str(&said).expect("JSON")
    };
    cluster.kubectl(&["create", "configmap", "a-first"]);
    let page = raw("?limit=1");
    let token = page["metadata"]["continue"].as_str().expect("a token");
    let old = page["metadata"]["resourceVersion"].as_str().expect("one");
    // A rollout that cannot end yet: these sleep while the server is killed and their version gets too old.
    cluster.apply(&web(1, "").replace("hello:v1", "absent:1"));
    let rollout = ["rollout", "status", "deployment/web", "--timeout=600s"];
    let mut following = BOTH.map(|which| Running::start(&cluster, which, &rollout));
    for one in &mut following {
        one.expect("Waiting for deployment");
        one.signal(Signal::SIGSTOP);
    }
    cluster.kill();
    cluster.up();
    cluster.wait_ready();
    overflow(&cluster, "v1", "ConfigMap", &Value::Null);
    let labels = json!({ "app": "many" });
    let spec = json!({
        "replicas": 0, "paused": true, "selector": { "matchLabels": labels },
        "template": {
            "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "x", "image": "x" }] },
        },
    });
    overflow(&cluster, "apps/v1", "Deployment", &spec);

    let frame = raw(&format!("?watch=1&resourceVersion={old}&timeoutSeconds=5"));
    assert_eq!(frame["type"], "ERROR", "{frame}");
    let status = &frame["object"];
    assert_eq!(
        (
            &status["kind"],
            &status["code"],
            &status["reason"],
            &status["status"]
        ),
        (
            &"Status".into(),
            &410.into(),
            &"Expired".into(),
            &"Failure".into()
        ),
        "{frame}"
    );
    let message = status["message"].as_str().expect("a message");
    assert!(
        message.starts_with(&format!("too old resource version: {old} (")),
        "{frame}"
    );

    let path = format!("{maps}?limit=1&continue={token}");
    for which in BOTH {
        let output = cluster
            .kubectl_command(which)
            .args(["get", "--raw", &path])
            .output()
            .expect("run kubectl");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.starts_with(&format!("Error from server (Expired): {TOO_OLD}")),
            "{said}"
        );
    }
    let curl = Curl::new(&cluster);
    let (code, body) = curl.send(&path, "");
    let status: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(
        (code, &status["reason"], &status["message"]),
        (410, &"Expired".into(), &TOO_OLD.into())
    );
    // The token in the answer leads to the rest, as it is now.
    let token = status["metadata"]["continue"].as_str().expect("a token");
    let rest = raw(&format!("?continue={token}"));
    let names: Vec<_> = (rest["items"].as_array().expect("items").iter())
        .map(|item| item["metadata"]["name"].as_str().expect("a name"))
        .collect();
    assert_eq!((names.len(), names[0]), (301, "kube-root-ca.crt"));
    curl.refused(
        &format!("{maps}?resourceVersion={old}&resourceVersionMatch=Exact"),
        "",
        410,
        "Expired",
        "The resourceVersion for the provided list is too old.",
    );

    for one in &following {
        one.signal(Signal::SIGCONT);
    }
    cluster.kubectl(&["set", "image", "deployment/web", "web=knarr.local/hello:v1"]);
    for one in following {
        has(&one.end(), &["successfully rolled out"]);
    }
}
