//! Whom a webhook's certificate must come from: its caBundle, or whoever this machine trusts.
//!
//! A self-signed certificate that stands in the bundle itself is accepted although it says that it is a CA: Go accepts it, and
//! `openssl req -x509` makes such ones.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why there is no way to check certificates.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The bundle holds no certificate.
    #[error("unable to parse bytes as PEM block")]
    Empty,
    /// The bundle is not PEM.
    #[error("read the certificates as PEM")]
    Pem {
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The machine has no certificates of its own.
    #[error("the configuration has no caBundle and this machine trusts no certificate authorities")]
    NoSystemRoots,
    /// rustls refuses them.
    #[error("use the root certificates")]
    Rustls {
        /// Why.
        source: Error,
    },
    /// Certificates cannot be checked.
    #[error("check certificates")]
    Verifier {
        /// Why.
        source: rustls::client::VerifierBuilderError,
    },
}

/// TLS to who shows a certificate of the bundle, or of this machine's authorities if the bundle is empty.
///
/// Only HTTP/1.1 is offered, as by kube-apiserver: over one connection of HTTP/2 all calls would go to one endpoint
/// (kubernetes#75791).
///
/// # Errors
///
/// If there is nothing to trust.
pub fn connector(bundle: &[u8]) -> Result<TlsConnector, TrustError> {
    let own: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(bundle)
        .collect::<Result<_, _>>()
        .map_err(|source| TrustError::Pem { source })?;
    let mut roots = RootCertStore::empty();
    if bundle.is_empty() {
        // Some of a machine's certificates may be unreadable; the others still count.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(TrustError::NoSystemRoots);
        }
    } else if own.is_empty() {
        return Err(TrustError::Empty);
    }
    for certificate in &own {
        roots
            .add(certificate.clone())
            .map_err(|source| TrustError::Rustls { source })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|source| TrustError::Verifier { source })?;
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TrustError::Rustls { source })?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chains, own }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Believes a chain to one of the roots, or a certificate that is itself in the bundle.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.own.iter().any(|own| own == certificate) {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            check_time(certificate, now)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.chains
            .verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

fn check_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = X509Certificate::from_der(certificate);
    let (_, parsed) =
        parsed.map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let validity = parsed.validity();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < validity.not_before.timestamp() {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now > validity.not_after.timestamp() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}
