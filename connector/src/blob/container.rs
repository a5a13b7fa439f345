//! Credentials that a container is given by its host: ECS, EKS (pod identity), Greengrass, and who answers like them.
//!
//! ```text
//! AWS_CONTAINER_CREDENTIALS_RELATIVE_URI   http://169.254.170.2/URI
//! AWS_CONTAINER_CREDENTIALS_FULL_URI       as it stands: https://, or http:// to this host or one of the providers' own
//! authorization                            AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE, read for each question; AWS_CONTAINER_AUTHORIZATION_TOKEN
//! ```
//!
//! object_store asks for these, too, but takes a full URI only with a token's file, and sends that token anywhere.
//!
//! Owns: asking, and for how long an answer is good. Does not own: which source of credentials is taken (`remote`).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt as _, Limited};
use hyper::Uri;
use hyper::header::{AUTHORIZATION, HeaderValue};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use object_store::client::{HttpClient, HttpError, HttpRequest, HttpRequestBody};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;

/// Where ECS answers.
const ECS: &str = "http://169.254.170.2";
/// Hosts of the providers that are asked in the clear: of ECS, and of EKS by either protocol.
const HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];
/// Asked anew when so little is left.
const LEFT: Duration = Duration::from_secs(300);
/// Not asked twice within this, while what is there is good: longer than [`PATIENCE`], so that one asks at a time.
const AGAIN: Duration = Duration::from_secs(10);
/// Longest wait for an answer while what is there is good: whoever asks has a request of his own to make in time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Questions, where one is not answered.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);
/// Most of an answer that is read.
const ANSWER: usize = 64 << 10;

/// Who answers, and how it lets us in.
#[derive(Clone, PartialEq)]
pub(super) struct Place {
    /// What is asked.
    pub(super) url: String,
    file: Option<String>,
    token: Option<String>,
}

impl fmt::Debug for Place {
    /// Without what nobody may see.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("url", &self.shown()).finish_non_exhaustive()
    }
}

impl Place {
    /// By what is set. `None`: nothing is. The error says what is wrong.
    pub(super) fn find(
        relative: Option<&str>,
        full: Option<&str>,
        file: Option<String>,
        token: Option<String>,
    ) -> Option<Result<Place, String>> {
        let url = match (relative, full) {
            (Some(relative), _) if relative.starts_with('/') => format!("{ECS}{relative}"),
            (Some(_), _) => {
                return Some(Err(
                    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI is no path: it begins with a /".to_owned()
                ));
            }
            (None, Some(full)) => full.to_owned(),
            (None, None) => return None,
        };
        Some(may_be_asked(&url).map(|()| Place { url, file, token }))
    }

    /// Who is asked, for people. At ECS a GUID at the end of the path is all that it takes to be given the role; and what is cut off
    /// is marked, so that no URL of the store's own begins so.
    pub(super) fn shown(&self) -> String {
        let Ok(uri) = self.url.parse::<Uri>() else { return "(no URL)".to_owned() };
        let port = uri.port_u16().map_or_else(String::new, |port| format!(":{port}"));
        let path = uri.path().rsplit_once('/').map_or("", |(path, _)| path);
        let (scheme, host) = (uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default());
        format!("{scheme}://{host}{port}{path}/…")
    }

    /// What is shown to who answers.
    async fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let token = match &self.file {
            Some(file) => {
                let read = tokio::fs::read_to_string(file).await;
                Some(read.map_err(|error| {
                    format!(
                        "the file {file} (AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE) cannot be read: {error}"
                    )
                })?)
            }
            None => self.token.clone(),
        };
        let Some(token) = token else { return Ok(None) };
        let mut header = HeaderValue::from_str(token.trim())
            .map_err(|_| "the authorization token of the container holds more than a token".to_owned())?;
        header.set_sensitive(true);
        Ok(Some(header))
    }
}

/// Whether credentials may be asked for there: whoever sets the variable must not have them sent over a network in the clear.
fn may_be_asked(url: &str) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|_| "AWS_CONTAINER_CREDENTIALS_FULL_URI is no URL".to_owned())?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let here = || host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if HOSTS.contains(&host) || here() => Ok(()),
        _ => Err(format!(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI names {host}: credentials are asked for by https://, or by http:// on this \
             host and at 169.254.170.2, 169.254.170.23 and fd00:ec2::23"
        )),
    }
}

