use super::*;
use crate::kafka::tokens::stub::{Endpoint, LONG, SECRET, SILENCE, jwt, token};

/// Milliseconds since the Unix epoch.
const NOW: i64 = 1_800_000_000_000;

async fn ask_of(endpoint: &Endpoint, more: &[(&str, &str)]) -> Result<Token, String> {
    fetch(&endpoint.given(more), &Clock::manual(NOW), LONG).await
}

#[tokio::test]
async fn a_token_is_asked_for_as_librdkafka_asks() {
    let endpoint = Endpoint::start(token("somebody", NOW / 1_000 + 60));
    let more = [
        ("sasl.oauthbearer.scope", "api://kafka/.default read%20all & more"),
        ("sasl.oauthbearer.extensions", "logicalCluster=lkc-1"),
    ];
    let token = ask_of(&endpoint, &more).await.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!((token.principal.as_str(), token.ends_ms), ("somebody", NOW + 60_000));
    assert_eq!(token.extensions, [("logicalCluster".to_owned(), "lkc-1".to_owned())]);
    assert_eq!(token.value, jwt(&format!(r#"{{"sub": "somebody", "exp": {}}}"#, NOW / 1_000 + 60)));
    let request = endpoint.next(LONG).expect("it was asked");
    let (head, form) = request.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("POST /oauth2/token HTTP/1.1\r\n"), "{head}");
    let headers: Vec<_> = head.lines().filter_map(|line| line.split_once(": ")).collect();
    let basic = format!("Basic {}", STANDARD.encode(format!("me:{SECRET}")));
    for (name, value) in [
        ("authorization", basic.as_str()),
        ("accept", "application/json"),
        ("content-type", "application/x-www-form-urlencoded"),
    ] {
        let found = headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        assert_eq!(found.map(|(_, value)| *value), Some(value), "{name}");
    }
    assert_eq!(form, "grant_type=client_credentials&scope=api://kafka/.default%20read%20all%20%26%20more");

    ask_of(&endpoint, &[]).await.unwrap_or_else(|why| panic!("{why}"));
    let request = endpoint.next(LONG).expect("it was asked");
    assert!(request.ends_with("\r\n\r\ngrant_type=client_credentials"), "{request}");
}

#[tokio::test]
async fn an_answer_without_a_token_says_what_is_wrong_and_no_secret() {
    let with = |claims: &str| (200, format!(r#"{{"access_token": "{}"}}"#, jwt(claims)));
    let long = format!("<html>\r\n<p>{}</p>\r\n", "é".repeat(5_000));
    let basic = STANDARD.encode(format!("me:{SECRET}"));
    let echo = format!("no {SECRET}, no s3cret%2F%26, no {basic}");
    // As JSON, JSON in HTML, a form and HTML have it.
    let escaped = r"no s3cret\/&, no s3cret\/\u0026, no s3cret%2f%26, no s3cret/&amp;".to_owned();
    let invalid = r#"{"error": "invalid_client", "error_description": "who is\nthat?"}"#;
    for ((status, answer), said) in [
        ((401, invalid.to_owned()), "it answered 401: invalid_client: who is that?"),
        ((400, r#"{"error": "invalid_scope"}"#.to_owned()), "it answered 400: invalid_scope"),
        ((403, echo), "it answered 403: no ***, no ***, no ***"),
        ((403, escaped), "it answered 403: no ***, no ***, no ***, no ***"),
        ((503, String::new()), "it answered 503"),
        ((502, long), "it answered 502: <html> <p>éé"),
        ((302, "go".to_owned()), "it answered 302, and redirects are not followed"),
        ((500, "x".repeat(REFUSAL + 1)), "it answered 500"),
        ((200, "x".repeat(ANSWER + 1)), "longer than 1048576 bytes"),
        ((200, "<html>".to_owned()), "is no JSON"),
        ((200, r#""eyJ.eyJ.x""#.to_owned()), "has no \"access_token\""),
        ((200, r#"{"access_token": 7}"#.to_owned()), "has no \"access_token\""),
        ((200, r#"{"access_token": "opaque-s3cret"}"#.to_owned()), "is no JWT"),
        ((200, r#"{"access_token": "a.b.c.d"}"#.to_owned()), "is no JWT"),
        ((200, r#"{"access_token": "e30.!.c"}"#.to_owned()), "is no JWT"),
        ((200, r#"{"access_token": "e 30.e30.c"}"#.to_owned()), "is no JWT"),
        (with("[]"), "is no JWT"),
        (with(r#"{"sub": "me"}"#), "does not say when it ends"),
        (with(r#"{"sub": "me", "exp": "tomorrow"}"#), "does not say when it ends"),
        (with(r#"{"sub": "me", "exp": -1}"#), "does not say when it ends"),
        (with(r#"{"exp": 1800000060}"#), "does not say for whom it is"),
        (with(r#"{"exp": 1800000060, "sub": 7}"#), "does not say for whom it is"),
        (with(r#"{"exp": 1799999990, "sub": "me"}"#), "its token has ended already: compare"),
    ] {
        let endpoint = Endpoint::start((status, answer));
        let why = ask_of(&endpoint, &[]).await.err().unwrap_or_else(|| panic!("a token instead of {said:?}"));
        let begins = format!("{}: ", endpoint.given(&[]).shown());
        assert!(why.starts_with(&begins) && why.contains(said), "{said:?}: {why}");
        assert!(!why.contains("s3cret") && !why.contains("eyJ") && !why.contains(char::is_control), "{why}");
        assert!(why.chars().count() < begins.len() + REPEATED + 60, "{why}");
    }
}

#[test]
fn a_secret_is_masked_in_each_of_its_forms_and_nothing_else_is() {
    for (secret, said, masked_so) in [
        ("a b+c", "a b+c a+b%2Bc A B+C", "*** *** A B+C"),
        (r"\\\", r"\\\\\\", "***"),
        ("é\u{1f512}", r"é\u{1f512} %C3%A9\uD83D\udd12 é", "*** *** é"),
        ("aab", "aaab aa", "a*** aa"),
        ("<x>", "&lt;x&gt; &#60;x&#x3E; <x", "*** *** <x"),
    ] {
        let said = said.replace(r"\u{1f512}", "\u{1f512}");
        assert_eq!(masked(&said, secret), masked_so, "{secret}");
    }
}

#[tokio::test]
async fn the_key_in_a_url_is_not_repeated() {
    let echo = "POST /oauth2/token?v=1&key=k3y-of-it: v is 1, there is no k3y-of-it".to_owned();
    let endpoint = Endpoint::start((400, echo));
    let name = "sasl.oauthbearer.token.endpoint.url";
    let url = format!("{}?v=1&key=k3y-of-it", endpoint.properties()[name]);
    let why = ask_of(&endpoint, &[(name, &url)]).await.err().expect("it is refused");
    assert!(why.ends_with("it answered 400: POST /oauth2/token?***: v is 1, there is no ***"), "{why}");
}

#[tokio::test]
async fn claims_are_read_in_either_alphabet_and_an_end_that_never_comes_is_far() {
    // The bytes of its claims give both characters that the alphabets differ in.
    let claims = r#"{"sub": "???>>>~~~", "exp": 1e300}"#;
    let plain = STANDARD.encode(claims);
    assert!(plain.contains('/') || plain.contains('+'), "{plain}");
    let endpoint = Endpoint::start((200, format!(r#"{{"access_token": "e30.{plain}.c"}}"#)));
    let token = ask_of(&endpoint, &[]).await.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!((token.principal.as_str(), token.ends_ms), ("???>>>~~~", LATEST_MS));
}

#[tokio::test]
async fn who_does_not_answer_is_not_waited_for() {
    let endpoint = Endpoint::start((SILENCE, String::new()));
    let asked = fetch(&endpoint.given(&[]), &Clock::manual(NOW), Duration::from_millis(50)).await;
    let why = asked.err().expect("nobody answers");
    assert!(why.ends_with("no answer within 50ms"), "{why}");
    // Nobody listens on port 1.
    let nobody = [("sasl.oauthbearer.token.endpoint.url", "http://127.0.0.1:1/token?key=k3y")];
    let why = ask_of(&endpoint, &nobody).await.err().expect("nobody is there");
    assert!(why.starts_with("http://127.0.0.1:1/token: ") && why.contains("onnect"), "{why}");
}

#[tokio::test]
async fn an_endpoint_of_https_is_told_nothing_in_the_clear() {
    let endpoint = Endpoint::start(token("me", NOW / 1_000 + 60));
    let secure = endpoint.properties()["sasl.oauthbearer.token.endpoint.url"].replace("http://", "https://");
    let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/src/registry/tls/ca.pem");
    let more = [("sasl.oauthbearer.token.endpoint.url", secure.as_str()), ("https.ca.location", authority)];
    let given = endpoint.given(&more);
    // It does not speak TLS, so that no request comes through.
    let why = fetch(&given, &Clock::manual(NOW), Duration::from_millis(500)).await.err().expect("no TLS");
    assert!(why.starts_with("https://127.0.0.1:"), "{why}");
    assert!(endpoint.next(Duration::ZERO).is_none());
}
