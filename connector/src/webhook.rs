//! The webhook's HTTP client: one signed POST, and what its answer means.
//!
//! Signed as Standard Webhooks says (<https://github.com/standard-webhooks/standard-webhooks>):
//!
//! ```text
//! webhook-id: ID                  webhook-signature: v1,BASE64( HMAC-SHA256( secret, ID "." SECONDS "." body ) )
//! webhook-timestamp: SECONDS
//! ```
//!
//! Owns: connection, signature, time limit, and telling answers apart by what the caller does next. Does not own: what is
//! sent, trying again, the breaker (`consumer/listen`).
//!
//! Redirects are not followed: a signed body goes where it was configured to go, or nowhere.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ring::hmac;

use crate::tls::{self, Connector, Trust};

/// Most of an answer's body that is read, so that its connection can be used again.
const ANSWER: usize = 64 << 10;
/// Longest that a receiver may ask to be left alone.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Prefix of a secret that is written as base64.
const SECRET_PREFIX: &str = "whsec_";

/// Headers that are this client's to set.
const OURS: [&str; 9] = [
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
    "content-type",
    "content-length",
    "transfer-encoding",
    "host",
    "connection",
    "user-agent",
];

/// Where to send, and how.
#[derive(Clone)]
pub struct Options {
    /// `http://` or `https://`.
    pub url: String,
    /// What to sign with; `None`: nothing is signed. `whsec_` and base64, or any text, whose bytes it is then.
    pub secret: Option<String>,
    /// More headers, each as `Name: value`.
    pub headers: Vec<String>,
    /// Longest time for an attempt, from connecting to the answer's end.
    pub timeout: Duration,
}

impl fmt::Debug for Options {
    /// Without what nobody may see: the URL may have a password or a token in it, too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Why nothing was sent, or it was not taken. Each says what the caller does next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options are wrong: nothing can be sent by them. Never repeats a secret.
    #[error("{0}")]
    Options(String),
    /// The receiver does not answer, or says that it cannot at the moment: try again until it does.
    #[error("{receiver} is away: {detail}")]
    Away {
        /// Host and port.
        receiver: String,
        /// How that showed.
        detail: String,
        /// Not before.
        retry_after: Option<Duration>,
    },
    /// The receiver was reached, and did not do it: it may do so the next time.
    #[error("{receiver} failed: {detail}")]
    Failed {
        /// Host and port.
        receiver: String,
        /// How that showed.
        detail: String,
    },
    /// Its answer speaks of the receiver, or of us, and not of what was sent: it would be the same for anything. Try again
    /// until somebody has corrected that.
    #[error("{receiver} takes nothing from here: it answered {status}; {remedy}")]
    Barred {
        /// Host and port.
        receiver: String,
        /// Its answer.
        status: u16,
        /// What to look at.
        remedy: &'static str,
    },
    /// The receiver does not want it.
    #[error("{receiver} refused: it answered {status}")]
    Refused {
        /// Host and port.
        receiver: String,
        /// Its answer.
        status: u16,
    },
}

impl Error {
    /// Whether the same again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Away { .. } | Error::Failed { .. } | Error::Barred { .. })
    }
}

/// A place to send to. Cheap to clone: clones share its connections.
#[derive(Clone)]
pub struct Endpoint {
    url: Uri,
    receiver: String,
    headers: HeaderMap,
    key: Option<hmac::Key>,
    timeout: Duration,
    client: Client<Connector, Full<Bytes>>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("receiver", &self.receiver).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Prepares to send. Does not connect yet.
    ///
    /// # Errors
    /// [`Error::Options`] for a URL, secret or header that is none; where this machine has no certificates to trust, and the
    /// URL is `https://`.
    pub fn new(options: &Options) -> Result<Endpoint, Error> {
        let (url, credentials) = address(&options.url)?;
        let mut headers = HeaderMap::new();
        if let Some(credentials) = credentials {
            let mut value = HeaderValue::try_from(format!("Basic {}", BASE64.encode(credentials)))
                .map_err(|_| Error::Options("the URL's user and password are no header's".to_owned()))?;
            value.set_sensitive(true);
            headers.insert(hyper::header::AUTHORIZATION, value);
        }
        for (at, header) in options.headers.iter().enumerate() {
            let (name, value) = header_of(header)
                .map_err(|what| Error::Options(format!("header {} of the list {what}", at + 1)))?;
            headers.append(name, value);
        }
        let key = options.secret.as_deref().map(key).transpose()?;
        let receiver = url.authority().map(ToString::to_string).unwrap_or_default();
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(tls::IDLE)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .build(connector(&url, options.timeout)?);
        Ok(Endpoint { url, receiver, headers, key, timeout: options.timeout, client })
    }

