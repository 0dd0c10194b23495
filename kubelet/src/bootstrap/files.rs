//! The node's certificates on disk.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest as _, Sha256};

use super::request::{Pair, Purpose};
use super::{BootstrapError, Join};
use crate::identity::Identity;

/// When a certificate should be renewed, and when it must be.
pub(super) struct Due {
    pub(super) renew: SystemTime,
    pub(super) end: SystemTime,
}

pub(super) fn due(certificate: &str) -> Option<Due> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let at = |time: x509_parser::time::ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    };
    let (start, end) = (
        at(parsed.validity().not_before),
        at(parsed.validity().not_after),
    );
    let life = end.duration_since(start).ok()?;
    // At 70 to 90 % of its life (client-go, `certificate_manager.go`), so that a cluster's nodes do not all ask at once. Picked
    // by the certificate itself: a restart picks the same.
    let spread = Sha256::digest(&der)[0];
    let share = 0.7 + 0.2 * f64::from(spread) / 255.0;
    Some(Due {
        renew: start + life.mul_f64(share),
        end,
    })
}

/// Whether the serving certificate is for the addresses that the node has now.
pub(super) fn names_fit(certificate: &str, join: &Join) -> bool {
    let fits = || {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let has = |ip: &IpAddr| {
            let bytes = match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            names.value.general_names.iter().any(|n| {
                matches!(n, x509_parser::extensions::GeneralName::IPAddress(found) if *found == bytes.as_slice())
            })
        };
        Some(join.node_ips.iter().all(has))
    };
    fits().unwrap_or(false)
}

pub(super) fn identity(
    pki: &Path,
    purpose: Purpose,
    pair: &Pair,
) -> Result<Identity, BootstrapError> {
    Identity::from_pem(&pair.certificate, &pair.key).map_err(|source| BootstrapError::Identity {
        path: pki.join(purpose.file()),
        source,
    })
}

pub(super) fn read(path: &Path) -> Result<Option<String>, BootstrapError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BootstrapError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Certificate and key are one file, so that they can only be replaced together.
pub(super) fn load(pki: &Path, purpose: Purpose) -> Result<Option<Pair>, BootstrapError> {
    let text = read(&pki.join(purpose.file()).with_extension("pem"))?;
    Ok(text.and_then(|text| {
        let at = text.find("-----BEGIN PRIVATE KEY-----")?;
        Some(Pair {
            certificate: text[..at].to_owned(),
            key: text[at..].to_owned(),
        })
    }))
}

pub(super) fn store(pki: &Path, purpose: Purpose, pair: &Pair) -> Result<(), BootstrapError> {
    let separator = if pair.certificate.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    keep(
        &pki.join(purpose.file()).with_extension("pem"),
        &format!("{}{separator}{}", pair.certificate, pair.key),
    )
}

/// Writes a file that only root reads, whole or not at all.
pub(super) fn keep(path: &Path, content: &str) -> Result<(), BootstrapError> {
    let fresh = path.with_extension("new");
    let write = || {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| BootstrapError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;

    use super::super::request::parameters;
    use super::*;

    #[test]
    fn certificates_are_kept_together_with_their_key() {
        let dir = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let join = Join {
            server: String::new(),
            token: None,
            node_name: "n".into(),
            node_ips: vec![[10, 0, 0, 1].into()],
            node_dir: dir.path().to_owned(),
        };
        let certificate = parameters(&join, Purpose::Serving)
            .self_signed(&key)
            .expect("a certificate")
            .pem();
        let pair = Pair {
            certificate: certificate.clone(),
            key: key.serialize_pem(),
        };
        store(dir.path(), Purpose::Serving, &pair).expect("stored");
        let loaded = load(dir.path(), Purpose::Serving)
            .expect("read")
            .expect("there");
        assert_eq!(
            (loaded.certificate, loaded.key),
            (pair.certificate, pair.key)
        );
        assert!(names_fit(&certificate, &join));
        assert!(!names_fit(
            &certificate,
            &Join {
                node_ips: vec![[10, 0, 0, 2].into()],
                ..join.clone()
            }
        ));
        let due = due(&certificate).expect("a certificate");
        let start = SystemTime::UNIX_EPOCH
            + Duration::from_secs(
                u64::try_from(
                    parameters(&join, Purpose::Serving)
                        .not_before
                        .unix_timestamp(),
                )
                .unwrap_or(0),
            );
        let life = due.end.duration_since(start).expect("it has a life");
        let share = due.renew.duration_since(start).expect("within its life");
        let share = share.as_secs_f64() / life.as_secs_f64();
        assert!((0.7..=0.9).contains(&share), "{share}");
    }
}
