//! A dataset as its operator has it: a configuration file for each instance, processes that run it, commands beside them.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use stillwell_tests::{Finished, Running, free_port, run, stillwell, wait_until};

use crate::setting::Setting;

/// Longest that anything may take.
pub const LONG: Duration = Duration::from_secs(90);

/// One instance: its own data directory, the dataset's store.
pub struct Instance {
    name: String,
    config: PathBuf,
    pub port: u16,
}

impl Instance {
    pub fn new(setting: &Setting, name: &str) -> Instance {
        let port = free_port();
        let dir = setting.dir.path();
        let (schema, config) = (dir.join("dataset.avsc"), dir.join(format!("{name}.toml")));
        // in one step: a process of this dataset that was started before may be reading it
        let next = dir.join("dataset.avsc.next");
        std::fs::write(&next, &setting.schema).expect("the schema is written");
        std::fs::rename(&next, &schema).expect("the schema is in its place");
        let text = format!(
            r#"
            [kafka]
            bootstrap_servers = "{servers}"
            [storage]
            data_dir = "{data}"
            blobs = "{blobs}"
            [http]
            listen = "127.0.0.1:{port}"
            [producer.batching]
            batch_timeout = "50ms"
            [consumer]
            graceful_shutdown_timeout = "80s"
            [datasets."{dataset}"]
            source = {{ topics = ["{dataset}"], format = "json" }}
            schema = "{schema}"
            "#,
            servers = setting.bootstrap,
            data = dir.join(name).display(),
            blobs = setting.blobs(),
            dataset = setting.dataset(),
            schema = schema.display(),
        );
        std::fs::write(&config, text).expect("the configuration is written");
        Instance { name: setting.dataset().to_owned(), config, port }
    }

    /// Its configuration file.
    pub fn config(&self) -> &std::path::Path {
        &self.config
    }

    /// More of the configuration; a section that the file has goes on where that left off.
    pub fn append(&self, text: &str) {
        let whole = std::fs::read_to_string(&self.config).expect("the configuration is there");
        let whole = match text.split_once('\n') {
            Some((head, keys)) if head.starts_with('[') && whole.contains(&format!("{head}\n")) => {
                whole.replacen(&format!("{head}\n"), &format!("{head}\n{keys}\n"), 1)
            }
            _ => format!("{whole}\n{text}"),
        };
        std::fs::write(&self.config, whole).expect("the configuration is written");
    }

    /// `stillwell run`, with these arguments.
    pub fn command_to_run(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = stillwell(["run"]);
        command.args(arguments).arg("-c").arg(&self.config);
        command
    }

    /// `stillwell run`.
    pub fn start(&self) -> Running {
        Running::start(stillwell(["run", "-c"]).arg(&self.config))
    }

    /// Starts it, and waits until it is ready.
    pub fn started(&self) -> Running {
        let mut process = self.start();
        wait_until("/ready says yes", LONG, || {
            if let Some(status) = process.ended() {
                panic!("it ended ({status}):\n{}", process.stderr());
            }
            match self.get("/ready") {
                Ok((200, _)) => Ok(()),
                Ok((_, body)) => Err(body),
                Err(error) => Err(error.to_string()),
            }
        });
        process
    }

    /// Starts a command on the dataset: `before` its name, `after` it.
    pub fn command(&self, before: &[&str], after: &[&str]) -> std::process::Command {
        let mut command = stillwell(before);
        command.arg(&self.name).args(after).arg("-c").arg(&self.config);
        command
    }

    /// Runs a command on the dataset to its end.
    pub fn run(&self, before: &[&str], after: &[&str]) -> Finished {
        run(&mut self.command(before, after), LONG)
    }

    /// All announced versions, as `versions list` shows them.
    pub fn versions(&self) -> Vec<Value> {
        let listed = self.run(&["versions", "list"], &["--output", "json"]).expect_code(0);
        serde_json::from_str(&listed.stdout).expect("a list")
    }

    /// The newest version's number; checks on the way that they are gapless from 1 on, each once.
    pub fn newest(&self) -> u64 {
        let versions = self.versions();
        let numbers: Vec<u64> =
            versions.iter().map(|version| version["version"].as_u64().expect("a number")).collect();
        let gapless: Vec<u64> = (1..=numbers.len() as u64).collect();
        assert_eq!(numbers, gapless, "versions are gapless, each announced once");
        numbers.len() as u64
    }

    /// A route: status and body. An error while nobody listens.
    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        ask(self.port, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    /// As [`Instance::get`], for who has the token.
    pub fn get_as(&self, path: &str, token: &str) -> std::io::Result<(u16, String)> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        ask(self.port, &format!("{head}authorization: Bearer {token}\r\n\r\n"))
    }

    /// A POST with a body: status and body of the answer.
    pub fn post(&self, path: &str, token: Option<&str>, body: &str) -> std::io::Result<(u16, String)> {
        Instance::post_to(self.port, path, token, body)
    }

    /// As [`Instance::post`], from anywhere.
    pub fn post_to(port: u16, path: &str, token: Option<&str>, body: &str) -> std::io::Result<(u16, String)> {
        let token = token.map_or(String::new(), |token| format!("authorization: Bearer {token}\r\n"));
        let length = body.len();
        ask(
            port,
            &format!(
                "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{token}content-length: {length}\r\n\r\n{body}"
            ),
        )
    }

    /// A metric's value, summed over its time series; `None` where there is none.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").ok()?;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

fn ask(port: u16, request: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    stream.set_read_timeout(Some(LONG))?;
    stream.write_all(request.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}