    /// Sends a body under an id, at a time in seconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error::Away`], [`Error::Failed`], [`Error::Barred`], [`Error::Refused`].
    pub async fn post(&self, id: &str, seconds: i64, body: Bytes) -> Result<(), Error> {
        let request = self.request(id, seconds, body)?;
        match tokio::time::timeout(self.timeout, self.exchange(request)).await {
            Ok(done) => done,
            Err(_) => Err(self.failed(format!("no answer within {:?}", self.timeout))),
        }
    }

    fn request(&self, id: &str, seconds: i64, body: Bytes) -> Result<Request<Full<Bytes>>, Error> {
        let text = |text: String| {
            HeaderValue::try_from(text).map_err(|_| Error::Options("an id that is no header's".to_owned()))
        };
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers
            .insert(USER_AGENT, HeaderValue::from_static(concat!("stillwell/", env!("CARGO_PKG_VERSION"))));
        headers.insert("webhook-id", text(id.to_owned())?);
        headers.insert("webhook-timestamp", HeaderValue::from(seconds));
        if let Some(key) = &self.key {
            headers.insert("webhook-signature", text(sign(key, id, seconds, &body))?);
        }
        *request.body_mut() = Full::new(body);
        Ok(request)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(), Error> {
        let answer = self.client.request(request).await.map_err(|error| {
            let detail = crate::error::chain(&error);
            if error.is_connect() { self.away(detail, None) } else { self.failed(detail) }
        })?;
        let status = answer.status();
        let asked =
            answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let asked = asked.map(|seconds| Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER));
        // What it says is not needed; that it is read to its end keeps the connection.
        let _ = Limited::new(answer.into_body(), ANSWER).collect().await;
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT => {
                Err(self.away(format!("it answered {}", status.as_u16()), asked))
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => {
                Err(self.failed(format!("it answered {}", status.as_u16())))
            }
            status if status.is_server_error() => {
                Err(self.failed(format!("it answered {}", status.as_u16())))
            }
            status => Err(match remedy(status) {
                Some(remedy) => {
                    Error::Barred { receiver: self.receiver.clone(), status: status.as_u16(), remedy }
                }
                None => Error::Refused { receiver: self.receiver.clone(), status: status.as_u16() },
            }),
        }
    }

    fn away(&self, detail: String, retry_after: Option<Duration>) -> Error {
        Error::Away { receiver: self.receiver.clone(), detail, retry_after }
    }

    fn failed(&self, detail: String) -> Error {
        Error::Failed { receiver: self.receiver.clone(), detail }
    }
}

/// What to look at, where an answer says nothing of what was sent.
fn remedy(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Some("correct the webhook's headers, secret, or the user and password in its url")
        }
        // 421: this server does not speak for the URL's host. 426: not by this protocol, whatever is asked (RFC 9110, 15.5.20
        // and 15.5.22). Neither has looked at the body.
        StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::GONE
        | StatusCode::MISDIRECTED_REQUEST
        | StatusCode::UPGRADE_REQUIRED => Some("correct the webhook's url, or the receiver"),
        status if status.is_redirection() => Some("redirects are not followed: correct the webhook's url"),
        _ => None,
    }
}

