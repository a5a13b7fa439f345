//! The schema registry's client: schemas by id, by guid, and the newest of a subject.
//!
//! ```text
//!  id --> cache --> one request, however many wait --> base URLs, beginning with the one that answered last
//!          ^                                              |  GET /schemas/ids/ID   /schemas/guids/GUID   /subjects/S/versions/V
//!          +--- schema, its references inlined <----------+
//! ```
//!
//! Confluent's API, as Confluent's own registry, Apicurio (`/apis/ccompat/v7`), Karapace and Redpanda speak it.
//!
//! Owns: connections, credentials, the time limit, the cache, telling answers apart by what the caller does next. Does not
//! own: trying again, the breaker, where records wait meanwhile (`producer/schemas`).
//!
//! "Unknown" is only what a registry says in its own words, by an `error_code`: a proxy's 404, or a wrong path, would else
//! make a dead letter of each record. Of several all must say so: the one that is away may know it. Redirects are not
//! followed: credentials go where they were configured to go.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::codec::{SchemaId, Written, proto};
use crate::error::ErrorKind;
use crate::schema::Schema;
use crate::tls::{self, Connector, Identity, Trust};

/// Most of an answer that is read, and most of a schema's text with all that it refers to: a schema of some thousand fields
/// has a tenth of it.
const ANSWER: usize = 4 << 20;
/// Most of a refusal that is read, to find its code.
const REFUSAL: usize = 64 << 10;
/// Most schemas that one refers to, those of its references included.
const REFERENCES: usize = 200;
/// Most schemas in the cache.
const CACHED: usize = 10_000;
/// Where schemas are by guid; in Confluent's registry only, since 8.1.
const GUIDS: &str = "/schemas/guids/";
/// Every registry has this.
const SUBJECTS: &str = "/subjects";
/// The codes for a subject, version or schema that is not there.
const ABSENT: std::ops::RangeInclusive<u32> = 40_401..=40_403;

/// Where the registry is, and how it lets us in.
#[derive(Clone, Default)]
pub struct Options {
    /// Base URLs, `http://` or `https://`, in the order in which they are asked; user and password may stand in them.
    pub urls: Vec<String>,
    /// User and password, for basic authentication.
    pub user: Option<(String, String)>,
    /// A bearer token.
    pub token: Option<String>,
    /// PEM file of the certificates to trust; `None`: this machine's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate to show, and of its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Longest time for one request, from connecting to the answer's end.
    pub timeout: Duration,
}

impl fmt::Debug for Options {
    /// Without what nobody may see.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Why a schema cannot be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The options are wrong: nobody can be asked by them. Never repeats a secret.
    #[error("{0}")]
    Options(String),
    /// The registry does not answer, or not as one: ask until it does.
    #[error("the schema registry at {registry} is away: {detail}")]
    Away {
        /// Host and port.
        registry: String,
        /// How that showed.
        detail: String,
    },
    /// It does not let us in. Somebody has to change that, here or there; ask until it does.
    #[error(
        "the schema registry at {registry} answered {status}: see [schema_registry] for user, password and token"
    )]
    Denied {
        /// Host and port.
        registry: String,
        /// Its answer.
        status: u16,
    },
    /// It was asked, and does not know that.
    #[error("the schema registry does not know {what}")]
    Unknown {
        /// The schema, or the subject.
        what: String,
    },
    /// Its answer is longer than any that is read. A schema's is not an error: the schema is [`Found::Unusable`].
    #[error("the schema registry's answer about {what} is longer than {ANSWER} bytes")]
    TooLong {
        /// The schema, or the subject.
        what: String,
    },
}

impl Error {
    /// Whether the same again can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Away { .. } | Error::Denied { .. })
    }

    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Options(_) | Error::Denied { .. } => ErrorKind::Config,
            Error::Away { .. } => ErrorKind::Unavailable,
            Error::Unknown { .. } | Error::TooLong { .. } => ErrorKind::Rejected,
        }
    }
}

/// A schema as the registry has it. An id always means the same one.
#[derive(Clone, Debug)]
pub enum Found {
    /// A schema, with whatever it refers to.
    Schema(Written),
    /// Of no use here, and why: of a type that is not known here, or no valid one.
    Unusable(String),
}

/// A registry. Cheap to clone: clones share connections and cache.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    bases: Vec<Base>,
    /// Index of the base that answered last.
    good: AtomicUsize,
    timeout: Duration,
    client: Client<Connector, Empty<Bytes>>,
    /// Held for a lookup, never across an await. A cell is filled by one request, which others wait for.
    cache: Mutex<HashMap<SchemaId, Arc<OnceCell<Found>>>>,
}

