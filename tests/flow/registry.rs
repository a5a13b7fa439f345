//! Avro with a schema registry, a real one: schemas that evolve, ids that nobody knows, a registry that is away.

use std::io::{BufReader, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use apache_avro::types::Value as Avro;
use apache_avro::{Schema, to_avro_datum};
use serde_json::{Value, json};
use stillwell::producer::Reliability;
use stillwell::telemetry::ProducerMetrics;
use stillwell::{Producer, ProducerBuilder};
use stillwell_tests::campaign::Chance;
use stillwell_tests::{
    Message, Proxy, Record, Registry, Request, Running, Toxic, run, scratch, stillwell, wait_until,
    wait_until_async,
};

use crate::instance::{Instance, LONG};
use crate::setting::{Setting, contents};

const DEADLINE: Duration = Duration::from_secs(180);

/// What the first writers wrote.
const OLD: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "float"}]}"#;
/// The dataset's own.
const OWN: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "id", "type": "string"}, {"name": "price", "type": "double"},
    {"name": "stock", "type": ["null", "int"], "default": null}]}"#;
/// What the newest writers write.
const NEW: &str = r#"{"type": "record", "name": "Product", "fields": [
    {"name": "note", "type": "string"}, {"name": "id", "type": "string"}, {"name": "price", "type": "long"},
    {"name": "stock", "type": "int"}]}"#;

/// A datum by Avro's reference implementation.
fn datum(schema: &str, value: impl Into<Avro>) -> Vec<u8> {
    let schema = Schema::parse_str(schema).expect("a schema");
    to_avro_datum(&schema, value).expect("it fits")
}

/// With the id before it, as Confluent's serializers write it.
fn framed(id: u32, datum: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], datum].concat()
}

fn old(id: &str, price: f32) -> Vec<u8> {
    datum(OLD, Avro::Record(vec![("id".into(), id.into()), ("price".into(), price.into())]))
}

fn own(id: &str, price: f64, stock: Option<i32>) -> Vec<u8> {
    let stock = match stock {
        Some(stock) => Avro::Union(1, Box::new(stock.into())),
        None => Avro::Union(0, Box::new(Avro::Null)),
    };
    datum(
        OWN,
        Avro::Record(vec![("id".into(), id.into()), ("price".into(), price.into()), ("stock".into(), stock)]),
    )
}

fn new(id: &str, price: i64, stock: i32) -> Vec<u8> {
    let fields =
        [("note", "seen".into()), ("id", id.into()), ("price", price.into()), ("stock", stock.into())];
    datum(NEW, Avro::Record(fields.map(|(name, value): (_, Avro)| (name.into(), value)).into()))
}

fn builder(setting: &Setting, url: &str) -> ProducerBuilder {
    setting.builder().schema_registry(url).reliability(Reliability {
        max_retry_attempts: 1,
        retry_backoff: Duration::from_millis(50),
        circuit_breaker_threshold: 2,
        circuit_breaker_reset: Duration::from_millis(300),
        ..Reliability::default()
    })
}

async fn start(setting: &Setting, url: &str) -> Producer {
    builder(setting, url).start().await.expect("the producer starts")
}

/// A registry that knows nothing; its thread ends with the tests.
fn ignorant() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("it has one"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = BufReader::new(stream);
            let _ = Request::read(&mut stream);
            let body = r#"{"error_code":40403,"message":"Schema not found"}"#;
            let length = body.len();
            // A client that is gone asks again by another connection.
            let _ = write!(
                stream.get_mut(),
                "HTTP/1.1 404 So\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            );
        }
    });
    url
}

fn letters(setting: &Setting) -> Vec<Message> {
    let topic = setting.topic.beside(&format!("{}.dlq", setting.dataset()));
    if topic.partitions() == 0 { Vec::new() } else { topic.read() }
}

