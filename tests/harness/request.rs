//! HTTP requests as they come to a server that a test plays: a webhook's receiver, a registry, a cloud's roles.

use std::io::{self, BufRead};

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The request line and the headers, as they were sent.
    pub head: String,
    /// Its body, where `content-length` says that it has one.
    pub body: Vec<u8>,
}

impl Request {
    /// The next one of a connection; `None`: no more come.
    ///
    /// # Errors
    /// The connection's, and where it ends within a body.
    pub fn read(from: &mut impl BufRead) -> io::Result<Option<Request>> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if from.read_line(&mut head)? == 0 {
                return Ok(None);
            }
        }
        let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Ok(Some(Request { head, body }))
    }

    /// Its first line: `POST /hook HTTP/1.1`.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }
}

/// The value of the first header of this name, which is given in small letters.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
    line.split_once(':').map(|(_, value)| value.trim())
}
