//! The way in for the process's own clients: no socket, no TLS, the same path from there on.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;

use super::body::{BoxError, ResponseBody};
use super::dispatch::{Origin, handle};
use crate::auth::UserInfo;
use crate::server::Inner;

/// A service that acts as one user. Clones are cheap.
#[derive(Clone)]
pub struct LocalService {
    server: Arc<Inner>,
    user: Arc<UserInfo>,
}

impl LocalService {
    pub(crate) fn new(server: Arc<Inner>, user: UserInfo) -> Self {
        Self {
            server,
            user: Arc::new(user),
        }
    }
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        let server = self.server.clone();
        let origin = Origin::Local(self.user.clone());
        Box::pin(async move { Ok(handle(server, request, origin).await) })
    }
}
