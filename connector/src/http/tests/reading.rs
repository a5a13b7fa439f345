//! Records asked for in other ways than one by one: ranges, many keys, fields, and large answers.

use std::collections::BTreeMap;

use super::*;
use crate::consumer::listen::tests::World;
use crate::view::{Cache, Hold};

#[tokio::test]
async fn a_page_may_begin_and_end_with_a_key() {
    let keys: Vec<String> = (0..9).map(|n| format!("a{n}")).collect();
    let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    let app = app([view(3, &keys)]);
    for (query, expected, more) in [
        ("from=a3&to=a6", &["a3", "a4", "a5"][..], false),
        ("from=a7", &["a7", "a8"], false),
        ("to=a1", &["a0"], false),
        ("from=a3&to=a6&limit=2", &["a3", "a4"], true),
        ("from=a3&to=a6&limit=3", &["a3", "a4", "a5"], false),
        ("from=a6&to=a3", &[], false),
        ("to=", &[], false),
        ("prefix=a&from=%00&to=%FF&limit=1", &["a0"], true),
        ("prefix=a2&from=a3", &[], false),
    ] {
        let (status, page) = get_json(&app, &format!("/v1/datasets/products/records?{query}")).await;
        let seen: Vec<_> = page["records"]
            .as_array()
            .unwrap()
            .iter()
            .map(|record| record["key"].as_str().unwrap())
            .collect();
        assert_eq!((status.as_u16(), seen.as_slice()), (200, expected), "{query}");
        assert_eq!(page["next"].is_string(), more, "{query}");
        if let Some(next) = page["next"].as_str() {
            let (_, page) =
                get_json(&app, &format!("/v1/datasets/products/records?{query}&next={next}")).await;
            let first = &page["records"][0]["key"];
            assert!(first.as_str().unwrap() > *expected.last().unwrap(), "{query}: {page}");
        }
    }
}

#[tokio::test]
async fn several_keys_are_answered_in_their_order_absent_ones_with_null() {
    let app = app([view(3, &[b"a&b", b"a/b", b"c", b"\xff"])]);
    let path = "/v1/datasets/products/records?key=c&key=none&key=a%2Fb&key=%FF&key=a%26b&key=c&version=3";
    let (status, several) = get_json(&app, path).await;
    let record = |key: Value, name: Value| json!({ "key": key, "value": name });
    let named = |name: &str| record(json!(name), json!({ "name": name }));
    let binary = record(json!({ "base64": "/w==" }), json!({ "name": "\u{fffd}" }));
    let none = record(json!("none"), Value::Null);
    let records = [named("c"), none, named("a/b"), binary, named("a&b"), named("c")];
    assert_eq!(
        (status.as_u16(), several),
        (200, json!({ "dataset": "products", "version": 3, "records": records }))
    );
    let many = vec!["key=c"; 1_000].join("&");
    assert_eq!(get(&app, &format!("/v1/datasets/products/records?{many}")).await.status(), 200);
    for bad in [&format!("{many}&key=c"), "key=c&prefix=a", "key=c&limit=1", "key=%x", "keys=c"] {
        problem(&app, &format!("/v1/datasets/products/records?{bad}"), 400).await;
    }
    // A field is no slip: what lacks is an index of it.
    let unindexed = problem(&app, "/v1/datasets/products/records?name=c", 400).await;
    let detail = unindexed["detail"].as_str().unwrap();
    for said in ["no index of name; there is none", "[datasets.products.consumer]", "add [\"name\"]"] {
        assert!(detail.contains(said), "{detail}");
    }
    let same = Request::get(path).header("if-none-match", tag(3)).body(Body::empty()).unwrap();
    assert_eq!(ask(&app, same).await.status(), 304);
}

