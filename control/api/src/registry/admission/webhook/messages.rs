//! What a failed call says: the words of Go and client-go, which people and programs search for.

use bytes::Bytes;
use http::{StatusCode, header};
use rustls::CertificateError;
use serde_json::Value;

/// Why there is no answer, in the words of client-go and net/http.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// There was no exchange.
    #[error("Post {url:?}: {reason}")]
    Exchange {
        /// The URL.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// The answer is a refusal.
    #[error("{message}")]
    Refused {
        /// What it says.
        message: String,
    },
    /// The answer is too large.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The answer has no body.
    #[error("0-length response with status code: {code} and content type: {content_type}")]
    Empty {
        /// Its code.
        code: u16,
        /// Its content type.
        content_type: String,
    },
}

/// A failure of TLS, in the words of Go's crypto/tls, which people search for.
pub fn of_tls(error: &rustls::Error) -> String {
    let refused = match error {
        rustls::Error::InvalidCertificate(reason) => reason,
        _ => return format!("remote error: tls: {error}"),
    };
    let reason = match refused {
        // Another authority of the same name has signed it.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "x509: certificate signed by unknown authority".to_owned()
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            format!("x509: certificate has expired or is not yet valid: {refused}")
        }
        other => format!("x509: {other}"),
    };
    format!("tls: failed to verify certificate: {reason}")
}

/// Why a connection could not be made, in the words of Go's net.
pub fn of_dial(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// Why an exchange did not end, in the words of Go's net/http.
pub fn of_exchange(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return "EOF".to_owned();
    }
    if error.is_parse() {
        return format!(
            "net/http: HTTP/1.x transport connection broken: malformed HTTP response: {error}"
        );
    }
    let cause = std::error::Error::source(error);
    match cause.and_then(|cause| cause.downcast_ref::<std::io::Error>()) {
        // Go takes the end of the connection for the end of TLS too.
        Some(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The body of a successful answer; else what client-go makes of it (apimachinery, `api/errors.NewGenericServerResponse`).
pub fn answer(parts: &http::response::Parts, body: Bytes) -> Result<Bytes, PostError> {
    if parts.status.is_success() {
        if body.is_empty() {
            let content_type = parts.headers.get(header::CONTENT_TYPE);
            let content_type = content_type.and_then(|value| value.to_str().ok());
            return Err(PostError::Empty {
                code: parts.status.as_u16(),
                content_type: content_type.unwrap_or_default().to_owned(),
            });
        }
        return Ok(body);
    }
    let message = refusal(parts.status, &body);
    Err(PostError::Refused { message })
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    let object: Value = serde_json::from_slice(body).unwrap_or_default();
    if object["kind"] == "Status"
        && object["status"] != "Success"
        && let Some(message) = object["message"].as_str()
    {
        return message.to_owned();
    }
    let text = String::from_utf8_lossy(body);
    let text = match text.trim() {
        "" => "unknown",
        text => text,
    };
    match status.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => text.to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        409 => "the server reported a conflict".to_owned(),
        422 => "the server rejected our request due to an error in our request".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the request".to_owned(),
        code if code >= 500 => {
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}
