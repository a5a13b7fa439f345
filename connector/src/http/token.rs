//! The bearer token of the admin routes (RFC 6750).
//!
//! Owns: whether a request brings it. Does not own: where it is configured, and that it is never shown (`config`).

use std::fmt;
use std::hint::black_box;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use super::problem::Problem;
use crate::config::values::Secret;

/// The token that is wanted.
#[derive(Clone)]
pub(super) struct Token(Box<[u8]>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Token {
    /// `None` for an empty one, which anybody would bring.
    pub(super) fn new(secret: &Secret) -> Option<Token> {
        let token = secret.expose().trim().as_bytes();
        (!token.is_empty()).then(|| Token(token.into()))
    }

    /// Whether the request brings it.
    ///
    /// # Errors
    /// 401 where it brings none, 403 where it brings another.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else {
            return Err(none());
        };
        let given = given.as_bytes();
        let Some((scheme, token)) = given.iter().position(|byte| *byte == b' ').map(|at| given.split_at(at))
        else {
            return Err(none());
        };
        if !scheme.eq_ignore_ascii_case(b"bearer") {
            return Err(none());
        }
        if same(token.trim_ascii(), &self.0) {
            Ok(())
        } else {
            Err(Problem::forbidden("this is not the token of the admin routes (http.admin_token)"))
        }
    }
}

fn none() -> Problem {
    Problem::unauthorized(
        "writing wants the header Authorization: Bearer TOKEN, with the token of http.admin_token",
    )
}

/// Compares in a time that depends on the length of what was given alone: how long a comparison takes would else tell
/// how much of a guess is right.
fn same(given: &[u8], token: &[u8]) -> bool {
    let mut differs = u8::from(given.len() != token.len());
    for (given, token) in given.iter().zip(token.iter().cycle()) {
        differs = black_box(differs | (given ^ token));
    }
    black_box(differs) == 0
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_whole_token_is_the_same() {
        for (given, same_as) in
            [("secret", true), ("secreu", false), ("secre", false), ("secretsecret", false), ("", false)]
        {
            assert_eq!(same(given.as_bytes(), b"secret"), same_as, "{given}");
        }
    }

    #[test]
    fn a_request_brings_it_in_one_header() {
        let token = Token(Box::from(&b"secret"[..]));
        let status = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            token.check(&headers).map_err(|problem| problem.status().as_u16())
        };
        for right in ["Bearer secret", "bearer secret", "BEARER  secret "] {
            assert_eq!(status(&[right]), Ok(()), "{right}");
        }
        for none in
            [&[][..], &["secret"], &["Basic secret"], &["Bearer"], &["Bearer secret", "Bearer secret"]]
        {
            assert_eq!(status(none), Err(401), "{none:?}");
        }
        for wrong in ["Bearer Secret", "Bearer secret2", "Bearer ", "Bearer secret, secret"] {
            assert_eq!(status(&[wrong]), Err(403), "{wrong}");
        }
    }

    #[test]
    fn it_is_not_shown() {
        assert_eq!(format!("{:?}", Token(Box::from(&b"secret"[..]))), "Token(***)");
    }
}
