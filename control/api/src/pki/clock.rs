//! What tells the time of all that the cluster's keys sign: certificates, tokens, and who shows them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

/// What tells the time: the system's clock, or that of a test.
pub type Clock = Arc<dyn Fn() -> OffsetDateTime + Send + Sync>;

/// A [`Clock`] as rustls asks for the time.
pub struct TlsTime(pub Clock);

impl fmt::Debug for TlsTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsTime")
    }
}

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from((self.0)().unix_timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
