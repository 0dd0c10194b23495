//! Images from registries (OCI distribution specification).
//!
//! Manifests first, then configuration and layers, several at a time; each layer is unpacked as soon as its blob is whole. Whatever
//! is in the store already is not fetched again, and a blob that was interrupted goes on where it stopped.

mod blob;
mod error;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use crate::content::ContentError;
use crate::digest::Digest;
use crate::error::FileError;
use crate::import::Found;
use crate::layers::LayerError;
use crate::manifest::{self, Blob, Manifest, ManifestError};
use crate::reference::Reference;
use crate::registry::{Registry, RegistryError};
use crate::search::{Search, Step};
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
    registry: Registry,
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
        for scheme in self.schemes(reference) {
            let registry = Registry::new(scheme, reference, auth, self.inner.config.retries)
                .map_err(|err| PullError::from_registry(reference, err))?;
            let pull = Arc::new(Pull {
                store: self.clone(),
                reference: reference.clone(),
                registry,
                slots: Semaphore::new(self.inner.config.concurrent_downloads.max(1)),
            });
            match pull.resolve().await {
                Ok(resolved) => return pull.fetch(resolved).await,
                Err(err) if speaks_another_protocol(&err) => last = Some(err),
                // Nobody there with the second protocol either: the first one's failure says more.
                Err(err @ PullError::Unreachable { .. }) => return Err(last.unwrap_or(err)),
                Err(err) => return Err(err),
            }
        }
        Err(last.expect("there is at least one protocol to try"))
    }

    /// As [`ImageStore::pull`], with one of several credentials: each is tried until one is let in, none counts as anonymous.
    ///
    /// # Errors
    ///
    /// That of the last one tried.
    pub async fn pull_with_any(
        &self,
        reference: &Reference,
        auths: &[Auth],
    ) -> Result<Image, PullError> {
        let (last, first) = auths.split_last().unwrap_or((&Auth::Anonymous, &[]));
        for auth in first {
            match self.pull(reference, auth).await {
                Err(err) if err.depends_on_credentials() => {
                    let error = &err as &dyn std::error::Error;
                    tracing::debug!(image = %reference, error, "the next credentials are tried");
                }
                other => return other,
            }
        }
        self.pull(reference, last).await
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

    fn schemes(&self, reference: &Reference) -> &'static [&'static str] {
        if self.inner.config.plain_http.contains(reference.registry()) {
            &["http"]
        } else if reference.is_loopback() {
            &["http", "https"]
        } else {
            &["https"]
        }
    }
}

impl Pull {
    /// From the reference to the manifest for this machine.
    async fn resolve(&self) -> Result<Resolved, PullError> {
        let failed = |source: ManifestError| PullError::Manifest {
            reference: self.reference.clone(),
            source,
        };
        let wanted = self.reference.digest();
        let (top, mut text) = self
            .document(self.reference.tag_or_digest(), wanted.as_ref())
            .await?;
        let mut search = Search::new(top.clone());
        let (mut digest, mut platform_known) = (top.clone(), true);
        loop {
            let step = search.look(&digest, &text, platform_known);
            let manifest = match step.map_err(failed)? {
                Step::Found(manifest) => Some(manifest),
                Step::Ask(manifest) => {
                    let config = self.config(&manifest).await?;
                    Manifest::fits(&config).then_some(manifest)
                }
                Step::Next => None,
            };
            if let Some(manifest) = manifest {
                return Ok(Resolved {
                    top,
                    documents: search.into_documents(),
                    manifest,
                });
            }
            let next = search.next().map_err(failed)?;
            (digest, platform_known) = (next.digest, next.platform_known);
            (_, text) = self.document(&digest.to_string(), Some(&digest)).await?;
        }
    }

    /// A manifest or a list, verified and stored.
    async fn document(
        &self,
        tag_or_digest: &str,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Bytes), PullError> {
        let text = self.registry.manifest(tag_or_digest).await;
        self.keep(text.map_err(|err| self.error(err))?, expected)
            .await
    }

    /// The configuration of an image.
    async fn config(&self, manifest: &Manifest) -> Result<Vec<u8>, PullError> {
        let blob = &manifest.config;
        if blob.size > manifest::LIMIT {
            return Err(self.content(ContentError::TooLong {
                digest: blob.digest.clone(),
                size: blob.size,
                limit: manifest::LIMIT,
            }));
        }
        self.blob(blob).await?;
        let (store, digest) = (self.store.clone(), blob.digest.clone());
        blocking(move || store.inner.content.read(&digest, manifest::LIMIT))
            .await
            .map_err(|err| self.content(err))
    }

    /// Stores a manifest, which must have the digest it was asked for by, if any.
    async fn keep(
        &self,
        text: Bytes,
        expected: Option<&Digest>,
    ) -> Result<(Digest, Bytes), PullError> {
        let digest = Digest::of(&text);
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(self.content(ContentError::Mismatch {
                expected: expected.clone(),
                actual: digest,
            }));
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
        let text = self.config(&manifest).await?;
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

    fn error(&self, err: RegistryError) -> PullError {
        PullError::from_registry(&self.reference, err)
    }
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
