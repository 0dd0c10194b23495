//! The feed against an API: lists, watches, and what happens when they break.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use knarr_proxy::Feed;
use knarr_proxy::objects::{Protocol, ServiceKey, TrafficPolicy};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(5);

/// An API with one list of each kind, and watches that send what they are told to, and end when their sender does.
#[derive(Clone, Default)]
struct Api {
    services: Arc<Mutex<Vec<String>>>,
    slices: Arc<Mutex<Vec<String>>>,
    watches: Arc<Mutex<Watches>>,
}

#[derive(Default)]
struct Watches {
    services: Vec<UnboundedReceiver<String>>,
    slices: Vec<UnboundedReceiver<String>>,
}

impl Api {
    fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let slices = request.uri().path().contains("endpointslices");
            let is_watch = request.uri().query().unwrap_or("").contains("watch=");
            let body: UnsyncBoxBody<Bytes, Infallible> = if is_watch {
                let mut watches = api.watches.lock().unwrap();
                let of_kind = if slices {
                    &mut watches.slices
                } else {
                    &mut watches.services
                };
                if of_kind.is_empty() {
                    StreamBody::new(futures::stream::pending()).boxed_unsync()
                } else {
                    let lines = UnboundedReceiverStream::new(of_kind.remove(0))
                        .map(|line| Ok(Frame::data(Bytes::from(line + "\n"))));
                    StreamBody::new(lines).boxed_unsync()
                }
            } else {
                let (kind, items) = match slices {
                    true => ("EndpointSlice", api.slices.lock().unwrap().join(",")),
                    false => ("Service", api.services.lock().unwrap().join(",")),
                };
                let list = format!(
                    r#"{{"kind":"{kind}List","metadata":{{"resourceVersion":"1"}},"items":[{items}]}}"#
                );
                Full::new(Bytes::from(list)).boxed_unsync()
            };
            async move { Ok::<_, Infallible>(http::Response::new(body)) }
        });
        kube::Client::new(service, "default")
    }

    /// The next watch of each kind.
    fn watch(&self) -> (UnboundedSender<String>, UnboundedSender<String>) {
        let (services, receiver) = unbounded_channel();
        self.watches.lock().unwrap().services.push(receiver);
        let (slices, receiver) = unbounded_channel();
        self.watches.lock().unwrap().slices.push(receiver);
        (services, slices)
    }
}

fn service(name: &str, ip: &str) -> String {
    format!(
        r#"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"2"}},
        "spec":{{"type":"NodePort","clusterIP":"{ip}","clusterIPs":["{ip}"],"externalTrafficPolicy":"Local","sessionAffinity":"ClientIP",
        "sessionAffinityConfig":{{"clientIP":{{"timeoutSeconds":30}}}},
        "ports":[{{"name":"http","port":80,"targetPort":8080,"nodePort":30080,"protocol":"TCP"}}]}}}}"#
    )
    .replace('\n', "")
}

fn slice(name: &str, service: &str, ready: &str) -> String {
    format!(
        r#"{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","addressType":"IPv4",
        "metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"3","labels":{{"kubernetes.io/service-name":"{service}"}}}},
        "ports":[{{"name":"http","port":8080,"protocol":"TCP"}}],
        "endpoints":[{{"addresses":["10.42.0.2"],"conditions":{{"ready":{ready}}},"nodeName":"here","hostname":"a"}}]}}"#
    )
    .replace('\n', "")
}

fn event(kind: &str, object: String) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("shop", name)
}

#[tokio::test]
async fn the_feed_follows_lists_and_watches() {
    let api = Api::default();
    api.services
        .lock()
        .unwrap()
        .push(service("web", "10.43.0.5"));
    api.slices
        .lock()
        .unwrap()
        .push(slice("web-1", "web", "true"));
    let (services, slices) = api.watch();
    let feed = Feed::new();
    let mut changes = feed.subscribe();
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let (feed, client, stop) = (feed.clone(), api.client(), stop.clone());
        async move { feed.run(client, stop).await }
    });
    tokio::time::timeout(DEADLINE, feed.synced())
        .await
        .expect("synced");
    let web = feed.service(&key("web")).unwrap();
    assert_eq!(
        web.cluster_ips,
        ["10.43.0.5".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(web.affinity, Some(30));
    assert_eq!(web.external_policy, TrafficPolicy::Local);
    assert_eq!(web.ports[0].node_port, Some(30080));
    assert_eq!(web.ports[0].protocol, Protocol::Tcp);
    let found = feed.slices(&key("web"));
    assert_eq!(found[0].ports[0].port, 8080);
    assert!(found[0].endpoints[0].ready);
    assert!(feed.has_services_in("shop") && !feed.has_services_in("sho"));

    let mut next = async || {
        tokio::time::timeout(DEADLINE, changes.next())
            .await
            .expect("a change")
    };
    assert_eq!(next().await.into_iter().collect::<Vec<_>>(), [key("web")]);
    services
        .send(event("ADDED", service("db", "10.43.0.6")))
        .unwrap();
    assert!(next().await.contains(&key("db")));
    // Unknown readiness counts as ready.
    slices
        .send(event("ADDED", slice("db-1", "db", "null")))
        .unwrap();
    assert!(next().await.contains(&key("db")));
    assert!(feed.slices(&key("db"))[0].endpoints[0].ready);
    // A slice that changes hands wakes both.
    slices
        .send(event("MODIFIED", slice("db-1", "web", "false")))
        .unwrap();
    let mut woken = next().await;
    while woken.len() < 2 {
        woken.extend(next().await);
    }
    assert!(feed.slices(&key("db")).is_empty());
    assert_eq!(feed.slices(&key("web")).len(), 2);
    slices
        .send(event("DELETED", slice("db-1", "web", "false")))
        .unwrap();
    next().await;
    assert_eq!(feed.slices(&key("web")).len(), 1);

    // The watch is lost and the history with it; meanwhile a service went, and a slice.
    *api.services.lock().unwrap() = vec![service("web", "10.43.0.7")];
    api.slices.lock().unwrap().clear();
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}}"#;
    services.send(gone.to_owned()).unwrap();
    slices.send(gone.to_owned()).unwrap();
    let start = std::time::Instant::now();
    while feed.service(&key("db")).is_some() || !feed.slices(&key("web")).is_empty() {
        assert!(
            start.elapsed() < DEADLINE,
            "the lost watch is not made up for"
        );
        next().await;
    }
    let web = feed.service(&key("web")).unwrap();
    assert_eq!(
        web.cluster_ips,
        ["10.43.0.7".parse::<std::net::IpAddr>().unwrap()]
    );
    stop.cancel();
    running.await.unwrap().unwrap();
}
