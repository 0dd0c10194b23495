use serde_json::json;

use crate::support::{MAPS, Server, config_map};

fn event(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn a_watch_shows_every_change_in_order() {
    let server = Server::start().await;
    server.config_maps(1).await;
    let list = server.get(MAPS).await.expect(200);
    let from = list["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision");
    let mut events = server
        .watch(&format!("{MAPS}?watch=1&resourceVersion={from}"))
        .await;
    let created = server.post(MAPS, &config_map("x")).await.expect(201);
    server
        .merge(&format!("{MAPS}/x"), &json!({ "data": { "k": "w" } }))
        .await
        .expect(200);
    server.delete(&format!("{MAPS}/x")).await.expect(200);
    let first = events.next().await.expect("an event");
    assert_eq!(
        (&first["type"], &first["object"]),
        (&json!("ADDED"), &created)
    );
    assert_eq!(events.short().await, event("MODIFIED", "x"));
    let last = events.next().await.expect("an event");
    assert_eq!(
        (&last["type"], &last["object"]["data"]["k"]),
        (&json!("DELETED"), &json!("w"))
    );
    let at = |object: &serde_json::Value| {
        object["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|v| v.parse::<u64>().ok())
    };
    assert!(
        at(&last["object"]) > at(&created),
        "a deletion has a revision of its own"
    );
}

#[tokio::test]
async fn a_watch_without_a_revision_starts_with_what_is_there() {
    let server = Server::start().await;
    server.config_maps(2).await;
    let mut events = server.watch(&format!("{MAPS}?watch=true")).await;
    assert_eq!(events.short().await, event("ADDED", "m-000"));
    assert_eq!(events.short().await, event("ADDED", "m-001"));
    server.delete(&format!("{MAPS}/m-000")).await.expect(200);
    assert_eq!(events.short().await, event("DELETED", "m-000"));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark() {
    let server = Server::start().await;
    server.config_maps(1).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut events = server
        .watch(&format!("{MAPS}?{query}&allowWatchBookmarks=true"))
        .await;
    assert_eq!(events.short().await, event("ADDED", "m-000"));
    let bookmark = events.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    server
        .get(&format!("{MAPS}?{query}"))
        .await
        .refused(422, "Invalid");
    server
        .get(&format!("{MAPS}?watch=1&sendInitialEvents=true"))
        .await
        .refused(422, "Invalid");
}

#[tokio::test]
async fn a_selector_turns_changes_into_arrivals_and_departures() {
    let server = Server::start().await;
    server.config_maps(1).await;
    let mut events = server
        .watch(&format!("{MAPS}?watch=1&labelSelector=in"))
        .await;
    let path = format!("{MAPS}/m-000");
    server
        .merge(&path, &json!({ "metadata": { "labels": { "in": "1" } } }))
        .await
        .expect(200);
    server
        .merge(&path, &json!({ "metadata": { "labels": { "in": "2" } } }))
        .await
        .expect(200);
    let left = server
        .merge(&path, &json!({ "metadata": { "labels": null } }))
        .await
        .expect(200);
    assert_eq!(events.short().await, event("ADDED", "m-000"));
    assert_eq!(events.short().await, event("MODIFIED", "m-000"));
    let gone = events.next().await.expect("an event");
    assert_eq!(
        (&gone["type"], &gone["object"]["metadata"]["labels"]["in"]),
        (&json!("DELETED"), &json!("2"))
    );
    assert_eq!(
        gone["object"]["metadata"]["resourceVersion"],
        left["metadata"]["resourceVersion"]
    );
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_is_expired() {
    let server = Server::start().await;
    server.config_maps(1).await;
    let server = server.restart().await;
    let mut events = server
        .watch(&format!("{MAPS}?watch=1&resourceVersion=1"))
        .await;
    let error = events.next().await.expect("an event");
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(error["object"]["reason"], "Expired");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_watch_ends_at_its_time_and_shows_one_name() {
    let server = Server::start().await;
    server.config_maps(2).await;
    let mut events = server
        .watch(&format!(
            "{MAPS}?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%3Dm-001"
        ))
        .await;
    assert_eq!(events.short().await, event("ADDED", "m-001"));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn many_watchers_see_many_changes() {
    let server = Server::start().await;
    let mut watchers = Vec::new();
    for _ in 0..20 {
        watchers.push(server.watch("/api/v1/configmaps?watch=1").await);
    }
    let creations = (0..200).map(|n| {
        let server = &server;
        async move {
            server
                .post(MAPS, &config_map(&format!("n{n}")))
                .await
                .expect(201)
        }
    });
    futures::future::join_all(creations).await;
    for events in &mut watchers {
        let mut last = 0;
        for _ in 0..200 {
            let event = events.next().await.expect("an event");
            let version = event["object"]["metadata"]["resourceVersion"]
                .as_str()
                .and_then(|v| v.parse().ok())
                .unwrap_or(0);
            assert!(version >= last, "{version} after {last}");
            last = version;
        }
    }
}

#[tokio::test]
async fn a_watch_of_tables_describes_its_columns_once() {
    let server = Server::start().await;
    server.config_maps(2).await;
    let request = http::Request::get(format!("{MAPS}?watch=1&timeoutSeconds=1"))
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(http_body_util::Full::default())
        .expect("a request");
    use http_body_util::BodyExt as _;
    let body = server
        .raw(request)
        .await
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    let events: Vec<serde_json::Value> = body
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).expect("JSON"))
        .collect();
    assert_eq!(events.len(), 2);
    assert!(events[0]["object"]["columnDefinitions"].is_array());
    assert!(!events[1]["object"]["columnDefinitions"].is_array());
}

#[tokio::test]
async fn a_watch_from_the_future_waits_for_it() {
    let server = Server::start().await;
    let created = server.post(MAPS, &config_map("a")).await.expect(201);
    let now: u64 = created["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|version| version.parse().ok())
        .expect("a revision");
    for watched in [
        format!("{MAPS}?watch=1"),
        format!("{MAPS}?watch=1&fieldSelector=metadata.name%3Dc"),
    ] {
        let list = server.get(MAPS).await.expect(200);
        let now: u64 = list["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|version| version.parse().ok())
            .unwrap_or(now);
        let mut events = server
            .watch(&format!("{watched}&resourceVersion={}", now + 2))
            .await;
        for name in ["b", "c"] {
            server.post(MAPS, &config_map(name)).await.expect(201);
        }
        server
            .merge(&format!("{MAPS}/c"), &json!({ "data": { "k": "w" } }))
            .await
            .expect(200);
        assert_eq!(events.short().await, event("MODIFIED", "c"), "{watched}");
        for name in ["b", "c"] {
            server.delete(&format!("{MAPS}/{name}")).await.expect(200);
        }
    }
    let query =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut events = server
        .watch(&format!("{MAPS}?{query}&resourceVersion=99999999"))
        .await;
    let error = events.next().await.expect("an event");
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(504))
    );
    assert_eq!(events.next().await, None);
}
