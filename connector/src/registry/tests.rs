use std::io::{Read as _, Write as _};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use super::stub::{SILENCE, Stub, absent, schema};
use super::*;

const SEVEN: SchemaId = SchemaId::Number(7);

fn registry(options: &Options) -> Registry {
    Registry::new(options).unwrap()
}

fn avro(found: Result<Found, Error>) -> String {
    match found.unwrap() {
        Found::Schema(Written::Avro(schema)) => schema.json().to_owned(),
        Found::Schema(other) => panic!("{other:?}"),
        Found::Unusable(why) => panic!("{why}"),
    }
}

fn unusable(found: Result<Found, Error>) -> String {
    match found.unwrap() {
        Found::Schema(schema) => panic!("{schema:?}"),
        Found::Unusable(why) => why,
    }
}

#[tokio::test]
async fn an_id_is_asked_for_once_however_many_want_it() {
    let stub = Stub::start(|_| schema("\"int\"")).await;
    let registry = registry(&stub.options());
    let all = futures::future::join_all((0..50).map(|_| registry.schema(SEVEN))).await;
    for found in all {
        assert_eq!(avro(found), "\"int\"");
    }
    avro(registry.clone().schema(SEVEN).await);
    assert_eq!(stub.seen().len(), 1, "{:?}", stub.seen());
    assert!(stub.seen()[0].starts_with("GET /schemas/ids/7 HTTP/1.1"), "{:?}", stub.seen());
    let guid = SchemaId::Guid([0xab; 16]);
    avro(registry.schema(guid).await);
    assert!(stub.seen()[1].starts_with("GET /schemas/guids/abababab-abab-abab-abab-abababababab "));
    avro(registry.latest("a/b value").await);
    assert!(stub.seen()[2].starts_with("GET /subjects/a%2Fb%20value/versions/latest "));
}

/// Whoever wrote with it did; ours would have to be another.
#[tokio::test]
async fn a_writers_schema_need_not_be_one_that_we_would_write_with() {
    let texts = [
        r#"{"type":"record","name":"R","namespace":"com.my-company","fields":[{"name":"f","type":"int"}]}"#,
        r#"{"type":"record","name":"R","fields":[{"name":"f","type":"int","default":null}]}"#,
        r#"{"type":"record","name":"R","fields":[{"name":"größe","type":"int"}]}"#,
        r#"{"type":"enum","name":"E","symbols":["a-b","c d"]}"#,
    ];
    for text in texts {
        let stub = Stub::start(move |_| schema(text)).await;
        assert_eq!(avro(registry(&stub.options()).schema(SEVEN).await), text);
        assert!(Schema::parse(text).is_err(), "{text}");
    }
    // What would not stand in a canonical form as it is could be made to look like another schema.
    let forged = r#"{"type":"record","name":"R","fields":[{"name":"f\",\"type\":\"int\"},{\"name\":\"g","type":"int"}]}"#;
    let stub = Stub::start(move |_| schema(forged)).await;
    assert!(unusable(registry(&stub.options()).schema(SEVEN).await).contains("has to match"));
}

