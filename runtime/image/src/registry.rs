//! The two requests of the OCI distribution specification that a pull is made of, to registries as they are.
//!
//! Nothing is asked ahead: a registry says with 401 that it wants credentials, for which scope and of which kind, and it may say so at any
//! request, also in the middle of a pull when a token has expired. It may ask for patience, and send us elsewhere. All of it is bounded:
//! the redirects, the bytes of an answer, the time that we wait.
//!
//! Credentials go to the registry and to the token server that it names, and to nobody that a redirect leads to. (`oci-client` asks for
//! one token ahead and hides the headers of a refusal, so that none of this can be made of it.)
//!
//! Sources: OCI distribution-spec 1.1; distribution, "Token Authentication Specification"; RFC 9110, 10.2.3, 11.6.1 and 15.4.

mod challenge;
mod patience;
mod token;

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::digest::Digest;
use crate::manifest;
use crate::pull::Auth;
use crate::reference::Reference;
use challenge::Challenge;
use patience::Patience;

/// Redirects that are followed for one request, as many as Go follows.
const MOST_REDIRECTS: usize = 10;

/// How often one request may be refused for its credentials. A token may have been used up by the requests beside it.
const MOST_REFUSALS: usize = 5;

/// The most that is read of what a registry says to a refusal.
const REFUSAL_BYTES: u64 = 64 << 10;

/// How long a manifest or a token may take, with all redirects, tries and pauses.
const SHORT_EXCHANGE: Duration = Duration::from_secs(300);

