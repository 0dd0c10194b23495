//! Bodies: what requests bring, what responses carry.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};

use crate::registry::entry::Entry;
use crate::status::ApiError;

/// Why a body broke off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of a request, wherever it comes from.
pub type RequestBody = UnsyncBoxBody<Bytes, BoxError>;
/// The body of a response.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// The largest body that is read.
pub const LIMIT: usize = 3 << 20;
/// A list is sent in pieces of about this size.
const CHUNK: usize = 256 << 10;

/// A body of bytes at hand.
pub fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that comes bit by bit.
pub fn stream(
    stream: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> ResponseBody {
    use futures::TryStreamExt as _;
    StreamBody::new(stream.map_ok(Frame::data)).boxed_unsync()
}

/// Reads a request's body.
///
/// # Errors
///
/// 413 above [`LIMIT`], 400 if the connection broke.
pub async fn read(mut body: RequestBody) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > LIMIT as u64 {
        return Err(ApiError::too_large(LIMIT));
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| ApiError::bad_request(format!("cannot read the body: {error}")))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if first.len() + all.len() + data.len() > LIMIT {
            return Err(ApiError::too_large(LIMIT));
        }
        // Most bodies come in one piece, which is then not copied.
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        all.extend_from_slice(&std::mem::take(&mut first));
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// A list as JSON: the objects' own bytes, put together piece by piece while they are sent.
pub struct ListBody {
    head: Option<Bytes>,
    entries: VecDeque<Arc<Entry>>,
    first: bool,
    left: u64,
}

const TAIL: &[u8] = b"]}\n";

impl ListBody {
    /// A list whose JSON starts with `head`, up to and with the `[` of its items.
    pub fn new(head: Bytes, entries: Vec<Arc<Entry>>) -> Self {
        let items: usize = entries.iter().map(|entry| entry.object.len() + 1).sum();
        let left = head.len() + items.saturating_sub(1) + TAIL.len();
        Self {
            head: Some(head),
            entries: entries.into(),
            first: true,
            left: left as u64,
        }
    }
}

impl Body for ListBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut out = BytesMut::with_capacity((self.left as usize).min(CHUNK + (16 << 10)));
        if let Some(head) = self.head.take() {
            out.extend_from_slice(&head);
        }
        while out.len() < CHUNK {
            let Some(entry) = self.entries.pop_front() else {
                out.extend_from_slice(TAIL);
                break;
            };
            if !std::mem::take(&mut self.first) {
                out.extend_from_slice(b",");
            }
            out.extend_from_slice(&entry.object);
        }
        self.left -= out.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(out.freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
