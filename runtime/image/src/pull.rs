//! Images from registries (OCI distribution specification).
//!
//! Manifests first, then configuration and layers, several at a time; each layer is unpacked as soon as its blob is whole. Whatever
//! is in the store already is not fetched again, and a blob that was interrupted goes on where it stopped.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use oci_client::RegistryOperation;
use oci_client::client::{BlobResponse, Client, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use tokio::sync::{Semaphore, mpsc};

use crate::content::{ContentError, Partial};
use crate::digest::{Digest, DigestError};
use crate::error::FileError;
use crate::import::Found;
use crate::layers::LayerError;
use crate::manifest::{self, Blob, Document, Manifest, ManifestError};
use crate::reference::Reference;
use crate::store::{Image, ImageStore, ReadError};

/// Credentials for one registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// None; a registry such as docker.io then gives out a token for what is public.
    #[default]
    Anonymous,
    /// A user and a password, for the registry or for its token server.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A token for the registry itself.
    Bearer(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(<hidden>)",
            Self::Bearer(_) => "Bearer(<hidden>)",
        })
    }
}

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry knows no such image.
    #[error("{reference}: not found")]
    NotFound {
        /// The image.
        reference: Reference,
        /// The registry's answer.
        source: Box<OciDistributionError>,
    },
    /// The registry demands credentials, or others.
    #[error(
        "pull access denied for {reference}, repository does not exist or may require authorization"
    )]
    Unauthorized {
        /// The image.
        reference: Reference,
        /// The registry's answer.
        source: Box<OciDistributionError>,
    },
    /// The registry asks for patience.
    #[error("pull {reference}: too many requests")]
    TooManyRequests {
        /// The image.
        reference: Reference,
        /// The registry's answer.
        source: Box<OciDistributionError>,
    },
    /// Nobody answers at the registry's address, or not as a registry would.
    #[error("reach registry {registry}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// Why not.
        source: Box<OciDistributionError>,
    },
    /// Any other answer of the registry.
    #[error("pull {reference}")]
    Registry {
        /// The image.
        reference: Reference,
        /// The registry's answer.
        source: Box<OciDistributionError>,
    },
    /// A blob broke off, again and again. What there is of it is kept for the next pull.
    #[error("pull {reference}: blob {digest} broke off after {received} of {size} bytes")]
    Interrupted {
        /// The image.
        reference: Reference,
        /// The blob.
        digest: Digest,
        /// Bytes on disk.
        received: u64,
        /// Bytes that the manifest promises.
        size: u64,
        /// The last failure; `None` if the registry ended the blob itself.
        source: Option<std::io::Error>,
    },
    /// A blob is longer than the manifest says.
    #[error("pull {reference}: blob {digest} has over {size} bytes")]
    TooLong {
        /// The image.
        reference: Reference,
        /// The blob.
        digest: Digest,
        /// Bytes that the manifest promises.
        size: u64,
    },
    /// A digest that is not SHA-256.
    #[error("pull {reference}")]
    Digest {
        /// The image.
        reference: Reference,
        /// The digest.
        source: DigestError,
    },
    /// A blob could not be stored, or is not what its digest says: a corrupt layer.
    #[error("pull {reference}")]
    Content {
        /// The image.
        reference: Reference,
        /// Why not.
        source: ContentError,
    },
    /// A manifest cannot be used.
    #[error("pull {reference}")]
    Manifest {
        /// The image.
        reference: Reference,
        /// Why not.
        source: ManifestError,
    },
    /// A layer cannot be unpacked, or is not what the configuration says.
    #[error("pull {reference}")]
    Layer {
        /// The image.
        reference: Reference,
        /// Why not.
        source: LayerError,
    },
    /// The image is there but cannot be entered into or read from the index.
    #[error("pull {reference}")]
    Store {
        /// The image.
        reference: Reference,
        /// Why not.
        source: ReadError,
    },
}

/// One pull: whose errors all name the same image.
struct Pull {
    store: ImageStore,
    reference: Reference,
    client: Client,
    /// Downloads that may run now.
    slots: Semaphore,
}

/// What the names of an image lead to.
struct Resolved {
    /// The digest that the registry has under the reference.
    top: Digest,
    documents: BTreeSet<Digest>,
    manifest: Manifest,
}

