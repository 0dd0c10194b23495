//! Certificates that are renewed while they are in use: new ones are issued well before the old ones end, and put where
//! they are needed. Connections that are open stay.

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use time::Duration;
use tokio_util::sync::CancellationToken;

use super::{Identity, Pki, PkiError, Purpose};
use crate::http::serve::{TlsError, certificates, private_key};

/// How often the clock is looked at: it may have been set, or the machine may have slept.
const CHECK: std::time::Duration = std::time::Duration::from_secs(60);
/// From when on the end of the CA is warned of, once a day …
const CA_WARNING: Duration = Duration::days(365);
/// … and from when on it is an error.
const CA_ERROR: Duration = Duration::days(30);

/// A certificate and its key as TLS shows them; replacing it reaches every new connection.
#[derive(Clone, Debug)]
pub struct Shown(Arc<RwLock<Arc<CertifiedKey>>>);

impl Shown {
    /// Shows this one.
    ///
    /// # Errors
    ///
    /// If a part cannot be read, or the two do not belong together.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(certified(identity)?))))
    }

    /// Shows another one from now on.
    ///
    /// # Errors
    ///
    /// As [`Shown::new`]; the present one then stays.
    pub fn replace(&self, identity: &Identity) -> Result<(), TlsError> {
        let fresh = certified(identity)?;
        *self.0.write() = fresh;
        Ok(())
    }

    fn current(&self) -> Arc<CertifiedKey> {
        self.0.read().clone()
    }
}

fn certified(identity: &Identity) -> Result<Arc<CertifiedKey>, TlsError> {
    let provider = rustls::crypto::ring::default_provider();
    let chain = certificates(&identity.cert_pem)?;
    let key = private_key(&identity.key_pem)?;
    CertifiedKey::from_der(chain, key, &provider)
        .map(Arc::new)
        .map_err(|source| TlsError::Rustls { source })
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Why a new certificate could not be put where it is needed.
pub type UseError = Box<dyn std::error::Error + Send + Sync>;

type Use = Box<dyn Fn(&Identity) -> Result<(), UseError> + Send + Sync>;

struct Kept {
    name: String,
    purpose: Purpose,
    /// The certificate that is in use.
    used: String,
    put: Use,
}

/// The certificates of one control plane that are kept valid.
pub struct Renewal {
    pki: Pki,
    kept: Mutex<Vec<Kept>>,
    /// The day, counted from the CA's end, on which its end was reported last.
    reported: Mutex<Option<i64>>,
}

impl Renewal {
    pub(crate) fn new(pki: Pki) -> Self {
        Self {
            pki,
            kept: Mutex::default(),
            reported: Mutex::default(),
        }
    }

    /// Issues an identity as [`Pki::identity`] does, and keeps it valid: `put` takes each later one to where it is used.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written.
    pub fn keep(
        &self,
        name: &str,
        purpose: Purpose,
        put: impl Fn(&Identity) -> Result<(), UseError> + Send + Sync + 'static,
    ) -> Result<Identity, PkiError> {
        let identity = self.pki.identity(name, &purpose)?;
        self.kept.lock().push(Kept {
            name: name.to_owned(),
            purpose,
            used: identity.cert_pem.clone(),
            put: Box::new(put),
        });
        Ok(identity)
    }

    /// Renews what is due. What fails stays as it is, is logged and tried again.
    pub fn check(&self) {
        self.report_ca();
        for kept in &mut *self.kept.lock() {
            let failed = |error: &(dyn std::error::Error + 'static)| {
                tracing::error!(name = kept.name, error, "renew a certificate");
            };
            let identity = match self.pki.identity(&kept.name, &kept.purpose) {
                Ok(identity) if identity.cert_pem == kept.used => continue,
                Ok(identity) => identity,
                Err(error) => {
                    failed(&error);
                    continue;
                }
            };
            match (kept.put)(&identity) {
                Ok(()) => {
                    tracing::info!(name = kept.name, "renewed a certificate");
                    kept.used = identity.cert_pem;
                }
                Err(error) => failed(&*error),
            }
        }
    }

    /// Looks once a minute until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            self.check();
            // Nothing is under way.
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(CHECK) => {}
            }
        }
    }

    /// The CA is not renewed by itself: every client trusts exactly this one. So its end is announced loudly.
    fn report_ca(&self) {
        let left = self.pki.ca_validity_left();
        if left > CA_WARNING {
            return;
        }
        let days = left.whole_days();
        if self.reported.lock().replace(days) == Some(days) {
            return;
        }
        if left.is_negative() {
            tracing::error!(
                "the cluster's CA certificate HAS EXPIRED: no connection is trusted until the cluster gets a new CA"
            );
        } else if left <= CA_ERROR {
            tracing::error!(
                days,
                "the cluster's CA certificate EXPIRES SOON: after that no connection is trusted"
            );
        } else {
            tracing::warn!(
                days,
                "the cluster's CA certificate expires within a year: after that no connection is trusted"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn what_ends_soon_is_issued_and_put_anew_and_the_rest_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let days = Arc::new(AtomicI64::new(0));
        let clock = {
            let (days, start) = (days.clone(), OffsetDateTime::now_utc());
            Arc::new(move || start + Duration::days(days.load(Ordering::SeqCst)))
        };
        let pki = Pki::open_with_clock(dir.path(), clock).expect("keys");
        let renewal = Renewal::new(pki.clone());
        let put = Arc::new(Mutex::new(Vec::new()));
        let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let purpose = Purpose::Client {
            user: "admin".to_owned(),
            groups: vec![],
        };
        let first = {
            let (put, fails) = (put.clone(), fails.clone());
            renewal
                .keep("admin", purpose, move |identity| {
                    if fails.load(Ordering::SeqCst) {
                        return Err("no room".into());
                    }
                    put.lock().push(identity.cert_pem.clone());
                    Ok(())
                })
                .expect("an identity")
        };
        // A year at a time, and each time the clock goes back a little.
        let mut newest = first.cert_pem;
        for year in 0..9 {
            days.store(365 * year + 200, Ordering::SeqCst);
            renewal.check();
            assert_eq!(put.lock().len(), year as usize, "not yet in year {year}");
            days.store(365 * year + 360, Ordering::SeqCst);
            fails.store(true, Ordering::SeqCst);
            renewal.check();
            assert_eq!(put.lock().len(), year as usize);
            fails.store(false, Ordering::SeqCst);
            renewal.check();
            renewal.check();
            let put = put.lock();
            assert_eq!(put.len(), year as usize + 1, "once in year {year}");
            assert_ne!(put.last(), Some(&newest));
            newest.clone_from(put.last().expect("a certificate"));
        }
        // Near the CA's end what is issued ends with it, and is not issued again and again.
        let before = put.lock().len();
        for day in 3600..3640 {
            days.store(day, Ordering::SeqCst);
            renewal.check();
        }
        assert!(
            put.lock().len() <= before + 2,
            "{}",
            put.lock().len() - before
        );
        assert!(pki.ca_validity_left() < CA_ERROR);
    }
}
