//! Credentials that a machine or a container is given by its host, against the real S3 server: who is asked, by the protocols of
//! EC2 (IMDSv2) and of containers, what is renewed, and what is said when nobody answers.

use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use stillwell::blob::{Error, Options, Store};
use stillwell::clock::{Clock, rfc3339};
use stillwell_tests::request::header;
use stillwell_tests::{Cloud, Request, free_port, run, scratch, wait_until_async};

use crate::instance::{Instance, LONG};
use crate::setting::Setting;

const SCHEMA: &str = r#"{"type": "record", "name": "Note", "fields": [{"name": "id", "type": "string"}]}"#;
const ROLE: &str = "/latest/meta-data/iam/security-credentials/";
/// What a client of EC2's is given before it may ask for more.
const SESSION: &str = "AQAEA-session-s3cret";

/// What a host answers.
struct Answers {
    /// Roles, and for how many seconds from now on they are good: one for each question, the last one for all that follow.
    roles: Vec<(&'static str, i64)>,
    /// What a container has to show.
    token: String,
    /// It answers nothing but this status.
    fails: Option<u16>,
    /// How often credentials were handed out, and how often it failed.
    given: usize,
    failed: usize,
}

/// A metadata server of EC2's and a container's host in one, on 127.0.0.1. Its thread ends with the tests.
#[derive(Clone)]
struct Host {
    answers: Arc<Mutex<Answers>>,
    port: u16,
}

impl Host {
    fn start(roles: &[(&'static str, i64)]) -> Host {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("it has one").port();
        let answers =
            Answers { roles: roles.to_vec(), token: String::new(), fails: None, given: 0, failed: 0 };
        let host = Host { answers: Arc::new(Mutex::new(answers)), port };
        let serving = host.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // One that goes away asks again.
                let _ = serving.serve(stream);
            }
        });
        host
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn set(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn given(&self) -> usize {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).given
    }

    fn failed(&self) -> usize {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).failed
    }

    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let Some(request) = Request::read(&mut stream)? else { return Ok(()) };
        let header = |wanted: &str| header(&request.head, wanted).unwrap_or_default();
        let (status, body) = self.answer(request.line(), header);
        let length = body.len();
        write!(
            stream.get_mut(),
            "HTTP/1.1 {status} So\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    fn answer<'h>(&self, request: &str, header: impl Fn(&str) -> &'h str) -> (u16, String) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(status) = answers.fails {
            answers.failed += 1;
            return (status, SESSION.to_owned());
        }
        let (role, credentials) = (format!("GET {ROLE} HTTP/1.1"), format!("GET {ROLE}machine HTTP/1.1"));
        let knows = header("x-aws-ec2-metadata-token") == SESSION;
        match request {
            "PUT /latest/api/token HTTP/1.1" => {
                match header("x-aws-ec2-metadata-token-ttl-seconds").parse::<u32>() {
                    Ok(1..=21_600) => (200, SESSION.to_owned()),
                    _ => (400, String::new()),
                }
            }
            request if request == role && knows => (200, "machine".to_owned()),
            request if request == credentials && knows => (200, answers.session().to_string()),
            request if request == role || request == credentials => (401, String::new()),
            "GET /creds HTTP/1.1" if header("authorization") == answers.token => {
                (200, answers.session().to_string())
            }
            "GET /creds HTTP/1.1" => (403, format!("not {}", header("authorization"))),
            _ => (404, String::new()),
        }
    }
}

impl Answers {
    /// The next credentials.
    fn session(&mut self) -> Value {
        self.given += 1;
        let (role, seconds) = if self.roles.len() > 1 {
            self.roles.remove(0)
        } else {
            self.roles.first().copied().expect("a role")
        };
        let ends = Clock::system().wall_ms() + seconds * 1_000;
        let mut session = Cloud::s3().session(role);
        session["Expiration"] = rfc3339(ends).into();
        session
    }
}

/// The S3 server without any credentials, and with these options.
fn store(more: &[(&str, String)]) -> Store {
    let s3 = Cloud::s3();
    let Options(mut options) = s3.writer(s3.port());
    options.retain(|name, _| !["aws_access_key_id", "aws_secret_access_key"].contains(&name.as_str()));
    options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    Store::open_with(&s3.url(), &Options(options)).expect("the store opens")
}

fn body() -> Bytes {
    Bytes::from_static(b"body")
}