struct Base {
    /// Without a slash at its end.
    url: String,
    host: String,
    authorization: Option<HeaderValue>,
}

/// A schema in the registry's JSON; more fields are ignored.
#[derive(Deserialize)]
struct Registered {
    schema: String,
    /// Only where a subject's version was asked for.
    #[serde(default)]
    id: Option<u32>,
    #[serde(rename = "schemaType", default)]
    kind: Option<String>,
    #[serde(default)]
    references: Option<Vec<Reference>>,
}

#[derive(Deserialize)]
struct Reference {
    /// What it is called where it is referred to: in Protobuf, the file that is imported.
    #[serde(default)]
    name: String,
    subject: String,
    version: i64,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: u32,
}

/// What one base said.
enum Said {
    Answer(Bytes),
    /// More than is read.
    TooLong,
    Absent,
    /// 404, and not as a registry says it.
    Nowhere,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.hosts()).finish()
    }
}

impl Registry {
    /// Prepares to ask. Does not connect yet.
    ///
    /// # Errors
    /// [`Error::Options`] for a URL, credentials or certificates that are none.
    pub fn new(options: &Options) -> Result<Registry, Error> {
        let bases: Vec<Base> = options.urls.iter().map(|url| base(url, options)).collect::<Result<_, _>>()?;
        if bases.is_empty() {
            return Err(Error::Options("no URL of a registry is given".to_owned()));
        }
        let secure = bases.iter().any(|base| base.url.starts_with("https://"));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(tls::IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector(options, secure)?);
        Ok(Registry(Arc::new(Inner {
            bases,
            good: AtomicUsize::new(0),
            timeout: options.timeout,
            client,
            cache: Mutex::default(),
        })))
    }

    /// Hosts and ports.
    pub fn hosts(&self) -> String {
        self.0.bases.iter().map(|base| base.host.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The schema of an id. Asked for once, then cached; who asks meanwhile waits for the same answer.
    ///
    /// # Errors
    /// [`Error`]; nothing of it is cached.
    pub async fn schema(&self, id: SchemaId) -> Result<Found, Error> {
        let cell = {
            let mut cache = self.cache();
            if cache.len() >= CACHED && !cache.contains_key(&id) {
                cache.clear();
            }
            cache.entry(id).or_default().clone()
        };
        let found = cell.get_or_try_init(|| self.fetch(id)).await.cloned();
        if found.is_err() {
            // Ids that nobody knows are not kept: records can name any number of them.
            let mut cache = self.cache();
            if cache.get(&id).is_some_and(|cell| !cell.initialized()) {
                cache.remove(&id);
            }
        }
        found
    }

    /// The newest schema of a subject; asked for each time.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn latest(&self, subject: &str) -> Result<Found, Error> {
        let path = format!("/subjects/{}/versions/latest", escaped(subject));
        self.whole(&path, &format!("subject {subject}")).await
    }

    /// The id of the newest schema of a subject; asked for each time.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn newest(&self, subject: &str) -> Result<SchemaId, Error> {
        let path = format!("/subjects/{}/versions/latest", escaped(subject));
        let registered = self.registered(&path, &format!("subject {subject}")).await?;
        registered.id.map(SchemaId::Number).ok_or_else(|| self.garbled(&path))
    }

