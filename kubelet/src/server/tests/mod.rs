//! Every streaming endpoint, over every protocol, with every kind of client: real connections, processes in memory.

mod forward;
mod sessions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use hyper_util::rt::TokioIo;
use knarr_engine::types::{ContainerConfig, ContainerState, SandboxConfig};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};

use super::spdy::client::{Client as Spdy, Told};
use super::{Server, auth, routes};
use crate::ctx::{Ctx, Machine};
use crate::events::Events;
use crate::identity::Identity;
use crate::manager::Pods;
use crate::objects::Objects;
use crate::runtime::Runtime as _;
use crate::sandbox::label;
use crate::services::Services;
use crate::testing::fake::{FakeApi, FakeRuntime};
use crate::volumes::TokenCache;

const DEADLINE: Duration = Duration::from_secs(20);

/// How a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Spdy(&'static str),
    /// `""` is a client that names no subprotocol.
    WebSocket(&'static str),
}
use Protocol::{Spdy as S, WebSocket as W};

const ALL: [Protocol; 11] = [
    S("channel.k8s.io"),
    S("v2.channel.k8s.io"),
    S("v3.channel.k8s.io"),
    S("v4.channel.k8s.io"),
    S("v5.channel.k8s.io"),
    W(""),
    W("channel.k8s.io"),
    W("base64.channel.k8s.io"),
    W("v4.channel.k8s.io"),
    W("v4.base64.channel.k8s.io"),
    W("v5.channel.k8s.io"),
];

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            S(name) | W(name) => name,
        }
    }

    fn tells_a_status(self) -> bool {
        self.name().starts_with("v4") || self.name().starts_with("v5")
    }

    /// Whether input can end while the session goes on.
    fn closes_input(self) -> bool {
        matches!(self, S(_) | W("v5.channel.k8s.io"))
    }

    fn resizes(self) -> bool {
        !matches!(self, S("channel.k8s.io" | "v2.channel.k8s.io"))
    }

    fn is_base64(self) -> bool {
        self.name().contains("base64")
    }
}

/// A node with one pod, whose containers run scripts of [`crate::testing::process`].
struct Node {
    address: SocketAddr,
    runtime: Arc<FakeRuntime>,
    dir: tempfile::TempDir,
    /// What its clients call themselves.
    agent: &'static str,
}

