//! How a node joins a cluster: from a token to certificates of its own, which it renews.
//!
//! The token is `K10<SHA-256 of the CA certificate>::<id>.<secret>`. The CA is fetched without trust, compared with the
//! hash, and trusted from then on; `<id>.<secret>` is a bootstrap token, good for one thing: to ask for a client
//! certificate. With that the node asks for a serving certificate. Both are kept below the node's directory, so that a
//! restart needs no token.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::client::{ClientBuilder, ConfigExt};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::http_check::{self, Target};
use crate::identity::{Identity, IdentityError};
use crate::runtime::chain;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// How long the cluster may take to sign.
const SIGN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the API server may take to tell its CA.
const CA_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(30);

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

/// One of the node's two certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Client,
    Serving,
}

impl Purpose {
    fn file(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Serving => "serving",
        }
    }

    fn signer(self) -> &'static str {
        match self {
            Self::Client => CLIENT_SIGNER,
            Self::Serving => SERVING_SIGNER,
        }
    }

    fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Client => ["digital signature", "client auth"],
            Self::Serving => ["digital signature", "server auth"],
        }
    }
}

/// A certificate and its key, in PEM.
struct Pair {
    certificate: String,
    key: String,
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
    let serving = self::identity(&pki, Purpose::Serving, &serving)?;
    Ok(Joined {
        client,
        ca,
        serving,
        identity,
        join,
    })
}