/// As it is answered.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    token: Option<String>,
    /// Some never end.
    #[serde(default)]
    expiration: Option<String>,
}

/// Credentials, and until when they are good.
struct Held {
    credential: Arc<AwsCredential>,
    ends: Option<Instant>,
    /// Not asked for anew before.
    next: Instant,
}

impl Held {
    fn is_good(&self, now: Instant) -> bool {
        self.ends.is_none_or(|ends| ends > now)
    }

    /// Whether it is time to ask for others.
    fn is_due(&self, now: Instant) -> bool {
        now >= self.next && self.ends.is_some_and(|ends| ends.saturating_duration_since(now) <= LEFT)
    }
}

/// Asks a container's host.
pub(super) struct Container {
    place: Place,
    client: HttpClient,
    clock: Clock,
    patience: Duration,
    /// Held while it is asked and there are none that are good: who needs them meanwhile waits for the same answer.
    known: Mutex<Known>,
}

/// What came of asking.
#[derive(Default)]
struct Known {
    held: Option<Held>,
    /// When it was last asked in vain, and why: who waited for that does not ask once more, one after the other.
    failed: Option<(Instant, Arc<Error>)>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Container").field(&self.place).finish()
    }
}

/// What went wrong, in a text that names who was asked and no more than that.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("asking {url}")]
    Broken {
        url: String,
        #[source]
        source: HttpError,
    },
    #[error("asking {url} - status code: {status} ")]
    Status { url: String, status: u16 },
    #[error("asking {url}: {what}")]
    Other { url: String, what: String },
}

impl Container {
    pub(super) fn new(place: Place, client: HttpClient) -> Container {
        Container { place, client, clock: Clock::system(), patience: PATIENCE, known: Mutex::default() }
    }

    async fn ask(&self) -> Result<Held, Error> {
        let url = || self.place.shown();
        let other = |what: String| Error::Other { url: url(), what };
        let asked = Instant::now();
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = self.place.url.parse().map_err(|_| other("it is no URL".to_owned()))?;
        if let Some(token) = self.place.authorization().await.map_err(other)? {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        let broken = |source| Error::Broken { url: url(), source };
        let answer = self.client.execute(request).await.map_err(broken)?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Error::Status { url: url(), status: status.as_u16() });
        }
        let body = Limited::new(answer.into_body(), ANSWER).collect().await;
        let body = body.map_err(|_| other("the answer broke off, or is too long".to_owned()))?.to_bytes();
        // What does not parse is not repeated: it may hold half of a secret.
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| other("the answer holds no credentials".to_owned()))?;
        let left = match &answer.expiration {
            None => None,
            Some(at) => {
                let at = humantime::parse_rfc3339(at).ok();
                let at = at.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
                let at = at.ok_or_else(|| other("the answer's Expiration is no time".to_owned()))?;
                let now = Duration::from_millis(u64::try_from(self.clock.wall_ms()).unwrap_or_default());
                Some(at.saturating_sub(now))
            }
        };
        let Answer { access_key_id: key_id, secret_access_key: secret_key, token, .. } = answer;
        let credential = Arc::new(AwsCredential { key_id, secret_key, token });
        Ok(Held { credential, ends: left.map(|left| asked + left), next: asked + AGAIN })
    }

    /// Asks again where that may help at once.
    async fn answered(&self) -> Result<Held, Error> {
        let mut tried = 1;
        loop {
            let error = match self.ask().await {
                Ok(held) => return Ok(held),
                Err(error) => error,
            };
            let passes = matches!(&error, Error::Broken { .. } | Error::Status { status: 429 | 500.., .. });
            if !passes || tried >= TRIES {
                return Err(error);
            }
            tokio::time::sleep(PAUSE * 2u32.pow(tried)).await;
            tried += 1;
        }
    }

    /// Asks once, and not for long, while there are some that are good: a host that is away costs one request in a while
    /// a little, and no request its credentials. `None`: it was in vain.
    async fn renewed(&self) -> Option<Arc<AwsCredential>> {
        let why = match tokio::time::timeout(self.patience, self.ask()).await {
            Ok(Ok(new)) => {
                let credential = Arc::clone(&new.credential);
                *self.known.lock().await = Known { held: Some(new), failed: None };
                return Some(credential);
            }
            Ok(Err(error)) => crate::error::chain(&error),
            Err(_) => format!("asking {}: no answer within {:?}", self.place.shown(), self.patience),
        };
        tracing::warn!(error = why, "credentials end soon, and new ones cannot be had; asking again");
        None
    }
}

