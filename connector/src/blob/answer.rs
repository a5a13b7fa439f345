//! What a store far away answered, in our words: by what the operator does next, and without what nobody may see.
//!
//! ```text
//! object_store's error -> status, <Code>, <Message> | how the connection failed -> Missing, Refused, Unavailable
//! ```
//!
//! Owns: which answer means what. Answers are never repeated as they came: S3's say which key signed what, URLs may carry a
//! signature. Does not own: errors of the file system (`object`).

use std::error::Error as StdError;

use object_store::client::{HttpError, HttpErrorKind};

use super::Error;
use crate::error::chain;

/// Longest that a store's own words are repeated.
const WORDS: usize = 200;

/// Where a machine is asked for its role: nobody but who has no other credentials does.
const ROLES: [&str; 4] =
    ["/latest/api/token", "://169.254.169.254/", "://169.254.170.2/", "/computeMetadata/v1/instance"];

/// A store far away, as error texts name it.
#[derive(Clone, Debug)]
pub(super) struct Far {
    /// `bucket` or `container`.
    pub(super) kind: &'static str,
    /// Its name.
    pub(super) name: String,
    /// Where credentials come from.
    pub(super) credentials: &'static str,
    /// Where its endpoint and region come from.
    pub(super) place: &'static str,
    /// Who is asked for credentials, where somebody is: what its URLs begin with.
    pub(super) asked: Option<String>,
}

/// What was answered.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    status: Option<u16>,
    code: String,
    message: String,
}

impl Answer {
    /// object_store keeps status and body to itself but for its texts, which all have them in this form.
    fn of(text: &str) -> Answer {
        // The second: of one delete, where Azure answers several in one.
        let status = between(text, "status code: ", " ").or_else(|| between(text, "(code: ", ")"));
        let status = status.and_then(|status| status.parse().ok());
        let tagged = |name: &str| {
            let inner = between(text, &format!("<{name}>"), &format!("</{name}>")).unwrap_or_default();
            // Azure's go on with the request's id and the time, each on a line.
            inner.lines().next().unwrap_or_default().chars().take(WORDS).collect::<String>()
        };
        let quoted = |name: &str| {
            let inner = between(text, &format!("\"{name}\":"), "\",");
            inner.map(|inner| inner.trim_matches([' ', '"']).chars().take(WORDS).collect::<String>())
        };
        let (code, message) = (tagged("Code"), tagged("Message"));
        // Google's and Azure's token services answer in JSON.
        let code = if code.is_empty() { quoted("error").unwrap_or_default() } else { code };
        let message =
            if message.is_empty() { quoted("error_description").unwrap_or_default() } else { message };
        Answer { status, code, message }
    }

    fn words(&self) -> String {
        let status = self.status.map_or("an error".to_owned(), |status| status.to_string());
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => format!("it answered {status}"),
            (code, "") => format!("it answered {status} ({code})"),
            ("", message) => format!("it answered {status} ({message})"),
            (code, message) => format!("it answered {status} ({code}: {})", message.trim_end_matches('.')),
        }
    }
}

