//! A certificate with its key, which can be replaced while it is in use.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The text is not PEM, or not of a certificate and a key.
    #[error("read the {what} (PEM)")]
    Pem {
        /// Which part.
        what: &'static str,
        /// The parser's error.
        source: rustls_pki_types::pem::Error,
    },
    /// The key is of a kind that is not supported.
    #[error("use the private key")]
    Key {
        /// The library's error.
        source: rustls::Error,
    },
    /// The key belongs to another certificate.
    #[error("the key does not belong to the certificate")]
    Mismatch {
        /// The library's error.
        source: rustls::Error,
    },
}

/// A certificate and its key, shared by those who use it; replacing it reaches every new connection.
#[derive(Clone)]
pub struct Identity(Arc<RwLock<Arc<CertifiedKey>>>);

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    /// Reads a certificate, with its intermediates behind it, and its key.
    ///
    /// # Errors
    ///
    /// If one of the texts is malformed, or they do not belong together.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, IdentityError> {
        Ok(Self(Arc::new(RwLock::new(Arc::new(certified(
            certificate,
            key,
        )?)))))
    }

    /// Puts another certificate and key in their place.
    ///
    /// # Errors
    ///
    /// As [`from_pem`](Self::from_pem); the present ones then stay.
    pub fn replace(&self, certificate: &str, key: &str) -> Result<(), IdentityError> {
        let fresh = Arc::new(certified(certificate, key)?);
        *self.0.write() = fresh;
        Ok(())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().clone()
    }
}

fn certified(certificate: &str, key: &str) -> Result<CertifiedKey, IdentityError> {
    let pem = |what| move |source| IdentityError::Pem { what, source };
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem("certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(pem("key"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|source| IdentityError::Key { source })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // `Unknown`: the key does not tell its public half; a handshake will.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(certified)
        }
        Err(source) => Err(IdentityError::Mismatch { source }),
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(
        &self,
        _issuers: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_without_its_own_key_is_refused() {
        let make = || {
            let key = rcgen::KeyPair::generate().expect("a key");
            let parameters =
                rcgen::CertificateParams::new(vec!["node".to_owned()]).expect("parameters");
            (
                parameters.self_signed(&key).expect("a certificate").pem(),
                key.serialize_pem(),
            )
        };
        let (one, one_key) = make();
        let (two, two_key) = make();
        let identity = Identity::from_pem(&one, &one_key).expect("they belong together");
        assert!(identity.replace(&two, &one_key).is_err());
        identity.replace(&two, &two_key).expect("these do as well");
    }
}
