//! A registry that does what a real one cannot be made to: fail, lie, be slow. For tests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Options;

/// What it answers to a path: status and body. [`SILENCE`]: nothing, ever.
pub type Answer = (u16, String);

/// The status of an answer that does not come.
pub const SILENCE: u16 = 0;

type Answers = dyn FnMut(&str) -> Answer + Send;

/// A running stub; gone with the value.
pub struct Stub {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl Stub {
    /// Answers each request by its path and query.
    pub async fn start(answers: impl FnMut(&str) -> Answer + Send + 'static) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let answers: Arc<Mutex<Answers>> = Arc::new(Mutex::new(answers));
        let mut task = JoinSet::new();
        let log = seen.clone();
        task.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, answers.clone(), log.clone()));
            }
        });
        Stub { url, seen, _task: task }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Its client's options.
    pub fn options(&self) -> Options {
        Options { urls: vec![self.url()], timeout: Duration::from_secs(30), ..Options::default() }
    }

    /// The heads of all requests so far.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, answers: Arc<Mutex<Answers>>, log: Arc<Mutex<Vec<String>>>) {
    let mut text = String::new();
    loop {
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(read) => text += std::str::from_utf8(&bytes[..read]).unwrap(),
        }
        let Some((head, rest)) = text.split_once("\r\n\r\n") else { continue };
        let path = head.split(' ').nth(1).unwrap().to_owned();
        log.lock().unwrap().push(head.to_owned());
        text = rest.to_owned();
        let (status, body) = (answers.lock().unwrap())(&path);
        if status == SILENCE {
            std::future::pending::<()>().await;
        }
        let length = body.len();
        let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: {length}\r\n\r\n{body}");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A schema as a registry answers it.
pub fn schema(text: &str) -> Answer {
    (200, serde_json::json!({"schema": text}).to_string())
}

/// What a registry says of what it does not have.
pub fn absent() -> Answer {
    (404, r#"{"error_code":40403,"message":"Schema not found"}"#.to_owned())
}