/// Nothing that nobody may see.
fn hushed(said: &str) {
    for secret in Cloud::s3().secrets().into_iter().chain([SESSION]) {
        assert!(!said.contains(secret), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_has_its_role_and_renews_it() {
    let host = Host::start(&[("writer", -60), ("reader", -60), ("writer", 3_600)]);
    let store = store(&[("aws_metadata_endpoint", host.url())]);
    assert_eq!(host.given(), 0, "nobody is asked before there is something to sign");
    store.put("a/1", body()).await.expect("the role may put");
    assert_eq!(host.given(), 1);
    // What has ended is asked for anew: by then the role is another one, which may only read.
    let error = store.put("a/2", body()).await.expect_err("it may not put");
    assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains("right to list"), "{error}");
    assert_eq!(host.given(), 2);
    store.put("a/2", body()).await.expect("it may again");
    // What is good is not asked for.
    assert_eq!(store.get_bytes("a/1").await.expect("it reads"), "body");
    assert_eq!(store.list("a").await.expect("it lists").len(), 2);
    assert_eq!(host.given(), 3);
    hushed(&format!("{error} {error:?} {store:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_shows_its_token_and_outlives_a_host_that_fails_for_a_while() {
    let folder = scratch();
    let token = folder.path().join("token");
    std::fs::write(&token, "first-s3cret\n").expect("it is written");
    let host = Host::start(&[("writer", -60), ("writer", 200)]);
    host.set(|answers| answers.token = "first-s3cret".to_owned());
    let store = store(&[
        ("aws_container_credentials_full_uri", format!("{}/creds", host.url())),
        ("aws_container_authorization_token_file", token.display().to_string()),
    ]);
    store.put("a/1", body()).await.expect("it may put");
    // The token is another one by now, and the file does not have it yet.
    host.set(|answers| answers.token = "second-s3cret".to_owned());
    let error = store.get_bytes("a/1").await.expect_err("nobody lets it in");
    let said = error.to_string();
    assert!(matches!(error, Error::Refused { .. }) && error.is_transient(), "{error:?}");
    assert!(said.contains(&format!("{}/… was asked (it answered 403)", host.url())), "{said}");
    hushed(&format!("{said} {error:?} {store:?}"));
    assert!(!format!("{said} {error:?} {store:?}").contains("-s3cret"), "{said}");
    std::fs::write(&token, "second-s3cret\n").expect("it is written");
    store.put("a/2", body()).await.expect("it may again");
    // They end soon, so they are asked for; where that fails they are good as long as they are.
    host.set(|answers| answers.fails = Some(500));
    wait_until_async("it was asked in vain", LONG, || async {
        assert_eq!(store.get_bytes("a/1").await.expect("it reads all the same"), "body");
        if host.failed() > 0 { Ok(()) } else { Err("it was not asked".to_owned()) }
    })
    .await;
    host.set(|answers| {
        answers.fails = None;
        answers.roles = vec![("writer", 3_600)];
    });
    let before = host.given();
    wait_until_async("they are new", LONG, || async {
        store.put("a/3", body()).await.expect("it may put");
        if host.given() > before { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    store.put("a/4", body()).await.expect("it may put");
    assert_eq!(host.given(), before + 1, "and are kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_asked_in_vain_is_named() {
    let away = format!("http://127.0.0.1:{}", free_port());
    let host = Host::start(&[("writer", 3_600)]);
    host.set(|answers| answers.fails = Some(404));
    for (option, url, asked, why) in [
        ("aws_metadata_endpoint", away.clone(), format!("{away}/latest/"), "refused"),
        ("aws_metadata_endpoint", host.url(), format!("{}/latest/", host.url()), "it answered 404"),
        ("aws_container_credentials_full_uri", format!("{away}/creds"), format!("{away}/…"), "refused"),
    ] {
        let error = store(&[(option, url)]).put("a/1", body()).await.expect_err("there are none");
        let said = error.to_string();
        assert!(matches!(error, Error::Refused { .. }) && error.is_transient(), "{error:?}");
        assert!(said.contains(&format!("{asked} was asked (")) && said.contains(why), "{said}");
        assert!(said.contains("AWS_ACCESS_KEY_ID") && said.contains("AWS_PROFILE"), "{said}");
        hushed(&format!("{said} {error:?}"));
    }
}

/// The real program, by the variables that a host sets, logging all it can.
#[test]
fn the_program_takes_what_its_host_sets_and_logs_no_secret() {
    let mut setting = Setting::new("roles", 1, SCHEMA);
    let s3 = Cloud::s3();
    setting.store = Some(s3.url());
    let instance = Instance::new(&setting, "one");
    let check = |variables: &[(&str, &str)]| {
        let mut command = stillwell_tests::stillwell(["check", "--connect", "-c"]);
        command.arg(instance.config()).env("STILLWELL_LOG__LEVEL", "trace");
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"] {
            command.env_remove(name);
        }
        let Options(place) = s3.writer(s3.port());
        command
            .env("AWS_ENDPOINT_URL", &place["aws_endpoint_url"])
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", &place["aws_region"])
            .env("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
            .env("AWS_CONFIG_FILE", "/nowhere")
            .envs(variables.iter().copied());
        let done = run(&mut command, LONG);
        hushed(&done.stdout);
        hushed(&done.stderr);
        assert!(!done.stderr.contains("container-s3cret"), "{}", done.stderr);
        done
    };
    let host = Host::start(&[("writer", 3_600)]);
    host.set(|answers| answers.token = "container-s3cret".to_owned());
    let creds = format!("{}/creds", host.url());
    let container = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*creds),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "container-s3cret"),
    ];
    let done = check(&container).expect_code(0);
    assert!(done.stdout.contains("a blob can be put, listed, read and deleted"), "{}", done.stdout);
    let url = host.url();
    let done = check(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)]).expect_code(0);
    assert!(done.stdout.contains("a blob can be put, listed, read and deleted"), "{}", done.stdout);
    assert_eq!(host.given(), 2);
    let nobody = format!("http://127.0.0.1:{}/", free_port());
    let done = check(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &nobody)]);
    assert!(done.stderr.contains(&format!("{nobody}latest/ was asked (")), "{}{}", done.stdout, done.stderr);
    assert_ne!(done.code(), 0);
}
