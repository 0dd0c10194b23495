//! What fails costs no more than it must: a panic its request, a store its health, a certificate nobody's connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use knarr_api::pki::Pki;
use knarr_store::{
    Compare, Durability, Event, KeyValue, Op, Range, RedbStore, Revision, Store, StoreError,
    TxnOutcome,
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use crate::support::{DEADLINE, MAPS, Server, config_map};
use crate::wire::{Listening, listen_with};

/// A real store that fails where it is told to.
struct Faulty {
    store: RedbStore,
    check: AtomicU8,
    /// Whether what is committed is kept from those who watch.
    held: watch::Sender<bool>,
}

const WELL: u8 = 0;
const FAILS: u8 = 1;
const PANICS: u8 = 2;
const HANGS: u8 = 3;

impl Faulty {
    async fn server() -> (Server, Arc<Self>) {
        let mut faulty = None;
        let server = Server::start_on(
            |store| {
                let (check, held) = (AtomicU8::new(WELL), watch::Sender::new(false));
                let all = Self { store, check, held };
                faulty.insert(Arc::new(all)).clone()
            },
            |dir| Pki::open(dir).expect("keys"),
        )
        .await;
        (server, faulty.expect("it was made"))
    }

    fn set(&self, check: u8) {
        self.check.store(check, Ordering::SeqCst);
    }
}

#[async_trait]
impl Store for Faulty {
    fn revision(&self) -> Revision {
        self.store.revision()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.store.get(key).await
    }

    async fn range(&self, start: &str, end: &str, limit: usize) -> Result<Range, StoreError> {
        self.store.range(start, end, limit).await
    }

    async fn txn(
        &self,
        compares: Vec<Compare>,
        ops: Vec<Op>,
        durability: Durability,
    ) -> Result<TxnOutcome, StoreError> {
        for op in &ops {
            assert!(!op.key().ends_with("/panic"), "a fault of ours");
            if op.key().ends_with("/unknown") {
                return Err(StoreError::Unknown {
                    what: "commit to state.redb".to_owned(),
                    source: "the disk is broken".into(),
                });
            }
        }
        self.store.txn(compares, ops, durability).await
    }

    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<mpsc::Receiver<(Revision, Vec<Event>)>, StoreError> {
        let mut from = self.store.watch(prefix, after).await?;
        let (to, receiver) = mpsc::channel(1024);
        let mut held = self.held.subscribe();
        tokio::spawn(async move {
            while let Some(batch) = from.recv().await {
                if held.wait_for(|held| !held).await.is_err() || to.send(batch).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }

    async fn none_removed_since(&self, prefix: &str) -> Result<Revision, StoreError> {
        self.store.none_removed_since(prefix).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        match self.check.load(Ordering::SeqCst) {
            FAILS => Err(StoreError::Failed {
                what: "commit to state.redb".to_owned(),
                source: "the disk is broken".into(),
            }),
            PANICS => panic!("a fault of ours"),
            HANGS => std::future::pending().await,
            _ => self.store.check().await,
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }
}

const PANICKED: &str = "This request caused apiserver to panic. Look in the logs for details.";

#[tokio::test]
async fn a_panic_costs_its_request_and_not_its_connection() {
    let (server, store) = Faulty::server().await;
    let listening = listen_with(server).await;
    let admin = listening.identity("admin", "system:masters");
    // One connection of each kind for everything.
    let stream = listening.connect(Some(&admin), b"h2").await;
    let io = TokioIo::new(stream);
    let (two, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let stream = listening.connect(Some(&admin), b"http/1.1").await;
    let (mut one, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/1.1");
    tokio::spawn(connection);
    for round in 0..2 {
        for version in [1, 2] {
            let mut two = two.clone();
            let mut send = async |method: Method, path: &str, body: &str| -> (u16, Value) {
                let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
                let request = Request::builder()
                    .method(method)
                    .uri(format!("https://127.0.0.1{path}"))
                    .header("host", "127.0.0.1")
                    .header("content-type", "application/json")
                    .body(body)
                    .expect("a request");
                let answer = match version {
                    1 => one.send_request(request).await,
                    _ => two.send_request(request).await,
                };
                let answer = answer.expect("the connection goes on");
                let code = answer.status().as_u16();
                let body = answer.into_body().collect().await.expect("a whole body");
                (
                    code,
                    serde_json::from_slice(&body.to_bytes()).unwrap_or_default(),
                )
            };
            let panicked = |answer: (u16, Value)| {
                assert_eq!(answer.0, 500, "{}", answer.1);
                assert_eq!(answer.1["kind"], "Status");
                assert_eq!(answer.1["reason"], "InternalError");
                assert_eq!(answer.1["message"], PANICKED);
            };
            panicked(send(Method::POST, MAPS, &config_map("panic").to_string()).await);
            store.set(PANICS);
            panicked(send(Method::GET, "/readyz", "").await);
            store.set(WELL);
            let fine = config_map(&format!("fine-{round}-{version}")).to_string();
            assert_eq!(send(Method::POST, MAPS, &fine).await.0, 201);
            assert_eq!(send(Method::GET, MAPS, "").await.0, 200);
        }
    }
    listening.end().await;
}

#[tokio::test]
async fn a_write_whose_outcome_is_not_known_is_not_said_to_have_failed() {
    let (server, _store) = Faulty::server().await;
    let reply = server.post(MAPS, &config_map("unknown")).await;
    let message = reply.refused(500, "InternalError");
    assert_eq!(
        message,
        "Internal error occurred: the store failed while it wrote, whether the change was made is not known: commit to state.redb: the disk is broken"
    );
}

#[tokio::test]
async fn health_tells_each_check_by_its_name() {
    let (server, store) = Faulty::server().await;
    let get = async |path: &str| {
        let reply = server.get(path).await;
        (
            reply.code,
            reply.body.as_str().unwrap_or_default().to_owned(),
        )
    };
    for endpoint in ["healthz", "livez", "readyz"] {
        assert_eq!(get(&format!("/{endpoint}")).await, (200, "ok".to_owned()));
    }
    let all = "[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]etcd-readiness ok\n[+]informer-sync ok\n\
               [+]poststarthook/storage-readiness ok\n\
               [+]poststarthook/start-system-namespaces-controller ok\n\
               [+]poststarthook/bootstrap-controller ok\n\
               [+]poststarthook/rbac/bootstrap-roles ok\n[+]shutdown ok\nreadyz check passed\n";
    assert_eq!(get("/readyz?verbose").await, (200, all.to_owned()));
    let live = "[+]ping ok\n[+]log ok\n[+]etcd excluded: ok\n[+]poststarthook/storage-readiness ok\n\
                [+]poststarthook/start-system-namespaces-controller ok\n\
                [+]poststarthook/bootstrap-controller ok\n\
                [+]poststarthook/rbac/bootstrap-roles ok\n\
                warn: some health checks cannot be excluded: no matches for \"nothing\",\"shutdown\"\n\
                livez check passed\n";
    let excluded = "/livez?verbose&exclude=etcd&exclude=shutdown&exclude=nothing";
    assert_eq!(get(excluded).await, (200, live.to_owned()));
    for path in [
        "/readyz/ping",
        "/livez/etcd",
        "/readyz/poststarthook/storage-readiness",
    ] {
        assert_eq!(get(path).await, (200, "ok".to_owned()), "{path}");
    }
    for path in [
        "/readyz/nothing",
        "/livez/informer-sync",
        "/healthz/etcd/more",
    ] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }

    store.set(FAILS);
    let (code, text) = get("/readyz").await;
    assert_eq!(code, 500);
    assert!(
        text.contains("[+]log ok\n[-]etcd failed: reason withheld\n"),
        "{text}"
    );
    assert!(
        text.ends_with("[+]shutdown ok\nreadyz check failed\n"),
        "{text}"
    );
    assert_eq!(
        get("/readyz?exclude=etcd&exclude=etcd-readiness").await.0,
        200
    );
    let (code, text) = get("/livez/etcd").await;
    assert_eq!(code, 500);
    assert_eq!(
        text,
        "internal server error: the store has failed: commit to state.redb: the disk is broken\n"
    );
    store.set(HANGS);
    let (code, text) = get("/livez").await;
    assert_eq!(code, 500);
    assert!(text.contains("[-]etcd failed: reason withheld\n"), "{text}");
    store.set(WELL);
    assert_eq!(get("/livez").await.0, 200);
}

/// The end of a certificate that the server shows, and whether an open connection still serves.
async fn shown(listening: &Listening) -> i64 {
    let stream = listening.connect(None, b"http/1.1").await;
    let chain = stream
        .get_ref()
        .1
        .peer_certificates()
        .expect("a certificate");
    let (_, certificate) = x509_parser::parse_x509_certificate(&chain[0]).expect("X.509");
    certificate.validity().not_after.timestamp()
}

#[tokio::test]
async fn the_server_shows_a_new_certificate_without_a_restart_or_a_lost_connection() {
    const DAY: i64 = 24 * 3600;
    // The clock starts in the past, so that the certificates are valid to a client of today.
    let offset = Arc::new(AtomicI64::new(-300 * DAY));
    let clock = offset.clone();
    let server = Server::start_on(Arc::new, |dir| {
        let now = move || {
            time::OffsetDateTime::now_utc() + time::Duration::seconds(clock.load(Ordering::SeqCst))
        };
        Pki::open_with_clock(dir, Arc::new(now)).expect("keys")
    })
    .await;
    let listening = listen_with(server).await;
    let first = shown(&listening).await;
    let admin = listening.identity("admin", "system:masters");
    let stream = listening.connect(Some(&admin), b"http/1.1").await;
    let (mut open, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP");
    tokio::spawn(connection);
    let mut request = async || {
        let request = Request::get(MAPS).header("host", "x");
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        let answer = open.send_request(request).await.expect("an answer");
        let code = answer.status().as_u16();
        answer.into_body().collect().await.expect("a whole body");
        code
    };
    assert_eq!(request().await, 200);
    let certificates = listening.server.api.certificates().clone();
    certificates.check();
    assert_eq!(shown(&listening).await, first, "it is good for long");

    offset.store(0, Ordering::SeqCst);
    certificates.check();
    let second = shown(&listening).await;
    assert!((second - first - 300 * DAY).abs() < 60, "{first}, {second}");
    assert_eq!(request().await, 200, "the open connection goes on");
    let admin = listening.identity("admin", "system:masters");
    let (code, _) = listening.get(Some(&admin), MAPS, "").await;
    assert_eq!(code, 200);
    listening.end().await;
}

/// With several servers, what won may have been written by another, and reach this one's collections later.
#[tokio::test]
async fn a_write_that_was_beaten_goes_on_from_what_won() {
    let (server, store) = Faulty::server().await;
    let path = format!("{MAPS}/m");
    server.post(MAPS, &config_map("m")).await.expect(201);
    store.held.send_replace(true);
    let key = "/registry/configmaps/default/m";
    let present = store
        .store
        .get(key)
        .await
        .expect("a read")
        .expect("the map");
    let mut other: Value = serde_json::from_slice(&present.value).expect("JSON");
    other["data"]["other"] = "server".into();
    let put = Op::Put(key.to_owned(), other.to_string().into());
    let committed = store.store.txn(vec![], vec![put], Durability::Immediate);
    let TxnOutcome::Committed(revision) = committed.await.expect("a commit") else {
        panic!("nothing was compared");
    };
    let patch = json!({ "data": { "ours": "too" } });
    let (patched, ()) = tokio::join!(server.merge(&path, &patch), async {
        let written = async {
            while store.store.revision() == revision {
                tokio::task::yield_now().await;
            }
        };
        let written = tokio::time::timeout(DEADLINE, written).await;
        store.held.send_replace(false);
        written.expect("it is written before the other's change is seen here");
    });
    let data = json!({ "k": "v", "other": "server", "ours": "too" });
    assert_eq!(patched.expect(200)["data"], data);
    // One that is gone is gone, whatever is seen here.
    store.held.send_replace(true);
    let delete = vec![Op::Delete(key.to_owned())];
    let deleted = store.store.txn(vec![], delete, Durability::Immediate);
    deleted.await.expect("a commit");
    let patch = json!({ "data": { "ours": "again" } });
    server.merge(&path, &patch).await.refused(404, "NotFound");
    server.delete(&path).await.refused(404, "NotFound");
    store.held.send_replace(false);
}
