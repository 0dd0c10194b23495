//! Objects, their revisions, and what services hold.

use http::Method;
use serde_json::{Value, json};

use super::fixture::{Old, STORES, path, revision, text};
use crate::support::{MAPS, config_map};

#[tokio::test]
async fn every_object_is_as_the_older_version_showed_it_last() {
    let old = Old::unpack();
    assert!(old.objects.len() > 60, "{}", old.objects.len());
    for store in STORES {
        let server = old.open(store).await;
        for object in &old.objects {
            let path = path(object);
            let found = server.get(&path).await.expect(200);
            assert_eq!(found, *object, "{store}: {path}");
        }
    }
}

#[tokio::test]
async fn a_second_opening_changes_nothing_and_revisions_go_on() {
    let old = Old::unpack();
    for store in STORES {
        let server = old.open(store).await;
        let made = server.post(MAPS, &config_map("later")).await.expect(201);
        assert!(revision(&made) > old.revision, "{store}: {made}");
        let (dir, closed) = server.close().await;
        drop(closed);
        let server = old.open_at(dir).await;
        let list = server.get(MAPS).await.expect(200);
        assert_eq!(revision(&list), revision(&made), "{store}");
    }
}

#[tokio::test]
async fn a_watch_goes_on_from_a_revision_of_the_older_version() {
    let old = Old::unpack();
    let server = old.open(STORES[0]).await;
    let seen = old.revision;
    let path = format!("{MAPS}?watch=true&resourceVersion={seen}");
    let mut watch = server.watch(&path).await;
    server.post(MAPS, &config_map("later")).await.expect(201);
    let expected = ("ADDED".to_owned(), "later".to_owned());
    assert_eq!(watch.short().await, expected);
}

#[tokio::test]
async fn addresses_and_ports_of_old_services_are_taken_until_these_go() {
    let old = Old::unpack();
    let services = "/api/v1/namespaces/shop/services";
    for store in STORES {
        let server = old.open(store).await;
        let (mut addresses, mut ports) = (Vec::new(), Vec::new());
        for service in old.of("Service") {
            let spec = &service["spec"];
            let one = text(&spec["clusterIP"]).to_owned();
            addresses.extend(Some(one).filter(|one| !one.is_empty() && one != "None"));
            let list = spec["ports"].as_array().into_iter().flatten();
            ports.extend(list.filter_map(|port| port["nodePort"].as_u64()));
            ports.extend(spec["healthCheckNodePort"].as_u64());
        }
        assert_eq!(
            (addresses.len(), ports.len()),
            (5, 4),
            "{addresses:?} {ports:?}"
        );
        let asks = |spec: Value| json!({ "metadata": { "name": "late" }, "spec": spec });
        for address in &addresses {
            let spec = json!({ "clusterIP": address, "ports": [{ "port": 80 }] });
            let reply = server.post(services, &asks(spec)).await;
            let message = reply.refused(422, "Invalid");
            assert!(
                message.ends_with("provided IP is already allocated"),
                "{message}"
            );
            let own = format!("/apis/networking.k8s.io/v1/ipaddresses/{address}");
            server.get(&own).await.expect(200);
        }
        for port in &ports {
            let spec = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": port }] });
            let reply = server.post(services, &asks(spec)).await;
            let message = reply.refused(422, "Invalid");
            assert!(
                message.ends_with("provided port is already allocated"),
                "{message}"
            );
        }
        server
            .delete(&format!("{services}/fixed"))
            .await
            .expect(200);
        server
            .delete(&format!("{services}/outside"))
            .await
            .expect(200);
        let spec = json!({ "type": "NodePort", "clusterIP": "10.43.0.77",
            "ports": [{ "port": 80, "nodePort": 30080 }] });
        server.post(services, &asks(spec)).await.expect(201);
    }
}

/// What of an object a change of its annotations must leave as it is.
fn but_annotations(object: &Value) -> Value {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().expect("metadata");
    for field in ["annotations", "managedFields", "resourceVersion"] {
        metadata.remove(field);
    }
    object
}

/// Where two objects differ: paths with what was there and what is.
fn differences(was: &Value, is: &Value, at: &str, found: &mut Vec<String>) {
    match (was, is) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
            for key in keys {
                differences(&was[key], &is[key], &format!("{at}.{key}"), found);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (was, is)) in old.iter().zip(new).enumerate() {
                differences(was, is, &format!("{at}[{index}]"), found);
            }
        }
        _ if was == is => {}
        _ => found.push(format!("{at}: {was} -> {is}")),
    }
}

#[tokio::test]
async fn old_objects_change_only_where_they_are_changed() {
    let old = Old::unpack();
    let server = old.open(STORES[0]).await;
    let note = json!({ "metadata": { "annotations": { "upgraded": "yes" } } });
    let mut found = Vec::new();
    for object in &old.objects {
        let path = path(object);
        let changed = server.merge(&path, &note).await.expect(200);
        assert_eq!(
            changed["metadata"]["annotations"]["upgraded"], "yes",
            "{path}"
        );
        differences(
            &but_annotations(object),
            &but_annotations(&changed),
            &path,
            &mut found,
        );
        let again = server.put(&path, &changed).await.expect(200);
        assert_eq!(again, changed, "{path}");
    }
    // A controller writes what it has read; nothing of it is news.
    for kind in ["Deployment", "Node", "Pod", "ReplicaSet", "Service"] {
        for object in old.of(kind) {
            let path = path(object);
            let now = server.get(&path).await.expect(200);
            let written = server.put(&format!("{path}/status"), &now).await;
            let written = but_annotations(&written.expect(200));
            differences(
                &but_annotations(&now),
                &written,
                &format!("{path}/status"),
                &mut found,
            );
        }
    }
    // As with kube-apiserver: it writes every Event's source, with its next change, and a Deployment's annotations are a part of
    // what its generation counts.
    let expected = [
        "/api/v1/namespaces/shop/events/new.1.source: null -> {}",
        "/apis/apps/v1/namespaces/shop/deployments/web.metadata.generation: 4 -> 5",
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn an_apply_of_what_the_older_version_created_changes_nothing() {
    let old = Old::unpack();
    let server = old.open(STORES[0]).await;
    let mut found = Vec::new();
    let mut applied = 0;
    for object in &old.objects {
        let last =
            &object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
        if last.is_null() {
            continue;
        }
        let manifest: Value = serde_json::from_str(text(last)).expect("JSON");
        let path = path(&manifest);
        let before = server.get(&path).await.expect(200);
        let apply = format!("{path}?fieldManager=kubectl&force=true");
        let media_type = "application/apply-patch+yaml";
        let sent = server.send(Method::PATCH, &apply, media_type, manifest.to_string());
        let (before, now) = (
            but_annotations(&before),
            but_annotations(&sent.await.expect(200)),
        );
        differences(&before, &now, &path, &mut found);
        applied += 1;
    }
    assert!(applied > 15, "{applied} objects");
    assert_eq!(found, [""; 0], "{found:#?}");
}
