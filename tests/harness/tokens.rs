//! Who gives tokens: an endpoint for OAuth's client credentials, over TLS, whose tokens Kafka's own validator checks against
//! the key that they are signed with.
//!
//! Owns: its clients and their secrets, its key, how long a token lasts. Does not own: what who has one may do (`rights`).

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use stillwell::clock::{Clock, Entropy};

use crate::certificates::{Authority, Certificate, openssl};

/// How long each token lasts. Another is asked for when 80% of that are over.
pub const LIFE: Duration = Duration::from_secs(20);

/// What its tokens say of who has given them, and for whom.
pub const ISSUER: &str = "https://tokens.test";
/// The broker.
pub const AUDIENCE: &str = "kafka";

/// Longest that a request may take to come.
const REQUEST: Duration = Duration::from_secs(60);
/// Its key, and what of it is public.
const KEY: &str = "tokens-signed-by.key";
const PUBLIC: &str = "jwks.json";

/// The endpoint; its threads end with the tests.
#[derive(Debug)]
pub struct Tokens {
    front: Door,
    office: Arc<Office>,
    config: Arc<ServerConfig>,
}

/// A way to the endpoint, which can be shut: then whoever comes is sent away without a word.
#[derive(Debug)]
pub struct Door {
    port: u16,
    latch: Arc<Latch>,
}

#[derive(Debug, Default)]
struct Latch {
    is_shut: AtomicBool,
    turned_away: AtomicUsize,
}

impl Door {
    fn new(office: &Arc<Office>, config: &Arc<ServerConfig>) -> Door {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("bound").port();
        let latch = Arc::new(Latch::default());
        let (desk, config, seen) = (office.clone(), config.clone(), latch.clone());
        std::thread::spawn(move || {
            for stream in socket.incoming().flatten() {
                if seen.is_shut.load(Ordering::Acquire) {
                    seen.turned_away.fetch_add(1, Ordering::AcqRel);
                    continue;
                }
                let (config, office) = (config.clone(), desk.clone());
                // A handshake that fails is the caller's to tell.
                std::thread::spawn(move || office.serve(stream, config));
            }
        });
        Door { port, latch }
    }

    /// Where tokens are asked for by this way.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/oauth2/token", self.port)
    }

    /// Shuts it, or opens it again.
    pub fn shut(&self, is_shut: bool) {
        self.latch.is_shut.store(is_shut, Ordering::Release);
    }

    /// How many were sent away.
    pub fn turned_away(&self) -> usize {
        self.latch.turned_away.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
struct Office {
    dir: PathBuf,
    clients: Mutex<BTreeMap<String, Client>>,
}

#[derive(Debug)]
struct Client {
    secret: String,
    /// When each of its tokens ends, in milliseconds since the Unix epoch.
    given: Vec<i64>,
}

impl Tokens {
    /// Begins to give tokens to clients that it comes to know; its files are in `dir`, its certificate from `authority`.
    pub fn start(dir: &Path, authority: &Authority) -> Tokens {
        let office = Arc::new(Office::new(dir));
        let Certificate { pem, key } = authority.server("tokens");
        let certificate = CertificateDer::from_pem_file(pem).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
        let config = Arc::new(config.expect("the key is the certificate's"));
        Tokens { front: Door::new(&office, &config), office, config }
    }

    /// Where they are asked for.
    pub fn url(&self) -> String {
        self.front.url()
    }

    /// A way of one's own.
    pub fn door(&self) -> Door {
        Door::new(&self.office, &self.config)
    }

    /// Its public key, as a JSON Web Key Set.
    pub fn public(&self) -> PathBuf {
        self.office.dir.join(PUBLIC)
    }

    /// Gives tokens to `name` from now on, where that secret comes with it.
    pub fn admit(&self, name: &str, secret: &str) {
        let client = Client { secret: secret.to_owned(), given: Vec::new() };
        self.office.clients().insert(name.to_owned(), client);
    }

    /// When each token that `name` was given ends, in milliseconds since the Unix epoch.
    pub fn given(&self, name: &str) -> Vec<i64> {
        self.office.clients().get(name).map(|client| client.given.clone()).unwrap_or_default()
    }
}

impl Office {
    fn new(dir: &Path) -> Office {
        openssl(dir, &["genrsa", "-out", KEY, "2048"], b"");
        let told = openssl(dir, &["rsa", "-in", KEY, "-noout", "-modulus"], b"");
        let told = String::from_utf8(told).expect("text");
        let digits = told.trim().strip_prefix("Modulus=").expect("a modulus");
        let byte =
            |pair| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("hexadecimal");
        let modulus: Vec<u8> = digits.as_bytes().chunks(2).map(byte).collect();
        let key = json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": "the-only-one",
            "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB",
        });
        std::fs::write(dir.join(PUBLIC), json!({ "keys": [key] }).to_string()).expect("it can be written");
        Office { dir: dir.to_owned(), clients: Mutex::default() }
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<String, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream, config: Arc<ServerConfig>) -> std::io::Result<()> {
        stream.set_read_timeout(Some(REQUEST))?;
        let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
        let mut reader = BufReader::new(StreamOwned::new(connection, stream));
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let header = |wanted: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(':'));
            let found = lines.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let mut form = vec![0; header("content-length").parse().unwrap_or(0)];
        reader.read_exact(&mut form)?;
        let (status, answer) = self.answer(&header("authorization"), &String::from_utf8_lossy(&form));
        let answer = answer.to_string();
        let length = answer.len();
        let stream = reader.get_mut();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{answer}"
        )?;
        stream.conn.send_close_notify();
        stream.flush()
    }

    /// By RFC 6749, 4.4 and 5.2.
    fn answer(&self, authorization: &str, form: &str) -> (u16, Value) {
        if !form.split('&').any(|field| field == "grant_type=client_credentials") {
            return (400, json!({ "error": "unsupported_grant_type" }));
        }
        let given = authorization.strip_prefix("Basic ").and_then(|text| STANDARD.decode(text).ok());
        let given = String::from_utf8(given.unwrap_or_default()).unwrap_or_default();
        let (name, secret) = given.split_once(':').unwrap_or_default();
        let ends = {
            let mut clients = self.clients();
            let Some(client) = clients.get_mut(name).filter(|client| client.secret == secret) else {
                return (401, json!({ "error": "invalid_client", "error_description": "who is that?" }));
            };
            let ends = Clock::system().wall_ms() / 1_000 * 1_000 + LIFE.as_millis() as i64;
            client.given.push(ends);
            ends
        };
        let scope = form.split('&').find_map(|field| field.strip_prefix("scope=")).unwrap_or_default();
        let token = self.token(name, scope, ends);
        (
            200,
            json!({ "access_token": token, "token_type": "Bearer", "expires_in": LIFE.as_secs(), "scope": scope }),
        )
    }

    fn token(&self, name: &str, scope: &str, ends_ms: i64) -> String {
        let ends = ends_ms / 1_000;
        let head = json!({ "alg": "RS256", "typ": "JWT", "kid": "the-only-one" });
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": name, "scope": scope, "iat": ends - LIFE.as_secs() as i64, "exp": ends,
            "jti": format!("{:016x}", Entropy::system().next_u64()),
        });
        let [head, claims] = [head, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let signed = format!("{head}.{claims}");
        let signature = openssl(&self.dir, &["dgst", "-sha256", "-sign", KEY], signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}