    /// Asks for something that any registry has; says who answered.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn probe(&self) -> Result<String, Error> {
        let answer = match self.get(SUBJECTS, "its subjects").await {
            Err(Error::TooLong { .. }) => return Ok(format!("subjects of more than {ANSWER} bytes")),
            answer => answer?,
        };
        match serde_json::from_slice::<Vec<String>>(&answer) {
            Ok(subjects) => Ok(format!("{} subjects", subjects.len())),
            Err(_) => Err(self.garbled(SUBJECTS)),
        }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, HashMap<SchemaId, Arc<OnceCell<Found>>>> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self, id: SchemaId) -> Result<Found, Error> {
        let path = match id {
            SchemaId::Number(number) => format!("/schemas/ids/{number}"),
            SchemaId::Guid(guid) => format!("{GUIDS}{}", uuid::Uuid::from_bytes(guid)),
        };
        self.whole(&path, &id.to_string()).await
    }

    /// A schema with all that it refers to. A reference that is unknown makes it unknown, for as long.
    async fn whole(&self, path: &str, what: &str) -> Result<Found, Error> {
        match self.collected(path, what).await {
            Err(error @ Error::TooLong { .. }) => Ok(Found::Unusable(error.to_string())),
            found => found,
        }
    }

    async fn collected(&self, path: &str, what: &str) -> Result<Found, Error> {
        let main = self.registered(path, what).await?;
        let kind = main.kind.as_deref().unwrap_or("AVRO").to_ascii_uppercase();
        match &*kind {
            "AVRO" | "PROTOBUF" => {}
            "JSON" => return Ok(Found::Schema(Written::Json)),
            _ => return Ok(Found::Unusable(format!("it is of type {kind}, which is not known here"))),
        }
        let mut open: VecDeque<Reference> = main.references.into_iter().flatten().collect();
        let (mut seen, mut texts, mut bytes) = (HashSet::new(), Vec::new(), main.schema.len());
        while let Some(Reference { name, subject, version }) = open.pop_front() {
            if !seen.insert((subject.clone(), version)) {
                continue;
            }
            if seen.len() > REFERENCES {
                return Ok(Found::Unusable(format!("it refers to more than {REFERENCES} schemas")));
            }
            // As Confluent's own client asks: a version that was deleted softly still is what others refer to.
            let path = format!("/subjects/{}/versions/{version}?deleted=true", escaped(&subject));
            let needed = format!("version {version} of subject {subject}, which {what} refers to");
            let other = self.registered(&path, &needed).await?;
            bytes += other.schema.len();
            if bytes > ANSWER {
                let why = format!("its text and those that it refers to are longer than {ANSWER} bytes");
                return Ok(Found::Unusable(why));
            }
            open.extend(other.references.into_iter().flatten());
            texts.push((name, other.schema));
        }
        let avro = |parsed: Result<Schema, crate::schema::Error>| {
            parsed.map(|schema| Written::Avro(Arc::new(schema))).map_err(|error| crate::error::chain(&error))
        };
        let parsed = match (&*kind, texts.as_slice()) {
            ("PROTOBUF", texts) => {
                proto::File::compile(&main.schema, texts).map(Arc::new).map(Written::Protobuf)
            }
            (_, []) => avro(Schema::writers(&main.schema)),
            (_, texts) => {
                avro(Schema::with_references(&main.schema, texts.iter().map(|(_, text)| text.as_str())))
            }
        };
        Ok(parsed.map_or_else(Found::Unusable, Found::Schema))
    }

    async fn registered(&self, path: &str, what: &str) -> Result<Registered, Error> {
        let answer = self.get(path, what).await?;
        serde_json::from_slice(&answer).map_err(|_| self.garbled(path))
    }

    /// An answer that is none of a registry's.
    fn garbled(&self, path: &str) -> Error {
        let registry = self.hosts();
        Error::Away {
            registry,
            detail: format!("what it answered to {path} is not a registry's: is the URL right?"),
        }
    }

    /// Asks one base after another, beginning with the one that answered last. One that does not know it may lag behind
    /// the others, also behind one that is away: unknown is what all of them say is.
    async fn get(&self, path: &str, what: &str) -> Result<Bytes, Error> {
        let Inner { bases, good, timeout, .. } = &*self.0;
        let first = good.load(Ordering::Relaxed);
        let mut failed = None;
        for step in 0..bases.len() {
            let at = (first + step) % bases.len();
            let Some(base) = bases.get(at) else { continue };
            let said = tokio::time::timeout(*timeout, self.ask(base, path)).await;
            let away = || base.away(format!("no answer within {timeout:?}"));
            match said.unwrap_or_else(|_| Err(away())) {
                Ok(Said::Answer(answer)) => {
                    good.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Said::TooLong) => {
                    good.store(at, Ordering::Relaxed);
                    return Err(Error::TooLong { what: what.to_owned() });
                }
                Ok(Said::Absent) => {}
                // Registries that give no guids have no such route either: what nobody can know is unknown.
                Ok(Said::Nowhere) if path.starts_with(GUIDS) && self.is_registry(base).await => {}
                Ok(Said::Nowhere) => {
                    let detail = "it answered 404, and not as a registry does: is the path of the URL right?";
                    failed.get_or_insert(base.away(detail.to_owned()));
                }
                Err(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Err(Error::Unknown { what: what.to_owned() }),
        }
    }

    /// Whether a registry answers there.
    async fn is_registry(&self, base: &Base) -> bool {
        let asked = tokio::time::timeout(self.0.timeout, self.ask(base, SUBJECTS)).await;
        matches!(asked, Ok(Ok(Said::Answer(answer))) if serde_json::from_slice::<Vec<String>>(&answer).is_ok())
    }

    async fn ask(&self, base: &Base, path: &str) -> Result<Said, Error> {
        let url: Uri = format!("{}{path}", base.url)
            .parse()
            .map_err(|_| Error::Options(format!("{path} makes no URL with that of the registry")))?;
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = url;
        let headers = request.headers_mut();
        let accepted = "application/vnd.schemaregistry.v1+json, application/json";
        headers.insert(ACCEPT, HeaderValue::from_static(accepted));
        headers
            .insert(USER_AGENT, HeaderValue::from_static(concat!("stillwell/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &base.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let answer = self.0.client.request(request).await;
        let answer = answer.map_err(|error| base.away(crate::error::chain(&error)))?;
        let status = answer.status();
        let most = if status.is_success() { ANSWER } else { REFUSAL };
        let body = Limited::new(answer.into_body(), most).collect().await;
        match status {
            status if status.is_success() => match body {
                Ok(body) => Ok(Said::Answer(body.to_bytes())),
                Err(error) if error.is::<LengthLimitError>() => Ok(Said::TooLong),
                Err(error) => Err(base.away(format!("its answer breaks off: {error}"))),
            },
            StatusCode::NOT_FOUND => {
                let refusal = body.ok().map(|body| serde_json::from_slice::<Refusal>(&body.to_bytes()));
                match refusal {
                    Some(Ok(refusal)) if ABSENT.contains(&refusal.error_code) => Ok(Said::Absent),
                    _ => Ok(Said::Nowhere),
                }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::Denied { registry: base.host.clone(), status: status.as_u16() })
            }
            status => Err(base.away(format!("it answered {}", status.as_u16()))),
        }
    }
}

impl Base {
    fn away(&self, detail: String) -> Error {
        Error::Away { registry: self.host.clone(), detail }
    }
}

/// A base out of its URL; what is wrong with it, without what nobody may see.
fn base(text: &str, options: &Options) -> Result<Base, Error> {
    let wrong = |what: &str| Error::Options(format!("the URL {what}"));
    let (scheme, rest) = text
        .trim()
        .split_once("://")
        .filter(|(scheme, _)| ["http", "https"].contains(scheme))
        .ok_or_else(|| wrong("is neither http:// nor https://"))?;
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (credentials, host) = match authority.rsplit_once('@') {
        Some((credentials, host)) => (Some(unescaped(credentials)), host),
        None => (None, authority),
    };
    // What follows the slash would be a part of the password, and stand in each log line as the path.
    if path.contains('@') {
        return Err(wrong(
            "has a slash before its @: percent-encode it (%2F; an @ of the path %40), or give user and password in keys \
             of their own",
        ));
    }
    if host.is_empty() || host.starts_with(':') {
        return Err(wrong("names no host"));
    }
    if path.contains(['?', '#']) {
        return Err(wrong("has a query: only its path can be followed by more"));
    }
    let url = format!("{scheme}://{host}{}", path.trim_end_matches('/'));
    url.parse::<Uri>().map_err(|_| wrong("cannot be read as one"))?;
    let user = || options.user.as_ref().map(|(user, password)| format!("{user}:{password}").into_bytes());
    let authorization = match (&options.token, credentials.or_else(user)) {
        (Some(token), _) => Some(format!("Bearer {token}")),
        (None, Some(basic)) => Some(format!("Basic {}", BASE64.encode(basic))),
        (None, None) => None,
    };
    let sensitive = |text: String| {
        let value = HeaderValue::try_from(text);
        value.map(|mut value| {
            value.set_sensitive(true);
            value
        })
    };
    let authorization = authorization.map(sensitive).transpose();
    let authorization = authorization
        .map_err(|_| Error::Options("the token has characters that no header has".to_owned()))?;
    Ok(Base { url, host: host.to_owned(), authorization })
}

/// Credentials of a URL: what is percent-encoded as it is meant; a `%` of any other use stays.
fn unescaped(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let escape = match rest {
            [b'%', high, low, behind @ ..] => digit(*high).zip(digit(*low)).map(|pair| (pair, behind)),
            _ => None,
        };
        match escape {
            Some(((high, low), behind)) => {
                out.push((high * 16 + low) as u8);
                rest = behind;
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    out
}

/// A subject as a part of a path.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn connector(options: &Options, secure: bool) -> Result<Connector, Error> {
    let trust = match &options.ca_file {
        Some(file) => Trust::File(file),
        None if secure => Trust::System,
        None => Trust::Nobody,
    };
    let identity = options.identity.as_ref().map(|(certificate, key)| Identity { certificate, key });
    tls::connector(trust, identity, options.timeout.min(tls::CONNECT)).map_err(|error| {
        let file = if matches!(error, tls::Error::NoRoots(_)) { ", or one with ca_file" } else { "" };
        Error::Options(format!("{error}{file}"))
    })
}

#[cfg(test)]
pub(crate) mod stub;
#[cfg(test)]
mod tests;
