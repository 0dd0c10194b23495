//! The cluster's keys and certificates: one CA, what it has issued to the control plane, and kubeconfig files.
//!
//! Everything lies as PEM under `<data-dir>/server/tls`, under kubeadm's names; private keys have mode 0600. What is missing,
//! about to expire or not valid for the server's present names is made anew, at the start and while the server runs
//! ([`renewal`]), so nothing has to be renewed by hand but the CA itself, every ten years.

pub mod clock;
pub mod renewal;

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

pub use clock::Clock;

/// How long the CA is valid.
const CA_VALIDITY: Duration = Duration::days(3650);
/// How long an issued certificate is valid.
const VALIDITY: Duration = Duration::days(365);
/// A certificate with less time than this left is issued anew.
const RENEW_BEFORE: Duration = Duration::days(120);
/// How far back certificates are valid, for clocks that run behind.
const BACKDATE: Duration = Duration::minutes(5);

/// Why the keys could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or directory.
    #[error("{what} {path}", path = path.display())]
    File {
        /// `read`, `write` or `create`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A key or certificate of ours that cannot be parsed, or could not be made.
    #[error("certificate or key of {subject}")]
    Certificate {
        /// Whose it is.
        subject: String,
        /// What is wrong with it.
        source: rcgen::Error,
    },
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS #8).
    pub key_pem: String,
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A client: the user's name and groups (subject CN and O).
    Client {
        /// The user's name.
        user: String,
        /// The user's groups.
        groups: Vec<String>,
    },
    /// A server: the DNS names and addresses it answers to.
    Server {
        /// The subject's CN.
        name: String,
        /// The subject's organisations.
        groups: Vec<String>,
        /// DNS names and addresses.
        hosts: Vec<String>,
    },
}

/// The keys of one control plane. Clones are the same keys.
#[derive(Clone)]
pub struct Pki(Arc<Keys>);

struct Keys {
    dir: PathBuf,
    clock: Clock,
    ca: Issuer<'static, KeyPair>,
    ca_cert_pem: String,
    ca_expires: OffsetDateTime,
    ca_key_pem: String,
    service_account_key_pem: String,
    service_account_public_pem: String,
}

