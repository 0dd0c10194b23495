//! Why an image could not be pulled, in the terms that a kubelet tells apart.

use crate::content::ContentError;
use crate::digest::Digest;
use crate::layers::LayerError;
use crate::manifest::ManifestError;
use crate::reference::Reference;
use crate::registry::RegistryError;
use crate::store::ReadError;

/// Why an image could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The registry knows no such image.
    #[error("{reference}: not found")]
    NotFound {
        /// The image.
        reference: Reference,
        /// The registry's answer.
        source: Box<RegistryError>,
    },
    /// The registry demands credentials, or others.
    #[error(
        "pull access denied for {reference}, repository does not exist or may require authorization"
    )]
    Unauthorized {
        /// The image.
        reference: Reference,
        /// The registry's answer.
        source: Box<RegistryError>,
    },
    /// The registry asks for patience.
    #[error("pull {reference}: too many requests")]
    TooManyRequests {
        /// The image.
        reference: Reference,
        /// The registry's answer.
        source: Box<RegistryError>,
    },
    /// Nobody answers at the registry's address, or not as a registry would.
    #[error("reach registry {registry}")]
    Unreachable {
        /// Host and port.
        registry: String,
        /// Why not.
        source: Box<RegistryError>,
    },
    /// Any other answer of the registry.
    #[error("pull {reference}")]
    Registry {
        /// The image.
        reference: Reference,
        /// The registry's answer.
        source: Box<RegistryError>,
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

impl PullError {
    /// What the registry's answer means for the pull of this image.
    pub(super) fn from_registry(reference: &Reference, err: RegistryError) -> Self {
        let reference = reference.clone();
        let source = Box::new(err);
        match &*source {
            RegistryError::Send { .. } | RegistryError::Client(_) => PullError::Unreachable {
                registry: reference.registry().to_owned(),
                source,
            },
            RegistryError::Status { status, .. } | RegistryError::Busy { status, .. } => {
                match status.as_u16() {
                    404 => PullError::NotFound { reference, source },
                    401 | 403 => PullError::Unauthorized { reference, source },
                    429 => PullError::TooManyRequests { reference, source },
                    _ => PullError::Registry { reference, source },
                }
            }
            _ => PullError::Registry { reference, source },
        }
    }

    /// Whether other credentials may help: what is private looks to strangers as if it were not there, and limits are per user.
    pub fn depends_on_credentials(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Unauthorized { .. }
                | Self::TooManyRequests { .. }
                | Self::Registry { .. }
        )
    }
}

/// Whether the registry is there but does not speak plain HTTP: a TLS server says 400, or hangs up.
pub(super) fn speaks_another_protocol(err: &PullError) -> bool {
    match err {
        PullError::Unreachable { source, .. } => match &**source {
            RegistryError::Send { source, .. } => !source.is_connect(),
            _ => false,
        },
        PullError::Registry { source, .. } => matches!(
            &**source,
            RegistryError::Status { status, .. } if status.as_u16() == 400
        ),
        _ => false,
    }
}
