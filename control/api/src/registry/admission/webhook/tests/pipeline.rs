//! The whole way of a request, with the plugins at their places among the others.

use serde_json::{Value, json};

use super::server::{Behaviour, Server};
use super::{Cluster, MUTATING, VALIDATING, webhook};
use crate::registry::delete::DeleteRequest;
use crate::registry::write::Target;
use crate::strategy::Context;

fn target(cluster: &Cluster, name: &str) -> Target {
    let (resource, collection) = cluster.registry.find("", "v1", "pods").expect("a resource");
    Target {
        resource,
        collection: collection.expect("it is stored"),
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

#[tokio::test]
async fn a_container_that_a_webhook_adds_gets_what_plugins_before_it_give_to_containers() {
    let sidecar = json!({ "name": "sidecar", "image": "s" });
    let add = json!([{ "op": "add", "path": "/spec/containers/-", "value": sidecar }]);
    let server = Server::start([("/inject", Behaviour::Patch(add))]).await;
    let cluster = Cluster::start().await;
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "default", "namespace": "default" } });
    cluster
        .put("serviceaccounts", "default/default", account)
        .await;
    let hooks = [webhook(&server, "/inject", json!({}))];
    cluster.configure(MUTATING, "m", &hooks).await;
    let context = Context::component("somebody");
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let created = cluster
        .registry
        .create(&target(&cluster, ""), pod, &context)
        .await;
    let created: Value = serde_json::from_slice(&created.expect("created").object).expect("JSON");
    let containers = created["spec"]["containers"]
        .as_array()
        .expect("containers");
    assert_eq!(containers.len(), 2, "the webhook is called once: {created}");
    for container in containers {
        let mount = &container["volumeMounts"][0]["mountPath"];
        assert_eq!(mount, "/var/run/secrets/kubernetes.io/serviceaccount");
    }
}

#[tokio::test]
async fn a_deletion_that_a_webhook_refuses_deletes_nothing() {
    let deny = Behaviour::Respond(json!({ "allowed": false, "status": { "message": "keep it" } }));
    let server = Server::start([("/deny", deny)]).await;
    let cluster = Cluster::start().await;
    let hooks = [webhook(&server, "/deny", json!({}))];
    cluster.put("pods", "default/p", super::pod()).await;
    let target = target(&cluster, "p");
    let context = Context::component("somebody");
    for prefix in [MUTATING, VALIDATING] {
        cluster.configure(prefix, "x", &hooks).await;
        let request = DeleteRequest {
            grace: Some(0),
            ..DeleteRequest::default()
        };
        let refused = cluster.registry.delete(&target, &request, &context).await;
        let refused = refused.expect_err("refused");
        assert!(refused.message.ends_with("keep it"), "{refused}");
        assert!(target.collection.get("default/p").is_some());
        cluster.remove(prefix, "x").await;
    }
    let (_, review) = server.asked().remove(0);
    assert_eq!(review["request"]["options"]["gracePeriodSeconds"], 0);
}