impl Node {
    /// The pod has a container `c` that was started, and `new` that was not.
    async fn start(config: ContainerConfig) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&key)
            .expect("a certificate");
        let serving =
            Identity::from_pem(&certificate.pem(), &key.serialize_pem()).expect("an identity");
        let config_of_node = crate::config::KubeletConfig::new(
            "node".into(),
            [192, 168, 0, 1].into(),
            dir.path().join("node"),
            serving,
            String::new(),
        );
        let api = FakeApi::new(&[]);
        let runtime = Arc::new(FakeRuntime::new());
        let client = api.client();
        let (events, _write) = Events::new(client.clone(), "node".into());
        let ctx = Arc::new(Ctx {
            config: config_of_node,
            objects: Objects::new(client.clone()),
            services: Services::new(),
            tokens: TokenCache::default(),
            machine: Machine {
                cpus: 2,
                memory_bytes: 1 << 30,
            },
            client,
            runtime: runtime.clone(),
            events,
        });
        let sandbox = runtime
            .run_sandbox(SandboxConfig {
                uid: "u".into(),
                ..SandboxConfig::default()
            })
            .await
            .expect("a sandbox");
        *runtime.log_path.lock() = Some(dir.path().join("0.log"));
        let labels = [(label::POD_UID.to_owned(), "u".to_owned())];
        let container = ContainerConfig {
            name: "c".into(),
            labels: labels.into(),
            ..config
        };
        let unstarted = ContainerConfig {
            name: "new".into(),
            ..container.clone()
        };
        let made = async |config| {
            runtime
                .create_container(&sandbox, config)
                .await
                .expect("made")
        };
        let (id, _) = (made(container).await, made(unstarted).await);
        runtime.start_container(&id).await.expect("started");
        let pod = crate::testing::pod(json!({
            "restartPolicy": "Never",
            "containers": [{"name": "c"}, {"name": "new"}],
        }));
        let server = Server {
            auth: Arc::new(auth::Authority::new(&ctx)),
            ctx,
            pods: Pods::of([pod]),
            uid: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let router = routes().with_state(server);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            address,
            runtime,
            dir,
            agent: "a test",
        }
    }

    async fn running(command: &[&str]) -> Self {
        Self::start(ContainerConfig {
            command: words(command),
            ..ContainerConfig::default()
        })
        .await
    }

    /// Opens a connection, or tells the refusal.
    async fn open(&self, protocol: Protocol, path: &str) -> Result<Connection, (u16, String)> {
        let stream = TcpStream::connect(self.address).await.expect("connected");
        match protocol {
            S(name) => {
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream))
                        .await
                        .expect("HTTP");
                tokio::spawn(connection.with_upgrades());
                let request = http::Request::post(path)
                    .header("host", "x")
                    .header("user-agent", self.agent)
                    .header("connection", "Upgrade")
                    .header("upgrade", "SPDY/3.1")
                    .header("x-stream-protocol-version", name)
                    .body(http_body_util::Empty::<Bytes>::new())
                    .expect("a request");
                let mut response = sender.send_request(request).await.expect("an answer");
                if response.status() != 101 {
                    return Err(refusal(response).await);
                }
                assert_eq!(response.headers()["x-stream-protocol-version"], name);
                let upgraded = hyper::upgrade::on(&mut response).await.expect("upgraded");
                Ok(Connection::Spdy(Spdy::new(TokioIo::new(upgraded))))
            }
            W(name) => {
                let url = format!("ws://{}{path}", self.address);
                let mut request = url.into_client_request().expect("a request");
                let headers = request.headers_mut();
                headers.insert("user-agent", http::HeaderValue::from_static(self.agent));
                if !name.is_empty() {
                    let value = name.parse().expect("a value");
                    headers.insert("sec-websocket-protocol", value);
                }
                match tokio_tungstenite::client_async(request, stream).await {
                    Ok((socket, _)) => Ok(Connection::WebSocket(Box::new(socket))),
                    Err(tungstenite::Error::Http(response)) => {
                        let body = response.body().clone().unwrap_or_default();
                        let text = String::from_utf8_lossy(&body).into_owned();
                        Err((response.status().as_u16(), text))
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    /// A whole session.
    async fn talk(&self, protocol: Protocol, path: &str, client: &Client) -> Heard {
        let connection = self.open(protocol, path).await;
        let connection = connection.unwrap_or_else(|refused| panic!("{protocol:?}: {refused:?}"));
        connection.talk(protocol, client).await
    }
}

async fn refusal(response: http::Response<hyper::body::Incoming>) -> (u16, String) {
    use http_body_util::BodyExt as _;
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body");
    (code, String::from_utf8_lossy(&body.to_bytes()).into_owned())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What a client does.
#[derive(Clone, Default)]
struct Client {
    /// Its streams, apart from that for errors.
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    input: &'static str,
    closes_input: bool,
    size: Option<(u16, u16)>,
    /// How long it waits before it reads.
    slow: Duration,
}

impl Client {
    fn reading() -> Self {
        Self {
            stdout: true,
            stderr: true,
            ..Self::default()
        }
    }

    fn typing(input: &'static str) -> Self {
        Self {
            stdin: true,
            stdout: true,
            input,
            ..Self::default()
        }
    }

    /// The path of an exec or attach.
    fn path(&self, endpoint: &str, container: &str, command: &[&str]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let flags = [
            ("input", self.stdin),
            ("output", self.stdout),
            ("error", self.stderr),
            ("tty", self.tty),
        ];
        for (name, _) in flags.iter().filter(|(_, set)| *set) {
            query.append_pair(name, "1");
        }
        for word in command {
            query.append_pair("command", word);
        }
        format!("/{endpoint}/ns/p/{container}?{}", query.finish())
    }
}

/// What a client hears.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    error: Vec<u8>,
}

impl Heard {
    fn channel(&mut self, number: u8) -> &mut Vec<u8> {
        match number {
            1 => &mut self.stdout,
            2 => &mut self.stderr,
            3 => &mut self.error,
            other => panic!("channel {other}"),
        }
    }

    fn text(&self) -> (&str, &str) {
        let text = |bytes| std::str::from_utf8(bytes).expect("text");
        (text(&self.stdout), text(&self.stderr))
    }

    /// The error channel in the words of a protocol with a status, whatever the protocol.
    fn check(&self, protocol: Protocol, status: &Value) {
        let error = String::from_utf8_lossy(&self.error);
        if protocol.tells_a_status() {
            let told: Value = serde_json::from_slice(&self.error)
                .unwrap_or_else(|_| panic!("{protocol:?}: {error:?} is no status"));
            assert_eq!(told, *status, "{protocol:?}");
        } else {
            let text = status["message"].as_str().unwrap_or_default();
            assert_eq!(error, text, "{protocol:?}");
        }
    }
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

enum Connection {
    Spdy(Spdy<TokioIo<hyper::upgrade::Upgraded>>),
    WebSocket(Box<WebSocketStream<TcpStream>>),
}

fn encode(protocol: Protocol, channel: u8, data: &[u8]) -> Message {
    if protocol.is_base64() {
        Message::text(format!("{channel}{}", BASE64.encode(data)))
    } else {
        Message::binary([&[channel], data].concat())
    }
}

fn decode(protocol: Protocol, message: &Message) -> Option<(u8, Vec<u8>)> {
    match message {
        Message::Text(text) => {
            assert!(protocol.is_base64(), "{protocol:?}: a text");
            let (channel, data) = text.split_at(1);
            let channel = channel.as_bytes()[0] - b'0';
            Some((channel, BASE64.decode(data).expect("base64")))
        }
        Message::Binary(data) => {
            assert!(!protocol.is_base64(), "{protocol:?}: bytes");
            Some((data[0], data[1..].to_vec()))
        }
        _ => None,
    }
}

async fn next(socket: &mut WebSocketStream<TcpStream>) -> Option<Message> {
    let next = tokio::time::timeout(DEADLINE, socket.next()).await;
    next.expect("the server says something")?.ok()
}

impl Connection {
    async fn talk(self, protocol: Protocol, client: &Client) -> Heard {
        match self {
            Self::Spdy(spdy) => talk_spdy(spdy, protocol, client).await,
            Self::WebSocket(socket) => talk_websocket(*socket, protocol, client).await,
        }
    }
}

async fn open_streams<C>(spdy: &mut Spdy<C>, protocol: Protocol, client: &Client) -> [u32; 5]
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let mut ids = [0; 5];
    let wanted = [
        ("stdin", client.stdin),
        ("stdout", client.stdout),
        ("stderr", client.stderr && !client.tty),
        ("error", true),
        ("resize", client.tty && protocol.resizes()),
    ];
    for (id, (name, _)) in ids
        .iter_mut()
        .zip(wanted)
        .filter(|(_, (_, wanted))| *wanted)
    {
        *id = spdy.open(&[("streamType", name)]).await;
    }
    ids
}

async fn talk_spdy<C>(mut spdy: Spdy<C>, protocol: Protocol, client: &Client) -> Heard
where
    C: tokio::io::AsyncRead + tokio::io::AsyncWrite,
{
    let ids = open_streams(&mut spdy, protocol, client).await;
    if let Some((width, height)) = client.size {
        let size = json!({"Width": width, "Height": height}).to_string();
        spdy.write(ids[4], size.as_bytes(), false).await;
    }
    if client.stdin {
        spdy.write(ids[0], client.input.as_bytes(), client.closes_input)
            .await;
    }
    tokio::time::sleep(client.slow).await;
    let mut heard = Heard::default();
    let mut open = [1, 2, 3].map(|n| ids[n] != 0);
    while open.contains(&true) {
        let Some(Told::Data { id, data, fin }) = spdy.next().await else {
            panic!("{protocol:?}: it ends early, with {heard:?}");
        };
        let number = ids
            .iter()
            .position(|one| *one == id)
            .expect("a stream of ours");
        heard.channel(number as u8).extend_from_slice(&data);
        open[number - 1] &= !fin;
    }
    heard
}

async fn talk_websocket(
    mut socket: WebSocketStream<TcpStream>,
    protocol: Protocol,
    client: &Client,
) -> Heard {
    if let Some((width, height)) = client.size {
        let size = json!({"Width": width, "Height": height}).to_string();
        let message = encode(protocol, 4, size.as_bytes());
        socket.send(message).await.expect("sent");
    }
    if client.stdin {
        let message = encode(protocol, 0, client.input.as_bytes());
        socket.send(message).await.expect("sent");
        if client.closes_input {
            socket
                .send(Message::binary([255, 0].to_vec()))
                .await
                .expect("sent");
        }
    }
    tokio::time::sleep(client.slow).await;
    let mut heard = Heard::default();
    let mut first = true;
    while let Some(message) = next(&mut socket).await {
        if let Message::Close(frame) = &message {
            let code = frame.as_ref().map(|frame| u16::from(frame.code));
            assert_eq!(code, Some(1000), "{protocol:?}");
            break;
        }
        let Some((channel, data)) = decode(protocol, &message) else {
            continue;
        };
        if std::mem::take(&mut first) {
            // An empty message on the first stream that is read says that the connection is there.
            let hello = if client.stdout { 1 } else { 3 };
            assert_eq!((channel, &data[..]), (hello, &b""[..]), "{protocol:?}");
        }
        heard.channel(channel).extend_from_slice(&data);
    }
    heard
}

/// `ContainerState` of the container that runs, so that a change of the harness is noticed.
#[tokio::test]
async fn the_harness_runs_one_container_and_not_the_other() {
    let node = Node::running(&["wait"]).await;
    let mut states: Vec<_> = node
        .runtime
        .list_containers()
        .await
        .expect("a list")
        .into_iter()
        .map(|status| (status.config.name, status.state))
        .collect();
    states.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(
        states,
        [
            ("c".to_owned(), ContainerState::Running),
            ("new".to_owned(), ContainerState::Created)
        ]
    );
}
