//! An endpoint for tokens that says what it is told to. For tests.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::given::Given;

/// Longest that a test waits for what has to come.
pub(super) const LONG: Duration = Duration::from_secs(90);

/// The secret that it is asked with.
pub(super) const SECRET: &str = "s3cret/&";

/// What it answers: status and body. [`SILENCE`]: nothing, until the client has had enough.
pub(super) type Answer = (u16, String);

/// The status of an answer that does not come.
pub(super) const SILENCE: u16 = 0;

/// A running one; its thread ends with the tests.
pub(super) struct Endpoint {
    url: String,
    answer: Arc<Mutex<Answer>>,
    requests: mpsc::Receiver<String>,
}

impl Endpoint {
    /// Answers each request by the same, until [`Endpoint::answers`] changes it.
    pub(super) fn start(answer: Answer) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/oauth2/token", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new(answer));
        let (seen, requests) = mpsc::channel();
        let said = Arc::clone(&answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that breaks off has said all that it wanted to.
                let _ = serve(stream.unwrap(), &said, &seen);
            }
        });
        Endpoint { url, answer, requests }
    }

    pub(super) fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    /// The next request, head and body, if it comes within that time.
    pub(super) fn next(&self, within: Duration) -> Option<String> {
        self.requests.recv_timeout(within).ok()
    }

    /// Properties by which a client asks it.
    pub(super) fn properties(&self) -> BTreeMap<String, String> {
        let pairs = [
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanism", "OAUTHBEARER"),
            ("sasl.oauthbearer.method", "oidc"),
            ("sasl.oauthbearer.client.id", "me"),
            ("sasl.oauthbearer.client.secret", SECRET),
            ("sasl.oauthbearer.token.endpoint.url", &self.url),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    pub(super) fn given(&self, more: &[(&str, &str)]) -> Given {
        let mut properties = self.properties();
        properties.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Given::of(&properties).unwrap().expect("tokens are wanted")
    }
}

/// Tells the request once it is answered; or that there is no answer, before it waits.
fn serve(mut stream: TcpStream, said: &Mutex<Answer>, seen: &mpsc::Sender<String>) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LONG))?;
    let mut request = String::new();
    let mut bytes = [0; 4096];
    loop {
        if let Some((head, body)) = request.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.and_then(|length| length.trim().parse().ok()).unwrap_or(0) {
                break;
            }
        }
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            read => request.push_str(&String::from_utf8_lossy(&bytes[..read])),
        }
    }
    let (status, body) = said.lock().unwrap().clone();
    if status == SILENCE {
        // The test may be over.
        let _ = seen.send(request);
        while stream.read(&mut bytes)? > 0 {}
        return Ok(());
    }
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status} So\r\ncontent-length: {length}\r\nlocation: /elsewhere\r\nconnection: close\r\n\r\n{body}"
    );
    // Whoever does not read all of it is done with it.
    let _ = stream.write_all(answer.as_bytes());
    let _ = seen.send(request);
    Ok(())
}

/// A token with these claims.
pub(super) fn jwt(claims: &str) -> String {
    format!("eyJhbGciOiJub25lIn0.{}.c2lnbmVk", URL_SAFE_NO_PAD.encode(claims))
}

/// An answer with a token that ends then.
pub(super) fn token(name: &str, ends_seconds: i64) -> Answer {
    let jwt = jwt(&format!(r#"{{"sub": "{name}", "exp": {ends_seconds}}}"#));
    (200, format!(r#"{{"access_token": "{jwt}", "token_type": "Bearer"}}"#))
}
