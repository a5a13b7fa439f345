//! What a log belongs to: its chunks mean something only there. One fact per log, written before its first chunk.
//!
//! ```text
//!  0   magic     8   "SWLORIG1"
//!  8   topic id  16  of the announcement topic: the history whose positions the chunks join
//!  24  topic     8   little-endian, XXH3-64 of its name
//!  32  schema    8   little-endian, CRC-64-AVRO of the dataset's schema: what the values are datums of
//!  40  reading   8   little-endian, XXH3-64 of format and key rule: how records became keys and values
//!  48
//! ```
//!
//! A chunk says which offsets of which source partitions it holds, which is the same in every history. Without this
//! fact a log that was left by one history would be taken up by another: datums of one schema in versions of another.
//!
//! Owns: that fact, its layout, how two of them differ. Does not own: what becomes of a log of another origin
//! (`producer/log`).

use crate::codec::{Envelope, ExtraFields, Format, KeyFormat, KeyRule, Kind, Values};
use crate::record::TopicId;
use crate::schema::Schema;

const MAGIC: &[u8; 8] = b"SWLORIG1";
/// Bytes of an encoded origin.
pub const LEN: usize = 48;

/// What a log belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The announcement topic's id.
    announcements: TopicId,
    /// Hash of its name: one name with two ids is a topic that was deleted and made again.
    name: u64,
    /// Fingerprint of the dataset's schema.
    schema: u64,
    /// Hash of format and key rule.
    reading: u64,
}

impl Origin {
    /// The origin of what is read by these rules for that history.
    pub fn of(
        (announcements, name): (TopicId, &str),
        schema: &Schema,
        format: &Format,
        key: &KeyRule,
    ) -> Origin {
        // Every part ends with a zero byte, which no field name holds: no two rules make the same text.
        let mut rules = rules_of(format);
        rules.push('\0');
        match key {
            KeyRule::Kafka => rules.push_str("kafka"),
            KeyRule::Fields(fields) => {
                for field in fields {
                    rules.push_str(field);
                    rules.push('\0');
                }
            }
        }
        // Behind an empty part, which no field is; `kafka` has not even its end.
        for (topic, other) in format.others() {
            rules.push_str(&format!("\0\0{topic}\0{}\0", rules_of(other)));
        }
        let reading = xxhash_rust::xxh3::xxh3_64(rules.as_bytes());
        let name = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        Origin { announcements, name, schema: schema.fingerprint(), reading }
    }

    /// One for tests and benches to which it does not matter.
    #[doc(hidden)]
    pub fn any() -> Origin {
        Origin::of((TopicId::default(), "any"), &Schema::raw(), &Format::raw(), &KeyRule::Kafka)
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let numbers = [self.name, self.schema, self.reading].map(u64::to_le_bytes);
        let parts = [&MAGIC[..], &self.announcements.0, numbers.as_flattened()];
        for (place, byte) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *place = *byte;
        }
        bytes
    }

    /// An origin out of its bytes; `None` if they are none.
    pub fn parse(bytes: &[u8]) -> Option<Origin> {
        let bytes: &[u8; LEN] = bytes.try_into().ok()?;
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (topic_id, rest) = rest.split_first_chunk::<16>()?;
        let (name, rest) = rest.split_first_chunk::<8>()?;
        let (schema, rest) = rest.split_first_chunk::<8>()?;
        let (reading, _) = rest.split_first_chunk::<8>()?;
        (magic == MAGIC).then_some(Origin {
            announcements: TopicId(*topic_id),
            name: u64::from_le_bytes(*name),
            schema: u64::from_le_bytes(*schema),
            reading: u64::from_le_bytes(*reading),
        })
    }

    /// Whether values of the two are datums of different schemas.
    pub fn is_of_other_schema(&self, other: &Origin) -> bool {
        self.schema != other.schema
    }

    /// The announcement topic's id.
    pub fn topic_id(&self) -> TopicId {
        self.announcements
    }

    /// Whether the announcement topic has been deleted and made again since `found`.
    pub fn is_recreated(&self, found: &Origin) -> bool {
        self.name == found.name && self.announcements != found.announcements
    }

    /// In which ways `found` is another one, in words; nothing: it is the same.
    pub fn differs(&self, found: &Origin) -> Vec<&'static str> {
        [
            (self.announcements != found.announcements, "another announcement topic"),
            (self.schema != found.schema, "another schema"),
            (self.reading != found.reading, "another format or key rule"),
        ]
        .into_iter()
        .filter_map(|(other, words)| other.then_some(words))
        .collect()
    }
}

