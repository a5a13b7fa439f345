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

fn samples() -> [(&'static str, Control); 2] {
    [("rebuild", Control::Rebuild(request())), ("rebuilt", Control::Rebuilt(outcome()))]
}

fn schema_text(name: &str) -> String {
    let path = format!("{}/../schemas/{name}.avsc", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// What another Avro implementation makes of it, by the schema file.
fn foreign(bytes: &[u8], name: &str) -> String {
    let schema = apache_avro::Schema::parse_str(&schema_text(name)).unwrap();
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
    fn any_bytes_behind_our_fingerprints(mut bytes: Vec<u8>, rebuilt: bool) {
        let fingerprint = if rebuilt { REBUILT_FINGERPRINT } else { REBUILD_FINGERPRINT };
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
#[test]
#[ignore = "wrote the golden files, once"]
fn write_them() {
    for (name, control) in samples() {
        std::fs::create_dir_all(golden(name, "")).unwrap();
        let bytes = control.encode();
        let text = foreign(&bytes, name);
        for (extension, content) in [("bin", bytes), ("txt", text.into_bytes())] {
            let path = golden(name, &format!("{name}.{extension}"));
            assert!(!path.exists(), "golden files are never written again");
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
