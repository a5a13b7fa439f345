//! Stores that are far away, as child processes on 127.0.0.1 that end with the test binary:
//!
//! ```text
//! s3://  moto, which checks signatures and rights        testcontainers-config/s3     installed by .ci/python
//! az://  Azurite, which checks signatures and rights     testcontainers-config/azure  installed by .ci/azure
//! gs://  Google's words before moto; tokens are checked  testcontainers-config/gcs    installed by .ci/python
//! ```
//!
//! Each says on one line where it is, and by which `[storage.options]` who asks. The one bucket of each is `blobs`.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use stillwell::blob::{Options, Store};

use crate::guard::{self, Guard};
use crate::process::{installed, python};
use crate::{unique, workspace};

/// A store's server. Never stopped while tests of this binary run, which share it.
#[derive(Debug)]
pub struct Cloud {
    /// What its URLs begin with: `s3`, `az`, `gs`.
    pub scheme: &'static str,
    /// What holds blobs there: a bucket, a container.
    pub kind: &'static str,
    /// What an error about credentials tells to set.
    pub credentials: &'static str,
    /// What an error about the endpoint tells to look at.
    pub endpoint: &'static str,
    /// The option without which nothing goes in the clear.
    pub in_the_clear: &'static str,
    said: Value,
    child: Child,
    _stdin: ChildStdin,
    _guard: Guard,
}

impl Cloud {
    /// moto.
    pub fn s3() -> &'static Cloud {
        static SHARED: OnceLock<Cloud> = OnceLock::new();
        SHARED.get_or_init(|| {
            let python = python("s3");
            let started = start(Command::new(python).arg(script("s3/server.py")));
            let words = ["s3", "bucket", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "aws_allow_http"];
            Cloud::new(words, started)
        })
    }

    /// Azurite.
    pub fn azure() -> &'static Cloud {
        static SHARED: OnceLock<Cloud> = OnceLock::new();
        SHARED.get_or_init(|| {
            let folder = installed(".ci/azure", &[]);
            let started = start(Command::new("node").arg(script("azure/server.js")).arg(folder));
            let words = ["az", "container", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_ENDPOINT", "allow_http"];
            Cloud::new(words, started)
        })
    }

    /// What stands for Google's.
    pub fn google() -> &'static Cloud {
        static SHARED: OnceLock<Cloud> = OnceLock::new();
        SHARED.get_or_init(|| {
            let python = python("s3");
            let started = start(Command::new(python).arg(script("gcs/server.py")));
            let words = ["gs", "bucket", "GOOGLE_APPLICATION_CREDENTIALS", "google_base_url", "allow_http"];
            Cloud::new(words, started)
        })
    }

    fn new(words: [&'static str; 5], (said, child, stdin): (Value, Child, ChildStdin)) -> Cloud {
        let [scheme, kind, credentials, endpoint, in_the_clear] = words;
        let guard = guard::kill_at_end(child.id());
        Cloud { scheme, kind, credentials, endpoint, in_the_clear, said, child, _stdin: stdin, _guard: guard }
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        let port = self.said("port").as_u64().and_then(|port| port.try_into().ok());
        port.expect("it says its port")
    }

    /// The options of one who may do all; `port` is the server's, or that of a proxy before it.
    pub fn writer(&self, port: u16) -> Options {
        self.options(self.said("writer"), port)
    }

    /// The options of one who may do all by a shared access signature, at Azure.
    pub fn signed(&self, port: u16) -> Options {
        self.options(self.said("signed"), port)
    }

    /// The options of one who may read and list.
    pub fn reader(&self, port: u16) -> Options {
        self.options(self.said("reader"), port)
    }

    /// The options of those whom it does not know, or who cannot show that they are who they say.
    pub fn strangers(&self) -> Vec<Options> {
        let strangers = self.said("strangers").as_array().expect("it says whom it does not let in");
        strangers.iter().map(|stranger| self.options(stranger, self.port())).collect()
    }

    /// What a machine with a role (`writer`, `reader`) is answered that asks for its credentials, but for when they end; at S3.
    pub fn session(&self, role: &str) -> Value {
        self.said("roles").get(role).cloned().unwrap_or_else(|| panic!("there is no role {role}"))
    }

    /// What nobody may read in an error or a log.
    pub fn secrets(&self) -> Vec<&str> {
        let secrets = self.said("secrets").as_array().expect("it says what is secret");
        secrets.iter().map(|secret| secret.as_str().expect("a secret is text")).collect()
    }

    fn said(&self, what: &str) -> &Value {
        self.said.get(what).unwrap_or_else(|| panic!("{}'s server does not say its {what}", self.scheme))
    }

    fn options(&self, who: &Value, port: u16) -> Options {
        let (here, there) = (format!("127.0.0.1:{}", self.port()), format!("127.0.0.1:{port}"));
        let given = [self.said("place"), who].into_iter();
        let given = given.flat_map(|part| part.as_object().expect("it says options"));
        let option = |(name, value): (&String, &Value)| {
            (name.clone(), value.as_str().expect("an option is text").replace(&here, &there))
        };
        Options(given.map(option).collect())
    }

    /// A store under a prefix of its own; `port` is the server's, or that of a proxy before it.
    pub fn store(&self, port: u16) -> Store {
        self.store_at(&self.url(), port)
    }

    /// The store of a URL.
    pub fn store_at(&self, url: &str, port: u16) -> Store {
        Store::open_with(url, &self.writer(port)).expect("the store opens")
    }

    /// A URL that nobody else has.
    pub fn url(&self) -> String {
        format!("{}://blobs/{}/deep", self.scheme, unique("prefix"))
    }
}

fn script(name: &str) -> std::path::PathBuf {
    workspace().join("testcontainers-config").join(name)
}

/// Starts a server and reads the line that it says.
fn start(command: &mut Command) -> (Value, Child, ChildStdin) {
    let name = Path::new(command.get_program()).display().to_string();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
    let stdin = child.stdin.take().expect("it is a pipe");
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
    stdout.read_line(&mut line).expect("the server says where it is");
    let said = serde_json::from_str(&line);
    let said = said.unwrap_or_else(|error| panic!("{name} says {line:?} in place of a port: {error}"));
    (said, child, stdin)
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