/// The URL without its user and password, and those.
fn address(text: &str) -> Result<(Uri, Option<String>), Error> {
    let wrong = |what: &str| Error::Options(format!("the URL {what}"));
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no scheme: http:// or https://"))?;
    if !["http", "https"].contains(&scheme) {
        return Err(wrong("is neither http:// nor https://"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (credentials, host) = match authority.rsplit_once('@') {
        Some((credentials, host)) => (Some(credentials.to_owned()), host),
        None => (None, authority),
    };
    if host.is_empty() || host.starts_with(':') {
        return Err(wrong("names no host"));
    }
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let url: Uri =
        format!("{scheme}://{host}{slash}{path}").parse().map_err(|_| wrong("cannot be read as one"))?;
    Ok((url, credentials))
}

/// A header as it is configured; what is wrong with it, without its value.
fn header_of(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| "has no colon: write Name: value".to_owned())?;
    let name: HeaderName = name.trim().parse().map_err(|_| "has a name that is none".to_owned())?;
    if OURS.contains(&name.as_str()) {
        return Err(format!("is {name}, which is set here"));
    }
    let mut value: HeaderValue =
        value.trim().parse().map_err(|_| format!("({name}) has a value that no header has"))?;
    value.set_sensitive(true);
    Ok((name, value))
}

fn key(secret: &str) -> Result<hmac::Key, Error> {
    let bytes = match secret.strip_prefix(SECRET_PREFIX) {
        Some(encoded) => BASE64.decode(encoded).map_err(|_| {
            Error::Options(format!("the secret begins with {SECRET_PREFIX} and goes on as no base64"))
        })?,
        None => secret.as_bytes().to_vec(),
    };
    if bytes.is_empty() {
        return Err(Error::Options("the secret is empty".to_owned()));
    }
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

fn sign(key: &hmac::Key, id: &str, seconds: i64, body: &[u8]) -> String {
    let mut signed = hmac::Context::with_key(key);
    signed.update(format!("{id}.{seconds}.").as_bytes());
    signed.update(body);
    format!("v1,{}", BASE64.encode(signed.sign()))
}

fn connector(url: &Uri, timeout: Duration) -> Result<Connector, Error> {
    let trust = if url.scheme_str() == Some("https") { Trust::System } else { Trust::Nobody };
    tls::connector(trust, None, timeout.min(tls::CONNECT)).map_err(|error| Error::Options(error.to_string()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    fn options(url: &str) -> Options {
        Options { url: url.to_owned(), secret: None, headers: Vec::new(), timeout: Duration::from_secs(30) }
    }

    #[test]
    fn signed_as_the_standard_says() {
        // The example of the standard's own libraries (standard-webhooks, python/test_webhooks.py).
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(
            sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn what_is_configured_wrongly_is_said_without_its_secrets() {
        for (options, said) in [
            (options("ftp://host/x"), "neither"),
            (options("host/x"), "no scheme"),
            (options("http://:p4ss@/x"), "names no host"),
            (
                Options { headers: vec!["x p4ss".into()], ..options("http://h/") },
                "header 1 of the list has no colon",
            ),
            (
                Options { headers: vec!["a: b".into(), "b c: p4ss".into()], ..options("http://h/") },
                "header 2",
            ),
            (Options { headers: vec!["Webhook-Id: p4ss".into()], ..options("http://h/") }, "is set here"),
            (Options { secret: Some("whsec_p4ss!".into()), ..options("http://h/") }, "no base64"),
            (Options { secret: Some("whsec_".into()), ..options("http://h/") }, "empty"),
        ] {
            let error = Endpoint::new(&options).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("p4ss"), "{error}");
            assert!(!format!("{options:?}").contains("p4ss"));
        }
        let (url, credentials) = address("http://me:p@ss@host:81?x=/y#z").unwrap();
        assert_eq!(
            (url.to_string().as_str(), credentials.as_deref()),
            ("http://host:81/?x=/y", Some("me:p@ss"))
        );
    }

    /// Answers each request on one socket with the next answer; gives what it was sent.
    async fn receiver(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://me:pw@{}/hook?a=b", socket.local_addr().unwrap());
        #[expect(clippy::disallowed_methods, reason = "the test joins it")]
        let task = tokio::spawn(async move {
            let mut seen = Vec::new();
            let (mut stream, _) = socket.accept().await.unwrap();
            for answer in answers {
                let mut text = String::new();
                while !text.ends_with("body") {
                    let mut bytes = [0; 4096];
                    let read = stream.read(&mut bytes).await.unwrap();
                    assert!(read > 0, "{text}");
                    text += std::str::from_utf8(&bytes[..read]).unwrap();
                }
                seen.push(text);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        (url, task)
    }

    #[tokio::test]
    async fn one_connection_and_what_each_answer_means() {
        let answers = vec![
            "HTTP/1.1 204 No Content\r\n\r\n",
            "HTTP/1.1 429 Slow\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\nno",
            "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 302 Found\r\nlocation: http://elsewhere/\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 422 No\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        ];
        let (url, task) = receiver(answers).await;
        let secret = Some("secret".to_owned());
        let headers = vec!["X-Tenant: shop".to_owned()];
        let endpoint = Endpoint::new(&Options { secret, headers, ..options(&url) }).unwrap();
        let body = || Bytes::from_static(b"body");
        endpoint.post("id.1", 5, body()).await.unwrap();
        let away = endpoint.post("id.2", 6, body()).await.unwrap_err();
        assert!(matches!(away, Error::Away { retry_after: Some(wait), .. } if wait.as_secs() == 7), "{away}");
        let failed = endpoint.post("id.3", 7, body()).await.unwrap_err();
        assert!(matches!(failed, Error::Failed { .. }), "{failed}");
        let barred = endpoint.post("id.4", 8, body()).await.unwrap_err();
        assert!(matches!(barred, Error::Barred { status: 302, .. }) && barred.is_transient(), "{barred}");
        let refused = endpoint.post("id.4", 8, body()).await.unwrap_err();
        assert!(
            matches!(refused, Error::Refused { status: 422, .. }) && !refused.is_transient(),
            "{refused}"
        );
        endpoint.post("id.5", 9, body()).await.unwrap();
        let seen = task.await.unwrap();
        let first = seen[0].to_ascii_lowercase();
        assert!(first.starts_with("post /hook?a=b http/1.1\r\n"), "{first}");
        let signature = sign(&key("secret").unwrap(), "id.1", 5, b"body").to_ascii_lowercase();
        for header in [
            "webhook-id: id.1",
            "webhook-timestamp: 5",
            &format!("webhook-signature: {signature}"),
            "content-type: application/json",
            "x-tenant: shop",
            &format!("authorization: basic {}", BASE64.encode("me:pw").to_ascii_lowercase()),
        ] {
            assert!(first.contains(&format!("\r\n{header}\r\n")), "{header} is not in {first}");
        }
    }

    #[test]
    fn what_an_answer_says_of_the_receiver_it_does_not_say_of_what_was_sent() {
        let barred = |status: u16| remedy(StatusCode::from_u16(status).unwrap());
        for (status, said) in [
            (301, "redirects"),
            (401, "headers"),
            (403, "secret"),
            (404, "url"),
            (405, "url"),
            (410, "url"),
            (421, "url"),
            (426, "url"),
        ] {
            assert!(barred(status).is_some_and(|remedy| remedy.contains(said)), "{status}");
        }
        assert!(barred(407).is_some());
        for status in [400, 406, 409, 411, 413, 415, 422, 451] {
            assert_eq!(barred(status), None, "{status} is of this body");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_away_and_silence_is_a_failure() {
        // Nobody listens on port 1.
        let away = Endpoint::new(&options("http://127.0.0.1:1/")).unwrap();
        let error = away.post("id", 1, Bytes::new()).await.unwrap_err();
        assert!(matches!(error, Error::Away { .. }), "{error}");
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", socket.local_addr().unwrap());
        let silent = Endpoint::new(&Options { timeout: Duration::from_millis(50), ..options(&url) }).unwrap();
        let error = silent.post("id", 1, Bytes::new()).await.unwrap_err();
        assert!(matches!(error, Error::Failed { .. }), "{error}");
        assert!(error.to_string().contains("no answer within 50ms"), "{error}");
    }
}
