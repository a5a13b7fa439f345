//! Errors as RFC 9457 has them: `application/problem+json`.
//!
//! ```json
//! {"type": "urn:stillwell:problem:not-found", "title": "Not found", "status": 404,
//!  "detail": "dataset products has no record with this key in version 7"}
//! ```
//!
//! `type` is `urn:stillwell:problem:` and a word: the name of an [`ErrorKind`], or, for what only HTTP knows,
//! `not-found`, `method-not-allowed`, `unauthorized`, `forbidden`, `too-large`, `timeout` and `misfit`. `docs/http.md` says of each what to do.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::codec::{Misfit, Stage};
use crate::error::{Error, ErrorKind};

/// The media type.
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// What a client that may try again should wait; about as long as a failing consumer does.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// An answer that says what is wrong.
#[derive(Clone, Debug)]
pub struct Problem(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    word: &'static str,
    title: &'static str,
    status: StatusCode,
    detail: String,
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    fn new(word: &'static str, title: &'static str, status: StatusCode, detail: String) -> Problem {
        Problem(Box::new(Parts { word, title, status, detail, more: Map::new(), headers: Vec::new() }))
    }

    /// There is no such route, dataset, version or record.
    pub fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new("not-found", "Not found", StatusCode::NOT_FOUND, detail.into())
    }

    /// The route does not answer to this method.
    pub fn method_not_allowed(detail: impl Into<String>) -> Problem {
        Problem::new(
            "method-not-allowed",
            "Method not allowed",
            StatusCode::METHOD_NOT_ALLOWED,
            detail.into(),
        )
    }

    /// The route wants a token, and none came.
    pub fn unauthorized(detail: impl Into<String>) -> Problem {
        Problem::new("unauthorized", "Not authorized", StatusCode::UNAUTHORIZED, detail.into())
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"stillwell\""))
    }

    /// The token that came is not the right one.
    pub fn forbidden(detail: impl Into<String>) -> Problem {
        Problem::new("forbidden", "Forbidden", StatusCode::FORBIDDEN, detail.into())
    }

    /// The request has more bytes than are taken.
    pub fn too_large(detail: impl Into<String>) -> Problem {
        Problem::new("too-large", "Too large", StatusCode::PAYLOAD_TOO_LARGE, detail.into())
    }

    /// The request came too slowly.
    pub fn timeout(detail: impl Into<String>) -> Problem {
        Problem::new("timeout", "Too slow", StatusCode::REQUEST_TIMEOUT, detail.into())
    }

    /// The record would become a dead letter: 400 where its bytes are not of the format at all, else 422.
    pub fn misfit(misfit: &Misfit) -> Problem {
        let status = match misfit.stage {
            Stage::Decode => StatusCode::BAD_REQUEST,
            Stage::Oversized => StatusCode::PAYLOAD_TOO_LARGE,
            Stage::Validate | Stage::Key | Stage::Shed | Stage::Conflict => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Problem::new("misfit", "The record does not fit", status, misfit.message.clone())
            .with("stage", misfit.stage.label())
            .with("class", misfit.class)
    }

    /// A problem of one of the error kinds.
    pub fn of(kind: ErrorKind, detail: impl Into<String>) -> Problem {
        let (title, status) = match kind {
            ErrorKind::Config => ("The configuration is wrong", StatusCode::INTERNAL_SERVER_ERROR),
            ErrorKind::Unavailable => ("Not available at the moment", StatusCode::SERVICE_UNAVAILABLE),
            ErrorKind::Fenced => ("Another process has taken over", StatusCode::SERVICE_UNAVAILABLE),
            ErrorKind::Corrupt => ("Stored bytes are damaged", StatusCode::INTERNAL_SERVER_ERROR),
            ErrorKind::Rejected => ("The request is not acceptable", StatusCode::BAD_REQUEST),
            ErrorKind::Closed => ("Shutting down", StatusCode::SERVICE_UNAVAILABLE),
            ErrorKind::Internal => ("A bug", StatusCode::INTERNAL_SERVER_ERROR),
        };
        Problem::new(kind.name(), title, status, detail.into())
    }

    /// The request is not acceptable: `detail` says which part of it, and what would be.
    pub fn rejected(detail: impl Into<String>) -> Problem {
        Problem::of(ErrorKind::Rejected, detail)
    }

    /// With another member, which RFC 9457 calls an extension.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl serde::Serialize) -> Problem {
        self.0.more.insert(name.to_owned(), json!(value));
        self
    }

    /// With another header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Problem {
        self.0.headers.push((name, value));
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        Problem::of(error.kind(), error.chain())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Parts { word, title, status, detail, more, headers: additional } = *self.0;
        let mut body = json!({
            "type": format!("urn:stillwell:problem:{word}"),
            "title": title,
            "status": status.as_u16(),
            "detail": detail,
        });
        if let Value::Object(members) = &mut body {
            members.extend(more);
        }
        let mut response = (status, body.to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        headers.extend(additional);
        response
    }
}
