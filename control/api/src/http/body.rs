//! Bodies: what requests bring, what responses carry.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use parking_lot::Mutex;
use tokio::time::Instant;

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

/// A body that comes bit by bit. A panic breaks it off, and nothing else: over HTTP/2 the connection's other streams go on.
pub fn stream(
    stream: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
) -> ResponseBody {
    use futures::StreamExt as _;
    let stream = AssertUnwindSafe(stream)
        .catch_unwind()
        .map(|item| match item {
            Ok(item) => item.map(Frame::data),
            Err(_) => Err("apiserver panicked while it sent this answer".into()),
        });
    StreamBody::new(stream).boxed_unsync()
}

/// How long a request's body may take, and an answer that waits for nothing (kube-apiserver's `--request-timeout`).
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// Reads a request's body.
///
/// # Errors
///
/// 413 above [`LIMIT`], 400 if the connection broke, 504 if it takes longer than [`TIMEOUT`].
pub async fn read(body: RequestBody) -> Result<Bytes, ApiError> {
    tokio::time::timeout(TIMEOUT, read_all(body))
        .await
        .unwrap_or_else(|_| {
            let message = "Timeout: request did not complete within requested timeout - context deadline exceeded";
            Err(ApiError::new(504, "Timeout", message))
        })
}

async fn read_all(mut body: RequestBody) -> Result<Bytes, ApiError> {
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

/// Whether a body is one piece, which is handed over whole.
pub fn is_sent_at_once(body: &ListBody) -> bool {
    body.left <= CHUNK as u64
}

/// A body that breaks off when it has not been taken whole after so long, and then holds nothing any more: who asks for much and
/// does not read it keeps no memory of ours.
pub fn within(body: ResponseBody, time: Duration) -> ResponseBody {
    let held = Arc::new(Mutex::new(Some(body)));
    let kept = held.clone();
    // Ends with the body, so that it costs nothing when that is taken in time.
    let timer = tokio::spawn(async move {
        tokio::time::sleep(time).await;
        drop(kept.lock().take());
    });
    Within { held, timer }.boxed_unsync()
}

struct Within {
    held: Arc<Mutex<Option<ResponseBody>>>,
    timer: tokio::task::JoinHandle<()>,
}

impl Drop for Within {
    fn drop(&mut self) {
        self.timer.abort();
    }
}

impl Body for Within {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self.held.lock() {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(Some(Err("the answer was not taken in time".into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.lock().as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.held
            .lock()
            .as_ref()
            .map_or_else(SizeHint::default, Body::size_hint)
    }
}

/// How long a client may leave what a watch has sent it untaken.
pub const UNREAD: Duration = Duration::from_secs(120);

/// A body that goes on for as long as its client keeps taking it: once a piece was handed out and no next one was asked for within
/// `time`, it breaks off, and then holds nothing any more. Waiting for the next piece costs no time and no timer.
pub fn while_taken(body: ResponseBody, time: Duration) -> ResponseBody {
    let state = Arc::new(Mutex::new(Taken {
        body: Some(body),
        handed_out: None,
        timed: false,
    }));
    WhileTaken { state, time }.boxed_unsync()
}

struct Taken {
    /// `None` once it was let go.
    body: Option<ResponseBody>,
    /// When the last piece was handed out, if nothing was asked for since.
    handed_out: Option<Instant>,
    /// Whether a task looks after it.
    timed: bool,
}

struct WhileTaken {
    state: Arc<Mutex<Taken>>,
    time: Duration,
}

/// Lets a body go that is not taken; ends as soon as it is, so that a watch without changes has no timer.
async fn let_go(state: Weak<Mutex<Taken>>, handed_out: Instant, time: Duration) {
    let mut until = handed_out + time;
    loop {
        tokio::time::sleep_until(until).await;
        let Some(state) = state.upgrade() else {
            return;
        };
        let mut taken = state.lock();
        match taken.handed_out {
            Some(since) if since.elapsed() >= time => {
                let body = taken.body.take();
                drop(taken);
                drop(body);
                return tracing::debug!("a watch that nobody reads has ended");
            }
            Some(since) => until = since + time,
            None => {
                taken.timed = false;
                return;
            }
        }
    }
}

impl Body for WhileTaken {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut taken = self.state.lock();
        taken.handed_out = None;
        let Some(body) = &mut taken.body else {
            return Poll::Ready(Some(Err("the watch was not read".into())));
        };
        let polled = Pin::new(body).poll_frame(context);
        if let Poll::Ready(Some(Ok(_))) = &polled {
            let now = Instant::now();
            taken.handed_out = Some(now);
            if !std::mem::replace(&mut taken.timed, true) {
                tokio::spawn(let_go(Arc::downgrade(&self.state), now, self.time));
            }
        }
        polled
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_nobody_reads_is_let_go() {
        let whole = within(full("whole"), TIMEOUT);
        tokio::time::sleep(TIMEOUT / 2).await;
        assert_eq!(whole.collect().await.expect("in time").to_bytes(), "whole");

        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let items = futures::stream::once(async move {
            let _sender = sender;
            std::future::pending::<Result<Bytes, BoxError>>().await
        });
        let mut slow = within(stream(items), TIMEOUT);
        // Nobody polls it meanwhile.
        tokio::time::timeout(2 * TIMEOUT, receiver)
            .await
            .expect("it is let go")
            .expect_err("nothing was sent");
        let frame = slow.frame().await.expect("an end that is told");
        assert!(frame.is_err());

        let stalled = StreamBody::new(futures::stream::pending()).boxed_unsync();
        let error = read(stalled).await.expect_err("a body that does not come");
        assert_eq!((error.code, error.reason), (504, "Timeout"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_is_let_go_when_it_is_not_read_and_not_when_nothing_happens() {
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel::<&str>();
        let items = futures::stream::unfold(receiver, |mut receiver| async move {
            let item = receiver.recv().await?;
            Some((Ok(Bytes::from_static(item.as_bytes())), receiver))
        });
        let mut watch = while_taken(stream(items), UNREAD);
        for pause in [UNREAD / 2, 3 * UNREAD, UNREAD / 2] {
            // Read before there is something to read, as hyper does when the client has taken all.
            let later = async {
                tokio::time::sleep(pause).await;
                sender.send("event").expect("it is there");
            };
            let (frame, ()) = tokio::join!(watch.frame(), later);
            let frame = frame.expect("it goes on").expect("no error");
            assert_eq!(frame.into_data().expect("data"), "event");
            tokio::time::sleep(UNREAD / 2).await;
        }
        tokio::time::timeout(UNREAD, sender.closed())
            .await
            .expect("it is let go");
        let end = watch.frame().await.expect("an end that is told");
        assert!(end.is_err());
    }

    #[tokio::test]
    async fn a_panic_in_a_stream_breaks_it_off_with_an_error() {
        let items = futures::stream::iter(0..3).map(|n| {
            assert_ne!(n, 1, "the second item");
            Ok(Bytes::from_static(b"item"))
        });
        use futures::StreamExt as _;
        let mut body = stream(items);
        let first = body.frame().await.expect("an item").expect("no error");
        assert_eq!(first.into_data().expect("data"), "item");
        body.frame()
            .await
            .expect("an end that is told")
            .expect_err("it broke off");
        assert!(body.frame().await.is_none());
    }
}