impl Pki {
    /// Opens the directory, or makes it with a new CA and a new service account key.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written, or is no key or certificate.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        Self::open_with_clock(dir, Arc::new(OffsetDateTime::now_utc))
    }

    /// The same, with another clock than the system's.
    ///
    /// # Errors
    ///
    /// As [`Pki::open`].
    pub fn open_with_clock(dir: &Path, clock: Clock) -> Result<Self, PkiError> {
        fs::create_dir_all(dir).map_err(file("create", dir))?;
        let key_path = dir.join("ca.key");
        let cert_path = dir.join("ca.crt");
        let key = open_key(&key_path, "the CA")?;
        let ca_key_pem = key.serialize_pem();
        let ca_cert_pem = match read_optional(&cert_path)? {
            Some(pem) => pem,
            None => {
                let pem = ca_params(clock())
                    .self_signed(&key)
                    .map_err(certificate("the CA"))?
                    .pem();
                write(&cert_path, &pem, 0o644)?;
                pem
            }
        };
        let ca = Issuer::from_ca_cert_pem(&ca_cert_pem, key).map_err(certificate("the CA"))?;
        let ca_expires = expiry(&ca_cert_pem).ok_or_else(|| PkiError::Certificate {
            subject: "the CA".to_owned(),
            source: rcgen::Error::CouldNotParseCertificate,
        })?;
        let service_account = open_key(&dir.join("sa.key"), "service accounts")?;
        let service_account_public_pem = service_account.public_key_pem();
        write(&dir.join("sa.pub"), &service_account_public_pem, 0o644)?;
        Ok(Self(Arc::new(Keys {
            dir: dir.to_owned(),
            clock,
            ca,
            ca_cert_pem,
            ca_expires,
            ca_key_pem,
            service_account_key_pem: service_account.serialize_pem(),
            service_account_public_pem,
        })))
    }

    fn now(&self) -> OffsetDateTime {
        (self.0.clock)()
    }

    /// What tells the time of everything that these keys sign.
    pub fn clock(&self) -> Clock {
        self.0.clock.clone()
    }

    /// How long the CA's certificate is still valid; negative once it is not.
    pub fn ca_validity_left(&self) -> Duration {
        self.0.ca_expires - self.now()
    }

    /// The CA's certificate, PEM.
    pub fn ca_cert_pem(&self) -> &str {
        &self.0.ca_cert_pem
    }

    /// The CA's private key, PEM.
    pub fn ca_key_pem(&self) -> &str {
        &self.0.ca_key_pem
    }

    /// The private key that signs service account tokens: P-256 (ES256), PKCS #8 PEM.
    pub fn service_account_key_pem(&self) -> &str {
        &self.0.service_account_key_pem
    }

    /// The public half of [`Pki::service_account_key_pem`], PEM.
    pub fn service_account_public_pem(&self) -> &str {
        &self.0.service_account_public_pem
    }

    /// The SHA-256 of the CA certificate's DER, in hexadecimal: what a join token pins.
    pub fn ca_hash(&self) -> String {
        ca_hash(&self.0.ca_cert_pem).unwrap_or_default()
    }

    /// The identity stored as `<name>.crt` and `<name>.key`; issued anew if it is missing, for another purpose, not from
    /// this CA, or about to expire.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written.
    pub fn identity(&self, name: &str, purpose: &Purpose) -> Result<Identity, PkiError> {
        let cert_path = self.0.dir.join(format!("{name}.crt"));
        let key_path = self.0.dir.join(format!("{name}.key"));
        let key = open_key(&key_path, name)?;
        let key_pem = key.serialize_pem();
        if let Some(cert_pem) = read_optional(&cert_path)?
            && self.still_good(&cert_pem, &key, purpose)
        {
            return Ok(Identity { cert_pem, key_pem });
        }
        let end = self.0.ca_expires;
        let params = leaf_params(purpose, self.now(), end).map_err(certificate(name))?;
        let cert_pem = params
            .signed_by(&key, &self.0.ca)
            .map_err(certificate(name))?
            .pem();
        write(&cert_path, &cert_pem, 0o644)?;
        Ok(Identity { cert_pem, key_pem })
    }

    fn still_good(&self, cert_pem: &str, key: &KeyPair, purpose: &Purpose) -> bool {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()) else {
            return false;
        };
        let Ok(cert) = pem.parse_x509() else {
            return false;
        };
        let Ok((_, ca)) = x509_parser::pem::parse_x509_pem(self.0.ca_cert_pem.as_bytes()) else {
            return false;
        };
        let Ok(ca) = ca.parse_x509() else {
            return false;
        };
        let left = cert.validity().not_after.to_datetime() - self.now();
        let (name, groups, hosts) = match purpose {
            Purpose::Client { user, groups } => (user, groups, &Vec::new()),
            Purpose::Server {
                name,
                groups,
                hosts,
            } => (name, groups, hosts),
        };
        let subject = cert.subject();
        let common_names: Vec<_> = subject
            .iter_common_name()
            .filter_map(|a| a.as_str().ok())
            .collect();
        let organisations: Vec<_> = subject
            .iter_organization()
            .filter_map(|a| a.as_str().ok())
            .collect();
        // Near the CA's own end nothing can be issued that lasts longer.
        left > RENEW_BEFORE.min(self.ca_validity_left() - Duration::DAY)
            && cert.issuer() == ca.subject()
            && cert.verify_signature(Some(ca.public_key())).is_ok()
            && cert.public_key().raw
                == rcgen::PublicKeyData::subject_public_key_info(key).as_slice()
            && common_names == [name.as_str()]
            && organisations == groups.iter().map(String::as_str).collect::<Vec<_>>()
            && same_hosts(&cert, hosts)
    }
}