impl ImageStore {
    /// Fetches what is missing of an image and returns it. A tag is looked up in the registry each time.
    ///
    /// May be dropped at any time: what was fetched is kept, and the next pull goes on from there.
    ///
    /// # Errors
    ///
    /// One variant for each thing that a kubelet tells apart.
    pub async fn pull(&self, reference: &Reference, auth: &Auth) -> Result<Image, PullError> {
        let failed = |source: FileError| PullError::Content {
            reference: reference.clone(),
            source: source.into(),
        };
        if let Some(image) = self.already_here(reference).await? {
            return Ok(image);
        }
        let store = self.clone();
        let _busy = blocking(move || store.busy()).await.map_err(failed)?;
        install_crypto();
        let mut last = None;
        for protocol in self.protocols(reference) {
            let pull = Arc::new(Pull {
                store: self.clone(),
                reference: reference.clone(),
                client: client(protocol),
                slots: Semaphore::new(self.inner.config.concurrent_downloads.max(1)),
            });
            match pull.resolve(auth).await {
                Ok(resolved) => return pull.fetch(resolved).await,
                Err(err) if speaks_another_protocol(&err) => last = Some(err),
                Err(err) => return Err(err),
            }
        }
        Err(last.expect("there is at least one protocol to try"))
    }

    /// An image by digest never changes, so that the registry need not be asked again.
    async fn already_here(&self, reference: &Reference) -> Result<Option<Image>, PullError> {
        let Some(digest) = reference.digest() else {
            return Ok(None);
        };
        let store = self.clone();
        let name = reference.with_digest(&digest);
        blocking(move || store.resolve(&name))
            .await
            .map_err(|source| PullError::Store {
                reference: reference.clone(),
                source,
            })
    }

    fn protocols(&self, reference: &Reference) -> Vec<ClientProtocol> {
        if self.inner.config.plain_http.contains(reference.registry()) {
            vec![ClientProtocol::Http]
        } else if reference.is_loopback() {
            vec![ClientProtocol::Http, ClientProtocol::Https]
        } else {
            vec![ClientProtocol::Https]
        }
    }
}

impl Pull {
    /// From the reference to the manifest for this machine.
    async fn resolve(&self, auth: &Auth) -> Result<Resolved, PullError> {
        let auth = match auth {
            Auth::Anonymous => RegistryAuth::Anonymous,
            Auth::Basic { username, password } => {
                RegistryAuth::Basic(username.clone(), password.clone())
            }
            Auth::Bearer(token) => RegistryAuth::Bearer(token.clone()),
        };
        let mut reference = self.reference.as_oci().clone();
        // Keeps the token for all that follows. (Left to itself, the client would go on without one.)
        self.client
            .auth(&reference, &auth, RegistryOperation::Pull)
            .await
            .map_err(|err| self.error(err))?;
        let mut documents = BTreeSet::new();
        let mut top = None;
        loop {
            let (text, _) = self
                .client
                .pull_manifest_raw(&reference, &auth, manifest::MEDIA_TYPES)
                .await
                .map_err(|err| self.error(err))?;
            let (digest, text) = self.keep(text, reference.digest()).await?;
            let top = top.get_or_insert_with(|| digest.clone()).clone();
            documents.insert(digest.clone());
            let manifest_failed = |source| PullError::Manifest {
                reference: self.reference.clone(),
                source,
            };
            match Document::parse(&digest, &text).map_err(manifest_failed)? {
                Document::Image(manifest) => {
                    return Ok(Resolved {
                        top,
                        documents,
                        manifest,
                    });
                }
                Document::List(_) if documents.len() > 3 => {
                    return Err(manifest_failed(ManifestError::Nested { digest }));
                }
                Document::List(entry) => {
                    reference = reference.clone_with_digest(entry.digest.to_string());
                }
            }
        }
    }

    /// Stores a manifest, which must have the digest it was asked for by, if any.
    async fn keep(
        &self,
        text: Bytes,
        asked_for: Option<&str>,
    ) -> Result<(Digest, Bytes), PullError> {
        let digest = Digest::of(&text);
        if let Some(expected) = asked_for {
            let expected = expected.parse().map_err(|source| PullError::Digest {
                reference: self.reference.clone(),
                source,
            })?;
            if digest != expected {
                let actual = digest;
                return Err(self.content(ContentError::Mismatch { expected, actual }));
            }
        }
        let store = self.store.clone();
        let content = text.clone();
        blocking(move || store.inner.content.put(&content))
            .await
            .map_err(|err| self.content(err.into()))?;
        Ok((digest, text))
    }

