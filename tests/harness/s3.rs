//! A real S3 server as a child process: moto (`testcontainers-config/s3`), which checks signatures and rights, installed by
//! `.ci/python`. It ends when its standard input does, so it ends with the test binary.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use stillwell::blob::{Options, Store};

use crate::guard::{self, Guard};
use crate::process::python;
use crate::{unique, workspace};

/// The server, and who may do what there. Its one bucket is `blobs`.
#[derive(Debug)]
pub struct S3 {
    port: u16,
    /// May do all.
    pub writer: Keys,
    /// May read and list.
    pub reader: Keys,
    child: Child,
    _stdin: ChildStdin,
    _guard: Guard,
}

/// An access key and its secret.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Its id.
    pub id: String,
    /// What signs.
    pub secret: String,
}

impl S3 {
    /// The server that all tests of this binary share. Never stopped while they run.
    pub fn shared() -> &'static S3 {
        static SHARED: OnceLock<S3> = OnceLock::new();
        SHARED.get_or_init(S3::start)
    }

    fn start() -> S3 {
        let mut child = Command::new(python("s3"))
            .arg(workspace().join("testcontainers-config/s3/server.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the S3 server can be started");
        let guard = guard::kill_at_end(child.id());
        let stdin = child.stdin.take().expect("it is a pipe");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is a pipe"))
            .read_line(&mut line)
            .expect("the S3 server says where it is");
        let said: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the S3 server says {line:?} in place of a port: {error}"));
        let keys = |who: &str| {
            let said = |key: &str| said.get(who).and_then(|keys| keys.get(key)).and_then(Value::as_str);
            let text = |key: &str| said(key).expect("it says its keys").to_owned();
            Keys { id: text("id"), secret: text("secret") }
        };
        let port = said.get("port").and_then(Value::as_u64).and_then(|port| port.try_into().ok());
        let port = port.expect("it says its port");
        S3 { port, writer: keys("writer"), reader: keys("reader"), child, _stdin: stdin, _guard: guard }
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The options of a store there.
    pub fn options(port: u16, keys: &Keys) -> Options {
        let options = [
            ("aws_endpoint_url", format!("http://127.0.0.1:{port}")),
            ("aws_allow_http", "true".to_owned()),
            ("aws_region", "us-east-1".to_owned()),
            ("aws_access_key_id", keys.id.clone()),
            ("aws_secret_access_key", keys.secret.clone()),
        ];
        Options(options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>())
    }

    /// A store under a prefix of its own; `port` is the server's, or that of a proxy before it.
    pub fn store(&self, port: u16) -> Store {
        self.store_at(&S3::url(), port)
    }

    /// The store of a URL.
    pub fn store_at(&self, url: &str, port: u16) -> Store {
        Store::open_with(url, &S3::options(port, &self.writer)).expect("the store opens")
    }

    /// A URL that nobody else has.
    pub fn url() -> String {
        format!("s3://blobs/{}/deep", unique("prefix"))
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
