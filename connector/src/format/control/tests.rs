use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

fn request() -> Rebuild {
    Rebuild {
        dataset: "products".into(),
        shard: Shard(2),
        history: TopicId([7; 16]),
        id: Uuid::from_u128(0x0123_4567_89ab_4def_8123_4567_89ab_cdef),
        from: From::Positions,
        deletes: true,
        at: 1_760_000_000_123,
    }
}

fn outcome() -> Rebuilt {
    Rebuilt {
        request: Rebuild { from: From::Earliest, deletes: false, ..request() },
        version: Version(43),
        epoch: 5,
        at: 1_760_000_009_999,
        read: 1_000_000,
        letters: 3,
        upserts: 17,
        deletes: 4,
        kept: 9,
    }
}

fn pin() -> Pin {
    let pinned = |version, epoch, offset| Pinned { version: Version(version), epoch, offset };
    Pin {
        dataset: "products".into(),
        history: TopicId([7; 16]),
        id: request().id,
        versions: vec![pinned(41, 5, 1_234), pinned(9, 2, 77)],
        by: "olga@shop-1".into(),
        reason: "prices of 42 are wrong".into(),
        at: 1_760_000_000_123,
    }
}

fn refusal() -> Refusal {
    Refusal {
        dataset: "products".into(),
        shard: Shard(0),
        history: TopicId([7; 16]),
        version: Version(42),
        epoch: 5,
        held: Version(41),
        by: "shop-1".into(),
        reason: "10 records, fewer than min_records = 1000".into(),
        at: 1_760_000_000_123,
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        dataset: "products".into(),
        shard: Shard(0),
        history: TopicId([7; 16]),
        id: request().id,
        version: Version(42),
        at: 1_760_000_000_123,
    }
}