fn row(id: &str, price: f64, stock: Option<i32>) -> Value {
    json!({"id": id, "price": price, "stock": stock})
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_three_schemas_make_one_dataset_and_what_nobody_knows_is_a_letter() {
    let mut setting = Setting::new("products", 2, OWN);
    let registry = Registry::shared();
    let subject = format!("{}-value", setting.dataset());
    // Ids need not be of one subject.
    let [first, second, third] = [(&subject, OLD), (&subject, OWN), (&format!("{subject}-new"), NEW)]
        .map(|(subject, schema)| registry.register(subject, schema, &[]));
    let mut good = Vec::new();
    for n in 0..300 {
        let key = format!("P-{n:03}");
        let (value, row) = match n % 3 {
            0 => (framed(first, &old(&key, n as f32 / 4.0)), row(&key, f64::from(n) / 4.0, None)),
            1 => (framed(second, &own(&key, 1.1, Some(n))), row(&key, 1.1, Some(n))),
            _ => (framed(third, &new(&key, 1 << 40, n)), row(&key, (1u64 << 40) as f64, Some(n))),
        };
        setting.model.insert(key.clone().into(), row);
        good.push(Record::upsert(key, value));
    }
    // The id in a header: the whole value is the datum, whatever it begins with.
    let header = |id: u32| ("__value_schema_id".to_owned(), Some(framed(id, &[])));
    setting.model.insert("headed".into(), row("", 2.5, None));
    let headers = vec![header(999_999), header(first)];
    good.push(Record { headers, ..Record::upsert("headed", old("", 2.5)) });
    let whole = own("x", 1.0, None);
    let bad = [
        framed(999_999, &whole),
        framed(u32::MAX, &whole),
        vec![0, 0, 0],
        whole.clone(),
        Vec::new(),
        framed(second, &whole[..whole.len() - 1]),
        framed(second, &[&whole[..], &[0]].concat()),
        // A string that claims to have 2^62 bytes, one that has -1.
        framed(first, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0]),
        framed(second, &[1, 0, 0]),
    ];
    let bad = bad.map(|value| Record { partition: Some(1), ..Record::upsert("bad", value) });
    let mut records = bad.to_vec();
    records.extend(good);
    setting.topic.produce(records);

    let producer = start(&setting, &registry.url()).await;
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let letters = wait_until("the letters are there", DEADLINE, || {
        let letters = letters(&setting);
        if letters.len() < bad.len() { Err(format!("{} letters", letters.len())) } else { Ok(letters) }
    });
    for (offset, (record, letter)) in bad.iter().zip(&letters).enumerate() {
        assert_eq!((&record.key, &record.value), (&letter.key, &letter.value), "byte for byte");
        assert_eq!(letter.header("__connect.errors.offset"), Some(offset.to_string().as_str()));
    }
    let why =
        |at: usize| letters[at].header("__connect.errors.exception.message").expect("a message").to_owned();
    assert!(why(0).contains("does not know schema id 999999"), "{}", why(0));
    assert!(why(1).contains("negative"), "{}", why(1));
    assert!(why(3).contains("does not begin with a schema registry's id"), "{}", why(3));
    assert_eq!(letters.len(), bad.len());

    // What was unknown may be registered; a delete needs no schema; after a restart all goes on.
    producer.shutdown().await.expect("the producer stops");
    let producer = start(&setting, &registry.url()).await;
    let delete = setting.delete("P-001");
    let late = r#"{"type": "record", "name": "Product", "fields": [{"name": "id", "type": "string"}, {"name": "price", "type": "int"}]}"#;
    let id = registry.register(&format!("{subject}-late"), late, &[]);
    let value = datum(late, Avro::Record(vec![("id".into(), "late".into()), ("price".into(), 3.into())]));
    setting.model.insert("late".into(), row("late", 3.0, None));
    setting.topic.produce([delete, Record::upsert("late", framed(id, &value))]);
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_registry_is_away_its_records_wait_and_others_go_on() {
    let mut setting = Setting::new("waiting", 2, OWN);
    let registry = Registry::shared();
    let proxy = Proxy::start(registry.port(), Chance::seeded(7));
    proxy.set(Toxic::Cut);
    let subject = format!("{}-value", setting.dataset());
    let first = registry.register(&subject, OLD, &[]);
    let second = registry.register(&subject, OWN, &[]);
    let record = |partition, key: &str, value: Vec<u8>| Record {
        partition: Some(partition),
        ..Record::upsert(key, value)
    };
    setting.model.insert("a".into(), row("a", 1.0, None));
    setting.topic.produce([record(0, "a", framed(first, &old("a", 1.0)))]);

    let metrics = ProducerMetrics::detached();
    let url = Registry::url_at(proxy.port());
    let producer =
        builder(&setting, &url).metrics(metrics.clone()).start().await.expect("the producer starts");
    let waits = |what: &str| {
        let what = what.to_owned();
        let status = producer.watch();
        wait_until_async("the producer says what it waits for", DEADLINE, move || {
            let waiting = status.borrow().waiting.clone();
            std::future::ready(match waiting {
                Some(waiting) if waiting.contains(&what) => Ok(()),
                other => Err(format!("{other:?}")),
            })
        })
    };
    waits(&format!("schema id {first} wait in their place")).await;
    let circuits = producer.circuits().clone();
    wait_until_async("the circuit opens", DEADLINE, || {
        let reports = circuits.report();
        let open = reports.iter().find(|report| report.dependency.name() == "registry");
        let open = open.is_some_and(|report| report.error.is_some());
        std::future::ready(if open { Ok(()) } else { Err(format!("{reports:?}")) })
    })
    .await;
    assert_eq!(letters(&setting).len(), 0, "what is away is no misfit");
    proxy.set(Toxic::Pass);
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    wait_until_async("nothing waits any more", DEADLINE, || {
        let waits = (producer.status().waiting, metrics.source_waiting_partitions.get());
        std::future::ready(if waits == (None, 0) { Ok(()) } else { Err(format!("{waits:?}")) })
    })
    .await;

    // Away again: a schema that is new holds up its own partition, at the record and not behind it.
    proxy.set(Toxic::Cut);
    setting.topic.produce([
        record(0, "b", framed(second, &own("b", 2.0, Some(2)))),
        record(0, "a", framed(first, &old("a", 9.0))),
        record(1, "c", framed(first, &old("c", 3.0))),
    ]);
    setting.model.insert("c".into(), row("c", 3.0, None));
    setting.settled(&consumer).await;
    waits(&format!("schema id {second} wait in their place")).await;
    let mut more = Vec::new();
    for n in 0..50 {
        let key = format!("c-{n}");
        setting.model.insert(key.clone().into(), row(&key, 3.0, None));
        more.push(record(1, &key, framed(first, &old(&key, 3.0))));
    }
    setting.topic.produce(more);
    setting.settled(&consumer).await;
    assert!(!contents(&consumer.view()).contains_key("b".as_bytes()));
    assert_eq!(metrics.source_waiting_partitions.get(), 1);
    // A stop does not wait for a registry.
    producer.shutdown().await.expect("it stops");
    let producer = start(&setting, &Registry::url_at(proxy.port())).await;
    proxy.set(Toxic::Pass);
    setting.model.insert("b".into(), row("b", 2.0, Some(2)));
    setting.model.insert("a".into(), row("a", 9.0, None));
    setting.settled(&consumer).await;
    assert_eq!(letters(&setting).len(), 0);
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_what_its_datum_says_whatever_its_id_and_references_are_followed() {
    let money = r#"{"type": "record", "name": "Money", "namespace": "bank", "fields": [{"name": "cents", "type": "long"}]}"#;
    let referring = r#"{"type": "record", "name": "Sum", "namespace": "shop", "fields": [{"name": "total", "type": "bank.Money"}]}"#;
    let reader = format!(
        r#"{{"type": "record", "name": "Sum", "namespace": "shop", "fields": [{{"name": "total", "type": {money}}}]}}"#
    );
    let mut setting = Setting::new("sums", 1, &reader);
    let registry = Registry::shared();
    let name = setting.dataset().to_owned();
    registry.register(&format!("{name}-money"), money, &[]);
    let value_id =
        registry.register(&format!("{name}-value"), referring, &[("bank.Money", &format!("{name}-money"))]);
    let key_schema = |doc: &str| {
        format!(
            r#"{{"type": "record", "name": "Key", "doc": "{doc} {name}", "fields": [
                {{"name": "shop", "type": "string"}}, {{"name": "number", "type": "int"}}]}}"#
        )
    };
    // Two ids of schemas that encode alike.
    let [one, two] =
        ["one", "two"].map(|doc| registry.register(&format!("{name}-key-{doc}"), &key_schema(doc), &[]));
    assert_ne!(one, two);
    let key = |id: u32, shop: &str, number: i32| {
        let fields = vec![("shop".into(), shop.into()), ("number".into(), number.into())];
        framed(id, &datum(&key_schema("one"), Avro::Record(fields)))
    };
    let value = |cents: i64| framed(value_id, &datum(&reader, sum(cents)));
    let records = vec![
        Record::upsert(key(one, "a/b", 1), value(1)),
        Record::upsert(key(one, "c", 2), value(2)),
        Record::upsert(key(two, "a/b", 1), value(3)),
        Record::delete(key(two, "c", 2)),
        Record::upsert(b"plain", value(5)),
        Record::upsert(key(one, "d", 4), value(4)),
    ];
    setting.topic.produce(records);
    setting.model.insert("a%2Fb/1".into(), json!({"total": {"cents": 3}}));
    setting.model.insert("d/4".into(), json!({"total": {"cents": 4}}));

    let producer = builder(&setting, &registry.url()).avro_keys().start().await.expect("the producer starts");
    let cache = scratch();
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    let letters = wait_until("the letter is there", DEADLINE, || {
        let letters = letters(&setting);
        if letters.is_empty() { Err("none") } else { Ok(letters) }
    });
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].key.as_deref(), Some(&b"plain"[..]));
    assert_eq!(letters[0].header("__connect.errors.stage"), Some("KEY_CONVERTER"));
    producer.shutdown().await.expect("the producer stops");
    consumer.shutdown().await.expect("it stops");
}