/// How one topic's records are written, in words: each way in others. Those of logs that there are stay as they are.
fn rules_of(format: &Format) -> String {
    let mut rules = match &format.values {
        Values::Json { extra_fields: ExtraFields::Ignore, .. } => "json".to_owned(),
        Values::Json { extra_fields: ExtraFields::Reject, .. } => "json, no extra fields".to_owned(),
        // Defaults of the dataset's schema fill what the writer's lacks, so all of the text counts.
        Values::Avro { writer } => format!("avro {}", writer.json()),
        // The registry's schemas are the same whenever they are asked for.
        Values::Registered(Kind::Avro) => "avro, registry".to_owned(),
        Values::Registered(Kind::Protobuf) => "protobuf, registry".to_owned(),
        Values::Protobuf { message } => format!("protobuf {} {:016x}", message.name(), message.digest()),
        Values::Raw => "raw".to_owned(),
    };
    if let Values::Json { checked: true, .. } = format.values {
        rules.push_str(", ids checked");
    }
    match &format.keys {
        KeyFormat::Raw => {}
        KeyFormat::Text => rules.push_str(", text keys"),
        KeyFormat::Json => rules.push_str(", json keys"),
        KeyFormat::Avro(schema) => rules.push_str(&format!(", avro keys {}", schema.json())),
        KeyFormat::Protobuf(message) => {
            rules.push_str(&format!(", protobuf keys {} {:016x}", message.name(), message.digest()));
        }
        // As logs that there are say it.
        KeyFormat::Registered(Kind::Avro) => rules.push_str(", keys too"),
        KeyFormat::Registered(Kind::Protobuf) => rules.push_str(", protobuf keys by the registry"),
    }
    if format.envelope == Envelope::Debezium {
        rules.push_str(", debezium");
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn json() -> Format {
        Format::json(ExtraFields::Ignore)
    }

    #[test]
    fn it_reads_back_and_nothing_else_does() {
        let schema = Schema::parse(r#"{"type": "record", "name": "A", "fields": []}"#).unwrap();
        let origin = Origin::of((TopicId([7; 16]), "t"), &schema, &json(), &KeyRule::Kafka);
        let bytes = origin.encode();
        assert_eq!(Origin::parse(&bytes), Some(origin));
        assert_eq!(&bytes[..8], b"SWLORIG1");
        assert_eq!(bytes[8..24], [7; 16]);
        assert_eq!(bytes[32..40], schema.fingerprint().to_le_bytes());
        assert_eq!(Origin::parse(&bytes[..47]), None);
        assert_eq!(Origin::parse(b""), None);
        assert_eq!(Origin::parse(&[0; LEN]), None);
    }

    /// Made once, by other code, of the layout as it is drawn above.
    fn golden() -> std::path::PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "..", "tests", "golden", "origin", "v1", "origin.bin"].iter().collect()
    }

    fn sample() -> Origin {
        let schema = r#"{"type": "record", "name": "A", "fields": [{"name": "id", "type": "string"}]}"#;
        let fields = KeyRule::Fields(vec!["id".into()]);
        Origin::of((TopicId([7; 16]), "a.announcements"), &Schema::parse(schema).unwrap(), &json(), &fields)
    }

    #[test]
    fn an_origin_of_format_1_is_the_same_to_this_build() {
        let bytes = std::fs::read(golden()).unwrap();
        assert_eq!(Origin::parse(&bytes), Some(sample()));
        assert_eq!(sample().encode().as_slice(), bytes, "this build writes what that one wrote");
    }

    #[test]
    fn whatever_changes_what_a_chunk_means_makes_another_origin() {
        let a = Schema::parse(r#"{"type": "record", "name": "A", "fields": []}"#).unwrap();
        let b = Arc::new(Schema::parse(r#"{"type": "record", "name": "B", "fields": []}"#).unwrap());
        let fields = |names: &[&str]| KeyRule::Fields(names.iter().map(ToString::to_string).collect());
        let topic = (TopicId([1; 16]), "t");
        let is = Origin::of(topic, &a, &json(), &fields(&["a", "b"]));
        assert!(is.differs(&Origin::of(topic, &a, &json(), &fields(&["a", "b"]))).is_empty());
        let reading = ["another format or key rule"];
        for (format, key) in [
            (json(), KeyRule::Kafka),
            (json(), fields(&["kafka"])),
            (json(), fields(&["ab"])),
            (json(), fields(&["b", "a"])),
            (Format::raw(), fields(&["a", "b"])),
            (Format::avro(b.clone()), fields(&["a", "b"])),
            (Format::json(ExtraFields::Reject), fields(&["a", "b"])),
            (json().within(Envelope::Debezium), fields(&["a", "b"])),
            (json().with_keys(KeyFormat::Json), fields(&["a", "b"])),
            (json().with_keys(KeyFormat::Registered(Kind::Avro)), fields(&["a", "b"])),
            (json().but("t", Format::raw()), fields(&["a", "b"])),
            (json().but("t", json()), fields(&["a", "b"])),
            (json().but("t", Format::raw()), fields(&["a", "b", "t", "raw"])),
        ] {
            assert_eq!(is.differs(&Origin::of(topic, &a, &format, &key)), reading, "{format:?} {key:?}");
        }
        assert_ne!(
            Origin::of(topic, &a, &json(), &KeyRule::Kafka),
            Origin::of(topic, &a, &json(), &fields(&["kafka"]))
        );
        assert_ne!(
            Origin::of(topic, &a, &json().but("t", json()), &KeyRule::Kafka),
            Origin::of(topic, &a, &json(), &fields(&["kafka", "t", "json"]))
        );
        let other = Origin::of((TopicId([2; 16]), "u"), &b, &json(), &fields(&["a", "b"]));
        assert_eq!(is.differs(&other), ["another announcement topic", "another schema"]);
        assert!(!is.is_recreated(&other), "a new history under another name");
        let again = Origin::of((TopicId([2; 16]), "t"), &a, &json(), &fields(&["a", "b"]));
        assert!(is.is_recreated(&again) && !is.is_recreated(&is));
    }
}
