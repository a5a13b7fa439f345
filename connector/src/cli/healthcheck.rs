//! `stillwell healthcheck`: for Docker's HEALTHCHECK, which knows 0 (healthy) and 1 (not).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::edge::{Answer, Edge, print};
use super::given::{Given, Side};
use crate::{Error, ErrorKind, Result};

/// More than any health report; what answers with more is something else.
const LONGEST_ANSWER: usize = 1 << 20;

/// Asks a running process for /health: exit 0 where it is healthy or degraded, 1 where it is not or does not answer
#[derive(Debug, Args)]
pub struct Healthcheck {
    #[command(flatten)]
    given: Given,
    /// Where to ask [default: http.listen of the configuration, else http://127.0.0.1:8080/health]
    #[arg(long)]
    url: Option<String>,
    /// The --role that the process runs with: it decides on the default port
    #[arg(long, value_enum, default_value_t, env = "STILLWELL_ROLE")]
    role: Side,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Healthcheck {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let (url, why) = match &self.url {
            Some(url) => (url.clone(), String::new()),
            None => self.configured(edge)?,
        };
        let asked = edge.runtime()?.block_on(async { tokio::time::timeout(self.timeout, ask(&url)).await });
        match asked {
            Ok(Ok((healthy, report))) => {
                print(|out| writeln!(out, "{}", report.trim_end()))?;
                Ok(if healthy { Answer::Yes } else { Answer::No })
            }
            Ok(Err(problem)) => no_answer(&url, &why, &problem),
            Err(_) => {
                let problem = format!("no answer within {}", humantime::format_duration(self.timeout));
                no_answer(&url, &why, &problem)
            }
        }
    }

    /// Where to ask, and why there.
    fn configured(&self, edge: &Edge) -> Result<(String, String)> {
        let (listen, why) = if self.given.is_there() {
            let config = self.given.load(edge)?;
            (config.listen(self.role.into()), format!(", where {} has a process listen", config.file()))
        } else {
            let why = ", the default, since no configuration is named (-c FILE, or --url)".to_owned();
            (Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))), why)
        };
        match listen {
            Some(address) => Ok((format!("http://{}/health", reachable(address)), why)),
            None => Err(Error::new(
                ErrorKind::Config,
                "http.listen is off: there is nothing to ask; name it by --url",
            )),
        }
    }
}

/// Who listens everywhere is asked here.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn no_answer(url: &str, why: &str, problem: &str) -> Result<Answer> {
    print(|out| writeln!(out, "{url}{why}: {problem}"))?;
    Ok(Answer::No)
}

/// Whether it is healthy, and what it said.
async fn ask(url: &str) -> Result<(bool, String), String> {
    let uri: Uri = url.parse().map_err(|error| format!("not a URL: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err("not an http:// URL".to_owned());
    }
    let host = uri.host().ok_or("names no host")?.trim_matches(['[', ']']);
    let path = match uri.path_and_query().map_or("/", |path| path.as_str()) {
        "/" => "/health",
        path => path,
    };
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await;
    let stream = stream.map_err(|error| format!("cannot connect: {error}"))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let request = Request::get(path)
        .header(header::HOST, uri.authority().map_or(host, |authority| authority.as_str()))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let report = String::from_utf8_lossy(&body).into_owned();
        Ok((status.is_success(), if report.is_empty() { status.to_string() } else { report }))
    };
    tokio::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        // The server may close as soon as it has answered; what it sent is still to be read.
        closed = connection => match closed {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request with `response`; gives what was asked.
    async fn answer(response: &'static str) -> (String, impl Future<Output = String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 1024];
            let read = stream.read(&mut asked).await.unwrap();
            stream.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..read]).into_owned()
        };
        (url, served)
    }

    #[tokio::test]
    async fn two_hundred_is_healthy_and_five_hundred_and_three_is_not() {
        for (response, expected) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", (true, "ok".to_owned())),
            (
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
                (false, "503 Service Unavailable".to_owned()),
            ),
        ] {
            let (url, served) = answer(response).await;
            let (got, asked) = tokio::join!(ask(&url), served);
            assert_eq!(got, Ok(expected));
            assert!(asked.starts_with("GET /health HTTP/1.1\r\n"), "{asked}");
        }
    }

    #[tokio::test]
    async fn no_answer_is_not_healthy() {
        // Nobody listens on port 1.
        assert!(ask("http://127.0.0.1:1").await.unwrap_err().starts_with("cannot connect"));
        assert!(ask("https://localhost").await.is_err());
    }

    #[test]
    fn who_listens_everywhere_is_asked_here() {
        assert_eq!(reachable("0.0.0.0:8080".parse().unwrap()).to_string(), "127.0.0.1:8080");
        assert_eq!(reachable("[::]:8080".parse().unwrap()).to_string(), "[::1]:8080");
        assert_eq!(reachable("10.1.2.3:8080".parse().unwrap()).to_string(), "10.1.2.3:8080");
    }
}
