//! Blobs of every version of the format, read by Avro's Java tools: plain as they are mapped, and compressed as they are
//! stored.

use stillwell_tests::{read_by_avro_tools, workspace};

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
