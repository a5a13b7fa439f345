//! Asks an endpoint for a token, by OAuth's client credentials (RFC 6749, 4.4), as librdkafka does where it can.
//!
//! ```text
//!  POST url, Basic id:secret, grant_type=client_credentials&scope=… -> {"access_token": "HEAD.CLAIMS.SIGNATURE"}
//!                                                   CLAIMS: base64 of {"exp": seconds, "sub": who, …}
//! ```
//!
//! Owns: one request, what its answer says, and words for what is wrong with it: on one line, and never with the secret or a
//! token in them. Does not own: when to ask (`tokens`), or whether the token is genuine (the broker).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use super::given::Given;
use crate::clock::Clock;

/// Longest that an answer may take: less than a request to Kafka may, which then still can say why it had no token.
pub(super) const LIMIT: Duration = Duration::from_secs(8);
/// Longest answer with a token, in bytes.
const ANSWER: usize = 1 << 20;
/// Longest refusal that is looked at.
const REFUSAL: usize = 64 << 10;
/// What is repeated of it, in characters.
const REPEATED: usize = 200;
/// The shortest value of a URL's query that may be a secret.
const SHORTEST: usize = 4;
/// What is said in place of a secret.
const MASK: &str = "***";
/// Ends that are later than this count as this, in milliseconds since the Unix epoch: the year 9999.
const LATEST_MS: i64 = 253_402_300_799_000;

/// What a client shows to a broker. Not `Debug`: whoever has it may come in.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::kafka) struct Token {
    pub(super) value: String,
    /// For whom it is, for log lines of librdkafka's.
    pub(super) principal: String,
    /// When it ends, in milliseconds since the Unix epoch, by the clock of who gave it.
    pub(super) ends_ms: i64,
    /// What the broker is told besides.
    pub(super) extensions: Vec<(String, String)>,
}

/// Asks for a token, and waits for up to `limit`.
///
/// # Errors
/// Why there is none.
pub(super) async fn fetch(given: &Given, clock: &Clock, limit: Duration) -> Result<Token, String> {
    let answer = match tokio::time::timeout(limit, ask(given)).await {
        Ok(answer) => answer.and_then(|answer| read(&answer, given, clock.wall_ms())),
        Err(_) => Err(format!("no answer within {limit:?}")),
    };
    answer.map_err(|why| format!("{}: {why}", given.shown()))
}

async fn ask(given: &Given) -> Result<Bytes, String> {
    // Made anew each time: it is used a few times an hour, and the file of an authority may have changed meanwhile.
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(given.connector()?);
    let request = request(given)?;
    let answer = client.request(request).await.map_err(|error| crate::error::chain(&error))?;
    let status = answer.status();
    let most = if status.is_success() { ANSWER } else { REFUSAL };
    let body = Limited::new(answer.into_body(), most).collect().await;
    if !status.is_success() {
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        return Err(refusal(status, &body, given));
    }
    match body {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(format!("its answer is longer than {ANSWER} bytes"))
        }
        Err(error) => Err(format!("its answer breaks off: {error}")),
    }
}

fn request(given: &Given) -> Result<Request<Full<Bytes>>, String> {
    let mut form = "grant_type=client_credentials".to_owned();
    if !given.scope.is_empty() {
        form.push_str("&scope=");
        escape(&given.scope, &mut form);
    }
    let mut authorization = HeaderValue::try_from(format!("Basic {}", basic(given)))
        .map_err(|_| "the client's id and secret make no header".to_owned())?;
    authorization.set_sensitive(true);
    let mut request = Request::post(given.url.clone()).body(Full::new(Bytes::from(form)));
    if let Ok(request) = &mut request {
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(AUTHORIZATION, authorization);
        let agent = HeaderValue::from_static(concat!("stillwell/", env!("CARGO_PKG_VERSION")));
        headers.insert(USER_AGENT, agent);
    }
    request.map_err(|error| error.to_string())
}

/// As they are, without percent-encoding, as librdkafka has it.
fn basic(given: &Given) -> String {
    STANDARD.encode(format!("{}:{}", given.id, given.secret))
}