/// A client that began at one version reads on at it while others are announced.
#[tokio::test]
async fn a_version_before_the_newest_is_read_by_its_number() {
    let mut world = World::new();
    world.schema = Arc::new(crate::schema::Schema::dataset(SCHEMA).unwrap());
    world.advance(&[("a", Some("one")), ("b", Some("one"))]).await;
    world.advance(&[("a", Some("two")), ("c", Some("two"))]).await;
    world.advance(&[("b", None)]).await;
    let clock = Clock::manual(1_700_000_000_000);
    let side = ReadingSide::new(world.reader(), ConsumerMetrics::detached(), 10);
    let directory = Directory::new([Dataset::new("products", Some(side), None)], clock.clone());
    let app = App::new(directory, Metrics::new(), clock);

    let records = "/v1/datasets/products/records";
    for (version, holds) in [
        (1, [Some("one"), Some("one"), None]),
        (2, [Some("two"), Some("one"), Some("two")]),
        (3, [Some("two"), None, Some("two")]),
    ] {
        let rows: Vec<(&str, Option<&str>)> = ["a", "b", "c"].into_iter().zip(holds).collect();
        let value = |name: Option<&str>| name.map_or(Value::Null, |name| json!({ "name": name }));
        for (key, name) in &rows {
            let path = format!("{records}/{key}?version={version}");
            if name.is_none() {
                assert_eq!(problem(&app, &path, 404).await["version"], version);
                continue;
            }
            let answer = get(&app, &path).await;
            let etag = answer.headers()["etag"].to_str().unwrap().to_owned();
            assert!(answer.status() == 200 && etag.starts_with(&format!("\"{version}.")), "{path}: {etag}");
            assert_eq!(body(answer).await, value(*name).to_string(), "{path}");
            let same = Request::get(&path).header("if-none-match", etag).body(Body::empty()).unwrap();
            assert_eq!(ask(&app, same).await.status(), 304, "{path}");
        }
        let row = |(key, name): &(&str, Option<&str>)| json!({ "key": key, "value": value(*name) });
        let several: Vec<Value> = rows.iter().map(row).collect();
        let (_, answer) = get_json(&app, &format!("{records}?key=a&key=b&key=c&version={version}")).await;
        assert_eq!(answer, json!({ "dataset": "products", "version": version, "records": several }));
        let there: Vec<Value> = rows.iter().filter(|(_, name)| name.is_some()).map(row).collect();
        let (_, page) = get_json(&app, &format!("{records}?version={version}")).await;
        assert_eq!((&page["version"], &page["records"]), (&json!(version), &json!(there)), "{page}");
        // A page goes on at its version, whatever is the newest.
        let (_, first) = get_json(&app, &format!("{records}?version={version}&limit=1")).await;
        let next = first["next"].as_str().unwrap();
        let (_, second) = get_json(&app, &format!("{records}?version={version}&limit=1&next={next}")).await;
        assert_eq!((&second["version"], &second["records"][0]), (&json!(version), &there[1]), "{second}");
    }
    assert_eq!(get_json(&app, records).await.1["version"], 3);
    assert_eq!(problem(&app, &format!("{records}?version=4"), 404).await["version"], 3);
}

#[tokio::test]
async fn a_large_answer_is_compressed_for_who_takes_it() {
    let keys: Vec<String> = (0..500).map(|n| format!("key-{n:04}")).collect();
    let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    let app = app([view(3, &keys)]);
    let ask_for = |path: &str, encoding: &str| {
        let request =
            Request::get(format!("/v1/datasets/products/{path}")).header("accept-encoding", encoding);
        let (app, request) = (app.clone(), request.body(Body::empty()).unwrap());
        async move { ask(&app, request).await }
    };
    let large = ask_for("records?limit=500", "br, gzip;q=0.9").await;
    assert_eq!(
        (&large.headers()["content-encoding"], &large.headers()["etag"]),
        (&"gzip".parse().unwrap(), &format!("W/{}", tag(3)).parse().unwrap())
    );
    assert_eq!(large.headers()["vary"], "accept-encoding");
    let squeezed = large.into_body().collect().await.unwrap().to_bytes();
    let plain = ask_for("records?limit=500", "identity").await;
    assert!(!plain.headers().contains_key("content-encoding"));
    assert_eq!(plain.headers()["etag"], tag(3));
    let plain = body(plain).await;
    assert!(squeezed.starts_with(b"\x1f\x8b") && squeezed.len() * 4 < plain.len(), "{}", squeezed.len());
    for path in ["records/key-0001", "records?limit=2"] {
        assert!(!ask_for(path, "gzip").await.headers().contains_key("content-encoding"), "{path}");
    }
    let known = Request::get("/v1/datasets/products/records?limit=500").header("accept-encoding", "gzip");
    let known = known.header("if-none-match", format!("W/{}", tag(3))).body(Body::empty()).unwrap();
    assert_eq!(ask(&app, known).await.status(), 304);
}