/// Our error for one of a store far away.
pub(super) fn explain(doing: &'static str, url: String, error: &object_store::Error, far: &Far) -> Error {
    let text = chain(error);
    let answer = Answer::of(&text);
    let refused = |problem: String| Error::Refused { doing, url: url.clone(), problem };
    let unavailable = |problem: String| Error::Unavailable { doing, url: url.clone(), problem };
    let Far { kind, name, credentials, place, asked } = far;
    let no_place = ["NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"]
        .contains(&answer.code.as_str())
        || answer.message.starts_with("The specified bucket does not exist");
    if no_place {
        return refused(format!("the {kind} {name} does not exist; create it, or correct storage.blobs"));
    }
    if matches!(error, object_store::Error::NotFound { .. }) {
        // Of a put: the upload is not there any more, mostly since it was completed and the answer was lost.
        return if doing == "storing" { unavailable(answer.words()) } else { Error::Missing { url } };
    }
    if let Some(asked) = asked.as_ref().filter(|asked| text.contains(asked.as_str())) {
        let why = match (transport(error), answer.status) {
            (Some((_, why)), _) => why,
            (None, Some(_)) => answer.words(),
            (None, None) => between(&format!("{text}\n"), &format!("{asked}: "), "\n")
                .unwrap_or("its answer holds no credentials")
                .to_owned(),
        };
        return refused(format!(
            "no credentials are given, and this machine has no role to ask for any: {asked} was asked ({why}); {credentials}"
        ));
    }
    if ROLES.iter().any(|asked| text.contains(asked)) {
        let why = transport(error).map_or_else(|| answer.words(), |(_, why)| why);
        return refused(format!(
            "no credentials are given, and this machine has no role to ask for any ({why}); {credentials}"
        ));
    }
    match (answer.code.as_str(), answer.status) {
        // One of two puts at a time, at S3.
        ("ConditionalRequestConflict" | "OperationAborted", _) => return unavailable(answer.words()),
        (
            "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "AuthenticationFailed"
            | "ExpiredToken"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "invalid_grant"
            | "invalid_client",
            _,
        )
        | (_, Some(401)) => {
            return refused(format!("{}; check the credentials: {credentials}", answer.words()));
        }
        // Azure's words where a signature does not fit, whatever the code.
        _ if answer.message.starts_with("Server failed to authenticate the request") => {
            return refused(format!("{}; check the credentials: {credentials}", answer.words()));
        }
        ("RequestTimeTooSkewed", _) => {
            return refused(format!("{}; set this machine's clock", answer.words()));
        }
        ("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException", _)
        | (_, Some(300..=399)) => {
            return refused(format!("{}; the {kind} lies in another region: {place}", answer.words()));
        }
        (_, Some(403)) => {
            let may = "give these credentials the right to list, read, write and delete";
            return refused(format!("{}; {may} in the {kind} {name}", answer.words()));
        }
        (_, Some(408 | 429 | 500..)) => return unavailable(answer.words()),
        (_, Some(400..=499)) => return refused(format!("{}; check {place}", answer.words())),
        _ => {}
    }
    if text.contains("without LOCATION") {
        return refused(format!(
            "it answered with a redirection; the {kind} lies in another region: {place}"
        ));
    }
    match transport(error) {
        Some((HttpErrorKind::Connect, why)) => {
            unavailable(format!("it cannot be reached: {why}; check the network, and the endpoint ({place})"))
        }
        Some((HttpErrorKind::Unknown, why)) => refused(why),
        Some((_, why)) => unavailable(format!("the connection broke: {why}")),
        None => unavailable(without_queries(&text)),
    }
}

/// Whether the range of a read began at the blob's end or beyond.
pub(super) fn is_beyond(error: &object_store::Error) -> bool {
    let text = chain(error);
    // The second: the store answered with nothing where it should have said 416, and object_store does not take that.
    Answer::of(&text).status == Some(416) || text.contains("Wanted range starting at ")
}

/// Whether the store does not know puts that must not replace: some that speak S3 do not.
pub(super) fn knows_no_create(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. })
        || Answer::of(&chain(error)).status == Some(501)
}

/// How a connection failed, if that is what it was.
fn transport(error: &(dyn StdError + 'static)) -> Option<(HttpErrorKind, String)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            let below = http.source().map(chain).unwrap_or_default();
            return Some((http.kind(), without_queries(&below)));
        }
        next = error.source();
    }
    None
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(inner, _)| inner)
}