/// The SHA-256 of a PEM certificate's DER, in hexadecimal; `None` if it is no certificate.
pub fn ca_hash(cert_pem: &str) -> Option<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).ok()?;
    Some(hex::encode(Sha256::digest(&pem.contents)))
}

/// The PEM form of a certificate's DER.
pub fn certificate_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// A kubeconfig file for one cluster and one user with a client certificate. The names are ours and plain.
pub fn kubeconfig(
    cluster: &str,
    server: &str,
    ca_cert_pem: &str,
    user: &str,
    identity: &Identity,
) -> String {
    use base64::Engine as _;
    let encode = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    // A template, because readers with simple means (sed, an editor) want each value on one line.
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: {cluster}\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: {user}\n  user:\n    client-certificate-data: {certificate}\n    \
         client-key-data: {key}\ncontexts:\n- name: {cluster}\n  context:\n    cluster: {cluster}\n    user: {user}\n\
         current-context: {cluster}\n",
        ca = encode(ca_cert_pem),
        certificate = encode(&identity.cert_pem),
        key = encode(&identity.key_pem),
    )
}

/// Writes a file in one step, so that a reader or a crash never meets half of it. One that holds this already is left alone:
/// a start needs no room on the disk for what is there.
///
/// # Errors
///
/// If the directory cannot be written.
pub fn write(path: &Path, content: &str, mode: u32) -> Result<(), PkiError> {
    use std::io::Write as _;
    if holds(path, content, mode) {
        return Ok(());
    }
    let temporary = path.with_extension("tmp");
    let mut open = fs::OpenOptions::new();
    open.write(true).create(true).truncate(true).mode(mode);
    // What a crash left behind may have another mode.
    let written = remove_stale(&temporary)
        .and_then(|()| open.open(&temporary))
        .and_then(|mut f| f.write_all(content.as_bytes()).and_then(|()| f.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    written.map_err(file("write", path))
}

/// Whether a file has this content and mode. One that cannot be read is written anew, which says what is wrong with it.
fn holds(path: &Path, content: &str, mode: u32) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let same_mode = fs::metadata(path).is_ok_and(|is| is.permissions().mode() & 0o7777 == mode);
    same_mode && fs::read(path).is_ok_and(|is| is == content.as_bytes())
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn same_hosts(cert: &x509_parser::certificate::X509Certificate<'_>, hosts: &[String]) -> bool {
    use x509_parser::extensions::GeneralName;
    let mut found: Vec<String> = match cert.subject_alternative_name() {
        Ok(Some(san)) => san
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                GeneralName::IPAddress(octets) => address(octets),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let mut wanted = hosts.to_vec();
    found.sort();
    wanted.sort();
    found == wanted
}

fn address(octets: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(octets)
        .ok()
        .map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

/// When a certificate ends; `None` if it is none.
fn expiry(cert_pem: &str) -> Option<OffsetDateTime> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    Some(certificate.validity().not_after.to_datetime())
}

fn ca_params(now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // The time makes the CA of a recreated cluster another one to whoever kept the old certificate.
    let name = format!("knarr-ca@{}", now.unix_timestamp());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    validity(&mut params, now, now + CA_VALIDITY);
    params
}

fn leaf_params(
    purpose: &Purpose,
    now: OffsetDateTime,
    ca_expires: OffsetDateTime,
) -> Result<CertificateParams, rcgen::Error> {
    let (name, groups, hosts, usage) = match purpose {
        Purpose::Client { user, groups } => (
            user,
            groups,
            Vec::new(),
            ExtendedKeyUsagePurpose::ClientAuth,
        ),
        Purpose::Server {
            name,
            groups,
            hosts,
        } => (
            name,
            groups,
            hosts.clone(),
            ExtendedKeyUsagePurpose::ServerAuth,
        ),
    };
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, name.as_str());
    for group in groups {
        params
            .distinguished_name
            .push(DnType::OrganizationName, group.as_str());
    }
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    // Nobody accepts it without the CA's.
    validity(&mut params, now, (now + VALIDITY).min(ca_expires));
    Ok(params)
}

fn validity(params: &mut CertificateParams, now: OffsetDateTime, end: OffsetDateTime) {
    params.not_before = now - BACKDATE;
    params.not_after = end;
}

fn open_key(path: &Path, subject: &str) -> Result<KeyPair, PkiError> {
    match read_optional(path)? {
        Some(pem) => KeyPair::from_pem(&pem).map_err(certificate(subject)),
        None => {
            let key = KeyPair::generate().map_err(certificate(subject))?;
            write(path, &key.serialize_pem(), 0o600)?;
            Ok(key)
        }
    }
}

fn read_optional(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file("read", path)(error)),
    }
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { what, path, source }
}