#[async_trait]
impl CredentialProvider for Container {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let began = Instant::now();
        let mut known = self.known.lock().await;
        let now = Instant::now();
        if let Some(held) = known.held.as_mut().filter(|held| held.is_good(now)) {
            let (credential, ends) = (Arc::clone(&held.credential), held.ends);
            if !held.is_due(now) {
                return Ok(credential);
            }
            // Before it is asked, since whoever asks may be given up meanwhile.
            held.next = now + AGAIN;
            drop(known);
            if let Some(new) = self.renewed().await {
                return Ok(new);
            }
            if ends.is_none_or(|ends| ends > Instant::now()) {
                return Ok(credential);
            }
            known = self.known.lock().await;
        }
        let Known { held, failed } = &mut *known;
        // Somebody else may have been given some.
        if let Some(held) = held
            && held.is_good(Instant::now())
        {
            return Ok(Arc::clone(&held.credential));
        }
        let generic =
            |error: Arc<Error>| object_store::Error::Generic { store: "S3", source: Box::new(error) };
        if let Some((at, error)) = failed
            && *at >= began
        {
            return Err(generic(Arc::clone(error)));
        }
        match self.answered().await {
            Ok(new) => {
                let credential = Arc::clone(&new.credential);
                (*held, *failed) = (Some(new), None);
                Ok(credential)
            }
            Err(error) => {
                let error = Arc::new(error);
                *failed = Some((Instant::now(), Arc::clone(&error)));
                Err(generic(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hyper::StatusCode;
    use object_store::client::{HttpResponse, HttpResponseBody, HttpService};

    use super::*;

    fn found(relative: Option<&str>, full: Option<&str>) -> Result<String, String> {
        let place = Place::find(relative, full, None, Some("s3cret".to_owned())).unwrap();
        assert!(!format!("{place:?}").contains("s3cret"));
        place.map(|place| place.url)
    }

    #[test]
    fn who_is_asked_is_named_without_what_gives_the_role() {
        for (url, shown) in [
            ("http://169.254.170.2/v2/credentials/s3cret", "http://169.254.170.2/v2/credentials/…"),
            ("https://me:s3cret@creds.example:8443/a/b?token=s3cret", "https://creds.example:8443/a/…"),
            ("http://[::1]:1/s3cret", "http://[::1]:1/…"),
            ("https://creds.example", "https://creds.example/…"),
        ] {
            let place = Place::find(None, Some(url), None, None).unwrap().unwrap();
            assert_eq!((place.url.as_str(), &*place.shown()), (url, shown));
            assert!(!format!("{place:?}").contains("s3cret"), "{place:?}");
        }
    }

    /// Lets nobody in, and counts who asked.
    #[derive(Debug, Clone, Default)]
    struct Refuses(Arc<AtomicUsize>);

    #[async_trait]
    impl HttpService for Refuses {
        async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            let mut answer = HttpResponse::new(HttpResponseBody::from(String::new()));
            *answer.status_mut() = StatusCode::FORBIDDEN;
            Ok(answer)
        }
    }

    #[tokio::test]
    async fn who_waited_for_an_answer_has_it_also_where_it_is_no() {
        let refuses = Refuses::default();
        let place = Place::find(Some("/v2/credentials/s3cret"), None, None, None).unwrap().unwrap();
        let container = Container::new(place, HttpClient::new(refuses.clone()));
        let (one, two) = tokio::join!(container.get_credential(), container.get_credential());
        let (one, two) = (one.unwrap_err(), two.unwrap_err());
        assert_eq!(refuses.0.load(Ordering::Relaxed), 1);
        assert_eq!(one.to_string(), two.to_string());
        let all = format!("{one} {one:?} {container:?}");
        assert!(all.contains("403") && !all.contains("s3cret"), "{all}");
        container.get_credential().await.unwrap_err();
        assert_eq!(refuses.0.load(Ordering::Relaxed), 2, "who comes later asks anew");
    }

    /// Says nothing, or hands out `NEW`; and counts who asked.
    #[derive(Debug, Clone, Default)]
    struct Host {
        answers: bool,
        asked: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl HttpService for Host {
        async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if !self.answers {
                std::future::pending::<()>().await;
            }
            let new = r#"{"AccessKeyId": "NEW", "SecretAccessKey": "s3cret"}"#;
            Ok(HttpResponse::new(HttpResponseBody::from(new.to_owned())))
        }
    }

    /// Has credentials that are good for a few minutes, and due.
    fn due(host: &Host, patience: Duration) -> Container {
        let place = Place::find(Some("/v2/credentials/s3cret"), None, None, None).unwrap().unwrap();
        let mut container = Container::new(place, HttpClient::new(host.clone()));
        container.patience = patience;
        let (key_id, secret_key) = ("OLD".to_owned(), "s3cret".to_owned());
        let credential = Arc::new(AwsCredential { key_id, secret_key, token: None });
        let now = Instant::now();
        let held = Held { credential, ends: Some(now + Duration::from_secs(250)), next: now };
        container.known.get_mut().held = Some(held);
        container
    }

    /// Whose credentials are at hand: whoever has to wait for them waits in vain.
    async fn at_hand(container: &Container) -> String {
        let had = tokio::time::timeout(Duration::from_secs(60), container.get_credential());
        had.await.expect("it has some that are good").unwrap().key_id.clone()
    }

    #[tokio::test]
    async fn what_is_good_is_there_while_a_silent_host_is_asked_and_when_the_asker_has_gone() {
        let host = Host::default();
        let container = due(&host, Duration::from_secs(3_600));
        let mut asking = container.get_credential();
        tokio::select! {
            biased;
            _ = asking.as_mut() => panic!("nobody answers"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(host.asked.load(Ordering::Relaxed), 1);
        assert_eq!(at_hand(&container).await, "OLD", "others do not wait for it");
        // Its request had a time limit of its own.
        drop(asking);
        assert_eq!(at_hand(&container).await, "OLD");
        assert_eq!(host.asked.load(Ordering::Relaxed), 1, "not again so soon");
    }

    #[tokio::test]
    async fn a_silent_host_is_asked_once_and_not_for_long_while_there_are_good_ones() {
        let host = Host::default();
        let container = due(&host, Duration::from_millis(1));
        let began = Instant::now();
        assert_eq!(at_hand(&container).await, "OLD");
        assert_eq!(host.asked.load(Ordering::Relaxed), 1);
        let next = container.known.lock().await.held.as_ref().unwrap().next;
        assert!(next >= began + AGAIN && AGAIN > PATIENCE, "the next one does not ask at once");
        // One that answers is asked, and its answer kept.
        let host = Host { answers: true, ..Host::default() };
        let container = due(&host, Duration::from_secs(60));
        assert_eq!((at_hand(&container).await, at_hand(&container).await), ("NEW".into(), "NEW".into()));
        assert_eq!(host.asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_path_is_the_hosts_and_a_url_is_asked_where_nobody_listens() {
        assert_eq!(Place::find(None, None, Some("/token".to_owned()), None), None);
        assert_eq!(found(Some("/v2/creds"), None).unwrap(), "http://169.254.170.2/v2/creds");
        assert_eq!(
            found(Some("/a"), Some("https://h/b")).unwrap(),
            "http://169.254.170.2/a",
            "it goes first"
        );
        assert!(found(Some("v2"), None).unwrap_err().contains("begins with a /"));
        for good in [
            "https://creds.example/a",
            "http://127.0.0.1:80/a",
            "http://localhost/a",
            "http://[::1]:1/a",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::23]/v1/credentials",
        ] {
            assert_eq!(found(None, Some(good)).unwrap(), good);
        }
        for bad in ["http://creds.example/a", "http://169.254.169.254/a", "ftp://localhost/a", "creds", ""] {
            let why = found(None, Some(bad)).unwrap_err();
            assert!(why.contains("AWS_CONTAINER_CREDENTIALS_FULL_URI"), "{bad}: {why}");
        }
    }
}
