//! Why an image could not be pulled, in the terms that a kubelet tells apart.

use oci_client::errors::{OciDistributionError, OciErrorCode};

use crate::content::ContentError;
use crate::digest::{Digest, DigestError};
use crate::layers::LayerError;
use crate::manifest::ManifestError;
use crate::reference::Reference;
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

impl PullError {
    /// What the client's error means for the pull of this image.
    pub(super) fn from_registry(reference: &Reference, err: OciDistributionError) -> Self {
        let reference = reference.clone();
        let answer = Answer::of(&err);
        let source = Box::new(err);
        match answer {
            Answer::NotFound => PullError::NotFound { reference, source },
            Answer::Unauthorized => PullError::Unauthorized { reference, source },
            Answer::TooManyRequests => PullError::TooManyRequests { reference, source },
            Answer::None => PullError::Unreachable {
                registry: reference.registry().to_owned(),
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
pub(super) fn speaks_another_protocol(err: &PullError) -> bool {
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
