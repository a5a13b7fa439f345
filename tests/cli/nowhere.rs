//! Nobody listens where Kafka should be: said at once in a line, not flooded, and not for ever.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use stillwell_tests::{Running, free_port, scratch, stillwell, wait_until};

use crate::serving::{LONG, configure};

/// Port 1 of this machine, where nobody listens.
const NOWHERE: &str = "127.0.0.1:1";
const SAID: &str = "Kafka at 127.0.0.1:1 is not reachable; it is waited for";

#[test]
fn an_outage_is_one_line_at_once_and_one_error_at_the_end() {
    let dir = scratch();
    let config = configure(dir.path(), "shop", "products", NOWHERE, free_port());
    let commands: [&[&str]; 4] = [
        &["check", "--connect", "-c", &config],
        &["versions", "list", "shop", "-c", &config],
        &["dlq", "list", "shop", "-c", &config],
        &["bench", "ingest", "--bootstrap-servers", NOWHERE],
    ];
    let running: Vec<Running> =
        commands.iter().map(|arguments| Running::start(&mut stillwell(*arguments))).collect();
    for (arguments, process) in commands.iter().zip(running) {
        let ended = process.wait(LONG).expect_code(69);
        let at = |text| ended.stderr.find(text).unwrap_or_else(|| panic!("no {text}:\n{}", ended.stderr));
        assert!(at(SAID) < at("error: "), "{arguments:?} said it at its end only:\n{}", ended.stderr);
        assert_eq!(ended.stderr.matches(SAID).count(), 1, "{arguments:?}:\n{}", ended.stderr);
        assert_eq!(ended.stderr.matches("error: ").count(), 1, "{arguments:?}:\n{}", ended.stderr);
        assert!(ended.stderr.contains("no broker can be reached: "), "{arguments:?}:\n{}", ended.stderr);
        assert!(!ended.stderr.contains("librdkafka: "), "{arguments:?}:\n{}", ended.stderr);
        assert!(ended.stderr.lines().count() <= 5, "{arguments:?}:\n{}", ended.stderr);
    }
}

/// Something else listens where Kafka should be: it is said, without advice about versions of Kafka and limits.
#[test]
fn who_is_no_broker_is_said_to_be_none() {
    let dir = scratch();
    let stranger = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let servers = stranger.local_addr().unwrap().to_string();
    let config = configure(dir.path(), "shop", "products", &servers, free_port());
    // It takes connections, and never says a word.
    let ended =
        Running::start(&mut stillwell(["check", "--connect", "-c", &config])).wait(LONG).expect_code(69);
    assert!(ended.stderr.contains("who listens there is no Kafka broker"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("version < 0.10"), "{}", ended.stderr);
}

#[test]
fn a_process_that_waits_says_so_and_is_not_flooded() {
    let dir = scratch();
    let config = configure(dir.path(), "shop", "products", NOWHERE, free_port());
    let mut process = Running::start(&mut stillwell(["run", "-c", &config]));
    process.wait_for_text(SAID, LONG);
    // By then every client has tried for ten seconds, some forty times in each.
    process.wait_for_text("announcements cannot be read", LONG);
    let said = process.stop(LONG).expect_code(0).stderr;
    assert_eq!(said.matches(SAID).count(), 1, "{said}");
    assert!(!said.contains("librdkafka: ") && said.lines().count() < 25, "{said}");
}

#[test]
fn a_check_leaves_nothing_behind() {
    let dir = scratch();
    let config = configure(dir.path(), "shop", "products", NOWHERE, free_port());
    let ended =
        Running::start(&mut stillwell(["check", "--connect", "-c", &config])).wait(LONG).expect_code(69);
    assert!(ended.stdout.contains("a blob can be put, listed, read and deleted"), "{}", ended.stdout);
    let mut left: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["product.avsc", "stillwell.toml"]);
}

/// A request of which the rest never comes holds up a graceful end.
#[test]
fn a_second_signal_ends_it_at_once() {
    let (dir, port) = (scratch(), free_port());
    let config = configure(dir.path(), "shop", "products", NOWHERE, port);
    let mut process =
        Running::start(stillwell(["run", "-c", &config]).env("STILLWELL_HTTP__ADMIN_TOKEN", "s3cr3t"));
    let mut stream = wait_until("it listens", LONG, || {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|error| error.to_string())
    });
    let head = "POST /admin/datasets/shop/replay HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer s3cr3t\r\n\
                expect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100", "it waits for the body");
    process.signal("TERM");
    process.wait_for_text("a second signal ends it at once", LONG);
    process.signal("INT");
    let ended = process.wait(LONG).expect_code(130);
    assert!(ended.stderr.contains("stopped at once by a second signal"), "{}", ended.stderr);
}