impl Joined {
    /// Renews both certificates when two thirds of their life are over; runs until dropped.
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
        // Slept in parts: a timer of months does not notice that the machine's clock was set.
        while let Ok(left) = at.duration_since(SystemTime::now()) {
            tokio::time::sleep(left.min(Duration::from_secs(3600))).await;
        }
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

/// Asks for a certificate with a fresh key, and waits for it.
async fn ask(client: &Client, join: &Join, purpose: Purpose) -> Result<Pair, BootstrapError> {
    let request = |source| BootstrapError::Request { source };
    let key = KeyPair::generate().map_err(request)?;
    let csr = parameters(join, purpose)
        .serialize_request(&key)
        .and_then(|r| r.pem())
        .map_err(request)?;
    let signer = purpose.signer();
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some("csr-".to_owned()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(csr.into_bytes()),
            signer_name: signer.to_owned(),
            usages: Some(purpose.usages().map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created = api
        .create(&PostParams::default(), &object)
        .await
        .map_err(|source| BootstrapError::Ask {
            signer,
            source: Box::new(source),
        })?;
    let unsigned = |message: String| BootstrapError::Unsigned { signer, message };
    let name = created.metadata.name.unwrap_or_default();
    let wait = await_condition(api, &name, Decided);
    let decided = match tokio::time::timeout(SIGN_TIMEOUT, wait).await {
        Ok(Ok(Some(object))) => object,
        Ok(Ok(None)) => return Err(unsigned("the request was deleted".to_owned())),
        Ok(Err(error)) => return Err(unsigned(chain(&error))),
        Err(_) => {
            return Err(unsigned(format!(
                "still waiting after {} s",
                SIGN_TIMEOUT.as_secs()
            )));
        }
    };
    let status = decided.status.unwrap_or_default();
    match status.certificate {
        Some(ByteString(bytes)) => {
            let certificate = String::from_utf8(bytes).map_err(|e| unsigned(e.to_string()))?;
            Ok(Pair {
                certificate,
                key: key.serialize_pem(),
            })
        }
        None => {
            let condition = status
                .conditions
                .into_iter()
                .flatten()
                .find(|c| refuses(&c.type_));
            Err(unsigned(condition.map_or_else(
                || "the request has no certificate".to_owned(),
                |c| format!("{}: {}", c.type_, c.message.unwrap_or_default()),
            )))
        }
    }
}

fn refuses(condition: &str) -> bool {
    matches!(condition, "Denied" | "Failed")
}

/// The request is signed, or will never be.
struct Decided;

impl Condition<CertificateSigningRequest> for Decided {
    fn matches_object(&self, object: Option<&CertificateSigningRequest>) -> bool {
        object
            .and_then(|o| o.status.as_ref())
            .is_some_and(|status| {
                status.certificate.is_some()
                    || status
                        .conditions
                        .iter()
                        .flatten()
                        .any(|c| refuses(&c.type_))
            })
    }
}

fn parameters(join: &Join, purpose: Purpose) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(
        DnType::CommonName,
        format!("system:node:{}", join.node_name),
    );
    parameters.distinguished_name = name;
    if purpose == Purpose::Serving {
        let dns = join.node_name.clone().try_into().map(SanType::DnsName);
        parameters.subject_alt_names = dns.into_iter().collect();
        parameters
            .subject_alt_names
            .extend(join.node_ips.iter().map(|ip| SanType::IpAddress(*ip)));
    }
    parameters
}

/// When a certificate should be renewed, and when it must be.
struct Due {
    renew: SystemTime,
    end: SystemTime,
}

fn due(certificate: &str) -> Option<Due> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let at = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let (start, end) = (
        at(parsed.validity().not_before),
        at(parsed.validity().not_after),
    );
    let life = end.duration_since(start).ok()?;
    Some(Due {
        renew: start + life * 2 / 3,
        end,
    })
}

/// Whether the serving certificate is for the addresses that the node has now.
fn names_fit(certificate: &str, join: &Join) -> bool {
    let fits = || {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let has = |ip: &IpAddr| {
            let bytes = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            names.value.general_names.iter().any(|n| {
                matches!(n, x509_parser::extensions::GeneralName::IPAddress(found) if *found == bytes.as_slice())
            })
        };
        Some(join.node_ips.iter().all(has))
    };
    fits().unwrap_or(false)
}

fn identity(pki: &Path, purpose: Purpose, pair: &Pair) -> Result<Identity, BootstrapError> {
    Identity::from_pem(&pair.certificate, &pair.key).map_err(|source| BootstrapError::Identity {
        path: pki.join(purpose.file()),
        source,
    })
}

fn read(path: &Path) -> Result<Option<String>, BootstrapError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BootstrapError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Certificate and key are one file, so that they can only be replaced together.
fn load(pki: &Path, purpose: Purpose) -> Result<Option<Pair>, BootstrapError> {
    let text = read(&pki.join(purpose.file()).with_extension("pem"))?;
    Ok(text.and_then(|text| {
        let at = text.find("-----BEGIN PRIVATE KEY-----")?;
        Some(Pair {
            certificate: text[..at].to_owned(),
            key: text[at..].to_owned(),
        })
    }))
}

fn store(pki: &Path, purpose: Purpose, pair: &Pair) -> Result<(), BootstrapError> {
    let separator = if pair.certificate.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    keep(
        &pki.join(purpose.file()).with_extension("pem"),
        &format!("{}{separator}{}", pair.certificate, pair.key),
    )
}

/// Writes a file that only root reads, whole or not at all.
fn keep(path: &Path, content: &str) -> Result<(), BootstrapError> {
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| BootstrapError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn certificates_are_kept_together_with_their_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let join = Join {
            server: String::new(),
            token: None,
            node_name: "n".into(),
            node_ips: vec![[10, 0, 0, 1].into()],
            node_dir: dir.path().to_owned(),
        };
        let certificate = parameters(&join, Purpose::Serving)
            .self_signed(&key)
            .expect("a certificate")
            .pem();
        let pair = Pair {
            certificate: certificate.clone(),
            key: key.serialize_pem(),
        };
        store(dir.path(), Purpose::Serving, &pair).expect("stored");
        let loaded = load(dir.path(), Purpose::Serving)
            .expect("read")
            .expect("there");
        assert_eq!(
            (loaded.certificate, loaded.key),
            (pair.certificate, pair.key)
        );
        assert!(names_fit(&certificate, &join));
        assert!(!names_fit(
            &certificate,
            &Join {
                node_ips: vec![[10, 0, 0, 2].into()],
                ..join
            }
        ));
        assert!(due(&certificate).is_some_and(|d| d.renew < d.end));
    }
}