    /// From the manifest to the image.
    async fn fetch(self: Arc<Self>, resolved: Resolved) -> Result<Image, PullError> {
        let Resolved {
            top,
            documents,
            manifest,
        } = resolved;
        if manifest.config.size > manifest::LIMIT {
            return Err(self.content(ContentError::TooLong {
                digest: manifest.config.digest,
                size: manifest.config.size,
                limit: manifest::LIMIT,
            }));
        }
        self.blob(&manifest.config).await?;
        let (store, config) = (self.store.clone(), manifest.config.digest.clone());
        let text = blocking(move || store.inner.content.read(&config, manifest::LIMIT))
            .await
            .map_err(|err| self.content(err))?;
        let (_, diff_ids) = manifest
            .config(&text)
            .map_err(|source| PullError::Manifest {
                reference: self.reference.clone(),
                source,
            })?;
        let layers = manifest.layers.iter().cloned().zip(diff_ids.clone());
        // All at once: the slots limit the downloads, the unpacking is limited below.
        futures::stream::iter(layers)
            .map(|(blob, diff_id)| {
                let pull = Arc::clone(&self);
                async move { pull.layer(&blob, &diff_id).await }
            })
            .buffer_unordered(16)
            .try_collect::<()>()
            .await?;
        let found = Found {
            manifest,
            documents,
            tags: self.reference.tagged().into_iter().collect(),
            digests: BTreeSet::from([self.reference.with_digest(&top)]),
        };
        let store = self.store.clone();
        blocking(move || store.register(found, diff_ids))
            .await
            .map_err(|source| PullError::Store {
                reference: self.reference.clone(),
                source,
            })
    }

    async fn layer(&self, blob: &Blob, diff_id: &Digest) -> Result<(), PullError> {
        let (store, wanted) = (self.store.clone(), diff_id.clone());
        if blocking(move || store.inner.layers.has(&wanted)).await {
            return Ok(());
        }
        self.blob(blob).await?;
        let (store, digest, wanted) = (self.store.clone(), blob.digest.clone(), diff_id.clone());
        blocking(move || {
            let result = store.inner.layers.unpack(&digest, &wanted);
            if result.as_ref().is_err_and(LayerError::is_corrupt) {
                // The next pull may get a better one. (Whoever has it open keeps it.)
                store.inner.content.forget(&digest)?;
            }
            result
        })
        .await
        .map_err(|source| PullError::Layer {
            reference: self.reference.clone(),
            source,
        })
    }

    /// Makes sure that a blob is in the content store.
    async fn blob(&self, blob: &Blob) -> Result<(), PullError> {
        let _slot = self
            .slots
            .acquire()
            .await
            .expect("nobody closes the semaphore");
        let (store, digest) = (self.store.clone(), blob.digest.clone());
        let partial = blocking(move || {
            if store.inner.content.has(&digest) {
                return Ok(None);
            }
            // Waits for others who fetch the same blob, so it may be there by then.
            let partial = store.inner.content.partial(&digest)?;
            if store.inner.content.has(&digest) {
                partial.discard()?;
                return Ok(None);
            }
            Ok(Some(partial))
        });
        let partial = partial
            .await
            .map_err(|err: FileError| self.content(err.into()))?;
        let Some(mut partial) = partial else {
            return Ok(());
        };
        let mut attempt = 0;
        loop {
            let before = partial.length().map_err(|err| self.content(err.into()))?;
            let failure;
            (partial, failure) = self.continue_blob(blob, partial, before).await?;
            let received = partial.length().map_err(|err| self.content(err.into()))?;
            if received == blob.size {
                break;
            }
            // Progress is no failure: a slow line may break often.
            attempt = if received > before { 1 } else { attempt + 1 };
            if attempt > self.store.inner.config.retries {
                return Err(PullError::Interrupted {
                    reference: self.reference.clone(),
                    digest: blob.digest.clone(),
                    received,
                    size: blob.size,
                    source: failure,
                });
            }
            tracing::debug!(blob = %blob.digest, received, size = blob.size, "download interrupted");
            tokio::time::sleep(Duration::from_millis(100 << attempt.min(6))).await;
        }
        blocking(move || partial.finish())
            .await
            .map_err(|err| self.content(err))
    }

