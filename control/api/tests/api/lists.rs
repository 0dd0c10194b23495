use serde_json::{Value, json};

use crate::support::{MAPS, Server, config_map};

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect()
}

#[tokio::test]
async fn pages_show_one_revision() {
    let server = Server::start().await;
    server.config_maps(5).await;
    let first = server.get(&format!("{MAPS}?limit=2")).await.expect(200);
    assert_eq!(names(&first), ["m-000", "m-001"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // What happens between the pages does not show in them.
    server.delete(&format!("{MAPS}/m-003")).await.expect(200);
    server.post(MAPS, &config_map("m-0025")).await.expect(201);
    server
        .merge(&format!("{MAPS}/m-004"), &json!({ "data": { "k": "new" } }))
        .await
        .expect(200);
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let second = server
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect(200);
    assert_eq!(names(&second), ["m-002", "m-003"]);
    assert_eq!(
        second["metadata"]["resourceVersion"],
        first["metadata"]["resourceVersion"]
    );
    let token = second["metadata"]["continue"].as_str().expect("a token");
    let third = server
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect(200);
    assert_eq!(names(&third), ["m-004"]);
    assert_eq!(third["items"][0]["data"]["k"], "v");
    assert!(third["metadata"]["continue"].is_null());
}

#[tokio::test]
async fn an_exact_revision_is_listed_while_it_is_known() {
    let server = Server::start().await;
    server.config_maps(2).await;
    let before = server.get(MAPS).await.expect(200);
    let version = before["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision");
    server.delete(&format!("{MAPS}/m-000")).await.expect(200);
    let exact = format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion={version}");
    assert_eq!(
        names(&server.get(&exact).await.expect(200)),
        ["m-000", "m-001"]
    );
    assert_eq!(names(&server.get(MAPS).await.expect(200)), ["m-001"]);
    let server = server.restart().await;
    let old = format!("{MAPS}?resourceVersionMatch=Exact&resourceVersion=1");
    server.get(&old).await.refused(410, "Expired");
    server
        .get(&format!("{MAPS}?resourceVersionMatch=Exact"))
        .await
        .refused(422, "Invalid");
    server
        .get(&format!("{MAPS}?resourceVersion=x"))
        .await
        .refused(400, "BadRequest");
}

#[tokio::test]
async fn a_revision_from_the_future_is_waited_for_in_vain() {
    let server = Server::start().await;
    let reply = server
        .get(&format!("{MAPS}?resourceVersion=99999999"))
        .await;
    let message = reply.refused(504, "Timeout");
    assert!(
        message.contains("Too large resource version: 99999999, current: "),
        "{message}"
    );
    // Also of the next page of a list that some other server began.
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let token = base64::Engine::encode(
        &engine,
        r#"{"v":"meta.k8s.io/v1","rv":99999999,"start":"m\u0000"}"#,
    );
    let page = server
        .get(&format!("{MAPS}?limit=1&continue={token}"))
        .await;
    page.refused(504, "Timeout");
}

#[tokio::test]
async fn selectors_choose() {
    let server = Server::start().await;
    for (name, app, tier) in [
        ("a", "web", "front"),
        ("b", "web", "back"),
        ("c", "db", "back"),
    ] {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({ "app": app, "tier": tier });
        server.post(MAPS, &map).await.expect(201);
    }
    for (query, expected) in [
        ("labelSelector=app%3Dweb", &["a", "b"][..]),
        ("labelSelector=app+in+(web,db),tier!%3Dfront", &["b", "c"]),
        ("labelSelector=!app", &[]),
        ("fieldSelector=metadata.name%3Db", &["b"]),
        ("fieldSelector=metadata.name!%3Db", &["a", "c"]),
        ("fieldSelector=metadata.namespace%3Dother", &[]),
    ] {
        let list = server.get(&format!("{MAPS}?{query}")).await.expect(200);
        assert_eq!(names(&list), expected, "{query}");
    }
    server
        .get(&format!("{MAPS}?fieldSelector=data.k%3Dv"))
        .await
        .refused(400, "BadRequest");
    server
        .get(&format!("{MAPS}?labelSelector=a+b"))
        .await
        .refused(400, "BadRequest");
    let message = server
        .get("/api/v1/pods?fieldSelector=spec.what%3Dv")
        .await
        .refused(400, "BadRequest");
    assert_eq!(message, "field label not supported: spec.what");
}

#[tokio::test]
async fn bad_tokens_are_refused() {
    let server = Server::start().await;
    server
        .get(&format!("{MAPS}?continue=rubbish"))
        .await
        .refused(400, "BadRequest");
    server
        .get(&format!("{MAPS}?continue=e30"))
        .await
        .refused(400, "BadRequest");
}

#[tokio::test]
async fn lists_come_as_tables_metadata_and_yaml() {
    let server = Server::start().await;
    server.config_maps(2).await;
    let table = server
        .get_as(
            MAPS,
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
        )
        .await
        .expect(200);
    assert_eq!(
        (&table["kind"], &table["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("m-000"))
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let partial = server
        .get_as(
            MAPS,
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
        )
        .await
        .expect(200);
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert!(partial["items"][0]["data"].is_null());
    let yaml = server
        .get_as(&format!("{MAPS}/m-000"), "application/yaml")
        .await;
    assert_eq!(yaml.headers["content-type"], "application/yaml");
    server
        .get_as(MAPS, "application/xml")
        .await
        .refused(406, "NotAcceptable");
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let server = Server::start().await;
    server.config_maps(3).await;
    let before = server.get(MAPS).await.expect(200);
    let server = server.restart().await;
    let after = server.get(MAPS).await.expect(200);
    assert_eq!(after["items"], before["items"]);
}

#[tokio::test]
async fn a_page_of_a_revision_shows_that_revision() {
    let server = Server::start().await;
    server.config_maps(3).await;
    let before = server.get(MAPS).await.expect(200);
    let version = before["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision");
    server.delete(&format!("{MAPS}/m-000")).await.expect(200);
    let page = server
        .get(&format!("{MAPS}?limit=2&resourceVersion={version}"))
        .await
        .expect(200);
    assert_eq!(names(&page), ["m-000", "m-001"]);
    assert_eq!(page["metadata"]["resourceVersion"], version);
    // Without a limit, or told otherwise, or of no revision in particular, it is the newest.
    for query in [
        format!("resourceVersion={version}"),
        format!("limit=2&resourceVersion={version}&resourceVersionMatch=NotOlderThan"),
        "limit=2&resourceVersion=0".to_owned(),
        "limit=2".to_owned(),
    ] {
        let list = server.get(&format!("{MAPS}?{query}")).await.expect(200);
        assert_eq!(names(&list), ["m-001", "m-002"], "{query}");
    }
}

#[tokio::test]
async fn every_read_of_a_revision_from_the_future_waits_and_says_so() {
    let server = Server::start().await;
    server.config_maps(1).await;
    let future = "resourceVersion=99999999";
    let paths = [
        format!("{MAPS}?{future}"),
        format!("{MAPS}?{future}&limit=1"),
        format!("{MAPS}?{future}&resourceVersionMatch=Exact"),
        format!("{MAPS}/m-000?{future}"),
    ];
    let replies = futures::future::join_all(paths.iter().map(|path| server.get(path))).await;
    for (path, reply) in paths.iter().zip(replies) {
        assert_eq!(reply.headers["retry-after"], "1", "{path}");
        let details = &reply.body["details"];
        assert_eq!(details["retryAfterSeconds"], 1);
        assert_eq!(
            details["causes"][0],
            json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" })
        );
        let message = reply.refused(504, "Timeout");
        assert!(
            message.starts_with("Timeout: Too large resource version: 99999999, current: "),
            "{message}"
        );
    }
    server
        .get(&format!("{MAPS}/m-000?resourceVersion=x"))
        .await
        .refused(400, "BadRequest");
    server
        .get(&format!("{MAPS}/m-000?resourceVersion=0"))
        .await
        .expect(200);
}

/// However much is written between its pages, a list is what it was, and what is left of it is counted right.
#[tokio::test]
async fn the_pages_of_a_list_are_one_state_whatever_is_written_between_them() {
    use rand::{Rng as _, SeedableRng as _};
    let server = Server::start().await;
    let mut model = std::collections::BTreeMap::new();
    for seed in 0..6 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let mut write = async |model: &mut std::collections::BTreeMap<String, String>| {
            let name = format!("m-{:02}", random.random_range(0..30));
            let path = format!("{MAPS}/{name}");
            let value = random.random::<u32>().to_string();
            if !model.contains_key(&name) {
                let mut map = config_map(&name);
                map["data"]["k"] = value.as_str().into();
                server.post(MAPS, &map).await.expect(201);
            } else if random.random_bool(0.5) {
                server.delete(&path).await.expect(200);
                model.remove(&name);
                return;
            } else {
                let patch = json!({ "data": { "k": value } });
                server.merge(&path, &patch).await.expect(200);
            }
            model.insert(name, value);
        };
        for _ in 0..40 {
            write(&mut model).await;
        }
        let expected: Vec<_> = model.clone().into_iter().collect();
        let mut read = Vec::new();
        let mut token = String::new();
        loop {
            let path = format!("{MAPS}?limit={}&continue={token}", 1 + seed);
            let page = server.get(&path).await.expect(200);
            let items = page["items"].as_array().expect("items");
            read.extend(items.iter().map(|map| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                (text(&map["metadata"]["name"]), text(&map["data"]["k"]))
            }));
            token = page["metadata"]["continue"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            let left = page["metadata"]["remainingItemCount"].as_u64().unwrap_or(0);
            assert_eq!(read.len() + left as usize, expected.len(), "seed {seed}");
            if token.is_empty() {
                break;
            }
            for _ in 0..3 {
                write(&mut model).await;
            }
        }
        assert_eq!(read, expected, "seed {seed}");
    }
}

#[tokio::test]
async fn a_list_goes_on_when_its_revision_is_behind_the_window() {
    let server = Server::start().await;
    server.config_maps(3).await;
    let first = server.get(&format!("{MAPS}?limit=2")).await.expect(200);
    let version = first["metadata"]["resourceVersion"].as_str().expect("text");
    let large = "x".repeat(40_000);
    for n in 0..300 {
        let patch = json!({ "data": { "k": format!("{n}{large}") } });
        server
            .merge(&format!("{MAPS}/m-002"), &patch)
            .await
            .expect(200);
    }
    let watch = server
        .watch(&format!("{MAPS}?watch=1&resourceVersion={version}"))
        .await;
    let mut watch = watch;
    let told = watch.next().await.expect("an event");
    assert_eq!(told["object"]["code"], 410, "the window has moved on");
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let second = server
        .get(&format!("{MAPS}?limit=2&continue={token}"))
        .await
        .expect(200);
    assert_eq!(names(&second), ["m-002"]);
    assert_eq!(second["items"][0]["data"]["k"], "v");
}
