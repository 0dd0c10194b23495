//! Images from registries (OCI distribution specification).
//!
//! Manifests first, then configuration and layers, several at a time; each layer is unpacked as soon as its blob is whole. Whatever
//! is in the store already is not fetched again, and a blob that was interrupted goes on where it stopped.

mod blob;
mod error;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use oci_client::RegistryOperation;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use tokio::sync::Semaphore;

use crate::content::ContentError;
use crate::digest::Digest;
use crate::error::FileError;
use crate::import::Found;
use crate::layers::LayerError;
use crate::manifest::{self, Blob, Document, Manifest, ManifestError};
use crate::reference::Reference;
use crate::store::{Image, ImageStore};
pub use error::PullError;
use error::speaks_another_protocol;

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
                // Nobody there with the second protocol either: the first one's failure says more.
                Err(err @ PullError::Unreachable { .. }) => return Err(last.unwrap_or(err)),
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

    fn content(&self, source: ContentError) -> PullError {
        PullError::Content {
            reference: self.reference.clone(),
            source,
        }
    }

    fn error(&self, err: OciDistributionError) -> PullError {
        PullError::from_registry(&self.reference, err)
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
