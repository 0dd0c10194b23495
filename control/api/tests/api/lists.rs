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
        .get_as(MAPS, "application/vnd.kubernetes.protobuf")
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