#[tokio::test]
async fn what_is_no_registrys_word_is_asked_for_again_and_never_taken_for_unknown() {
    let html = "<html>not found</html>".to_owned();
    let answers = [
        (500, String::new()),
        (503, "{\"error_code\":40403}".to_owned()),
        (404, html.clone()),
        (404, "{\"error_code\":404,\"message\":\"HTTP 404 Not Found\"}".to_owned()),
        (200, html),
        (200, "{}".to_owned()),
        (302, String::new()),
        (422, "{\"error_code\":42201}".to_owned()),
    ];
    let count = answers.len();
    let mut answers = answers.into_iter();
    let stub = Stub::start(move |_| answers.next().unwrap_or_else(|| schema("\"int\""))).await;
    let registry = registry(&stub.options());
    for _ in 0..count {
        let error = registry.schema(SEVEN).await.unwrap_err();
        assert!(matches!(error, Error::Away { .. }) && error.is_transient(), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    assert_eq!(avro(registry.schema(SEVEN).await), "\"int\"", "nothing of it is kept");
    assert_eq!(stub.seen().len(), count + 1);
}

#[tokio::test]
async fn what_a_registry_does_not_know_is_unknown_until_it_does() {
    let mut answers = [absent(), (404, r#"{"error_code":40401}"#.to_owned())].into_iter();
    let stub = Stub::start(move |_| answers.next().unwrap_or_else(|| schema("\"int\""))).await;
    let registry = registry(&stub.options());
    for _ in 0..2 {
        let error = registry.schema(SEVEN).await.unwrap_err();
        assert!(matches!(error, Error::Unknown { .. }) && !error.is_transient(), "{error}");
        assert_eq!(error.to_string(), "the schema registry does not know schema id 7");
    }
    avro(registry.schema(SEVEN).await);
    // A registry that gives no guids has no such route; one that has a wrong path has none at all.
    let routes = |subjects: &'static str| {
        Stub::start(move |path| match path {
            "/subjects" => (200, subjects.to_owned()),
            _ => (404, "{\"error_code\":0}".to_owned()),
        })
    };
    let guid = SchemaId::Guid([1; 16]);
    let error = self::registry(&routes("[]").await.options()).schema(guid).await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error}");
    let error = self::registry(&routes("<html>").await.options()).schema(guid).await.unwrap_err();
    assert!(matches!(error, Error::Away { .. }), "{error}");
}

#[tokio::test]
async fn credentials_go_along_and_a_refusal_is_said_without_them() {
    let stub = Stub::start(|_| (401, String::new())).await;
    let user = || Some(("me".to_owned(), "pa55".to_owned()));
    for (options, expected) in [
        (Options { user: user(), ..stub.options() }, "Basic bWU6cGE1NQ=="),
        (
            Options { urls: vec![stub.url().replace("//", "//me:pa55@")], ..stub.options() },
            "Basic bWU6cGE1NQ==",
        ),
        // `pa55/%`: what is no escape stays.
        (
            Options { urls: vec![stub.url().replace("//", "//me:p%615%35%2f%@")], ..stub.options() },
            "Basic bWU6cGE1NS8l",
        ),
        (Options { token: Some("pa55".to_owned()), ..stub.options() }, "Bearer pa55"),
    ] {
        let registry = registry(&options);
        let error = registry.schema(SEVEN).await.unwrap_err();
        assert!(matches!(error, Error::Denied { status: 401, .. }) && error.is_transient(), "{error}");
        assert_eq!(error.kind(), ErrorKind::Config);
        let head = stub.seen().pop().unwrap();
        assert!(head.contains(&format!("authorization: {expected}")), "{head}");
        assert!(!format!("{error} {registry:?} {options:?}").contains("pa55"));
    }
    for url in ["http://me:pa/55@reg:8081", "https://reg/a@b/55"] {
        let error = Registry::new(&Options { urls: vec![url.to_owned()], ..Options::default() }).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("has a slash before its @") && !said.contains("55"), "{said}");
    }
}

#[tokio::test]
async fn of_several_the_one_that_answers_is_asked_first_from_then_on() {
    let lags = Stub::start(|_| absent()).await;
    let knows = Stub::start(|path| if path.ends_with("/9") { absent() } else { schema("\"int\"") }).await;
    // Nobody listens on port 1.
    let gone = "http://127.0.0.1:1".to_owned();
    let urls = vec![gone.clone(), format!("{}/", lags.url()), knows.url()];
    let registry = registry(&Options { urls, ..knows.options() });
    avro(registry.schema(SEVEN).await);
    avro(registry.schema(SchemaId::Number(8)).await);
    assert_eq!((lags.seen().len(), knows.seen().len()), (1, 2));
    // Who is away may know what the others do not.
    let nine = SchemaId::Number(9);
    let error = registry.schema(nine).await.unwrap_err();
    assert!(matches!(error, Error::Away { .. }) && error.to_string().contains("127.0.0.1:1 "), "{error}");
    let refuses = Stub::start(|_| (403, String::new())).await;
    for urls in [vec![lags.url(), refuses.url()], vec![refuses.url(), lags.url()]] {
        let options = Options { urls, ..knows.options() };
        let error = self::registry(&options).schema(nine).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
    }
    let options = Options { urls: vec![lags.url(), knows.url()], ..knows.options() };
    let error = self::registry(&options).schema(nine).await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error}");
    let silent = Stub::start(|_| (SILENCE, String::new())).await;
    let urls = vec![silent.url(), knows.url()];
    // Time enough for who does answer, on a busy machine too.
    let patient = Options { urls, timeout: Duration::from_secs(3), ..Options::default() };
    avro(self::registry(&patient).schema(SEVEN).await);
    let brief = Options { urls: vec![silent.url()], timeout: Duration::from_millis(100), ..patient };
    let error = self::registry(&brief).schema(SEVEN).await.unwrap_err();
    assert!(error.to_string().contains("no answer within 100ms"), "{error}");
}