fn sum(cents: i64) -> Avro {
    Avro::Record(vec![("total".into(), Avro::Record(vec![("cents".into(), cents.into())]))])
}

/// Everything by the configuration: `check --connect`, a first start before anything is registered, the newest schema taken
/// once and kept over restarts, though another is registered by then; replay and rebuild beside it.
#[test]
fn a_dataset_without_a_schema_begins_with_the_newest_and_keeps_it() {
    let mut setting = Setting::new("adopted", 1, OWN);
    let registry = Registry::shared();
    let instance = Instance::new(&setting, "one");
    let config = std::fs::read_to_string(instance.config()).expect("there is one");
    let schema = format!("schema = \"{}\"\n", setting.dir.path().join("dataset.avsc").display());
    assert!(config.contains(&schema), "{config}");
    let text = config.replace(&schema, "").replace("\"json\"", "\"avro\"");
    // One beside it whose schema is known, and which has nothing to wait for.
    let other = format!("{}-other", setting.dataset());
    let known =
        format!("[datasets.\"{other}\"]\nsource = {{ topics = [\"{other}\"], format = \"json\" }}\n{schema}");
    let text = format!("{text}\n{known}\n[schema_registry]\nurl = \"{}\"\n", registry.url());
    std::fs::write(instance.config(), text).expect("it is written");
    let check = run(stillwell(["check", "--connect", "-c"]).arg(instance.config()), LONG).expect_code(0);
    assert!(check.stdout.contains("schema registry at 127.0.0.1:"), "{}", check.stdout);

    let mut process = instance.start();
    let subject = format!("{}-value", setting.dataset());
    let nothing = format!("nothing is registered under subject {subject} yet");
    process.wait_for_text(&nothing, LONG);
    let served = |path: &str| instance.get(path).expect("it listens from the start");
    wait_until("the other dataset is written and read", LONG, || {
        let (status, body) = served("/health");
        let health: Value = serde_json::from_str(&body).map_err(|_| body.clone())?;
        let of = |name: &str| {
            let all = health["datasets"].as_array().into_iter().flatten();
            all.into_iter().find(|dataset| dataset["name"] == name).cloned().unwrap_or_default()
        };
        let (waiting, running) = (of(setting.dataset()), of(&other));
        let said = waiting["reasons"].to_string().contains(&nothing);
        let is_so = said && waiting["writer"] == "waiting" && running["status"] == "healthy";
        if is_so && status == 200 && running["version"] != 0 { Ok(()) } else { Err(body) }
    });
    let (status, ready) = served("/ready");
    assert!(status == 503 && ready.contains(&nothing), "{status} {ready}");
    let (status, metrics) = served("/metrics");
    assert!(status == 200 && metrics.contains("stillwell_build_info"), "{status}");
    assert_eq!(served("/nowhere").0, 404);
    let first = registry.register(&subject, OWN, &[]);
    process.wait_for_text("the dataset's schema is known", LONG);
    let delete = setting.delete("nothing");
    setting.model.insert("a".into(), row("a", 1.5, Some(1)));
    setting.topic.produce([delete, Record::upsert("a", framed(first, &own("a", 1.5, Some(1))))]);
    let reads = |key: &str, expected: &Value| {
        wait_until("the record is served", LONG, || {
            let (status, body) = instance
                .get(&format!("/v1/datasets/{}/records/{key}", setting.dataset()))
                .map_err(|e| e.to_string())?;
            let read: Option<Value> = serde_json::from_str(&body).ok();
            let found =
                status == 200 && read.is_some_and(|read| read["value"] == *expected || read == *expected);
            if found { Ok(()) } else { Err(format!("{status} {body}")) }
        });
    };
    reads("a", &row("a", 1.5, Some(1)));
    process.stop(LONG).expect_code(0);

    // The newest is another one by now, compatible, with a field more.
    let newer = OWN.replace("null}", "null}, {\"name\": \"more\", \"type\": \"string\", \"default\": \"\"}");
    let second = registry.register(&subject, &newer, &[]);
    assert_ne!(first, second);
    let mut process = instance.start();
    process.wait_for_text("the dataset's schema is known", LONG);
    let value = [own("b", 2.5, None), vec![2, b'x']].concat();
    setting.topic.produce([
        Record::upsert("b", framed(second, &value)),
        Record::upsert("unknown", framed(888_888, &value)),
    ]);
    reads("b", &row("b", 2.5, None));
    wait_until("the letter is there", DEADLINE, || {
        let count = letters(&setting).len();
        if count == 1 { Ok(()) } else { Err(format!("{count} letters")) }
    });
    let replay = instance.run(&["dlq", "replay"], &["--dry-run"]).expect_code(1);
    assert!(
        replay.stdout.contains("does not fit: ") && replay.stdout.contains("888888"),
        "{}",
        replay.stdout
    );
    assert!(!replay.stderr.contains("error"), "{}", replay.stderr);
    let health = instance.get("/health").expect("it answers").1;
    assert!(health.contains("\"registry\":\"closed\""), "{health}");
    // By a registry that knows none of it a rebuild would lose all that was read once.
    let config = std::fs::read_to_string(instance.config()).expect("there is one");
    std::fs::write(instance.config(), config.replace(&registry.url(), &ignorant())).expect("it is written");
    let refused = instance.run(&["rebuild"], &["--dry-run"]);
    assert_ne!(refused.code(), 0, "{}", refused.stdout);
    let stranger =
        format!("[0] at offset 1 names schema id {first}, which the schema registry does not know");
    assert!(refused.stderr.contains(&stranger), "{}", refused.stderr);
    std::fs::write(instance.config(), config).expect("it is written");
    // The same again out of the source, by the same ids; what was a letter for its id's sake stays one.
    let rebuilt = instance.run(&["rebuild"], &["--yes"]);
    assert_eq!(rebuilt.code(), 0, "{}{}", rebuilt.stdout, rebuilt.stderr);
    reads("b", &row("b", 2.5, None));
    process.stop(LONG).expect_code(0);

    // Asked for while a writer runs that has another registry: it says so, announces nothing, and goes on once nobody asks.
    let before = instance.newest();
    let config = std::fs::read_to_string(instance.config()).expect("there is one");
    std::fs::write(instance.config(), config.replace(&registry.url(), &ignorant())).expect("it is written");
    let mut process = instance.started();
    let mut asking = Running::start(&mut instance.command(&["rebuild"], &["--yes"]));
    process.wait_for_text(&stranger, LONG);
    asking.signal("KILL");
    assert_eq!(instance.newest(), before, "nothing is announced");
    instance.run(&["rebuild"], &["--withdraw"]).expect_code(0);
    setting.topic.produce([Record::delete("a")]);
    wait_until("the record is gone", LONG, || {
        match instance.get(&format!("/v1/datasets/{}/records/a", setting.dataset())) {
            Ok((404, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    reads("b", &row("b", 2.5, None));
    process.stop(LONG).expect_code(0);

    // One that is away: health says what waits for it, and how it is.
    // The discard port: nobody listens.
    let nobody = "http://127.0.0.1:9";
    let config = config.replace(&registry.url(), nobody);
    std::fs::write(instance.config(), config).expect("it is written");
    let process = instance.started();
    setting.topic.produce([Record::upsert("c", framed(second, &value))]);
    wait_until("health says that the registry is away", LONG, || {
        let (status, body) = instance.get("/health").map_err(|error| error.to_string())?;
        let health: Value = serde_json::from_str(&body).map_err(|_| body.clone())?;
        let waits = format!("schema id {second} wait in their place");
        let said = body.contains(&waits) && health["status"] == "degraded";
        if said && status == 200 { Ok(()) } else { Err(body) }
    });
    assert_eq!(letters(&setting).len(), 1, "what is away is no misfit");
    process.stop(LONG).expect_code(0);
}
