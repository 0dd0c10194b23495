//! Images, as CRI's image service has them.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use knarr_image::{Auth, Image, Reference, Removed};
use parking_lot::Mutex;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::sandbox::blocking;
use crate::types::{ImageStatus, RegistryAuth};

/// Pulls under way: two pods that want one image share the download, one after the other finding it there.
#[derive(Default)]
pub(crate) struct Pulls(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Pulls {
    fn of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut all = self.0.lock();
        all.retain(|_, pull| Arc::strong_count(pull) > 1);
        all.entry(name.to_owned()).or_default().clone()
    }
}

impl Engine {
    /// Pulls an image, with the first of the credentials that is let in; without any as somebody unknown.
    ///
    /// # Errors
    ///
    /// The name is none, or what the registry or the disk says.
    pub async fn pull_image(
        &self,
        name: &str,
        credentials: Vec<RegistryAuth>,
    ) -> Result<ImageStatus, EngineError> {
        let reference = Reference::from_str(name)?;
        let pull = self.inner.pulls.of(&reference.name());
        let _one = pull.lock().await;
        let auths: Vec<_> = credentials
            .into_iter()
            .map(|RegistryAuth { username, password }| Auth::Basic { username, password })
            .collect();
        let image = self.inner.images.pull_with_any(&reference, &auths).await;
        Ok(status(&image.map_err(|source| EngineError::Pull {
            reference: name.to_owned(),
            source: Box::new(source),
        })?))
    }

    /// An image by name or id; `None` if it is not here.
    ///
    /// # Errors
    ///
    /// The store cannot be read, or the name is none.
    pub async fn image_status(&self, name: &str) -> Result<Option<ImageStatus>, EngineError> {
        let images = self.inner.images.clone();
        let name = name.to_owned();
        Ok(blocking(move || images.resolve(&name))
            .await?
            .as_ref()
            .map(status))
    }

    /// All images.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn list_images(&self) -> Result<Vec<ImageStatus>, EngineError> {
        let images = self.inner.images.clone();
        Ok(blocking(move || images.list())
            .await?
            .iter()
            .map(status)
            .collect())
    }

    /// Removes an image by name or id; one that is not here is fine.
    ///
    /// # Errors
    ///
    /// A container is made of it, or the store cannot be written.
    pub async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let images = self.inner.images.clone();
        let name = name.to_owned();
        match blocking(move || images.remove(&name)).await {
            Ok(Removed::Untagged(_) | Removed::Deleted(_))
            | Err(knarr_image::RemoveError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn status(image: &Image) -> ImageStatus {
    let user = image
        .config
        .config()
        .as_ref()
        .and_then(|config| config.user().clone());
    ImageStatus {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        user: user.unwrap_or_default(),
    }
}
