//! A registry that answers as registries in the field do, one manner a server: in plain HTTP/1.1, a thread a connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use knarr_image::Digest;

use crate::build::Layout;

/// What a client sent, as far as anything here depends on it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Without its query.
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub fn authorization(&self) -> &str {
        self.header("authorization")
    }

    /// A parameter of the query, decoded as far as needed here.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self
            .query
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        let mut found = pairs.filter(|(key, _)| *key == name);
        let (_, value) = found.next()?;
        Some(
            value
                .replace("%3A", ":")
                .replace("%2F", "/")
                .replace("%2C", ","),
        )
    }

    pub fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    pub fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }

    fn last(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// What is sent back.
pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub how: How,
}

/// How the body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Whole,
    Chunked,
    /// So many bytes of it; then the connection ends.
    Cut(usize),
    /// Again and again, until the client has enough.
    Endless,
}

impl Response {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            how: How::Whole,
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn sent(mut self, how: How) -> Self {
        self.how = how;
        self
    }

    pub fn error(status: u16, code: &str) -> Self {
        let body = format!(
            r#"{{"errors":[{{"code":"{code}","message":"{}"}}]}}"#,
            code.to_lowercase()
        );
        Self::new(status, body).with("Content-Type", "application/json")
    }
}

/// What a manner has to go by, and what it does.
pub struct Registry {
    pub address: SocketAddr,
    state: Arc<State>,
}

pub struct State {
    files: BTreeMap<String, Vec<u8>>,
    top: Digest,
    pub address: SocketAddr,
    counts: Mutex<BTreeMap<String, usize>>,
    requests: Mutex<Vec<Request>>,
}

impl State {
    /// How often this was called with the key, this time included.
    pub fn count(&self, key: impl Into<String>) -> usize {
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry(key.into()).or_default();
        *count += 1;
        *count
    }

    /// What a registry without any manners answers.
    pub fn plain(&self, request: &Request) -> Response {
        let name = match request.last() {
            digest if digest.starts_with("sha256:") => digest.to_owned(),
            _ if request.is_manifest() => self.top.to_string(),
            _ => return Response::error(404, "NOT_FOUND"),
        };
        let Some(content) = self.files.get(&name.replace("sha256:", "blobs/sha256/")) else {
            let code = if request.is_blob() {
                "BLOB_UNKNOWN"
            } else {
                "MANIFEST_UNKNOWN"
            };
            return Response::error(404, code);
        };
        let content_type = if request.is_manifest() {
            "application/vnd.oci.image.manifest.v1+json"
        } else {
            "application/octet-stream"
        };
        Response::new(200, content.clone()).with("Content-Type", content_type)
    }
}

impl Registry {
    /// Serves the image under every name, in this manner.
    pub fn start(
        layout: &Layout,
        manner: impl Fn(&Request, &State) -> Response + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            files: layout.files.clone(),
            top: layout.manifest.clone(),
            address,
            counts: Mutex::default(),
            requests: Mutex::default(),
        });
        let manner = Arc::new(manner);
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, state, manner) =
                    (client.unwrap(), Arc::clone(&shared), Arc::clone(&manner));
                // A client that hangs up has what it wanted.
                std::thread::spawn(move || drop(serve(client, &state, &*manner)));
            }
        });
        Self { address, state }
    }

    pub fn name(&self) -> String {
        format!("{}/x/img:v1", self.address)
    }

    /// All that was asked.
    pub fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }
}

fn serve(
    client: TcpStream,
    state: &State,
    manner: &(impl Fn(&Request, &State) -> Response + ?Sized),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut client = client;
    while let Some(request) = read(&mut reader)? {
        state.requests.lock().unwrap().push(request.clone());
        let response = manner(&request, state);
        let mut head = format!("HTTP/1.1 {} x\r\n", response.status);
        for (name, value) in &response.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match response.how {
            How::Whole | How::Cut(_) => {
                head.push_str(&format!("Content-Length: {}\r\n\r\n", response.body.len()));
            }
            How::Chunked | How::Endless => head.push_str("Transfer-Encoding: chunked\r\n\r\n"),
        }
        client.write_all(head.as_bytes())?;
        match response.how {
            How::Whole => client.write_all(&response.body)?,
            How::Cut(length) => {
                client.write_all(&response.body[..length.min(response.body.len())])?;
                return client.shutdown(Shutdown::Both);
            }
            How::Chunked => {
                for chunk in response.body.chunks(50_000) {
                    write_chunk(&mut client, chunk)?;
                }
                client.write_all(b"0\r\n\r\n")?;
            }
            How::Endless => loop {
                write_chunk(&mut client, &response.body)?;
            },
        }
    }
    Ok(())
}

fn write_chunk(client: &mut TcpStream, chunk: &[u8]) -> std::io::Result<()> {
    let head = format!("{:x}\r\n", chunk.len());
    client.write_all(&[head.as_bytes(), chunk, b"\r\n"].concat())
}

fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    // No request is long; whoever sends more is cut off.
    reader.take(16 << 10).read_line(&mut line)?;
    let Some(target) = line.split(' ').nth(1) else {
        return Ok(None);
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.take(16 << 10).read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
            None => break,
        };
    }
    Ok(Some(Request {
        path,
        query,
        headers,
    }))
}