/// Why a registry gave no answer, or which.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or no answer.
    #[error("GET {url}")]
    Send {
        /// What was asked for, without its query, which may hold a secret.
        url: String,
        /// Why not.
        source: reqwest::Error,
    },
    /// The answer broke off.
    #[error("read the answer to GET {url}")]
    Body {
        /// What was asked for.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// A refusal.
    #[error("GET {url}: {status}{}", said(message))]
    Status {
        /// What was asked for.
        url: String,
        /// The status, such as `404 Not Found`.
        status: StatusCode,
        /// What the registry says to it; may be empty.
        message: String,
    },
    /// The registry wants more patience than we have.
    #[error("GET {url}: {status}: the registry asks to come back in {} s", wait.as_secs())]
    Busy {
        /// What was asked for.
        url: String,
        /// 429 or 503.
        status: StatusCode,
        /// How long it asks us to wait.
        wait: Duration,
    },
    /// The answer is longer than a manifest or a token is.
    #[error("GET {url}: the answer has over {limit} bytes")]
    TooLong {
        /// What was asked for.
        url: String,
        /// The most that is read.
        limit: u64,
    },
    /// The answer does not end.
    #[error("GET {url}: no whole answer within {} s", SHORT_EXCHANGE.as_secs())]
    TooSlow {
        /// What was asked for.
        url: String,
    },
    /// Redirects without end.
    #[error("GET {url}: over {MOST_REDIRECTS} redirects")]
    Redirects {
        /// What was asked for.
        url: String,
    },
    /// A redirect or a token server at an address that is none.
    #[error("{from} sends us to {to:?}, which is no address of a registry")]
    Address {
        /// Who says so.
        from: String,
        /// The address.
        to: String,
    },
    /// The token server's answer has no token in it.
    #[error("GET {url}: no token in the answer")]
    NoToken {
        /// The token server.
        url: String,
    },
    /// The HTTP client could not be made.
    #[error("set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

/// One repository of one registry.
pub(crate) struct Registry {
    http: Client,
    base: Url,
    repository: String,
    auth: Auth,
    retries: u32,
    /// What was accepted last, by the origin that it is for.
    authorizations: Mutex<BTreeMap<String, HeaderValue>>,
}

/// A blob on its way.
pub(crate) struct Incoming {
    /// Where in the blob it begins: not where it was asked to, if the registry knows no ranges.
    pub(crate) start: u64,
    pub(crate) answer: Response,
}

/// An answer, and what was shown to get it.
struct Answer {
    response: Response,
    shown: Option<HeaderValue>,
}

impl Registry {
    /// `scheme`: `http` or `https`.
    pub(crate) fn new(
        scheme: &str,
        reference: &Reference,
        auth: &Auth,
        retries: u32,
    ) -> Result<Self, RegistryError> {
        let http = Client::builder()
            .connect_timeout(Duration::from_secs(15))
            // Between two pieces of an answer, not for the whole.
            .read_timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("knarr/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(RegistryError::Client)?;
        let text = format!("{scheme}://{}/", reference.host());
        let base: Url = text.parse().map_err(|_| RegistryError::Address {
            from: reference.to_string(),
            to: text,
        })?;
        let mut authorizations = BTreeMap::new();
        if let Auth::Bearer(token) = auth
            && let Some(header) = secret(&format!("Bearer {token}"))
        {
            authorizations.insert(origin(&base), header);
        }
        Ok(Self {
            http,
            repository: reference.repository().to_owned(),
            auth: auth.clone(),
            retries,
            authorizations: Mutex::new(authorizations),
            base,
        })
    }

    /// A manifest by tag or digest, which is for the caller to verify.
    pub(crate) async fn manifest(&self, tag_or_digest: &str) -> Result<Bytes, RegistryError> {
        let url = self.url("manifests", tag_or_digest)?;
        // `*/*` last: some registries answer 404 to whoever does not list the very type that they have.
        let accept = format!("{}, */*", manifest::MEDIA_TYPES.join(", "));
        let accept = HeaderValue::from_str(&accept).expect("media types are plain text");
        self.short(&url, manifest::LIMIT, || async {
            self.get(&url, &[(ACCEPT, accept.clone())]).await
        })
        .await
    }

    /// A blob from `offset` on, or from its beginning.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Incoming, RegistryError> {
        let url = self.url("blobs", &digest.to_string())?;
        if offset > 0 {
            let range =
                HeaderValue::from_str(&format!("bytes={offset}-")).expect("a number is plain text");
            match self.get(&url, &[(RANGE, range)]).await {
                Ok(answer) if answer.status() == StatusCode::PARTIAL_CONTENT => {
                    if range_start(&answer) == Some(offset) {
                        return Ok(Incoming {
                            start: offset,
                            answer,
                        });
                    }
                    // Another range than the one that we asked for is of no use.
                }
                // The registry knows no ranges.
                Ok(answer) => return Ok(Incoming { start: 0, answer }),
                Err(RegistryError::Status { status, .. })
                    if status == StatusCode::RANGE_NOT_SATISFIABLE => {}
                Err(err) => return Err(err),
            }
        }
        let answer = self.get(&url, &[]).await?;
        Ok(Incoming { start: 0, answer })
    }

    fn url(&self, kind: &str, name: &str) -> Result<Url, RegistryError> {
        let path = format!("v2/{}/{kind}/{name}", self.repository);
        self.base.join(&path).map_err(|_| RegistryError::Address {
            from: shown(&self.base),
            to: path,
        })
    }

    /// One request, with as many credentials, redirects and pauses as it takes and as are allowed. The answer is a success.
    async fn get(
        &self,
        url: &Url,
        headers: &[(reqwest::header::HeaderName, HeaderValue)],
    ) -> Result<Response, RegistryError> {
        let mut patience = Patience::new(self.retries);
        let mut refusals = 0;
        loop {
            let Answer { response, shown } = self.follow(url, headers).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && refusals < MOST_REFUSALS {
                refusals += 1;
                if self.authorize(&response, shown, refusals).await? {
                    continue;
                }
            } else if let Some(pause) = patience.after(&response)? {
                tokio::time::sleep(pause).await;
                continue;
            }
            return Err(refusal(response).await);
        }
    }

    /// Sends a request, and again to wherever it is sent on to; each origin is shown its own credentials, if it has any.
    async fn follow(
        &self,
        url: &Url,
        headers: &[(reqwest::header::HeaderName, HeaderValue)],
    ) -> Result<Answer, RegistryError> {
        let mut at = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let shown = self.authorizations.lock().await.get(&origin(&at)).cloned();
            let mut request = self.http.get(at.clone());
            for (name, value) in headers.iter().cloned() {
                request = request.header(name, value);
            }
            if let Some(shown) = shown.clone() {
                request = request.header(AUTHORIZATION, shown);
            }
            let response = send(request, &at).await?;
            match redirect(&at, &response)? {
                Some(next) => at = next,
                None => return Ok(Answer { response, shown }),
            }
        }
        Err(RegistryError::Redirects {
            url: self::shown(url),
        })
    }

    /// Finds what to show to who has just refused us; `false` if there is nothing (more).
    async fn authorize(
        &self,
        refused: &Response,
        shown: Option<HeaderValue>,
        refusals: usize,
    ) -> Result<bool, RegistryError> {
        let origin = origin(refused.url());
        let lines = refused.headers().get_all(WWW_AUTHENTICATE);
        let challenges = Challenge::parse(lines.iter().map(HeaderValue::as_bytes));
        // Held while a token is fetched: the requests beside us need one as well, and take ours.
        let mut authorizations = self.authorizations.lock().await;
        let known = authorizations.get(&origin);
        if refusals == 1 && known.is_some() && known != shown.as_ref() {
            return Ok(true);
        }
        let anonymous = Auth::Anonymous;
        let auth = if origin == self::origin(&self.base) {
            &self.auth
        } else {
            &anonymous
        };
        if matches!(auth, Auth::Bearer(_)) {
            // All that we have, and it was not enough.
            return Ok(false);
        }
        let basic = match auth {
            Auth::Basic { username, password } if challenges.iter().any(|c| c.is("basic")) => {
                basic(username, password).filter(|header| shown.as_ref() != Some(header))
            }
            _ => None,
        };
        let bearer = challenges
            .iter()
            .find(|c| c.is("bearer") && c.get("realm").is_some());
        let header = match bearer {
            Some(bearer) => match self.token(refused.url(), bearer, auth).await {
                Ok(header) => header,
                // The other way may be open.
                Err(err) => basic.ok_or(err)?,
            },
            None => match basic {
                Some(header) => header,
                None => return Ok(false),
            },
        };
        authorizations.insert(origin, header);
        Ok(true)
    }

    /// A short answer, whole; what breaks off is asked for again.
    async fn short<F: Future<Output = Result<Response, RegistryError>>>(
        &self,
        url: &Url,
        limit: u64,
        ask: impl Fn() -> F,
    ) -> Result<Bytes, RegistryError> {
        let exchange = async {
            let mut broken = 0;
            loop {
                match read(ask().await?, limit).await {
                    Err(RegistryError::Body { .. }) if broken < self.retries => {
                        broken += 1;
                        tokio::time::sleep(Duration::from_millis(100 << broken.min(6))).await;
                    }
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(SHORT_EXCHANGE, exchange).await {
            Ok(result) => result,
            Err(_) => Err(RegistryError::TooSlow { url: shown(url) }),
        }
    }
}

async fn send(request: reqwest::RequestBuilder, url: &Url) -> Result<Response, RegistryError> {
    request.send().await.map_err(|source| RegistryError::Send {
        url: shown(url),
        source: source.without_url(),
    })
}

/// Where an answer sends us on to, if it does.
fn redirect(from: &Url, answer: &Response) -> Result<Option<Url>, RegistryError> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let Some(location) = answer.headers().get(LOCATION) else {
        return Ok(None);
    };
    let location = String::from_utf8_lossy(location.as_bytes());
    address(from, &location).map(Some)
}

/// An address that somebody gives us, whole or relative to theirs.
fn address(from: &Url, to: &str) -> Result<Url, RegistryError> {
    let url = from.join(to).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| RegistryError::Address {
            from: shown(from),
            to: to.chars().take(200).collect(),
        })
}

async fn read(mut answer: Response, limit: u64) -> Result<Bytes, RegistryError> {
    let url = shown(answer.url());
    let mut body = BytesMut::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if (body.len() + chunk.len()) as u64 > limit => {
                return Err(RegistryError::TooLong { url, limit });
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(source) => {
                let source = source.without_url();
                return Err(RegistryError::Body { url, source });
            }
        }
    }
}