#[tokio::test]
async fn references_are_followed_and_what_is_no_avro_is_of_no_use() {
    let stub = Stub::start(|path| match path {
        "/schemas/ids/1" => (
            200,
            serde_json::json!({
                "schema": r#"{"type": "record", "name": "A", "fields": [{"name": "b", "type": "n.B"}]}"#,
                "schemaType": "AVRO",
                "references": [{"name": "n.B", "subject": "b", "version": 3}],
            })
            .to_string(),
        ),
        "/subjects/b/versions/3?deleted=true" => (
            200,
            serde_json::json!({
                "schema": r#"{"type": "record", "name": "n.B", "fields": [{"name": "c", "type": ["null", "C", "A"]}]}"#,
                "references": [{"name": "n.C", "subject": "c", "version": 1}, {"name": "A", "subject": "b", "version": 3}],
            })
            .to_string(),
        ),
        "/subjects/c/versions/1?deleted=true" => schema(r#"{"type": "fixed", "name": "n.C", "size": 2}"#),
        "/schemas/ids/2" => (200, r#"{"schema": "{}", "schemaType": "XML"}"#.to_owned()),
        "/schemas/ids/3" => schema(r#"{"type": "record", "name": "A"}"#),
        "/schemas/ids/5" => schema(r#"{"type": "record", "name": "A", "fields": [{"name": "b", "type": "n.B"}]}"#),
        _ => absent(),
    })
    .await;
    let registry = registry(&stub.options());
    // `A` within `n.B` is `n.A`, which is nowhere: the reference goes round, and is followed once.
    let found = unusable(registry.schema(SchemaId::Number(1)).await);
    assert!(found.contains("n.A"), "{found}");
    assert_eq!(stub.seen().len(), 3);
    for (id, why) in [(2, "of type XML, which is not known here"), (3, "not a valid Avro schema"), (5, "n.B")]
    {
        let found = unusable(registry.schema(SchemaId::Number(id)).await);
        assert!(found.contains(why), "{found}");
    }
}

#[tokio::test]
async fn protobuf_is_compiled_with_what_it_imports_and_json_is_not_looked_at() {
    let main = r#"syntax = "proto3"; import "b.proto"; message A { b.B b = 1; }"#;
    let kind = |kind: &str, text: &str, references: &[(&str, &str)]| {
        let references = references
            .iter()
            .map(|(name, subject)| serde_json::json!({"name": name, "subject": subject, "version": 1}));
        let references: Vec<_> = references.collect();
        (200, serde_json::json!({"schema": text, "schemaType": kind, "references": references}).to_string())
    };
    let stub = Stub::start(move |path| match path {
        "/schemas/ids/1" => kind("PROTOBUF", main, &[("b.proto", "b")]),
        "/schemas/ids/2" => kind("PROTOBUF", main, &[]),
        "/schemas/ids/3" => kind("JSON", "no JSON at all", &[("x", "nobody knows it")]),
        "/subjects/b/versions/1?deleted=true" => kind(
            "PROTOBUF",
            r#"syntax = "proto3"; package b; import "c.proto"; message B { C c = 1; }"#,
            &[("c.proto", "c")],
        ),
        "/subjects/c/versions/1?deleted=true" => {
            kind("PROTOBUF", r#"syntax = "proto3"; package b; message C { int32 n = 1; }"#, &[])
        }
        _ => absent(),
    })
    .await;
    let registry = registry(&stub.options());
    match registry.schema(SchemaId::Number(1)).await.unwrap() {
        Found::Schema(Written::Protobuf(file)) => assert_eq!(file.message(&[0]).unwrap().name(), "A"),
        other => panic!("{other:?}"),
    }
    let why = unusable(registry.schema(SchemaId::Number(2)).await);
    assert!(why.contains("imports b.proto, which is none of its references"), "{why}");
    assert!(matches!(registry.schema(SchemaId::Number(3)).await, Ok(Found::Schema(Written::Json))));
}

#[tokio::test]
async fn a_reference_that_nobody_knows_yet_makes_the_schema_unknown_until_somebody_does() {
    let mut answers = [absent(), (404, r#"{"error_code":40402}"#.to_owned())].into_iter();
    let stub = Stub::start(move |path| match path {
        "/schemas/ids/7" => (
            200,
            r#"{"schema": "\"n.F\"", "references": [{"name": "n.F", "subject": "f", "version": 1}]}"#
                .to_owned(),
        ),
        "/subjects/f/versions/1?deleted=true" => {
            answers.next().unwrap_or_else(|| schema(r#"{"type": "fixed", "name": "n.F", "size": 2}"#))
        }
        _ => panic!("{path}"),
    })
    .await;
    let registry = registry(&stub.options());
    for _ in 0..2 {
        let error = registry.schema(SEVEN).await.unwrap_err();
        assert!(matches!(error, Error::Unknown { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains("version 1 of subject f, which schema id 7 refers to"), "{said}");
    }
    assert!(avro(registry.schema(SEVEN).await).contains("fixed"));
}

#[tokio::test]
async fn what_is_longer_than_is_read_is_of_no_use_once_and_for_all() {
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    let third = ANSWER / 3;
    let stub = Stub::start(move |path| match path {
        "/schemas/ids/1" => (200, "x".repeat(ANSWER + 1)),
        "/schemas/ids/2" => {
            let references =
                (0..9).map(|n| serde_json::json!({"name": "x", "subject": "part", "version": n}));
            let references: Vec<_> = references.collect();
            (200, serde_json::json!({"schema": text(third), "references": references}).to_string())
        }
        "/subjects" => (200, "x".repeat(ANSWER + 1)),
        _ => schema(&text(third)),
    })
    .await;
    let registry = registry(&stub.options());
    for (id, requests) in [(1, 1), (2, 3)] {
        let before = stub.seen().len();
        for _ in 0..2 {
            let why = unusable(registry.schema(SchemaId::Number(id)).await);
            assert!(why.contains(&format!("longer than {ANSWER} bytes")), "{why}");
        }
        assert_eq!(stub.seen().len() - before, requests, "not more than is needed to know it");
    }
    assert!(registry.probe().await.unwrap().contains("more than"));
}

/// Serves one request by TLS to who shows a certificate of the authority's; whether it came so far.
fn secure(answer: &'static str) -> (String, std::thread::JoinHandle<bool>) {
    let chain = CertificateDer::pem_file_iter(pem("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(pem("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut authorities = rustls::RootCertStore::empty();
    authorities.add(CertificateDer::from_pem_file(pem("ca.pem")).unwrap()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(authorities.into(), provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let session = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut tls = rustls::StreamOwned::new(session, stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match tls.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return false,
            }
        }
        let length = answer.len();
        write!(tls, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}").unwrap();
        tls.flush().unwrap();
        true
    });
    (url, thread)
}

/// Made for these tests: an authority, and a certificate of 127.0.0.1 with its key.
fn pem(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "src", "registry", "tls", name].iter().collect()
}

#[tokio::test]
async fn a_certificate_is_trusted_if_its_authority_is() {
    let options = |url: String, ca: &str| Options {
        urls: vec![url],
        ca_file: Some(pem(ca)),
        identity: Some((pem("server.pem"), pem("server.key"))),
        timeout: Duration::from_secs(30),
        ..Options::default()
    };
    let (url, served) = secure(r#"{"schema": "\"int\""}"#);
    avro(registry(&options(url, "ca.pem")).schema(SEVEN).await);
    assert!(served.join().unwrap());
    // The registry wants to know who asks.
    let (url, served) = secure(r#"{"schema": "\"int\""}"#);
    let nobody = Options { identity: None, ..options(url, "ca.pem") };
    let error = registry(&nobody).schema(SEVEN).await.unwrap_err();
    assert!(matches!(error, Error::Away { .. }), "{error}");
    assert!(!served.join().unwrap());
    let (url, served) = secure("");
    let error = registry(&options(url, "server.pem")).schema(SEVEN).await.unwrap_err();
    assert!(matches!(error, Error::Away { .. }), "{error}");
    assert!(!served.join().unwrap());
    let swapped = Options {
        identity: Some((pem("ca.pem"), pem("server.key"))),
        ..options("https://a".into(), "ca.pem")
    };
    let error = Registry::new(&swapped).unwrap_err().to_string();
    assert!(error.contains("do not go together"), "{error}");
}