fn certificate(subject: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let subject = subject.to_owned();
    move |source| PkiError::Certificate { subject, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn server(hosts: &[&str]) -> Purpose {
        Purpose::Server {
            name: "kube-apiserver".into(),
            groups: vec![],
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
        }
    }

    #[test]
    fn an_identity_is_kept_until_its_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let first = pki
            .identity("apiserver", &server(&["kubernetes", "10.43.0.1", "::1"]))
            .unwrap();
        let again = Pki::open(dir.path()).unwrap();
        assert_eq!(again.ca_hash(), pki.ca_hash());
        let second = again
            .identity("apiserver", &server(&["kubernetes", "10.43.0.1", "::1"]))
            .unwrap();
        assert_eq!(first.cert_pem, second.cert_pem);
        let third = again
            .identity(
                "apiserver",
                &server(&["kubernetes", "10.43.0.1", "10.0.0.9"]),
            )
            .unwrap();
        assert_ne!(second.cert_pem, third.cert_pem);
        assert_eq!(second.key_pem, third.key_pem);
    }

    #[test]
    fn an_identity_of_another_ca_is_issued_anew() {
        let dir = tempfile::tempdir().unwrap();
        let old = Pki::open(dir.path())
            .unwrap()
            .identity("apiserver", &server(&["a"]))
            .unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        let new = Pki::open(dir.path())
            .unwrap()
            .identity("apiserver", &server(&["a"]))
            .unwrap();
        assert_ne!(old.cert_pem, new.cert_pem);
    }

    #[test]
    fn a_certificate_in_der_gets_its_pem_back() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(pki.ca_cert_pem().as_bytes()).unwrap();
        assert_eq!(
            ca_hash(&certificate_pem(&pem.contents)).unwrap(),
            pki.ca_hash()
        );
    }

    #[test]
    fn private_keys_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        pki.identity(
            "admin",
            &Purpose::Client {
                user: "admin".into(),
                groups: vec!["system:masters".into()],
            },
        )
        .unwrap();
        for key in ["ca.key", "sa.key", "admin.key"] {
            let mode = fs::metadata(dir.path().join(key))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn what_is_written_already_is_left_alone_and_a_wrong_mode_is_mended() {
        use std::os::unix::fs::MetadataExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let inode = || fs::metadata(&path).unwrap().ino();
        write(&path, "one", 0o600).unwrap();
        let first = inode();
        write(&path, "one", 0o600).unwrap();
        assert_eq!(inode(), first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write(&path, "one", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        write(&path, "two", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    }

    #[test]
    fn a_kubeconfig_names_the_cluster_and_holds_the_identity() {
        let identity = Identity {
            cert_pem: "C".into(),
            key_pem: "K".into(),
        };
        let text = kubeconfig("knarr", "https://127.0.0.1:6443", "CA", "admin", &identity);
        let read: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(read["current-context"], "knarr");
        assert_eq!(read["users"][0]["user"]["client-key-data"], "Sw==");
    }
}