#[derive(Deserialize)]
struct Refusal {
    errors: Vec<RefusalError>,
}

#[derive(Deserialize)]
struct RefusalError {
    code: Option<String>,
    message: Option<String>,
}

/// What a registry says to its refusal, as far as it can be shown.
async fn refusal(answer: Response) -> RegistryError {
    let (url, status) = (shown(answer.url()), answer.status());
    let patience = Duration::from_secs(10);
    let body = match tokio::time::timeout(patience, read(answer, REFUSAL_BYTES)).await {
        Ok(Ok(body)) => body,
        // The status says enough.
        Ok(Err(_)) | Err(_) => Bytes::new(),
    };
    let said: Option<Refusal> = serde_json::from_slice(&body).ok();
    let message = match said.as_ref().and_then(|said| said.errors.first()) {
        Some(error) => {
            let parts = [error.code.as_deref(), error.message.as_deref()];
            let parts: Vec<_> = parts
                .into_iter()
                .flatten()
                .filter(|p| !p.is_empty())
                .collect();
            parts.join(": ")
        }
        None => String::new(),
    };
    let plain = |c: &char| !c.is_control();
    RegistryError::Status {
        url,
        status,
        message: message.chars().filter(plain).take(500).collect(),
    }
}

/// Where a partial answer begins: `bytes 5-9/10`.
fn range_start(answer: &Response) -> Option<u64> {
    let range = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = range.trim().strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

/// Who is spoken to: scheme, host and port.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// An address for people: without a query or a password, which are secrets.
fn shown(url: &Url) -> String {
    format!("{}{}", origin(url), url.path())
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret(&format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    ))
}

/// `None` for what cannot be in a header, which nobody would accept either.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}
