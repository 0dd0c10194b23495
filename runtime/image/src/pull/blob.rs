//! One blob: fetched, continued where it broke off, verified.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Pull, PullError, blocking};
use crate::content::{ContentError, Partial};
use crate::error::FileError;
use crate::manifest::Blob;
use crate::registry::RegistryError;

/// What counts as progress. A server that cuts every answer after one byte makes none.
const PROGRESS: u64 = 64 << 10;

/// How long a line may go without progress.
const CRAWL: Duration = Duration::from_secs(300);

/// Why one request did not bring the rest of a blob.
enum Failure {
    /// The registry ended the blob itself, too early.
    Short,
    /// The line broke.
    Broken(std::io::Error),
    /// There was no answer.
    NoAnswer(RegistryError),
}

impl Pull {
    /// Makes sure that a blob is in the content store.
    pub(super) async fn blob(&self, blob: &Blob) -> Result<(), PullError> {
        let limit = self.store.inner.config.limits.bytes;
        if blob.size > limit {
            return Err(self.content(ContentError::TooLong {
                digest: blob.digest.clone(),
                size: blob.size,
                limit,
            }));
        }
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
        let begun = partial.length().map_err(|err| self.content(err.into()))?;
        partial = self.complete(blob, partial).await?;
        match blocking(move || partial.finish()).await {
            // What was there of an earlier try may be at fault, so that this one is from the beginning.
            Err(ContentError::Mismatch { .. }) if begun > 0 => {}
            other => return other.map_err(|err| self.content(err)),
        }
        tracing::debug!(blob = %blob.digest, "continued, and wrong: fetched anew");
        let (store, digest) = (self.store.clone(), blob.digest.clone());
        let anew = blocking(move || {
            let mut partial = store.inner.content.partial(&digest)?;
            partial.rewind(0)?;
            Ok(partial)
        });
        let anew = anew
            .await
            .map_err(|err: FileError| self.content(err.into()))?;
        let partial = self.complete(blob, anew).await?;
        blocking(move || partial.finish())
            .await
            .map_err(|err| self.content(err))
    }

    /// Fetches what is missing, with as many requests as it takes while there is progress.
    async fn complete(&self, blob: &Blob, mut partial: Partial) -> Result<Partial, PullError> {
        let mut attempt = 0;
        loop {
            let before = partial.length().map_err(|err| self.content(err.into()))?;
            let failure;
            (partial, failure) = self.continue_blob(blob, partial, before).await?;
            let received = partial.length().map_err(|err| self.content(err.into()))?;
            if received == blob.size {
                return Ok(partial);
            }
            // Progress is no failure: a slow line may break often.
            attempt = if received >= before + PROGRESS {
                1
            } else {
                attempt + 1
            };
            if attempt > self.store.inner.config.retries {
                let source = match failure {
                    Failure::NoAnswer(err) => return Err(self.error(err)),
                    Failure::Broken(err) => Some(err),
                    Failure::Short => None,
                };
                return Err(PullError::Interrupted {
                    reference: self.reference.clone(),
                    digest: blob.digest.clone(),
                    received,
                    size: blob.size,
                    source,
                });
            }
            tracing::debug!(blob = %blob.digest, received, size = blob.size, "download interrupted");
            tokio::time::sleep(Duration::from_millis(100 << attempt.min(6))).await;
        }
    }

    /// One request: appends what comes of the blob, and says why it ended early, if it did.
    async fn continue_blob(
        &self,
        blob: &Blob,
        mut partial: Partial,
        offset: u64,
    ) -> Result<(Partial, Failure), PullError> {
        if offset == blob.size {
            return Ok((partial, Failure::Short));
        }
        let offset = if offset > blob.size { 0 } else { offset };
        let mut incoming = match self.registry.blob(&blob.digest, offset).await {
            Ok(incoming) => incoming,
            Err(err @ RegistryError::Send { .. }) => return Ok((partial, Failure::NoAnswer(err))),
            Err(err) => return Err(self.error(err)),
        };
        partial
            .rewind(incoming.start)
            .map_err(|err| self.content(err.into()))?;
        let (chunks, mut queue) = mpsc::channel::<Bytes>(16);
        let writer = tokio::task::spawn_blocking(move || -> Result<Partial, FileError> {
            while let Some(chunk) = queue.blocking_recv() {
                partial.write(&chunk)?;
            }
            Ok(partial)
        });
        let mut received = incoming.start;
        let mut failure = Failure::Short;
        let mut too_long = false;
        let mut progress = (Instant::now(), received);
        loop {
            match incoming.answer.chunk().await {
                Ok(None) => break,
                Ok(Some(chunk)) => {
                    received += chunk.len() as u64;
                    too_long = received > blob.size;
                    // A send fails once the writer has failed, which it reports itself.
                    if too_long || chunks.send(chunk).await.is_err() {
                        break;
                    }
                }
                Err(err) => {
                    failure = Failure::Broken(std::io::Error::other(err.without_url()));
                    break;
                }
            }
            if received >= progress.1 + PROGRESS {
                progress = (Instant::now(), received);
            } else if progress.0.elapsed() > CRAWL {
                failure = Failure::Broken(std::io::ErrorKind::TimedOut.into());
                break;
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
}
