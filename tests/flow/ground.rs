//! The ground the flow tests stand on: if these fail, the harness or the broker is broken, not Stillwell.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use stillwell_tests::{Broker, Record, Running, Topic, bootstrap, run, wait_until};

#[test]
fn records_come_back_as_they_were_written() {
    let topic = Topic::create("ground-roundtrip", 3);
    let mut full = Record::upsert("k", "v");
    full.timestamp = Some(1_700_000_000_123);
    full.headers =
        vec![("a".into(), Some(b"1".to_vec())), ("b".into(), None), ("a".into(), Some(b"2".to_vec()))];
    let keyless = Record { value: Some(Vec::new()), partition: Some(2), ..Record::default() };
    topic.produce([full.clone(), Record::delete("k"), keyless]);

    let read = topic.read();
    assert_eq!(read.len(), 3);
    let of_key: Vec<_> = read.iter().filter(|message| message.key.is_some()).collect();
    assert_eq!(of_key[0].partition, of_key[1].partition, "a key has one partition");
    assert_eq!((of_key[0].timestamp, &of_key[0].headers), (full.timestamp, &full.headers));
    assert_eq!(of_key[0].header("a"), Some("2"));
    assert_eq!(of_key[1].value, None);
    let keyless = read.iter().find(|message| message.key.is_none()).expect("the record without a key");
    assert_eq!((keyless.partition, keyless.value.as_deref()), (2, Some(&b""[..])));
}

/// Where Java's clients put these keys (Kafka's `Utils.murmur2`, masked to 31 bits, modulo 4).
#[test]
fn keys_go_where_java_puts_them() {
    let topic = Topic::create("ground-partitions", 4);
    // Kafka's own UtilsTest.testMurmur2: "21" -973932308, "foobar" -790332482, "a-little-bit-long-string" -985981536.
    let expected: BTreeMap<&str, i32> =
        [("21", -973_932_308_i32), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536)]
            .into_iter()
            .map(|(key, hash)| (key, (hash & 0x7fff_ffff) % 4))
            .collect();
    topic.produce(expected.keys().map(|key| Record::upsert(key, "")));
    for message in topic.read() {
        let key = String::from_utf8(message.key.expect("all have keys")).expect("all are text");
        assert_eq!(Some(&message.partition), expected.get(key.as_str()), "{key}");
    }
}

#[test]
fn what_is_not_committed_is_not_read() {
    let topic = Topic::create("ground-committed", 1);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .set("transactional.id", topic.name())
        .create()
        .expect("a transactional producer can be made");
    let timeout = Duration::from_secs(90);
    producer.init_transactions(timeout).expect("init");
    for (value, commit) in [("kept", true), ("aborted", false), ("kept too", true)] {
        producer.begin_transaction().expect("begin");
        producer.send(BaseRecord::<str, str>::to(topic.name()).payload(value)).expect("queued");
        producer.flush(timeout).expect("flushed");
        if commit {
            producer.commit_transaction(timeout).expect("commit");
        } else {
            producer.abort_transaction(timeout).expect("abort");
        }
    }
    let values = topic.read_until("both committed records are there", timeout, |messages| {
        let values: Vec<_> = messages
            .iter()
            .filter_map(|m| m.value.clone())
            .filter_map(|v| String::from_utf8(v).ok())
            .collect();
        if values.len() == 2 { Ok(values) } else { Err(format!("{values:?}")) }
    });
    assert_eq!(values, ["kept", "kept too"]);
    assert_eq!(topic.watermarks(), [(0, 6)], "three records and three markers");
}

#[test]
fn a_broker_of_its_own_goes_and_comes_back_with_its_data() {
    let mut broker = Broker::own();
    let topic = Topic::create_on(&broker, "kept", 1, &[]);
    topic.produce([Record::upsert("a", "1")]);
    broker.stop();
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", broker.bootstrap());
    let producer: BaseProducer = client.create().expect("a producer needs no broker to be made");
    producer.send(BaseRecord::<str, str>::to("kept").payload("lost")).expect("queued");
    assert!(producer.flush(Duration::from_millis(200)).is_err(), "nobody is there to take it");
    // Takes what waits with it.
    drop(producer);
    broker.restart();
    assert_eq!(topic.read().len(), 1);
}

#[test]
fn a_process_is_waited_for_and_ended() {
    let finished =
        run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]), Duration::from_secs(60));
    assert_eq!((finished.code(), finished.stdout.as_str(), finished.stderr.as_str()), (3, "out\n", "err\n"));

    let mut running = Running::start(Command::new("sh").args(["-c", "echo ready; exec sleep 600"]));
    running.wait_for_text("ready", Duration::from_secs(60));
    let pid = running.pid();
    drop(running);
    let alive =
        || Command::new("kill").args(["-0", &pid.to_string()]).stderr(std::process::Stdio::null()).status();
    assert!(!alive().expect("kill can be started").success(), "dropping it ended it");
}

#[test]
#[should_panic(expected = "waited 50ms until a wonder happens; last seen: no wonder")]
fn a_wait_that_fails_names_the_last_state() {
    wait_until("a wonder happens", Duration::from_millis(50), || Err::<(), _>("no wonder"));
}