fn samples() -> [(&'static str, Control); 5] {
    [
        ("rebuild", Control::Rebuild(request())),
        ("rebuilt", Control::Rebuilt(outcome())),
        ("pin", Control::Pin(pin())),
        ("refusal", Control::Refusal(refusal())),
        ("snapshot-request", Control::Snapshot(snapshot())),
    ]
}

/// The schema file of a sample.
fn file_of(name: &str) -> &str {
    name.strip_suffix("-request").unwrap_or(name)
}

fn schema_text(name: &str) -> String {
    let path = format!("{}/../schemas/{name}.avsc", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// What another Avro implementation makes of it, by the schema file.
fn foreign(bytes: &[u8], name: &str) -> String {
    let schema = apache_avro::Schema::parse_str(&schema_text(file_of(name))).unwrap();
    let mut rest = &bytes[10..];
    let value = apache_avro::from_avro_datum(&schema, &mut rest, None).unwrap();
    assert!(rest.is_empty());
    format!("{value:#?}\n")
}

#[test]
fn the_fingerprints_are_the_schema_files() {
    let of_file = |name: &str| crate::schema::Schema::parse(&schema_text(name)).unwrap().fingerprint();
    assert_eq!(format!("{REBUILD_FINGERPRINT:#x}"), format!("{:#x}", of_file("rebuild")));
    assert_eq!(format!("{REBUILT_FINGERPRINT:#x}"), format!("{:#x}", of_file("rebuilt")));
    let steering = [PIN_FINGERPRINT, REFUSAL_FINGERPRINT, SNAPSHOT_FINGERPRINT];
    let files = ["pin", "refusal", "snapshot"].map(of_file);
    assert_eq!(format!("{steering:#x?}"), format!("{files:#x?}"));
}

#[test]
fn every_prefix_is_an_error_and_no_flipped_bit_a_panic() {
    for (_, control) in samples() {
        let bytes = control.encode();
        assert_eq!(Control::decode(&bytes).unwrap(), control);
        for len in 0..bytes.len() {
            assert!(Control::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(Control::decode(&[&bytes[..], b"\0"].concat()).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = Control::decode(&flipped);
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_behind_our_fingerprints(mut bytes: Vec<u8>, which in 0usize..5) {
        let fingerprint = [
            REBUILT_FINGERPRINT, REBUILD_FINGERPRINT, PIN_FINGERPRINT, REFUSAL_FINGERPRINT, SNAPSHOT_FINGERPRINT,
        ][which];
        bytes.splice(0..0, fingerprint.to_le_bytes());
        bytes.splice(0..0, SINGLE_OBJECT);
        let _ = Control::decode(&bytes);
    }
}

#[test]
fn a_request_is_pending_until_the_version_of_its_outcome_is_announced() {
    let (history, last) = (TopicId([7; 16]), Version(42));
    let newest = |control| Some(control);
    assert_eq!(pending(None, history, last), None);
    assert_eq!(pending(newest(Control::Rebuild(request())), history, last), Some(request()));
    // Committed without its announcement: still to be done.
    assert_eq!(pending(newest(Control::Rebuilt(outcome())), history, last), Some(outcome().request));
    assert_eq!(pending(newest(Control::Rebuilt(outcome())), history, Version(43)), None);
    assert_eq!(pending(newest(Control::Rebuilt(outcome())), history, Version(50)), None);
    // Asked of another history.
    assert_eq!(pending(newest(Control::Rebuild(request())), TopicId([8; 16]), last), None);
}

fn golden(kind: &str, name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", kind, "v1", name].iter().collect()
}

/// Writes the golden files where they are missing, and never again: what lies in topics cannot be either.
/// `cargo test -p stillwell --lib format::control -- --ignored`
#[test]
#[ignore = "wrote the golden files, once"]
fn write_them() {
    for (name, control) in samples() {
        std::fs::create_dir_all(golden(name, "")).unwrap();
        let bytes = control.encode();
        let text = foreign(&bytes, name);
        for (extension, content) in [("bin", bytes), ("txt", text.into_bytes())] {
            let path = golden(name, &format!("{name}.{extension}"));
            if path.exists() {
                continue;
            }
            std::fs::write(path, content).unwrap();
        }
    }
}

#[test]
fn records_of_the_first_schemas_read_as_they_were_written() {
    for (name, control) in samples() {
        let bytes = std::fs::read(golden(name, &format!("{name}.bin"))).unwrap();
        assert_eq!(Control::decode(&bytes).unwrap(), control, "{name}");
        assert_eq!(control.encode(), bytes, "{name}: this build writes what that one wrote");
        let text = std::fs::read_to_string(golden(name, &format!("{name}.txt"))).unwrap();
        assert_eq!(foreign(&bytes, name), text, "{name}");
    }
}

#[test]
fn of_each_key_the_newest_record_stands() {
    let mut standing = Standing::default();
    let put = |standing: &mut Standing, key: &str, control: Option<Control>| {
        standing.take("products", key.as_bytes(), control.map(|control| control.encode()).as_deref())
    };
    put(&mut standing, "products/pin", Some(Control::Pin(pin()))).unwrap();
    let other = Pin { versions: Vec::new(), ..pin() };
    put(&mut standing, "products/pin", Some(Control::Pin(other.clone()))).unwrap();
    assert_eq!(standing.pin, Some(other));
    put(&mut standing, &refusal_key("products", Shard(0), "a/b"), Some(Control::Refusal(refusal()))).unwrap();
    put(&mut standing, &refusal_key("products", Shard(0), "c"), Some(Control::Refusal(refusal()))).unwrap();
    assert_eq!(standing.refusals.len(), 2);
    put(&mut standing, &refusal_key("products", Shard(0), "a/b"), None).unwrap();
    assert_eq!(standing.refusals.keys().map(|(_, reader)| reader.as_str()).collect::<Vec<_>>(), ["c"]);
    put(&mut standing, &snapshot_key("products", Shard(3)), Some(Control::Snapshot(snapshot()))).unwrap();
    assert_eq!(standing.snapshots.get(&Shard(3)), Some(&snapshot()));
    let before = standing.clone();
    put(&mut standing, &rebuild_key("products", Shard(0)), Some(Control::Rebuild(request()))).unwrap();
    put(&mut standing, "products/something new", None).unwrap();
    assert_eq!(standing, before, "what it does not know changes nothing");
    put(&mut standing, &pin_key("products"), None).unwrap();
    assert_eq!(standing.pin, None);
}

#[test]
fn what_is_not_ours_is_refused_and_what_stood_under_its_key_is_over() {
    let mut standing = Standing::default();
    let key = pin_key("products");
    let ours = Control::Pin(pin()).encode();
    for (key, value) in [
        (&b"other/pin"[..], &ours[..]),
        (b"productspin", &ours),
        (b"products/x/snapshot", &ours),
        (b"\xff", &ours),
        (key.as_bytes(), b"no record of ours"),
        (key.as_bytes(), &Control::Refusal(refusal()).encode()),
    ] {
        standing.take("products", pin_key("products").as_bytes(), Some(&ours)).unwrap();
        assert!(standing.take("products", key, Some(value)).is_err(), "{key:?}");
        assert_eq!(standing.pin.is_none(), key == b"products/pin", "{key:?}");
    }
    let stranger = Control::Pin(Pin { dataset: "other".into(), ..pin() }).encode();
    assert!(standing.take("products", key.as_bytes(), Some(&stranger)).is_err());
}
