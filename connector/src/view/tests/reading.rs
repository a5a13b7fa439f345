//! What a reader sees of a value, and readers beside a writer.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[test]
fn a_value_says_where_it_came_from_and_shows_nothing_in_debug() {
    let mut world = World::new();
    assert!(world.view.get("absent").unwrap().is_none());
    assert_eq!(world.view.iter().count(), 0);
    world.advance(&numbered(1..2, "secret"));
    let value = world.view.get(key(1)).unwrap().unwrap();
    assert_eq!((value.key(), value.raw().unwrap()), (&key(1)[..], &b"secret-1"[..]));
    assert_eq!(value.bytes(), datum(b"secret-1"));
    let origin = value.source();
    assert_eq!(
        (origin.source.unwrap().to_string(), origin.offset, origin.timestamp_ms),
        ("source[4]".into(), 10, 1)
    );
    assert!(!format!("{value:?}").contains("secret"));
    assert_eq!(world.view.versions().to_string(), "1");
}

#[test]
fn reads_are_counted_across_versions() {
    let mut world = World::new();
    world.advance(&numbered(0..10, "a"));
    world.view.get(key(1)).unwrap();
    world.view.get("absent").unwrap();
    world.advance(&numbered(0..5, "b"));
    assert_eq!(world.view.iter().count(), 10);
    let reads = world.view.reads().clone();
    assert_eq!((reads.zero_copy(), reads.fallback()), (11, 0));
    let reopened = world.open().unwrap().counting(reads.clone());
    reopened.get(key(1)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1_000).for_each(|_| drop(reopened.get(key(1)).unwrap())));
        }
    });
    assert_eq!(reads.zero_copy(), 4_012);
}

