//! One blob: fetched, continued where it broke off, verified.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use oci_client::client::{BlobResponse, SizedStream};
use tokio::sync::mpsc;

use super::{Pull, PullError, blocking};
use crate::content::Partial;
use crate::error::FileError;
use crate::manifest::Blob;

impl Pull {
    /// Makes sure that a blob is in the content store.
    pub(super) async fn blob(&self, blob: &Blob) -> Result<(), PullError> {
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
}
