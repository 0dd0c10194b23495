//! How a node joins a cluster: from a token to certificates of its own, which it renews.
//!
//! The token is `K10<SHA-256 of the CA certificate>::<id>.<secret>`. The CA is fetched without trust, compared with the
//! hash, and trusted from then on; `<id>.<secret>` is a bootstrap token, good for one thing: to ask for a client
//! certificate. With that the node asks for a serving certificate. Both are kept below the node's directory, so that a
//! restart needs no token.

mod files;
mod request;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use kube::Client;
use kube::client::{ClientBuilder, ConfigExt};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use self::files::{due, identity, keep, load, names_fit, read, store};
use self::request::{Purpose, ask};
use crate::http_check::{self, Target};
use crate::identity::{Identity, IdentityError};
use crate::runtime::chain;

/// How long the API server may take to tell its CA.
const CA_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(30);
/// How often the clock is looked at while a certificate is good.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 60_000 });

/// Who joins, and where.
#[derive(Clone, Debug)]
pub struct Join {
    /// The API server: `https://HOST:6443`.
    pub server: String,
    /// The join token; not needed once the node has its certificates.
    pub token: Option<String>,
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, for its serving certificate.
    pub node_ips: Vec<IpAddr>,
    /// Where certificates are kept: `<data dir>/node`, in `pki/` below.
    pub node_dir: PathBuf,
}

/// A node that has joined.
pub struct Joined {
    /// Talks to the API server as `system:node:<name>`.
    pub client: Client,
    /// The cluster's certificate authority, in PEM.
    pub ca: String,
    /// The certificate of the node's HTTPS server.
    pub serving: Identity,
    identity: Identity,
    join: Join,
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// There are no certificates yet and no token to get them with.
    #[error("this node has no certificates yet, and no token was given to get them")]
    NoToken,
    /// The token is not of the form `K10<hash>::<id>.<secret>`.
    #[error("the token is malformed: expected K10<hash>::<id>.<secret>")]
    Token,
    /// The server's URL cannot be read.
    #[error("the server's URL {url:?} cannot be read")]
    Url {
        /// The URL.
        url: String,
    },
    /// The API server did not tell its CA.
    #[error("fetch the cluster's CA: {message}")]
    FetchCa {
        /// What went wrong.
        message: String,
    },
    /// The CA is not the one that the token names: somebody else answers at the server's address.
    #[error("the server's CA has the hash {found}, but the token says {expected}")]
    CaHash {
        /// The hash of the server's CA.
        found: String,
        /// The token's.
        expected: String,
    },
    /// A file of the node's identity cannot be read or written.
    #[error("keep {path:?}")]
    File {
        /// Which.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A key or a request cannot be made.
    #[error("make a certificate request")]
    Request {
        /// The library's error.
        source: rcgen::Error,
    },
    /// No client can be made.
    #[error("make a client for the API server")]
    Client {
        /// The library's error.
        source: Box<kube::Error>,
    },
    /// The API server did not take the request.
    #[error("ask for a certificate of {signer}")]
    Ask {
        /// Who was to sign.
        signer: &'static str,
        /// The API server's answer.
        source: Box<kube::Error>,
    },
    /// Nobody signed.
    #[error("no certificate of {signer}: {message}")]
    Unsigned {
        /// Who was to sign.
        signer: &'static str,
        /// Denied, failed, or too late.
        message: String,
    },
    /// A certificate cannot be used.
    #[error("use the certificate in {path:?}")]
    Identity {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: IdentityError,
    },
}

/// Joins the cluster, or takes up the certificates of an earlier time.
///
/// # Errors
///
/// If the token, the server or the signer do not give what is needed; nothing half-made is kept.
pub async fn bootstrap(join: Join) -> Result<Joined, BootstrapError> {
    let pki = join.node_dir.join("pki");
    fs::create_dir_all(&pki).map_err(|source| BootstrapError::File {
        path: pki.clone(),
        source,
    })?;
    let known = load(&pki, Purpose::Client)?
        .filter(|pair| due(&pair.certificate).is_some_and(|d| d.end > SystemTime::now()));
    let ca_path = pki.join("ca.crt");
    let (ca, pair) = match (known, read(&ca_path)?) {
        (Some(pair), Some(ca)) => (ca, pair),
        _ => {
            let token = Token::parse(join.token.as_deref().ok_or(BootstrapError::NoToken)?)?;
            let ca = fetch_ca(&join.server, &token.ca_hash).await?;
            let client = token_client(&join.server, &ca, &token.bearer)?;
            let pair = ask(&client, &join, Purpose::Client).await?;
            keep(&ca_path, &ca)?;
            store(&pki, Purpose::Client, &pair)?;
            (ca, pair)
        }
    };
    let identity = identity(&pki, Purpose::Client, &pair)?;
    let client = certificate_client(&join.server, &ca, &identity)?;
    let serving = load(&pki, Purpose::Serving)?
        .filter(|pair| due(&pair.certificate).is_some_and(|d| d.renew > SystemTime::now()))
        .filter(|pair| names_fit(&pair.certificate, &join));
    let serving = match serving {
        Some(pair) => pair,
        None => {
            let pair = ask(&client, &join, Purpose::Serving).await?;
            store(&pki, Purpose::Serving, &pair)?;
            pair
        }
    };
    let serving = files::identity(&pki, Purpose::Serving, &serving)?;
    Ok(Joined {
        client,
        ca,
        serving,
        identity,
        join,
    })
}

impl Joined {
    /// Renews both certificates when 70 to 90 % of their life are over; runs until dropped.
    pub fn renew(&self) -> impl Future<Output = ()> + Send + 'static {
        let one = |purpose, identity: &Identity| {
            renew(
                self.client.clone(),
                self.join.clone(),
                purpose,
                identity.clone(),
            )
        };
        let client = one(Purpose::Client, &self.identity);
        let serving = one(Purpose::Serving, &self.serving);
        async move {
            tokio::join!(client, serving);
        }
    }
}

