//! A webhook over TLS, to a receiver with a certificate of a CA of its own: refused where that CA is not trusted, taken where
//! `SSL_CERT_FILE` names it, signed as OpenSSL counts it, and a letter after the last try.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use stillwell_tests::certificates::{Authority, openssl};
use stillwell_tests::request::header;
use stillwell_tests::{Request, Running, scratch, wait_until};

use crate::instance::{Instance, LONG};
use crate::line::SCHEMA;
use crate::listening::{row, some};
use crate::setting::Setting;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Tries after the first.
const RETRIES: usize = 2;

/// Head and body of each request.
type Requests = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// Takes webhooks over TLS; answers with what `status` holds.
fn receive(authority: &Authority, status: Arc<Mutex<u16>>) -> (SocketAddr, Requests) {
    let made = authority.server("server");
    let certificate = CertificateDer::from_pem_file(made.pem).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(made.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
    let config = Arc::new(config.expect("the key is the certificate's"));
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    let requests = Requests::default();
    let seen = requests.clone();
    std::thread::spawn(move || {
        for stream in socket.incoming() {
            let (config, seen, status) = (config.clone(), seen.clone(), status.clone());
            // A handshake that fails is the caller's to tell.
            std::thread::spawn(move || serve(stream.expect("a connection"), config, &seen, &status));
        }
    });
    (address, requests)
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    seen: &Mutex<Vec<(String, Vec<u8>)>>,
    status: &Mutex<u16>,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LONG))?;
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    while let Some(Request { head, body }) = Request::read(&mut reader)? {
        let status = *status.lock().expect("no panic");
        seen.lock().expect("no panic").push((head, body));
        write!(reader.get_mut(), "HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")?;
        reader.get_mut().flush()?;
    }
    Ok(())
}

/// The signature of a request, as OpenSSL counts it.
fn signature(dir: &Path, head: &str, body: &[u8]) -> String {
    let (id, seconds) = (header(head, "webhook-id").expect("an id"), header(head, "webhook-timestamp"));
    let signed = [format!("{id}.{}.", seconds.expect("a time")).as_bytes(), body].concat();
    let secret = SECRET.strip_prefix("whsec_").expect("its mark");
    let key = openssl(dir, &["base64", "-d", "-A"], secret.as_bytes());
    let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("hexkey:{key}");
    let mac = openssl(dir, &["dgst", "-sha256", "-mac", "HMAC", "-macopt", &key, "-binary"], &signed);
    let text = openssl(dir, &["base64", "-A"], &mac);
    format!("v1,{}", String::from_utf8(text).expect("base64"))
}

#[test]
fn a_webhook_over_tls_is_sent_to_whom_it_trusts_and_signed_as_others_count() {
    let mut setting = Setting::new("trusted", 1, SCHEMA);
    let certificates = scratch();
    let dir = certificates.path();
    let (authority, _) = (Authority::new(dir, "ca"), Authority::new(dir, "stranger"));
    let status = Arc::new(Mutex::new(204));
    let (address, requests) = receive(&authority, status.clone());
    let instance = Instance::new(&setting, "one");
    instance.append(&format!(
        r#"
        [datasets."{}".consumer.webhook]
        url = "https://{address}/changes"
        secret = "{SECRET}"
        retry_backoff = "20ms"
        max_backoff = "100ms"
        max_retry_attempts = {RETRIES}
        circuit_breaker_reset = "100ms"
        "#,
        setting.dataset(),
    ));
    let start =
        |trusted: &str| Running::start(instance.command_to_run(&[]).env("SSL_CERT_FILE", dir.join(trusted)));
    let taken = || requests.lock().expect("no panic").clone();
    let send = |setting: &mut Setting, key: &str| {
        let record = setting.upsert(key, row(key, 1));
        setting.topic.produce([record]);
    };

    // Who signed the receiver's certificate is nobody that this process knows: nothing is sent, and it is said.
    let process = start("stranger.pem");
    send(&mut setting, "first");
    wait_until("health says that the certificate is not trusted", LONG, || {
        let (_, health) = instance.get("/health").map_err(|error| error.to_string())?;
        let told = health.contains("is away") && health.to_ascii_lowercase().contains("certificate");
        if told { Ok(()) } else { Err(health) }
    });
    assert!(taken().is_empty(), "{:?}", taken());
    process.stop(LONG).expect_code(0);

    // It does now, and what was not sent is.
    let process = start("ca.pem");
    let (head, body) = wait_until("the receiver took it", LONG, || taken().first().cloned().ok_or("nothing"));
    let told: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(told["changes"], json!([{"key": "first", "old": null, "new": row("first", 1)}]));
    assert_eq!(header(&head, "webhook-signature"), Some(&*signature(dir, &head, &body)), "{head}");

    // One that is refused comes as often as it is configured to, each time under its id and rightly signed, and is a letter then.
    *status.lock().expect("no panic") = 422;
    send(&mut setting, "second");
    let letters = setting.topic.beside(&format!("{}.dlq", setting.dataset()));
    let letters = letters.read_until("the letter is there", LONG, some);
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!(letters[0].key.as_deref(), Some(&b"second"[..]));
    assert_eq!(letters[0].header("__connect.errors.stage"), Some("webhook"));
    let tries: Vec<_> = taken().into_iter().skip(1).collect();
    assert_eq!(tries.len(), 1 + RETRIES, "{tries:?}");
    for (head, body) in &tries {
        assert_eq!(header(head, "webhook-id"), header(&tries[0].0, "webhook-id"));
        assert_eq!(header(head, "webhook-signature"), Some(&*signature(dir, head, body)), "{head}");
    }
    *status.lock().expect("no panic") = 204;
    send(&mut setting, "third");
    wait_until("it goes on behind the letter", LONG, || {
        let last =
            taken().last().map(|(_, body)| String::from_utf8_lossy(body).into_owned()).unwrap_or_default();
        if last.contains("\"third\"") { Ok(()) } else { Err(last) }
    });
    process.stop(LONG).expect_code(0);
}
