//! A schema registry as a child process: Apicurio, which speaks Confluent's API, its schemas in memory.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::{Value, json};

use crate::guard::{self, Guard};
use crate::{free_port, wait_until, workspace};

/// Longest answer.
const REQUEST: Duration = Duration::from_secs(120);
/// Where it speaks Confluent's API.
const API: &str = "/apis/ccompat/v7";

/// A registry; gone with the test binary.
#[derive(Debug)]
pub struct Registry {
    port: u16,
    _child: Child,
    _guard: Guard,
    _folder_goes: Guard,
}

impl Registry {
    /// The registry that all tests of this binary share; the first call starts it.
    pub fn shared() -> &'static Registry {
        static SHARED: OnceLock<Registry> = OnceLock::new();
        SHARED.get_or_init(|| start().unwrap_or_else(|why| panic!("no schema registry to test with: {why}")))
    }

    /// Its port of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, as clients are given it.
    pub fn url(&self) -> String {
        Registry::url_at(self.port)
    }

    /// The same by another port: a proxy's.
    pub fn url_at(port: u16) -> String {
        format!("http://127.0.0.1:{port}{API}")
    }

    /// Registers an Avro schema that refers to the newest of these subjects (name of a type, subject); gives its id.
    pub fn register(&self, subject: &str, schema: &str, references: &[(&str, &str)]) -> u32 {
        self.register_as("AVRO", subject, schema, references)
    }

    /// The same for a schema of another type: `JSON` or `PROTOBUF`.
    pub fn register_as(&self, kind: &str, subject: &str, schema: &str, references: &[(&str, &str)]) -> u32 {
        let references =
            references.iter().map(|(name, subject)| json!({"name": name, "subject": subject, "version": 1}));
        let body =
            json!({"schema": schema, "schemaType": kind, "references": references.collect::<Vec<_>>()});
        let (status, answer) = self
            .ask("POST", &format!("/subjects/{subject}/versions"), &body.to_string())
            .unwrap_or_else(|e| panic!("registering {subject}: {e}"));
        let id = answer.get("id").and_then(Value::as_u64);
        id.unwrap_or_else(|| panic!("registering {subject}: {status} {answer}")) as u32
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, Value)> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port)))?;
        stream.set_read_timeout(Some(REQUEST))?;
        let length = body.len();
        write!(
            stream,
            "{method} {API}{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: \
             application/vnd.schemaregistry.v1+json\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }
}

fn start() -> Result<Registry, String> {
    let path = workspace().join("testcontainers-config/registry.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let settings: toml::Table = text.parse().map_err(|e| format!("{}: {e}", path.display()))?;
    let patience = settings.get("start_timeout_seconds").and_then(toml::Value::as_integer).unwrap_or(180);
    let patience = Duration::from_secs(patience.unsigned_abs());
    let options = settings.get("java_options").and_then(toml::Value::as_array).into_iter().flatten();
    let options = options.filter_map(toml::Value::as_str);
    let properties = settings.get("properties").and_then(toml::Value::as_table).into_iter().flatten();
    let properties =
        properties.map(|(name, value)| format!("-D{name}={}", value.as_str().unwrap_or_default()));

    let program = fetched()?;
    let port = free_port();
    let folder = tempfile::Builder::new()
        .prefix("stillwell-registry-")
        .tempdir()
        .map_err(|e| format!("no folder for the registry's log: {e}"))?
        .keep();
    let folder_goes = guard::at_end(format!("rm -rf {}", guard::quoted(&folder.to_string_lossy())));
    let log = folder.join("registry.log");
    let file = File::create(&log).map_err(|e| format!("the registry's log: {e}"))?;
    let mut child = Command::new("java")
        .args(options)
        .args(properties)
        .arg(format!("-Dquarkus.http.port={port}"))
        .arg("-jar")
        .arg(program)
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(|e| format!("the registry's log: {e}"))?)
        .stderr(file)
        .spawn()
        .map_err(|e| format!("java cannot be started: {e}"))?;
    let guard = guard::kill_at_end(child.id());
    let said = || std::fs::read_to_string(&log).unwrap_or_default();
    wait_until("the schema registry answers", patience, || {
        if let Ok(Some(status)) = child.try_wait() {
            return Ok(Err(format!("it ended: {status}\n{}", said())));
        }
        let probe = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string());
        probe.and_then(|_| answers(port)).map(Ok).map_err(|e| format!("{e}\n{}", said()))
    })?;
    Ok(Registry { port, _child: child, _guard: guard, _folder_goes: folder_goes })
}

fn answers(port: u16) -> Result<(), String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(REQUEST)).map_err(|e| e.to_string())?;
    write!(stream, "GET {API}/subjects HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .map_err(|e| e.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(text) }
}

/// The program, fetched by `.ci/registry` unless it is there.
fn fetched() -> Result<PathBuf, String> {
    let output = Command::new("bash")
        .arg(workspace().join(".ci/registry"))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("bash .ci/registry: {e}"))?;
    if !output.status.success() {
        return Err(format!("it is not fetched: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let files = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let runner =
        files.flatten().map(|file| file.path()).find(|file| file.to_string_lossy().ends_with("-runner.jar"));
    runner.ok_or_else(|| format!("no program in {}", folder.display()))
}
