//! The HTTP client under the stores that are far away: hyper, over connections of `tls`.
//!
//! Owns: connections, and how long a silence may last before a connection counts as broken. Does not own: what is asked,
//! signed and tried again (object_store), or what an answer means (`answer`).
//!
//! Redirects are not followed: a signed request goes where it was configured to go, or nowhere.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{HeaderValue, USER_AGENT};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use tokio::time::{Instant, Sleep};

use crate::tls::{self, Connector, Trust};

/// Why a request in the clear is not sent.
pub(super) const IN_THE_CLEAR: &str =
    "the endpoint is http://, and what is sent could be read on the way; allow_http = \"true\" permits that";
/// Idle connections kept: as many as one reader or one writer has under way.
const IDLE_CONNECTIONS: usize = 16;
/// Longest silence within an answer, and before one: then the connection is broken, whatever TCP thinks.
pub(super) const SILENCE: Duration = Duration::from_secs(20);
/// A request's own bytes may take a second more for each of these, before its answer begins.
const SLOWEST_A_SECOND: u64 = 128 << 10;

/// Makes clients. Clients of one store share nothing with those of another but the certificates.
#[derive(Debug)]
pub(super) struct Wire;

impl HttpConnector for Wire {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let given = |key: ClientConfigKey| options.get_config_value(&key);
        let in_the_clear = given(ClientConfigKey::AllowHttp).is_some_and(|allowed| allowed == "true");
        let connect = given(ClientConfigKey::ConnectTimeout);
        let connect = connect.and_then(|text| humantime::parse_duration(&text).ok()).unwrap_or(tls::CONNECT);
        let connector = match tls::connector(Trust::System, None, connect) {
            // Never asked for where the endpoint is http://.
            Err(tls::Error::NoRoots(_)) if in_the_clear => tls::connector(Trust::Nobody, None, connect),
            made => made,
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(tls::IDLE)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .build(connector.map_err(|error| failed(error.to_string()))?);
        Ok(HttpClient::new(Service { client, in_the_clear, silence: SILENCE }))
    }
}

fn failed(why: String) -> object_store::Error {
    object_store::Error::Generic { store: "HTTPS", source: why.into() }
}

#[derive(Debug)]
struct Service {
    client: Client<Connector, HttpRequestBody>,
    in_the_clear: bool,
    silence: Duration,
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if !self.in_the_clear && request.uri().scheme_str() != Some("https") {
            return Err(broken(HttpErrorKind::Unknown, IN_THE_CLEAR));
        }
        let agent = HeaderValue::from_static(concat!("stillwell/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        let bytes = request.body().content_length() as u64;
        let limit = self.silence + Duration::from_secs(bytes / SLOWEST_A_SECOND);
        let answer = match tokio::time::timeout(limit, self.client.request(request)).await {
            Ok(answer) => answer.map_err(refined)?,
            Err(_) => return Err(broken(HttpErrorKind::Timeout, &format!("no answer within {limit:?}"))),
        };
        let silence = self.silence;
        Ok(answer.map(|body| HttpResponseBody::new(Watched::new(body, silence))))
    }
}

/// By what object_store does next: tries again what was not sent, or what may be sent twice.
fn refined(error: ClientError) -> HttpError {
    let mut kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
    let mut next = std::error::Error::source(&error);
    while let Some(below) = next {
        // The pool gave a connection that the server had closed: nothing was sent.
        if below.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            kind = HttpErrorKind::Request;
        }
        next = below.source();
    }
    HttpError::new(kind, error)
}

fn broken(kind: HttpErrorKind, why: &str) -> HttpError {
    HttpError::new(kind, std::io::Error::other(why.to_owned()))
}

/// A body that breaks when nothing came for too long: a peer that is gone without a word would be waited for until TCP
/// gives it up, after a quarter of an hour.
struct Watched {
    inner: Incoming,
    silence: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

impl Watched {
    fn new(inner: Incoming, silence: Duration) -> Watched {
        Watched { inner, silence, timer: Box::pin(tokio::time::sleep(silence)), waiting: false }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(context) {
            this.waiting = false;
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))),
            );
        }
        // From when it is asked for: bytes that wait for their reader are no silence.
        if !std::mem::replace(&mut this.waiting, true) {
            this.timer.as_mut().reset(Instant::now() + this.silence);
        }
        match this.timer.as_mut().poll(context) {
            Poll::Ready(()) => {
                let why = format!("nothing came for {:?}", this.silence);
                Poll::Ready(Some(Err(broken(HttpErrorKind::Timeout, &why))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Answers one request with this and then says nothing; asks of it.
    async fn asked(answer: &'static str, silence: Duration) -> Result<Result<Bytes, HttpError>, HttpError> {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/blob", socket.local_addr().unwrap());
        let server = async {
            let (mut stream, _) = socket.accept().await.unwrap();
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).await.unwrap();
            let request = String::from_utf8_lossy(&bytes[..read]).to_ascii_lowercase();
            assert!(request.contains("user-agent: stillwell/"), "{request}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Until the client has had enough.
            while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(tls::connector(Trust::Nobody, None, tls::CONNECT).unwrap());
        let service = Service { client, in_the_clear: true, silence };
        let asking = async move {
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            *request.uri_mut() = url.parse().unwrap();
            let answer = service.call(request).await?;
            Ok(answer.into_body().collect().await.map(|body| body.to_bytes()))
        };
        let ((), asked) = tokio::join!(server, asking);
        asked
    }

    #[tokio::test]
    async fn a_peer_that_falls_silent_is_given_up() {
        let whole =
            asked("HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody", LONG).await;
        assert_eq!(whole.unwrap().unwrap(), "body");
        // Time enough for what does come and go, on a busy machine too.
        let silence = Duration::from_secs(3);
        let none = asked("", silence).await.unwrap_err();
        assert_eq!(none.kind(), HttpErrorKind::Timeout, "{none:?}");
        let half = asked("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbo", silence).await;
        let half = half.unwrap().unwrap_err();
        assert!(half.kind() == HttpErrorKind::Timeout && half.to_string().contains("nothing came"), "{half}");
    }

    #[tokio::test]
    async fn nothing_goes_in_the_clear_unless_that_is_meant() {
        let client = Wire.connect(&ClientOptions::new()).unwrap();
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = "http://127.0.0.1:1/blob".parse().unwrap();
        let refused = client.execute(request).await.unwrap_err();
        assert!(refused.to_string().contains("allow_http"), "{refused}");
    }
}
