//! Large answers compressed, for who says that they take that.
//!
//! Owns: which answers, and what their entity tags then are. Does not own: what is answered.

use axum::http::HeaderValue;
use axum::http::header::{CONTENT_ENCODING, ETAG};
use axum::response::Response;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate, SizeAbove};

/// Answers below this are not worth it: they fit a packet or two as they are.
const FROM_BYTES: u16 = 2_048;

/// Compresses with gzip what is worth it. Streams of events are left as they are, so that each leaves at once.
pub(super) fn layer() -> CompressionLayer<impl Predicate> {
    CompressionLayer::new()
        .quality(CompressionLevel::Fastest)
        .compress_when(DefaultPredicate::new().and(SizeAbove::new(FROM_BYTES)))
}

/// A strong entity tag stands for the very bytes (RFC 9110, 8.8.1), so a compressed answer has a weak one. Who sends it
/// back is told the same: `If-None-Match` compares weakly.
pub(super) async fn weaken(mut response: Response) -> Response {
    let headers = response.headers_mut();
    if headers.contains_key(CONTENT_ENCODING)
        && let Some(tag) = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\""))
        && let Ok(weak) = HeaderValue::try_from([b"W/", tag.as_bytes()].concat())
    {
        headers.insert(ETAG, weak);
    }
    response
}