/// A scope as a field of a form. librdkafka writes it as it is, so that who needs it encodes it: what is encoded stays.
fn escape(text: &str, out: &mut String) {
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        let hexadecimal = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        match byte {
            b'%' if hexadecimal(at + 1) && hexadecimal(at + 2) => out.push('%'),
            b'-' | b'.' | b'_' | b'~' | b'*' | b'/' | b':' => out.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => out.push(char::from(*byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// What an endpoint says that gives no token: by RFC 6749, 5.2, or in words of its own.
fn refusal(status: StatusCode, body: &[u8], given: &Given) -> String {
    let status = status.as_u16();
    if (300..400).contains(&status) {
        return format!("it answered {status}, and redirects are not followed");
    }
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let field = |name: &str| parsed.as_ref().and_then(|parsed| parsed.get(name)?.as_str());
    let said = match (field("error"), field("error_description")) {
        (Some(error), Some(description)) => format!("{error}: {description}"),
        (Some(error), None) => error.to_owned(),
        (None, _) => String::from_utf8_lossy(body).into_owned(),
    };
    let said = one_line(&without_secrets(&said, given));
    if said.is_empty() { format!("it answered {status}") } else { format!("it answered {status}: {said}") }
}

/// An endpoint may repeat what it was sent, of its URL's query as well, in which a key may stand.
fn without_secrets(said: &str, given: &Given) -> String {
    let (basic, query) = (basic(given), given.url.query().unwrap_or_default());
    let values = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
    let secrets =
        [basic.as_str(), given.secret.as_str(), query].into_iter().filter(|secret| !secret.is_empty());
    let secrets = secrets.chain(values.filter(|value| value.len() >= SHORTEST));
    secrets.fold(said.to_owned(), |said, secret| masked(&said, secret))
}

fn masked(said: &str, secret: &str) -> String {
    let secret: Vec<(char, Vec<String>)> = secret.chars().map(|char| (char, escaped(char))).collect();
    let (mut out, mut rest) = (String::with_capacity(said.len()), said);
    while let Some(char) = rest.chars().next() {
        let behind = match end(rest, &secret) {
            Some(end) => {
                out.push_str(MASK);
                end
            }
            None => {
                out.push(char);
                char.len_utf8()
            }
        };
        rest = rest.get(behind..).unwrap_or_default();
    }
    out
}

/// Where a secret ends that `said` begins with, each of its characters as it is or in any of its forms: who escapes may leave some
/// as they are.
fn end(said: &str, secret: &[(char, Vec<String>)]) -> Option<usize> {
    let mut ends = vec![0];
    for (char, escaped) in secret {
        let mut next = Vec::new();
        for at in ends {
            let rest = said.get(at..).unwrap_or_default();
            if rest.starts_with(*char) {
                next.push(at + char.len_utf8());
            }
            // Hexadecimal digits are of either case.
            let begins = |form: &&String| {
                rest.get(..form.len()).is_some_and(|begins| begins.eq_ignore_ascii_case(form))
            };
            next.extend(escaped.iter().filter(begins).map(|form| at + form.len()));
        }
        next.sort_unstable();
        next.dedup();
        ends = next;
    }
    ends.pop()
}

/// A character as JSON, URLs, forms and HTML may have it.
fn escaped(char: char) -> Vec<String> {
    let number = u32::from(char);
    let percent: String = char.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
    let units: String = char.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
    let mut forms = vec![percent, units, format!("&#{number};"), format!("&#x{number:x};")];
    if !char.is_alphanumeric() {
        forms.push(format!("\\{char}"));
    }
    let named = [(' ', "+"), ('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&quot;")];
    forms.extend(named.iter().filter(|(of, _)| *of == char).map(|(_, name)| (*name).to_owned()));
    forms
}

fn one_line(said: &str) -> String {
    let words = said.split(|char: char| char.is_control() || char.is_whitespace());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let line = words.join(" ");
    match line.char_indices().nth(REPEATED) {
        Some((end, _)) => format!("{} …", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

/// The token in an answer, with what its claims say. None of its words come back: a part of a token may be among them.
fn read(answer: &[u8], given: &Given, now_ms: i64) -> Result<Token, String> {
    let answer: Value = serde_json::from_slice(answer).map_err(|_| "its answer is no JSON".to_owned())?;
    let value = answer.get("access_token").and_then(Value::as_str);
    let value = value.ok_or("its answer has no \"access_token\"")?;
    let claims =
        claims(value).ok_or("its \"access_token\" is no JWT (three parts in base64, with claims in JSON)")?;
    let seconds = claims.get("exp").and_then(Value::as_f64).filter(|seconds| *seconds > 0.0);
    let seconds = seconds.ok_or("its token does not say when it ends (\"exp\")")?;
    let principal = claims.get("sub").and_then(Value::as_str).filter(|principal| !principal.contains('\0'));
    let principal = principal.ok_or("its token does not say for whom it is (\"sub\")")?;
    let ends_ms = (seconds as i64).saturating_mul(1_000).min(LATEST_MS);
    if ends_ms <= now_ms {
        // Not how long ago: the same trouble has the same words, and is said once.
        return Err("its token has ended already: compare its clock with this machine's".to_owned());
    }
    Ok(Token {
        value: value.to_owned(),
        principal: principal.to_owned(),
        ends_ms,
        extensions: given.extensions.clone(),
    })
}

/// The claims of a JWT; `None` where it is none, or holds what no header may.
fn claims(token: &str) -> Option<Value> {
    let parts: Vec<&str> = token.split('.').collect();
    let [_, claims, _] = parts.as_slice() else { return None };
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    // In either alphabet, with padding or without, as librdkafka takes them.
    let claims = claims.trim_end_matches('=').replace('+', "-").replace('/', "_");
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice(&claims).ok().filter(Value::is_object)
}

#[cfg(test)]
mod tests;