/// Transfers between accounts: in every version the total is the same, for whoever reads whenever.
#[test]
fn readers_see_whole_versions_while_a_writer_goes_on() {
    const ACCOUNTS: u32 = 500;
    let mut world = World::new();
    let amount = |amount: i64| Some(amount.to_string().into_bytes());
    let mut balances = vec![100i64; ACCOUNTS as usize];
    world.advance(&(0..ACCOUNTS).map(|account| (key(account), amount(100))).collect());
    let current = arc_swap::ArcSwap::from_pointee(world.view.clone());
    let done = AtomicBool::new(false);
    let parse = |value: Value<'_>| std::str::from_utf8(value.raw().unwrap()).unwrap().parse::<i64>().unwrap();
    std::thread::scope(|scope| {
        let reader = || {
            let mut last = Version(0);
            while !done.load(Ordering::Relaxed) {
                let view = current.load_full();
                assert!(view.version() >= last);
                last = view.version();
                let scanned: i64 = view.iter().map(|value| parse(value.unwrap())).sum();
                let got: i64 =
                    (0..ACCOUNTS).map(|account| parse(view.get(key(account)).unwrap().unwrap())).sum();
                assert_eq!((scanned, got), (100 * i64::from(ACCOUNTS), 100 * i64::from(ACCOUNTS)));
            }
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for round in 0..300u32 {
            let (from, to) = (round * 7 % ACCOUNTS, round * 13 % ACCOUNTS);
            balances[from as usize] -= 5;
            balances[to as usize] += 5;
            let change = |account: u32| (key(account), amount(balances[account as usize]));
            world.advance(&[change(from), change(to)].into_iter().collect());
            if round % 50 == 49 {
                let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
                world.view = world.view.rebase(base).unwrap();
            }
            current.store(Arc::new(world.view.clone()));
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert_eq!(contents(&world.view).unwrap(), world.model);
}

/// The dataset's schema changes: older layers are read, compared and merged in the newest one.
#[test]
fn values_of_an_older_schema_are_read_in_the_versions_own() {
    const OLD: &str = r#"{"type":"record","name":"P","fields":[{"name":"id","type":"string"},{"name":"price","type":"int"}]}"#;
    const NEW: &str = r#"{"type":"record","name":"P","fields":[{"name":"price","type":"double"},{"name":"id","type":"string"},
        {"name":"note","type":"string","default":"none"}]}"#;
    // A word of documentation changes no byte.
    const DOCUMENTED: &str = r#"{"type":"record","name":"P","doc":"A product.","fields":[{"name":"price","type":"double"},
        {"name":"id","type":"string"},{"name":"note","type":"string","default":"none"}]}"#;
    let old = |id: &str, price: i64| {
        let mut out = Vec::new();
        put_bytes(&mut out, id.as_bytes());
        crate::schema::wire::put_long(&mut out, price);
        out
    };
    let new = |id: &str, price: f64, note: &str| {
        let mut out = price.to_le_bytes().to_vec();
        put_bytes(&mut out, id.as_bytes());
        put_bytes(&mut out, note.as_bytes());
        out
    };
    let world = World::new();
    let delta =
        |version: u64, schema: &Arc<Schema>, known: &Arc<Schema>, rows: &[(&str, Option<Vec<u8>>)]| {
            let header = world.identity.header(
                Kind::Delta,
                Version(version),
                Version(version - 1),
                LIFE,
                schema,
                Vec::new(),
            );
            let mut writer = Writer::new(Vec::new(), &header).unwrap();
            for (key, value) in rows {
                let entry = Entry { key: key.as_bytes(), stamp: Stamp::default(), value: value.as_deref() };
                writer.push(&entry).unwrap();
            }
            let plain = writer.finish().unwrap().1;
            Arc::new(DeltaFile::from_plain(plain, &world.identity, known).unwrap())
        };
    let about = |version, schema: &Arc<Schema>| About {
        version: Version(version),
        life: LIFE,
        ..About::nothing(schema.clone())
    };
    let [first, second, third] = [OLD, NEW, DOCUMENTED].map(|json| Arc::new(Schema::dataset(json).unwrap()));

    let view = View::empty(world.identity.clone(), first.clone());
    let rows = [("a", Some(old("a", 1))), ("b", Some(old("b", 2))), ("c", Some(old("c", 3)))];
    let view = view.apply(delta(1, &first, &first, &rows), about(1, &first)).unwrap();
    let base = view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    let view = view.rebase(base).unwrap();
    let before = view.clone();
    let rows = [("b", Some(new("b", 2.5, "dear"))), ("c", None)];
    let view = view.apply(delta(2, &second, view.schema(), &rows), about(2, &second)).unwrap();

    let a = view.get("a").unwrap().unwrap();
    assert!(!a.is_zero_copy());
    assert_eq!(a.bytes(), new("a", 1.0, "none"));
    assert_eq!(a.to_json().unwrap(), r#"{"price":1.0,"id":"a","note":"none"}"#);
    assert_eq!((a.field("note").unwrap(), a.field("price").unwrap()), ("none", 1.0));
    assert_eq!(a.field::<String>("id").unwrap(), "a");
    let (error, wrong) = (a.field::<f64>("cost").unwrap_err(), a.field::<bool>("note").unwrap_err());
    assert_eq!((error.kind(), wrong.kind()), (ErrorKind::Rejected, ErrorKind::Rejected));
    assert!(error.to_string().contains("price, id, note"), "{error}");
    assert!(a.field::<String>("note.inner").is_err(), "text has no fields");
    let b = view.get("b").unwrap().unwrap();
    assert!(b.is_zero_copy());
    assert_eq!(b.to_json().unwrap(), r#"{"price":2.5,"id":"b","note":"dear"}"#);
    assert_eq!(view.entry(b"a").unwrap().unwrap().value.unwrap(), new("a", 1.0, "none"));
    assert_eq!((view.reads().zero_copy(), view.reads().fallback()), (1, 1));

    // After a merge all of it is in the newest schema, borrowed again.
    let base = view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    let merged = view.rebase(base).unwrap();
    assert!(merged.get("a").unwrap().unwrap().is_zero_copy());
    let all = |view: &View| view.iter().map(|value| value.unwrap().to_json().unwrap()).collect::<Vec<_>>();
    assert_eq!(all(&merged), all(&view));

    // What differs is told by values read under the newer schema, on either way, and back.
    for after in [&view, &merged] {
        let changes: Vec<_> = after.changes_from(&before).map(|change| change.unwrap()).collect();
        let b = changes[0].before().unwrap().to_json().unwrap();
        assert_eq!(
            (b.as_str(), changes[0].after().unwrap().bytes()),
            (r#"{"id":"b","price":2}"#, &*new("b", 2.5, "dear"))
        );
        let keys = |changes: &[Change<'_>]| {
            changes.iter().map(|change| (change.key().to_vec(), change.kind())).collect::<Vec<_>>()
        };
        assert_eq!(
            keys(&changes),
            [(b"b".to_vec(), ChangeKind::Updated), (b"c".to_vec(), ChangeKind::Deleted)]
        );
        let back: Vec<_> = before.changes_from(after).map(|change| change.unwrap()).collect();
        assert_eq!(keys(&back), [(b"b".to_vec(), ChangeKind::Updated), (b"c".to_vec(), ChangeKind::Added)]);
    }

    let view = merged.apply(delta(3, &third, merged.schema(), &[]), about(3, &third)).unwrap();
    assert!(view.get("a").unwrap().unwrap().is_zero_copy(), "only documentation differs");

    let other = Arc::new(
        Schema::dataset(r#"{"type":"record","name":"P","fields":[{"name":"x","type":"long"}]}"#).unwrap(),
    );
    let refused = view.apply(delta(4, &other, view.schema(), &[]), about(4, &other));
    assert!(matches!(refused, Err(Error::Schema(_))), "{refused:?}");
}
