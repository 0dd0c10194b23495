//! How long to wait for a registry that is busy.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::{RegistryError, shown};

/// The most that one request waits in all. Whoever wants more is asked again at the next pull, which the kubelet puts off by itself.
const MOST: Duration = Duration::from_secs(60);

/// What is left of it for one request.
pub(super) struct Patience {
    tries: u32,
    left: Duration,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(tries: u32) -> Self {
        Self {
            tries,
            left: MOST,
            pause: Duration::from_millis(250),
        }
    }

    /// How long to wait before the next try; `None` if there is to be none, or if the refusal will not change.
    ///
    /// # Errors
    ///
    /// The registry wants us to wait longer than we do.
    pub(super) fn after(&mut self, answer: &Response) -> Result<Option<Duration>, RegistryError> {
        let wanted = retry_after(answer.headers(), SystemTime::now());
        match self.next(answer.status(), wanted) {
            Next::Wait(pause) => Ok(Some(pause)),
            Next::GiveUp => Ok(None),
            Next::TooLong(wait) => Err(RegistryError::Busy {
                url: shown(answer.url()),
                status: answer.status(),
                wait,
            }),
        }
    }

    fn next(&mut self, status: StatusCode, wanted: Option<Duration>) -> Next {
        if !matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504) {
            return Next::GiveUp;
        }
        if let Some(wanted) = wanted.filter(|wanted| *wanted > self.left) {
            return Next::TooLong(wanted);
        }
        if self.tries == 0 {
            return Next::GiveUp;
        }
        self.tries -= 1;
        let pause = wanted.unwrap_or(self.pause).max(Duration::from_millis(50));
        self.pause *= 2;
        match self.left.checked_sub(pause) {
            Some(left) => {
                self.left = left;
                Next::Wait(pause)
            }
            None => Next::GiveUp,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Wait(Duration),
    GiveUp,
    TooLong(Duration),
}

/// In seconds, or as a date. Source: RFC 9110, 10.2.3.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a long time all the same.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, want) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            let want = want.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), want, "{text:?}");
        }
    }

    #[test]
    fn patience_ends() {
        let seconds = |s: u64| Some(Duration::from_secs(s));
        let busy = StatusCode::TOO_MANY_REQUESTS;
        let mut patience = Patience::new(5);
        assert_eq!(
            patience.next(busy, seconds(20)),
            Next::Wait(Duration::from_secs(20))
        );
        assert_eq!(
            patience.next(busy, seconds(30)),
            Next::Wait(Duration::from_secs(30))
        );
        // Not another half minute, nor a day.
        for wanted in [20, 86_400, u64::MAX] {
            let want = Next::TooLong(Duration::from_secs(wanted));
            assert_eq!(patience.next(busy, seconds(wanted)), want);
        }
        let mut patience = Patience::new(3);
        let pauses: Vec<_> = (0..4)
            .map(|_| patience.next(StatusCode::BAD_GATEWAY, None))
            .collect();
        let millis = |ms| Next::Wait(Duration::from_millis(ms));
        assert_eq!(
            pauses,
            [millis(250), millis(500), millis(1000), Next::GiveUp]
        );
        assert_eq!(
            Patience::new(3).next(StatusCode::NOT_FOUND, seconds(1)),
            Next::GiveUp
        );
    }
}