    /// One request: appends what comes of the blob, and says why it ended early, if it did.
    async fn continue_blob(
        &self,
        blob: &Blob,
        mut partial: Partial,
        mut offset: u64,
    ) -> Result<(Partial, Option<std::io::Error>), PullError> {
        if offset == blob.size {
            return Ok((partial, None));
        }
        if offset > blob.size {
            offset = 0;
        }
        let reference = self.reference.as_oci();
        let digest = blob.digest.to_string();
        let response: SizedStream = if offset == 0 {
            self.client.pull_blob_stream(reference, &*digest).await
        } else {
            let partial = self
                .client
                .pull_blob_stream_partial(reference, &*digest, offset, None);
            match partial.await {
                Ok(BlobResponse::Partial(stream)) => Ok(stream),
                // The registry knows no ranges.
                Ok(BlobResponse::Full(stream)) => {
                    offset = 0;
                    Ok(stream)
                }
                Err(err) => Err(err),
            }
        }
        .map_err(|err| self.error(err))?;
        partial
            .rewind(offset)
            .map_err(|err| self.content(err.into()))?;
        let (chunks, mut queue) = mpsc::channel::<Bytes>(16);
        let writer = tokio::task::spawn_blocking(move || -> Result<Partial, FileError> {
            while let Some(chunk) = queue.blocking_recv() {
                partial.write(&chunk)?;
            }
            Ok(partial)
        });
        let mut stream = response.stream;
        let mut received = offset;
        let mut failure = None;
        let mut too_long = false;
        while let Some(chunk) = stream.next().await {
            match chunk {
                Ok(chunk) => {
                    received += chunk.len() as u64;
                    too_long = received > blob.size;
                    // A send fails once the writer has failed, which it reports itself.
                    if too_long || chunks.send(chunk).await.is_err() {
                        break;
                    }
                }
                Err(err) => {
                    failure = Some(err);
                    break;
                }
            }
        }
        drop(chunks);
        let partial = writer
            .await
            .unwrap_or_else(|err| std::panic::resume_unwind(err.into_panic()))
            .map_err(|err| self.content(err.into()))?;
        if too_long {
            partial.discard().map_err(|err| self.content(err.into()))?;
            return Err(PullError::TooLong {
                reference: self.reference.clone(),
                digest: blob.digest.clone(),
                size: blob.size,
            });
        }
        // A wrong digest shows as a failure, too; it is found again when the blob is verified.
        Ok((partial, failure))
    }

    fn content(&self, source: ContentError) -> PullError {
        PullError::Content {
            reference: self.reference.clone(),
            source,
        }
    }

    fn error(&self, err: OciDistributionError) -> PullError {
        let reference = self.reference.clone();
        let answer = Answer::of(&err);
        let source = Box::new(err);
        match answer {
            Answer::NotFound => PullError::NotFound { reference, source },
            Answer::Unauthorized => PullError::Unauthorized { reference, source },
            Answer::TooManyRequests => PullError::TooManyRequests { reference, source },
            Answer::None => PullError::Unreachable {
                registry: self.reference.registry().to_owned(),
                source,
            },
            Answer::Other => PullError::Registry { reference, source },
        }
    }
}

/// What a registry's refusal amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    NotFound,
    Unauthorized,
    TooManyRequests,
    Other,
}

impl Answer {
    fn of(err: &OciDistributionError) -> Self {
        use OciDistributionError as E;
        use OciErrorCode as C;
        match err {
            E::RequestError(_) => Self::None,
            E::UnauthorizedError { .. } | E::AuthenticationFailure(_) => Self::Unauthorized,
            E::RegistryError { envelope, .. } => match envelope.errors.first().map(|e| &e.code) {
                Some(C::ManifestUnknown | C::NameUnknown | C::NotFound | C::BlobUnknown) => {
                    Self::NotFound
                }
                Some(C::Unauthorized | C::Denied) => Self::Unauthorized,
                Some(C::Toomanyrequests) => Self::TooManyRequests,
                _ => Self::Other,
            },
            E::ServerError { code, .. } => match code {
                404 => Self::NotFound,
                401 | 403 => Self::Unauthorized,
                429 => Self::TooManyRequests,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

/// Whether the registry is there but does not speak plain HTTP: a TLS server says 400, or hangs up.
fn speaks_another_protocol(err: &PullError) -> bool {
    match err {
        PullError::Unreachable { source, .. } => match &**source {
            OciDistributionError::RequestError(err) => !err.is_connect(),
            _ => false,
        },
        PullError::Registry { source, .. } => matches!(
            **source,
            OciDistributionError::ServerError { code: 400, .. }
        ),
        _ => false,
    }
}

fn client(protocol: ClientProtocol) -> Client {
    Client::new(ClientConfig {
        protocol,
        connect_timeout: Some(Duration::from_secs(15)),
        // Between two pieces of an answer, not for the whole.
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: concat!("knarr/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

/// rustls asks for the process's provider, which the program may have chosen already.
fn install_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread has just done it.
        drop(rustls::crypto::ring::default_provider().install_default());
    }
}

/// Runs what waits for the disk or for a lock on a thread that may.
async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|err| std::panic::resume_unwind(err.into_panic()))
}