/// What follows a `?` in a URL may be a signature that anybody could use.
fn without_queries(text: &str) -> String {
    let words = text.split(' ').map(|word| match word.split_once('?') {
        Some((url, _)) if url.contains("://") => url,
        _ => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn far() -> Far {
        let (credentials, place) = ("set KEYS", "set ENDPOINT");
        Far {
            kind: "bucket",
            name: "shop".into(),
            credentials,
            place,
            asked: Some("http://h:1/creds".into()),
        }
    }

    fn said(text: &str) -> (Error, String) {
        let source = std::io::Error::other(text.to_owned());
        let error = object_store::Error::Generic { store: "S3", source: source.into() };
        let error = explain("storing", "s3://shop/a".into(), &error, &far());
        let said = error.to_string();
        (error, said)
    }

    #[test]
    fn answers_say_what_to_do_and_repeat_no_secrets() {
        let answered = |status: &str, body: &str| {
            said(&format!(
                "Error performing PUT https://h/shop/a?sig=s3cret in 1ms - Server returned non-2xx status code: \
                 {status} Some: <?xml?><Error>{body}<StringToSign>s3cret</StringToSign></Error>"
            ))
        };
        for (status, body, refused, what) in [
            ("403", "<Code>InvalidAccessKeyId</Code><Message>No such.</Message>", true, "set KEYS"),
            ("403", "<Code>SignatureDoesNotMatch</Code>", true, "set KEYS"),
            ("403", "<Code>AccessDenied</Code>", true, "right to list"),
            ("403", "<Code>RequestTimeTooSkewed</Code>", true, "clock"),
            (
                "403",
                "<Code>AuthorizationFailure</Code><Message>Server failed to authenticate the request.</Message>",
                true,
                "set KEYS",
            ),
            ("404", "<Code>NoSuchBucket</Code>", true, "the bucket shop does not exist"),
            ("409", "<Code>ContainerBeingDeleted</Code>", true, "the bucket shop does not exist"),
            ("409", "<Code>ConditionalRequestConflict</Code>", false, "409 (ConditionalRequestConflict)"),
            ("301", "<Code>PermanentRedirect</Code>", true, "another region"),
            ("400", "<Code>AuthorizationHeaderMalformed</Code>", true, "another region"),
            ("400", "<Code>InvalidArgument</Code>", true, "InvalidArgument"),
            ("503", "<Code>SlowDown</Code><Message>Reduce.</Message>", false, "503 (SlowDown: Reduce)"),
            ("500", "", false, "it answered 500"),
            ("401", "", true, "set KEYS"),
        ] {
            let (error, said) = answered(status, body);
            assert_eq!(matches!(error, Error::Refused { .. }), refused, "{error:?}");
            assert!(error.is_transient(), "an operator may mend it: {error:?}");
            assert!(said.contains(what) && said.contains("s3://shop/a"), "{said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn what_is_no_answer_is_told_apart() {
        let (error, text) = said("Error performing GET https://h/shop/a?sig=s3cret in 2ms - timed out");
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        assert!(!text.contains("s3cret") && text.contains("timed out"), "{text}");
        let refusal = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let source = HttpError::new(HttpErrorKind::Connect, refusal);
        let error = object_store::Error::Generic { store: "S3", source: source.into() };
        let error = explain("reading", "s3://shop/a".into(), &error, &far());
        let text = error.to_string();
        assert!(matches!(error, Error::Unavailable { .. }) && text.contains("connection refused"), "{text}");
        let (error, text) =
            said("Error performing PUT http://169.254.169.254/latest/api/token in 3s - refused");
        assert!(matches!(error, Error::Refused { .. }) && text.contains("set KEYS"), "{text}");
    }

    #[test]
    fn who_was_asked_for_a_role_is_named_and_what_it_gave_is_not() {
        for (text, why) in [
            ("asking http://h:1/creds - status code: 403 ", "it answered 403"),
            ("asking http://h:1/creds: the answer's Expiration is no time", "Expiration is no time"),
            (
                "Error performing GET http://h:1/creds/role in 1ms - invalid type: s3cret",
                "holds no credentials",
            ),
        ] {
            let (error, said) = said(text);
            assert!(matches!(error, Error::Refused { .. }) && error.is_transient(), "{error:?}");
            let named = said.contains("http://h:1/creds was asked");
            assert!(named && said.contains(why) && said.contains("set KEYS"), "{said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
    }

    #[test]
    fn one_delete_of_several_is_told_like_one_alone() {
        let (error, text) = said("Bulk delete request failed for key a: Forbidden (code: 403)");
        assert!(matches!(error, Error::Refused { .. }) && text.contains("right to list"), "{text}");
        let (error, text) = said("Bulk delete request failed for key a: Server Busy (code: 503)");
        assert!(matches!(error, Error::Unavailable { .. }) && text.contains("answered 503"), "{text}");
    }

    #[test]
    fn token_services_answer_in_json() {
        let (error, text) = said(
            "Error performing POST https://t/token in 1ms - Server returned non-2xx status code: 400 Bad Request: \
             {\"error\":\"invalid_grant\",\"error_description\":\"Invalid JWT\", \"x\":1}",
        );
        assert!(matches!(error, Error::Refused { .. }), "{error:?}");
        assert!(text.contains("invalid_grant: Invalid JWT") && text.contains("set KEYS"), "{text}");
    }
}
