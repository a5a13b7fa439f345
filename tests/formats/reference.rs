//! Blobs of every version of the format, read by Avro's Java tools and by fastavro: plain as they are mapped, and compressed as
//! they are stored. And what lies in topics, by Avro's own decoder of single-object encoding.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use stillwell_tests::{avro_tools, python, read_by_avro_tools, workspace};

#[test]
fn avros_own_tools_read_every_golden_blob() {
    for kind in ["delta", "snapshot"] {
        let folder = workspace().join("tests/golden").join(kind).join("v1");
        let rows = std::fs::read_to_string(folder.join("rows.txt")).expect("the golden rows are there");
        for form in ["plain.avro", "stored.avro"] {
            let read = read_by_avro_tools(&folder.join(form));
            assert_eq!(read.len(), rows.lines().count(), "{kind} {form}");
            for (entry, row) in read.iter().zip(rows.lines()) {
                // key, timestamp, source, offset, value: bytes in hexadecimal, `-` for a delete
                let fields: Vec<&str> = row.split(' ').collect();
                let [key, timestamp, source, offset, value] = fields.as_slice() else { panic!("{row}") };
                let hex: String = entry
                    .get("key")
                    .and_then(|key| key.as_str())
                    .expect("a key")
                    .bytes()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                let number = |name: &str| entry.get(name).map(ToString::to_string).unwrap_or_default();
                assert_eq!(
                    (hex.as_str(), number("timestamp"), number("source"), number("offset")),
                    (*key, (*timestamp).to_owned(), (*source).to_owned(), (*offset).to_owned())
                );
                assert_eq!(entry.get("value").is_some_and(|value| value.is_null()), *value == "-", "{row}");
            }
        }
    }
}

/// As fastavro and Python show a time of the golden blobs, all of which lie in one minute.
fn shown(milliseconds: &str) -> String {
    let since = milliseconds.parse::<u64>().expect("a time") - 1_760_000_000_000;
    let (seconds, fraction) = (20 + since / 1_000, since % 1_000);
    assert!(seconds < 60, "{milliseconds}");
    let fraction = if fraction == 0 { String::new() } else { format!(".{fraction:03}000") };
    format!("2025-10-09T08:53:{seconds:02}{fraction}+00:00")
}

/// A product as Avro's specification has it, in hexadecimal.
fn datum(product: &Value) -> String {
    let long = |number: i64| {
        let (mut rest, mut hex) = (((number << 1) ^ (number >> 63)) as u64, String::new());
        while rest > 0x7f {
            hex += &format!("{:02x}", rest & 0x7f | 0x80);
            rest >>= 7;
        }
        hex + &format!("{rest:02x}")
    };
    let string = |text: &Value| {
        let text = text.as_str().expect("a string");
        long(text.len() as i64) + &text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let note = match &product["note"] {
        Value::Null => long(0),
        note => long(1) + &string(note),
    };
    string(&product["id"]) + &long(product["price"].as_i64().expect("a price")) + &note
}

#[test]
fn fastavro_reads_every_golden_blob() {
    let script = workspace().join("testcontainers-config/tables/read.py");
    for kind in ["delta", "snapshot"] {
        let folder = workspace().join("tests/golden").join(kind).join("v1");
        let rows = std::fs::read_to_string(folder.join("rows.txt")).expect("the golden rows are there");
        for form in ["plain.avro", "stored.avro"] {
            let read = Command::new(python("tables")).arg(&script).arg(folder.join(form)).output();
            let read = read.expect("Python runs");
            assert!(read.status.success(), "{kind} {form}: {}", String::from_utf8_lossy(&read.stderr));
            let read = String::from_utf8(read.stdout).expect("it is ASCII");
            assert_eq!(read.lines().count(), rows.lines().count(), "{kind} {form}");
            for (entry, row) in read.lines().zip(rows.lines()) {
                let mut entry: Value = serde_json::from_str(entry).expect("it is JSON");
                let fields: Vec<&str> = row.split(' ').collect();
                let [key, timestamp, source, offset, value] = fields.as_slice() else { panic!("{row}") };
                let number = |text: &str| text.parse::<i64>().expect("a number");
                let read = match entry["value"].take() {
                    Value::Null => "-".to_owned(),
                    product => datum(&product),
                };
                assert_eq!(read, **value, "{kind} {form}: {row}");
                let expected = json!({"key": {"hex": key}, "timestamp": shown(timestamp),
                    "source": number(source), "offset": number(offset), "value": null});
                assert_eq!(entry, expected, "{kind} {form}: {row}");
            }
        }
    }
}

#[test]
fn avros_own_decoder_finds_schemas_by_their_fingerprints_and_reads_what_is_in_topics() {
    let files = |folder: &str, ending: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(workspace().join(folder)).expect("a folder");
        let paths = entries.map(|entry| entry.expect("an entry can be read").path());
        paths.filter(|path| path.extension().is_some_and(|found| found == ending)).collect()
    };
    let single = [
        ("announcement", "Announcement"),
        ("epoch", "Epoch"),
        ("pin", "Pin"),
        ("refusal", "Refusal"),
        ("rebuild", "Rebuild"),
        ("rebuilt", "Rebuilt"),
        ("snapshot-request", "Snapshot"),
        ("letter", "Letter"),
    ];
    let golden: Vec<(PathBuf, &str)> = single
        .iter()
        .flat_map(|(folder, name)| {
            let found = files(&format!("tests/golden/{folder}/v1"), "bin");
            found.into_iter().map(move |path| (path, *name))
        })
        .collect();
    assert!(golden.len() > single.len(), "{golden:?}");
    let read = Command::new("java")
        .arg("-cp")
        .arg(avro_tools())
        .arg(workspace().join("tests/formats/Single.java"))
        .args(files("schemas", "avsc"))
        .args(golden.iter().map(|(path, _)| path))
        .output()
        .expect("Java 17 or newer runs");
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    let told = String::from_utf8(read.stdout).expect("it is ASCII");
    assert_eq!(told.lines().count(), golden.len(), "{told}");
    for (line, (path, name)) in told.lines().zip(&golden) {
        let bytes = std::fs::read(path).expect("it is there");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(line, format!("stillwell.{name} {hex}"), "{}", path.display());
    }
}
