//! Ten million records that cannot be announced yet, in 256 MB: memory as the system sees it, from outside. Part of `make
//! faults`; some two minutes.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use stillwell_tests::{Record, Running, Topic, bootstrap, free_port, scratch, stillwell, unique, wait_until};

/// Long: on a machine that does other things as well.
const DEADLINE: Duration = Duration::from_secs(1_200);
const LIMIT: u64 = 256 << 20;
const KEYS: u64 = 100_000;
/// How much more than the first half of the backlog the second may take: of ten million eight bytes for each of its records, so that
/// nothing is kept in memory of those that wait. Less would be what buffers and the allocator have more or less of.
const GROWTH: u64 = 40 << 20;

/// A shard's producer alone, which lets so many records a second out of its log. `memory_limit` alone bounds what it keeps: of
/// pending records all might be in memory.
fn configure(dir: &Path, dataset: &str, port: u16, records_per_second: u32) -> String {
    let file = dir.join("stillwell.toml");
    let text = format!(
        r#"
        [kafka]
        bootstrap_servers = "{servers}"
        [storage]
        data_dir = "{data}"
        [http]
        listen = "127.0.0.1:{port}"
        [producer.batching]
        memory_limit = "256MiB"
        max_batch_size = 100000
        max_pending_records = 100000000
        [producer.pacing]
        max_records_per_second = {records_per_second}
        [datasets."{dataset}"]
        source = {{ topics = ["{dataset}"], format = "raw" }}
        "#,
        servers = bootstrap(),
        data = dir.join("data").display(),
    );
    std::fs::write(&file, text).expect("it can be written");
    file.display().to_string()
}

/// The metrics of the process, without labels; empty while it does not answer.
fn metrics(port: u16) -> BTreeMap<String, f64> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask().unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.rsplit_once(' '));
    lines
        .filter_map(|(name, value)| {
            let name = name.split('{').next()?.strip_prefix("stillwell_")?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// Kilobytes of a line of `/proc/PID/status`, in bytes.
fn memory(process: &Running, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap_or_default();
    let found = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
    found.and_then(|value| value.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Runs until `done`; gives the most anonymous and the most resident memory that was seen.
fn watch(process: &mut Running, port: u16, done: impl Fn(&BTreeMap<String, f64>) -> bool) -> (u64, u64) {
    let (mut anonymous, mut resident) = (0, 0);
    wait_until("the process has come so far", DEADLINE, || {
        assert!(process.ended().is_none(), "it has ended:\n{}", process.stderr());
        anonymous = anonymous.max(memory(process, "RssAnon"));
        resident = resident.max(memory(process, "VmRSS"));
        assert!(anonymous <= LIMIT, "{} MiB, of {} MiB", anonymous >> 20, LIMIT >> 20);
        let seen = metrics(port);
        if done(&seen) { Ok(()) } else { Err(format!("{seen:?}")) }
    });
    (anonymous, resident)
}

#[test]
#[ignore = "takes minutes: make faults, STILLWELL_BACKLOG says how many records"]
fn memory_stays_within_its_limit_whatever_the_backlog() {
    let records: u64 =
        std::env::var("STILLWELL_BACKLOG").map_or(10_000_000, |text| text.parse().expect("it is a number"));
    let dataset = unique("backlog");
    let topic = Topic::create_on(stillwell_tests::Broker::shared(), &dataset, 2, &[]);
    let value = [b'.'; 80];
    topic.produce((0..records).map(|i| Record::upsert(format!("key {}", i % KEYS), value)));

    let dir = scratch();
    let port = free_port();
    let start = |records_per_second| {
        let config = configure(dir.path(), &dataset, port, records_per_second);
        Running::start(&mut stillwell(["run", "-c", &config, "--role", "producer"]))
    };
    let of = |seen: &BTreeMap<String, f64>, name: &str| seen.get(name).copied().unwrap_or(0.0) as u64;

    // The backlog grows: hardly anything goes out.
    let mut process = start(100);
    let tenth = watch(&mut process, port, |seen| of(seen, "pending_records") >= records / 10);
    let half = watch(&mut process, port, |seen| of(seen, "pending_records") >= records / 2);
    let all = watch(&mut process, port, |seen| {
        of(seen, "records_total") >= records && of(seen, "pending_records") >= records * 9 / 10
    });
    process.stop(Duration::from_secs(120)).expect_code(0);

    // And is worked off, beginning with what lies on the disk.
    let mut process = start(0);
    watch(&mut process, port, |seen| of(seen, "spilled_records") > 0);
    let off = watch(&mut process, port, |seen| {
        of(seen, "versions_total") > 0 && of(seen, "pending_records") == 0 && of(seen, "spilled_records") == 0
    });
    process.stop(Duration::from_secs(120)).expect_code(0);
    for (what, (anonymous, resident)) in [
        ("a tenth of the backlog", tenth),
        ("from there to half of it", half),
        ("from there to all of it", all),
        ("working it off", off),
    ] {
        println!(
            "{records} records, {what}: {} MiB anonymous, {} MiB resident",
            anonymous >> 20,
            resident >> 20
        );
    }
    let first = tenth.0.max(half.0);
    assert!(
        all.0 <= first + GROWTH,
        "the first half of the backlog took {} MiB, the second {}: memory grows with it",
        first >> 20,
        all.0 >> 20
    );
}
