//! Blobs of every version of the format, read by Avro's Java tools: plain as they are mapped, and compressed as they are
//! stored. And what lies in topics, by Avro's own decoder of single-object encoding.

use std::path::PathBuf;
use std::process::Command;

use stillwell_tests::{avro_tools, read_by_avro_tools, workspace};

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