#[tokio::test]
async fn records_are_found_by_the_fields_of_an_index() {
    let keys: Vec<String> = (0..30).map(|n| format!("{n:02}")).collect();
    let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let hold = Arc::new(Hold::new(None, None, vec![vec!["name".to_owned()]]));
    let app = app([view(3, &keys).hold(&hold, &cache).unwrap()]);
    let (status, found) = get_json(&app, "/v1/datasets/products/records?name=07&version=3").await;
    let record = json!({ "key": "07", "value": { "name": "07" } });
    let expected = json!({ "dataset": "products", "version": 3, "records": [record], "next": null });
    assert_eq!((status.as_u16(), found), (200, expected));
    let (_, none) = get_json(&app, "/v1/datasets/products/records?name=shoes").await;
    assert_eq!(none["records"], json!([]));
    for bad in [
        "name=07&name=08",
        "name=07&prefix=0",
        "name=07&key=07",
        "price=1",
        "name=%x",
        "name=%FF",
        "name=07&to=1",
    ] {
        problem(&app, &format!("/v1/datasets/products/records?{bad}"), 400).await;
    }
}

/// The same number of a version, and other content: what is held is another part of it, or the topic was made anew.
#[tokio::test]
async fn a_tag_says_of_what_the_version_is() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let held = |filter: Option<&str>, fields: Option<&[&str]>| {
        let filter = filter.map(|filter| crate::codec::Filter::parse(filter).unwrap());
        let fields = fields.map(|fields| fields.iter().map(|field| (*field).to_owned()).collect());
        view(3, &[b"P-1"]).hold(&Arc::new(Hold::new(filter, fields, Vec::new())), &cache).unwrap()
    };
    let apps = [
        app([view(3, &[b"P-1"])]),
        app([held(None, Some(&["name"]))]),
        app([held(Some("name = 'P-1'"), None)]),
        app([held(Some("name != 'P-2'"), None)]),
        app([view_of(TopicId([8; 16]), 3, &[b"P-1"])]),
    ];
    let path = "/v1/datasets/products/records/P-1";
    let mut tags = Vec::new();
    for app in &apps {
        tags.push(get(app, path).await.headers()["etag"].to_str().unwrap().to_owned());
    }
    for (at, app) in apps.iter().enumerate() {
        for (of, tag) in tags.iter().enumerate() {
            let request = Request::get(path).header("if-none-match", tag).body(Body::empty()).unwrap();
            let status = ask(app, request).await.status().as_u16();
            assert_eq!(status, if of == at { 304 } else { 200 }, "the tag of {of} at {at}: {tags:?}");
        }
    }
    assert_eq!(held(None, Some(&["name", "name"])).mark(), held(None, Some(&["name"])).mark());
}

/// Whatever stands in a path or a query, the answer is one, of JSON, and the next request is answered too.
#[tokio::test]
async fn hostile_paths_and_queries_are_answered() {
    let app = app([view(3, &[b"P-1"])]);
    let mut seen = BTreeMap::new();
    let long = "a".repeat(10_000);
    for path in [
        "records/%00%01%7F%80%FF",
        "records/..%2F..%2Fetc%2Fpasswd",
        "records/../../etc/passwd",
        "records/%2e%2e",
        "records/%",
        "records/%G0",
        "records//",
        "records/;a=b",
        "records/a?",
        "records/a?&&&",
        "records/a?version=-1",
        "records/a?version=18446744073709551615",
        "records/a?version=18446744073709551616",
        "records/a?version=1e3",
        "records/a?version=%31",
        "records?limit=18446744073709551616",
        "records?limit=0x10",
        "records?limit=",
        "records?next=====",
        "records?next=/wA",
        "records?prefix=%00%FF&from=%FF%FF&to=",
        "records?prefix",
        "records?=",
        "records?%70refix=a",
        "records?key",
        "records?key=%00&key=",
        "records?prefix[]=a",
        &format!("records/{long}"),
        &format!("records?prefix={long}&from={long}"),
    ] {
        let response = get(&app, &format!("/v1/datasets/products/{path}")).await;
        let (status, path) = (response.status().as_u16(), path.chars().take(40).collect::<String>());
        assert!([200, 400, 404].contains(&status), "{path}: {status}");
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        assert!(kind == "application/json" || kind == "application/problem+json", "{path}: {kind}");
        let text = body(response).await;
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{path}: {text}");
        seen.insert(path, status);
    }
    for (path, status) in [
        ("records/%", 400),
        ("records/%00%01%7F%80%FF", 404),
        ("records/a?version=18446744073709551615", 404),
        ("records/a?version=18446744073709551616", 400),
        ("records?limit=18446744073709551616", 400),
        ("records?%70refix=a", 400),
        ("records?key=%00&key=", 200),
    ] {
        assert_eq!(seen[path], status, "{path}");
    }
    assert_eq!(get(&app, "/v1/datasets/products/records/P-1").await.status(), 200);
}
