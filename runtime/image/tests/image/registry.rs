//! A registry: Debian's `docker-registry`, on a port of its own, and a proxy before it that misbehaves.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::build::{Layout, temp_dir};

pub struct Registry {
    pub address: SocketAddr,
    dir: tempfile::TempDir,
    process: Child,
}

/// Who is let in.
pub enum Access<'a> {
    Everyone,
    /// User `anna`, password `secret`.
    Basic,
    /// Whoever has a token of this server.
    Token(&'a TokenServer),
}

impl Registry {
    pub fn start(access: Access<'_>) -> Self {
        let dir = temp_dir();
        let auth = match access {
            Access::Everyone => String::new(),
            Access::Basic => {
                let file = dir.path().join("htpasswd");
                let made = Command::new("htpasswd")
                    .args(["-Bbc", file.to_str().unwrap(), "anna", "secret"])
                    .stderr(Stdio::null())
                    .status()
                    .expect("package apache2-utils is installed");
                assert!(made.success());
                format!(
                    "auth: {{htpasswd: {{realm: test, path: {}}}}}",
                    file.display()
                )
            }
            Access::Token(server) => {
                let file = dir.path().join("root.pem");
                std::fs::write(&file, &server.certificate).unwrap();
                format!(
                    "auth: {{token: {{realm: 'http://{}/token', service: registry, issuer: tests, \
                     rootcertbundle: {}}}}}",
                    server.address,
                    file.display()
                )
            }
        };
        // Another process may take the port before the registry does; then another one is tried.
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let address = free_address();
            let config = dir.path().join("config.yml");
            let root = dir.path().join("data");
            let text = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '{address}', secret: x}}\n{auth}\n",
                root.display()
            );
            std::fs::write(&config, text).unwrap();
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let mut process = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .expect("package docker-registry is installed");
            loop {
                if TcpStream::connect(address).is_ok() && process.try_wait().unwrap().is_none() {
                    return Self {
                        address,
                        dir,
                        process,
                    };
                }
                if process.try_wait().unwrap().is_some() {
                    break;
                }
                assert!(Instant::now() < deadline, "{}", log_of(dir.path()));
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(Instant::now() < deadline, "{}", log_of(dir.path()));
        }
    }

    /// `127.0.0.1:<port>/<name>`
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// Copies an image in, with `skopeo`.
    pub fn push(&self, layout: &Layout, name: &str, more: &[&str]) {
        let dir = temp_dir();
        layout.write_to(dir.path());
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--preserve-digests"])
            .args(["--dest-tls-verify=false"])
            .args(more)
            .arg(format!("oci:{}", dir.path().display()))
            .arg(format!("docker://{}", self.name(name)))
            .output()
            .expect("package skopeo is installed");
        assert!(
            output.status.success(),
            "{}{}",
            String::from_utf8_lossy(&output.stderr),
            log_of(self.dir.path())
        );
    }

    /// The file of a blob in the registry's storage.
    pub fn blob(&self, digest: &knarr_image::Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        let blobs = "data/docker/registry/v2/blobs/sha256";
        let dir = self.dir.path().join(blobs).join(&hex[..2]);
        dir.join(hex).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended on its own; there is nothing to do about it then.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn log_of(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

/// Passes connections on, and cuts them once so many bytes have come back.
pub struct Proxy {
    pub address: SocketAddr,
    /// Set once connections are to hold.
    pub mended: Arc<AtomicBool>,
    pub connections: Arc<AtomicUsize>,
    /// All that clients asked.
    pub requests: Arc<Mutex<Vec<u8>>>,
}

impl Proxy {
    pub fn start(to: SocketAddr, budget: i64, refill: i64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            mended: Arc::default(),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let budget = Arc::new(AtomicI64::new(budget));
        let (mended, connections, requests) = (
            Arc::clone(&proxy.mended),
            Arc::clone(&proxy.connections),
            Arc::clone(&proxy.requests),
        );
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                connections.fetch_add(1, Ordering::Relaxed);
                let server = TcpStream::connect(to).unwrap();
                let (mut up, mut server_up) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                let requests = Arc::clone(&requests);
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(n @ 1..) = up.read(&mut buffer) {
                        requests.lock().unwrap().extend(&buffer[..n]);
                        if server_up.write_all(&buffer[..n]).is_err() {
                            break;
                        }
                    }
                });
                let (budget, mended) = (Arc::clone(&budget), Arc::clone(&mended));
                std::thread::spawn(move || {
                    // The ends of a cut connection are both of no more interest.
                    let _ = pass(server, client, &budget, &mended);
                    budget.store(refill, Ordering::Relaxed);
                });
            }
        });
        proxy
    }
}

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    budget: &AtomicI64,
    mended: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let n = from.read(&mut buffer)?;
        let spent = budget.fetch_sub(n as i64, Ordering::Relaxed) < n as i64;
        if n == 0 || (spent && !mended.load(Ordering::Relaxed)) {
            from.shutdown(std::net::Shutdown::Both)?;
            return to.shutdown(std::net::Shutdown::Both);
        }
        to.write_all(&buffer[..n])?;
    }
}

/// Gives out tokens: to `anna` for everything, to others for pulling what is called `public`.
pub struct TokenServer {
    pub address: SocketAddr,
    /// Who trusts this trusts the tokens.
    certificate: String,
}

impl TokenServer {
    pub fn start() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["tests".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            certificate: certificate.pem(),
        };
        let chain = vec![base64(certificate.der())];
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let mut client = client.unwrap();
                let request = read_request(&mut client);
                let (status, body) = match token(&request, &key, &chain) {
                    Some(token) => ("200 OK", serde_json::json!({ "token": token }).to_string()),
                    None => ("401 Unauthorized", "{}".to_owned()),
                };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{body}",
                    body.len()
                );
                client.write_all(answer.as_bytes()).unwrap();
            }
        });
        server
    }
}

fn read_request(client: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && matches!(client.read(&mut byte), Ok(1)) {
        request.push(byte[0]);
    }
    String::from_utf8(request).unwrap()
}

/// `None` for a wrong password.
fn token(request: &str, key: &rcgen::KeyPair, chain: &[String]) -> Option<String> {
    let line = request
        .lines()
        .next()?
        .replace("%3A", ":")
        .replace("%2C", ",");
    let credentials = request.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let value = value.strip_prefix("Basic ");
        value.filter(|_| name.eq_ignore_ascii_case("authorization"))
    });
    let anna = match credentials {
        None => false,
        Some(text) if text == base64(b"anna:secret") => true,
        Some(_) => return None,
    };
    let scope = line
        .split(['?', '&', ' '])
        .find_map(|part| part.strip_prefix("scope="));
    let mut access = Vec::new();
    if let Some([kind, name, actions]) = scope.map(|s| s.split(':').collect::<Vec<_>>()).as_deref()
    {
        let actions: Vec<_> = actions
            .split(',')
            .filter(|action| anna || (*name == "public" && *action == "pull"))
            .collect();
        access.push(serde_json::json!({ "type": kind, "name": name, "actions": actions }));
    }
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    header.x5c = Some(chain.to_vec());
    let claims = serde_json::json!({
        "iss": "tests", "aud": "registry", "sub": "x", "jti": "x",
        "iat": now - 10, "nbf": now - 10, "exp": now + 300, "access": access,
    });
    let key = jsonwebtoken::EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
    Some(jsonwebtoken::encode(&header, &claims, &key).unwrap())
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
