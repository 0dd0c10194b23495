//! One health check over gRPC (`grpc.health.v1.Health/Check`), for probes.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::http_check;

/// `HealthCheckResponse.ServingStatus`, by number.
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
/// The number of `SERVING`.
const SERVING: u8 = 1;

/// Asks whether `service` serves; an error is a message for people.
pub(crate) async fn check(
    host: &str,
    port: u16,
    service: &str,
    timeout: Duration,
) -> Result<(), String> {
    match tokio::time::timeout(timeout, exchange(host, port, service)).await {
        Ok(Ok(SERVING)) => Ok(()),
        Ok(Ok(status)) => {
            let name = STATUSES
                .get(usize::from(status))
                .copied()
                .unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(format!(
            "timeout: failed to connect service \"{host}:{port}\" within {}s: context deadline exceeded",
            timeout.as_secs()
        )),
    }
}

async fn exchange(host: &str, port: u16, service: &str) -> Result<u8, String> {
    let stream = http_check::connect(host, port)
        .await
        .map_err(|e| format!("error: failed to connect: {e}"))?;
    let text = |e: hyper::Error| format!("error: health rpc failed: {e}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(text)?;
    let driver = tokio::spawn(connection);
    let authority = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let request = hyper::Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(message(service)))
        .map_err(|e| e.to_string())?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(text)?;
        let headers = response.headers().clone();
        let body = response.into_body().collect().await.map_err(text)?;
        // An answer without a message has its status in the headers, any other one in the trailers.
        let trailers = body.trailers().cloned().unwrap_or(headers);
        let grpc_status = trailers
            .get("grpc-status")
            .and_then(|v| v.to_str().ok())
            .unwrap_or("0")
            .to_owned();
        if grpc_status != "0" {
            let why = trailers
                .get("grpc-message")
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default();
            return Err(format!(
                "error: health rpc failed: rpc error: code = {grpc_status} desc = {why}"
            ));
        }
        serving_status(&body.to_bytes())
            .ok_or_else(|| "error: health rpc failed: malformed answer".to_owned())
    };
    let result = answered.await;
    driver.abort();
    result
}

/// `HealthCheckRequest { service }`, with gRPC's prefix of one flag byte and four of length.
fn message(service: &str) -> Bytes {
    let mut fields = BytesMut::new();
    if !service.is_empty() {
        // Field 1, length-delimited; names are limited to 253 bytes, so their length takes at most two bytes.
        fields.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            fields.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        fields.put_u8(length as u8);
        fields.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(fields.len()).unwrap_or(0));
    framed.put_slice(&fields);
    framed.freeze()
}

/// The status in a framed `HealthCheckResponse`: field 1, a number; left out if it is 0.
fn serving_status(framed: &[u8]) -> Option<u8> {
    match framed.get(5..)? {
        [] => Some(0),
        [0x08, status, ..] => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_and_read() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), Some(0));
        assert_eq!(serving_status(&[0, 0]), None);
    }
}