async fn renew(client: Client, join: Join, purpose: Purpose, identity: Identity) {
    let pki = join.node_dir.join("pki");
    loop {
        let at = match load(&pki, purpose) {
            Ok(Some(pair)) => due(&pair.certificate).map_or_else(SystemTime::now, |d| d.renew),
            _ => SystemTime::now(),
        };
        wait_until(at, SystemTime::now).await;
        let renewed = async {
            let pair = ask(&client, &join, purpose).await?;
            store(&pki, purpose, &pair)?;
            identity
                .replace(&pair.certificate, &pair.key)
                .map_err(|source| BootstrapError::Identity {
                    path: pki.join(purpose.file()),
                    source,
                })
        };
        match renewed.await {
            Ok(()) => tracing::info!(?purpose, "renewed the node's certificate"),
            Err(error) => {
                tracing::warn!(
                    ?purpose,
                    error = chain(&error),
                    "renew the node's certificate"
                );
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Waits until the clock shows this. In parts: a timer of months does not notice that the clock was set, or that the machine
/// slept.
async fn wait_until(at: SystemTime, now: impl Fn() -> SystemTime) {
    while let Ok(left) = at.duration_since(now()) {
        tokio::time::sleep(left.min(LOOK)).await;
    }
}

struct Token {
    ca_hash: String,
    bearer: String,
}

impl Token {
    fn parse(text: &str) -> Result<Self, BootstrapError> {
        let (hash, bearer) = text
            .trim()
            .strip_prefix("K10")
            .and_then(|rest| rest.split_once("::"))
            .ok_or(BootstrapError::Token)?;
        let hash_ok = hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit());
        let bearer_ok = bearer
            .split_once('.')
            .is_some_and(|(id, secret)| !id.is_empty() && !secret.is_empty());
        if !(hash_ok && bearer_ok) {
            return Err(BootstrapError::Token);
        }
        Ok(Self {
            ca_hash: hash.to_lowercase(),
            bearer: bearer.to_owned(),
        })
    }
}

async fn fetch_ca(server: &str, expected: &str) -> Result<String, BootstrapError> {
    let uri: http::Uri = server.parse().map_err(|_| BootstrapError::Url {
        url: server.to_owned(),
    })?;
    let host = uri.host().ok_or_else(|| BootstrapError::Url {
        url: server.to_owned(),
    })?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let target = Target::https(
        host.to_owned(),
        uri.port_u16().unwrap_or(443),
        "/cacerts".to_owned(),
    );
    let failed = |message| BootstrapError::FetchCa { message };
    let (status, ca) = http_check::get(&target, CA_TIMEOUT).await.map_err(failed)?;
    if status != 200 {
        return Err(failed(format!("{server}/cacerts answers with {status}")));
    }
    let der = CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|e| failed(e.to_string()))?;
    let found = hex::encode(Sha256::digest(&der));
    if found != expected {
        return Err(BootstrapError::CaHash {
            found,
            expected: expected.to_owned(),
        });
    }
    // Only the certificate that was checked is trusted, whatever stood behind it.
    let end = "-----END CERTIFICATE-----";
    let length = ca.find(end).map_or(ca.len(), |at| at + end.len());
    Ok(format!("{}\n", &ca[..length]))
}

fn config(server: &str, ca: &str) -> Result<kube::Config, BootstrapError> {
    let uri = server.parse().map_err(|_| BootstrapError::Url {
        url: server.to_owned(),
    })?;
    let mut config = kube::Config::new(uri);
    let der =
        CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|e| BootstrapError::FetchCa {
            message: e.to_string(),
        })?;
    config.root_cert = Some(vec![der.to_vec()]);
    Ok(config)
}

fn token_client(server: &str, ca: &str, token: &str) -> Result<Client, BootstrapError> {
    let mut config = config(server, ca)?;
    config.auth_info.token = Some(token.to_owned().into());
    Client::try_from(config).map_err(|source| BootstrapError::Client {
        source: Box::new(source),
    })
}

/// A client whose certificate can be replaced.
fn certificate_client(
    server: &str,
    ca: &str,
    identity: &Identity,
) -> Result<Client, BootstrapError> {
    let config = config(server, ca)?;
    let mut tls = config
        .rustls_client_config()
        .map_err(|source| BootstrapError::Client {
            source: Box::new(source),
        })?;
    tls.client_auth_cert_resolver = std::sync::Arc::new(identity.clone());
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_only()
        .enable_all_versions()
        .build();
    let service = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build(connector);
    let builder = ClientBuilder::new(service, "default").with_layer(&config.base_uri_layer());
    Ok(builder.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_clock_that_jumps_makes_a_certificate_due() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU64, Ordering};
        const DAY: u64 = 24 * 3600;
        let days = Arc::new(AtomicU64::new(0));
        let clock = days.clone();
        let now = move || {
            SystemTime::UNIX_EPOCH + Duration::from_secs(DAY * clock.load(Ordering::SeqCst))
        };
        let due = SystemTime::UNIX_EPOCH + Duration::from_secs(300 * DAY);
        let mut wait = std::pin::pin!(wait_until(due, now));
        assert!(futures::poll!(wait.as_mut()).is_pending());
        days.store(299, Ordering::SeqCst);
        assert!(futures::poll!(wait.as_mut()).is_pending());
        days.store(400, Ordering::SeqCst);
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("the clock was noticed");
    }

    #[test]
    fn tokens_are_read_or_refused() {
        let hash = "a".repeat(64);
        let token =
            Token::parse(&format!("K10{hash}::abcdef.0123456789abcdef\n")).expect("a token");
        assert_eq!(
            (token.ca_hash, token.bearer),
            (hash.clone(), "abcdef.0123456789abcdef".to_owned())
        );
        for bad in [
            String::new(),
            format!("K10{hash}"),
            format!("K10{hash}::nodot"),
            "K10xyz::a.b".to_owned(),
        ] {
            assert!(
                matches!(Token::parse(&bad), Err(BootstrapError::Token)),
                "{bad}"
            );
        }
    }
}
