//! A record of a dead-letter topic, read as what it is: the record that failed, and why, whoever wrote it.
//!
//! | written by | told by | the original's headers |
//! | --- | --- | --- |
//! | Stillwell | `__connect.errors.topic` with `stillwell.failed-at` behind it | what stands before, less `stillwell.replays` and `stillwell.origin` |
//! | Kafka Connect | `__connect.errors.topic` alone | what stands before |
//! | Spring | `kafka_dlt-original-topic` | all but `kafka_dlt-*` and `retry_topic-*` |
//!
//! A record may carry headers of such names from an earlier life of its own, before those of its letter: whichever of the two
//! topics stands last says whose it is, and the last `__connect.errors.topic` begins the letter's. Spring keeps adding; its first
//! ones name the record's own topic, those behind them the retry topics that it went through.
//!
//! Owns: telling the three apart, and the original from what was put behind it. Does not own: what is done with it
//! (`replay`, `listing`), blobs.

use super::letter::CHANGES;
use super::record::Origin;
use crate::format::letter::{Elsewhere, header};

/// Prefix of all that Kafka Connect puts on a letter.
const CONNECT: &str = "__connect.errors.";
/// Prefix of all that Spring puts on one (`KafkaHeaders.DLT_*`).
const SPRING: &str = "kafka_dlt-";
/// The topic of the record, as Spring calls it.
const SPRING_TOPIC: &str = "kafka_dlt-original-topic";
/// Prefix of what it puts on a record in a retry topic (`RetryTopicHeaders`): with it a record that comes back would be one
/// that has been tried so often already.
const SPRING_RETRY: &str = "retry_topic-";

/// Who wrote a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Writer {
    /// This program.
    Stillwell,
    /// Kafka Connect's `DeadLetterQueueReporter`.
    Connect,
    /// Spring for Apache Kafka's `DeadLetterPublishingRecoverer`.
    Spring,
    /// Nobody who says so: any record.
    Unknown,
}

/// Where the record that failed stands, or stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: i32,
    /// Its own offset.
    pub offset: i64,
}

/// A record of a dead-letter topic as Kafka hands it out.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Partition of the dead-letter topic.
    pub partition: i32,
    /// Its own offset.
    pub offset: i64,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// As it is.
    pub key: Option<&'a [u8]>,
    /// As it is.
    pub value: Option<&'a [u8]>,
}

/// A letter, borrowed from the record it was read from.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    /// The record itself.
    pub raw: Raw<'a>,
    /// Who wrote it.
    pub writer: Writer,
    /// Where the original was.
    pub source: Option<Source<'a>>,
    /// The original's timestamp.
    pub timestamp: i64,
    /// Where it failed, by Connect's names; empty where nobody says.
    pub stage: &'a str,
    /// The kind of failure; empty where nobody says.
    pub class: &'a str,
    /// What was wrong; empty where nobody says.
    pub message: &'a str,
    /// The dataset, connector or consumer group that gave up; empty where nobody says.
    pub owner: &'a str,
    /// When: what the letter says, else the record's own timestamp.
    pub failed_at: i64,
    /// How often the record has been replayed.
    pub replays: u32,
    /// The record that failed first, of which this one is a replay; `None` where it is none.
    pub origin: Option<Origin>,
    /// The listener that did not handle the change; empty where it is none.
    pub listener: &'a str,
    /// The original's headers, without our count and origin.
    pub headers: Vec<(&'a str, Option<&'a [u8]>)>,
    /// What of it lies in a blob.
    pub elsewhere: Elsewhere,
}

impl<'a> Found<'a> {
    /// Reads a record. Any is a letter of some sort.
    pub fn read(raw: Raw<'a>, headers: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>) -> Found<'a> {
        // A letter has about as many; grown step by step they would be copied three times.
        let mut all = Vec::with_capacity(20);
        all.extend(headers);
        let mut ours = false;
        let whose = all.iter().enumerate().rev().find_map(|(at, (name, _))| match *name {
            header::TOPIC => Some(Some(at)),
            SPRING_TOPIC => Some(None),
            header::FAILED_AT => {
                ours = true;
                None
            }
            _ => None,
        });
        match whose {
            Some(Some(at)) => connect_letter(raw, all, (at, ours)),
            Some(None) => spring_letter(raw, all),
            None => {
                let (replays, origin) = replayed(&all, None);
                all.retain(|(name, _)| !is_of_replays(name));
                Found { replays, origin, headers: all, ..nobodys(raw) }
            }
        }
    }

    /// The last word of the kind of failure: Java's class names are long.
    pub fn short_class(&self) -> &'a str {
        self.class.rsplit(['.', '$']).next().unwrap_or(self.class)
    }
}

fn nobodys(raw: Raw<'_>) -> Found<'_> {
    Found {
        raw,
        writer: Writer::Unknown,
        source: None,
        timestamp: raw.timestamp,
        stage: "",
        class: "",
        message: "",
        owner: "",
        failed_at: raw.timestamp,
        replays: 0,
        origin: None,
        listener: "",
        headers: Vec::new(),
        elsewhere: Elsewhere::Nothing,
    }
}

type Headers<'a> = Vec<(&'a str, Option<&'a [u8]>)>;

/// `at`: where the topic stands; `ours`: whether our time of failure stands behind it.
fn connect_letter<'a>(raw: Raw<'a>, mut headers: Headers<'a>, (at, ours): (usize, bool)) -> Found<'a> {
    let mut found = nobodys(raw);
    found.writer = if ours { Writer::Stillwell } else { Writer::Connect };
    let (mut topic, mut partition, mut offset) = (None, None, None);
    let (mut replays, mut origin, mut listener) = (None, None, None);
    let mut index = 0;
    // Each is read and let go in one pass: there are a dozen, of every letter, and mostly none stays.
    headers.retain(|&(name, value)| {
        let behind = index >= at;
        index += 1;
        match name {
            header::REPLAYS => {
                replays = value;
                return false;
            }
            header::ORIGIN => {
                origin = value;
                return false;
            }
            // It stands among the headers of the record, of which a change has none.
            header::LISTENER => listener = value,
            _ => {}
        }
        if !behind {
            return true;
        }
        match name {
            header::TOPIC => topic = Some(text(value)),
            header::PARTITION => partition = text(value).parse().ok(),
            header::OFFSET => offset = text(value).parse().ok(),
            header::CONNECTOR_NAME => found.owner = text(value),
            header::STAGE => found.stage = text(value),
            header::EXCEPTION_CLASS_NAME => found.class = text(value),
            header::EXCEPTION_MESSAGE => found.message = text(value),
            header::FAILED_AT => found.failed_at = text(value).parse().unwrap_or(raw.timestamp),
            header::ORIGINAL_TIMESTAMP if ours => {
                found.timestamp = text(value).parse().unwrap_or(raw.timestamp);
            }
            header::VALUE_BLOB if ours => found.elsewhere = Elsewhere::Value(text(value).to_owned()),
            header::LETTER_BLOB if ours => found.elsewhere = Elsewhere::Whole(text(value).to_owned()),
            _ => {
                return match ours {
                    true => !header::OF_A_FAILURE.contains(&name),
                    false => !name.starts_with(CONNECT),
                };
            }
        }
        // All of these describe the failure.
        false
    });
    found.source = place(topic, partition, offset);
    (found.replays, found.origin) = counted((replays, origin), found.source);
    if ours && CHANGES.contains(&found.stage) {
        found.listener = text(listener);
    }
    found.headers = headers;
    found
}

fn spring_letter<'a>(raw: Raw<'a>, mut headers: Headers<'a>) -> Found<'a> {
    let first = |wanted: &str| {
        let found = headers.iter().find(|(name, _)| name.strip_prefix(SPRING) == Some(wanted));
        found.and_then(|(_, value)| *value)
    };
    let last = |wanted: &str| {
        let found = headers.iter().rev().find(|(name, _)| name.strip_prefix(SPRING) == Some(wanted));
        found.and_then(|(_, value)| *value)
    };
    let mut found = nobodys(raw);
    found.writer = Writer::Spring;
    let partition = first("original-partition").and_then(|bytes| i32::try_from(number(bytes)?).ok());
    found.source = place(
        first("original-topic").map(|bytes| text(Some(bytes))),
        partition,
        first("original-offset").and_then(number),
    );
    found.timestamp = first("original-timestamp").and_then(number).unwrap_or(raw.timestamp);
    found.owner = text(last("original-consumer-group"));
    // A deserializer's failure names the part that it failed at; a listener's does not.
    let of_key = last("key-exception-fqcn");
    found.stage = if of_key.is_some() { "KEY_CONVERTER" } else { "" };
    // The listener's exception is Spring's own; the cause is what happened.
    found.class = text(of_key.or(last("exception-cause-fqcn")).or(last("exception-fqcn")));
    found.message = text(last("key-exception-message").or(last("exception-message")));
    (found.replays, found.origin) = replayed(&headers, found.source);
    let put = |name: &str| name.starts_with(SPRING) || name.starts_with(SPRING_RETRY);
    headers.retain(|(name, _)| !put(name) && !is_of_replays(name));
    found.headers = headers;
    found
}

fn place(topic: Option<&str>, partition: Option<i32>, offset: Option<i64>) -> Option<Source<'_>> {
    let (topic, partition, offset) = (topic?, partition?, offset?);
    let good = !topic.is_empty() && partition >= 0 && offset >= 0;
    good.then_some(Source { topic, partition, offset })
}

/// Spring writes numbers as Java's `ByteBuffer` does, big-endian: a partition in four bytes, offset and timestamp in eight.
/// In decimal they are taken too.
fn number(bytes: &[u8]) -> Option<i64> {
    match bytes.len() {
        8 => bytes.try_into().ok().map(i64::from_be_bytes),
        4 => bytes.try_into().ok().map(|bytes| i64::from(i32::from_be_bytes(bytes))),
        _ => std::str::from_utf8(bytes).ok()?.parse().ok(),
    }
}

/// Whether a header is one that a replay puts on a record.
pub fn is_of_replays(name: &str) -> bool {
    name == header::REPLAYS || name == header::ORIGIN
}

/// How often the record was replayed, and what it was before.
fn replayed(headers: &Headers<'_>, source: Option<Source<'_>>) -> (u32, Option<Origin>) {
    let last = |wanted: &str| headers.iter().rev().find(|(name, _)| *name == wanted)?.1;
    counted((last(header::REPLAYS), last(header::ORIGIN)), source)
}

/// The same, of the two headers that say it.
fn counted(
    (replays, origin): (Option<&[u8]>, Option<&[u8]>),
    source: Option<Source<'_>>,
) -> (u32, Option<Origin>) {
    let replays = text(replays).parse().unwrap_or(0);
    let origin = source.filter(|_| replays > 0).and_then(|source| Origin::read(text(origin), source));
    (replays, origin)
}

/// A header as text; what is not UTF-8 shows as empty.
fn text(value: Option<&[u8]>) -> &str {
    std::str::from_utf8(value.unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::format::letter::Letter;
    use crate::record::SourcePartition;

    fn raw() -> Raw<'static> {
        Raw { partition: 1, offset: 12, timestamp: 99, key: Some(b"k"), value: Some(b"{") }
    }

    fn read<'a>(headers: &'a [(String, Option<Bytes>)]) -> Found<'a> {
        Found::read(raw(), headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())))
    }

    fn pair(name: &str, value: impl AsRef<[u8]>) -> (String, Option<Bytes>) {
        (name.to_owned(), Some(Bytes::copy_from_slice(value.as_ref())))
    }

    fn letter(headers: Vec<(String, Option<Bytes>)>) -> Letter {
        Letter {
            source: SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition: 3 },
            offset: 7,
            timestamp: 8,
            stage: "VALUE_CONVERTER".to_owned(),
            class: "stillwell.codec.Syntax".to_owned(),
            message: "it ends too early".to_owned(),
            key: Some(Bytes::from_static(b"k")),
            value: Some(Bytes::from_static(b"{")),
            headers,
        }
    }

    #[test]
    fn our_letter_gives_back_the_record_and_says_why() {
        // The record's own headers, also such as look like a letter's, and names that repeat.
        let own =
            vec![pair("a", "1"), ("a".to_owned(), None), pair(header::TOPIC, "elsewhere"), pair("z", "")];
        let sent = letter(own.clone()).kafka_headers("products", 0, 55, &Elsewhere::Nothing);
        let found = read(&sent);
        assert_eq!(found.writer, Writer::Stillwell);
        assert_eq!(found.source, Some(Source { topic: "orders", partition: 3, offset: 7 }));
        assert_eq!((found.timestamp, found.failed_at, found.replays), (8, 55, 0));
        assert_eq!((found.stage, found.class), ("VALUE_CONVERTER", "stillwell.codec.Syntax"));
        assert_eq!((found.message, found.owner), ("it ends too early", "products"));
        let headers: Vec<_> = found
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.map(Bytes::copy_from_slice)))
            .collect();
        assert_eq!(headers, own, "byte for byte");
    }

    #[test]
    fn a_record_that_was_replayed_keeps_its_count_and_not_the_header() {
        let own = vec![pair("a", "1"), pair(header::ORIGIN, "orders/3/7@8"), pair(header::REPLAYS, "2")];
        let sent = letter(own).kafka_headers("products", 0, 55, &Elsewhere::Value("x/y.letter".to_owned()));
        let found = read(&sent);
        assert_eq!((found.replays, found.headers.len()), (2, 1));
        assert_eq!(found.origin, Some(Origin { offset: 7, timestamp: 8 }));
        assert_eq!(found.elsewhere, Elsewhere::Value("x/y.letter".to_owned()));
    }

    #[test]
    fn a_record_that_was_not_replayed_has_no_origin_and_a_change_has_a_listener() {
        let sent = letter(vec![pair(header::ORIGIN, "orders/3/7@8")]).kafka_headers(
            "products",
            0,
            55,
            &Elsewhere::Nothing,
        );
        assert_eq!((read(&sent).replays, read(&sent).origin), (0, None));
        // What somebody made of a record that was replayed, and put into another topic with its headers.
        let copied = vec![pair(header::ORIGIN, "payments/3/7@8"), pair(header::REPLAYS, "1")];
        let sent = letter(copied).kafka_headers("products", 0, 55, &Elsewhere::Nothing);
        assert_eq!((read(&sent).replays, read(&sent).origin, read(&sent).headers.len()), (1, None, 0));
        let named = || vec![pair(header::LISTENER, "audit")];
        let change = Letter { stage: "webhook".to_owned(), ..letter(named()) };
        let listener = |letter: Letter| {
            let sent = letter.kafka_headers("products", 0, 55, &Elsewhere::Nothing);
            read(&sent).listener.to_owned()
        };
        assert_eq!((listener(change), listener(letter(named()))), ("audit".to_owned(), String::new()));
    }

    #[test]
    fn connects_letters_are_read() {
        let sent = [
            pair("a", "1"),
            pair("__connect.errors.topic", "orders"),
            pair("__connect.errors.partition", "2"),
            pair("__connect.errors.offset", "41"),
            pair("__connect.errors.connector.name", "sink"),
            pair("__connect.errors.task.id", "0"),
            pair("__connect.errors.stage", "VALUE_CONVERTER"),
            pair("__connect.errors.class.name", "org.apache.kafka.connect.json.JsonConverter"),
            pair("__connect.errors.exception.class.name", "org.apache.kafka.connect.errors.DataException"),
            pair("__connect.errors.exception.message", "Converting byte[] failed"),
            pair("__connect.errors.exception.stacktrace", "at ..."),
        ];
        let found = read(&sent);
        assert_eq!(found.writer, Writer::Connect);
        assert_eq!(found.source, Some(Source { topic: "orders", partition: 2, offset: 41 }));
        assert_eq!((found.timestamp, found.failed_at, found.owner), (99, 99, "sink"));
        assert_eq!(
            (found.headers.clone(), found.short_class()),
            (vec![("a", Some(&b"1"[..]))], "DataException")
        );
    }

    #[test]
    fn springs_letters_are_read_also_after_retry_topics() {
        let sent = [
            pair("a", "1"),
            pair("kafka_dlt-original-topic", "orders"),
            pair("kafka_dlt-original-partition", 2i32.to_be_bytes()),
            pair("kafka_dlt-original-offset", 41i64.to_be_bytes()),
            pair("kafka_dlt-original-timestamp", 1_700_000_000_000i64.to_be_bytes()),
            pair("kafka_dlt-original-topic", "orders-retry-0"),
            pair("kafka_dlt-original-partition", 0i32.to_be_bytes()),
            pair("kafka_dlt-original-offset", 5i64.to_be_bytes()),
            pair("kafka_dlt-original-consumer-group", "billing"),
            pair(
                "kafka_dlt-exception-fqcn",
                "org.springframework.kafka.listener.ListenerExecutionFailedException",
            ),
            pair("kafka_dlt-exception-cause-fqcn", "java.lang.IllegalStateException"),
            pair("kafka_dlt-exception-message", "no such customer"),
        ];
        let found = read(&sent);
        assert_eq!(found.writer, Writer::Spring);
        assert_eq!(found.source, Some(Source { topic: "orders", partition: 2, offset: 41 }));
        assert_eq!((found.timestamp, found.owner), (1_700_000_000_000, "billing"));
        assert_eq!((found.short_class(), found.message), ("IllegalStateException", "no such customer"));
        assert_eq!(found.headers, [("a", Some(&b"1"[..]))]);
    }

    /// As `DeadLetterPublishingRecoverer` writes them (`maybeAddHeader`, `addExceptionInfoHeaders`): text in UTF-8, numbers by
    /// `ByteBuffer.allocate(Integer.BYTES).putInt` and `allocate(Long.BYTES).putLong`; here byte by byte.
    #[test]
    fn springs_numbers_are_read_as_it_writes_them() {
        let sent = [
            pair("a", "1"),
            pair("retry_topic-attempts", [0, 0, 0, 3]),
            pair("kafka_dlt-exception-fqcn", b"java.lang.IllegalArgumentException"),
            pair("kafka_dlt-exception-message", b"caf\xc3\xa9"),
            pair(
                "kafka_dlt-exception-stacktrace",
                b"java.lang.IllegalArgumentException: caf\xc3\xa9\n\tat a.B.c(B.java:7)",
            ),
            pair("kafka_dlt-original-topic", b"orders"),
            // Partition 258, offset 72,623,859,790,382,856, 2023-11-14T22:13:20Z.
            pair("kafka_dlt-original-partition", [0x00, 0x00, 0x01, 0x02]),
            pair("kafka_dlt-original-offset", [0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08]),
            pair("kafka_dlt-original-timestamp", [0x00, 0x00, 0x01, 0x8b, 0xcf, 0xe5, 0x68, 0x00]),
            pair("kafka_dlt-original-timestamp-type", b"CreateTime"),
            pair("kafka_dlt-original-consumer-group", b"billing"),
        ];
        let found = read(&sent);
        assert_eq!(found.writer, Writer::Spring);
        assert_eq!(
            found.source,
            Some(Source { topic: "orders", partition: 258, offset: 72_623_859_790_382_856 })
        );
        assert_eq!((found.timestamp, found.owner, found.stage), (1_700_000_000_000, "billing", ""));
        assert_eq!((found.short_class(), found.message), ("IllegalArgumentException", "caf\u{e9}"));
        assert_eq!(found.headers, [("a", Some(&b"1"[..]))], "what Spring has put there is gone");

        // A key that could not be deserialized; bytes that are none of these numbers name no place.
        let sent = [
            pair(
                "kafka_dlt-key-exception-fqcn",
                b"org.springframework.kafka.support.serializer.DeserializationException",
            ),
            pair("kafka_dlt-key-exception-message", b"failed to deserialize"),
            pair("kafka_dlt-original-topic", b"orders"),
            pair("kafka_dlt-original-partition", [0x00, 0x01]),
            pair("kafka_dlt-original-offset", [0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x29]),
        ];
        let found = read(&sent);
        assert_eq!((found.stage, found.short_class()), ("KEY_CONVERTER", "DeserializationException"));
        assert_eq!((found.message, found.source), ("failed to deserialize", None));
    }

    /// A record that was one's letter once may become the other's.
    #[test]
    fn who_wrote_last_is_whose_letter_it_is() {
        let connect = [
            pair("__connect.errors.topic", "orders"),
            pair("__connect.errors.partition", "2"),
            pair("__connect.errors.offset", "41"),
            pair("__connect.errors.stage", "VALUE_CONVERTER"),
        ];
        let spring = [
            pair("kafka_dlt-original-topic", "orders"),
            pair("kafka_dlt-original-partition", 3i32.to_be_bytes()),
            pair("kafka_dlt-original-offset", 7i64.to_be_bytes()),
            pair("kafka_dlt-exception-message", "no such customer"),
        ];
        let sent = [&connect[..], &spring].concat();
        let found = read(&sent);
        assert_eq!(found.writer, Writer::Spring);
        assert_eq!(found.source, Some(Source { topic: "orders", partition: 3, offset: 7 }));
        assert_eq!(
            (found.message, found.headers.len()),
            ("no such customer", connect.len()),
            "the record's own"
        );
        let sent = [&spring[..], &connect].concat();
        let found = read(&sent);
        assert_eq!(found.writer, Writer::Connect);
        assert_eq!(found.source, Some(Source { topic: "orders", partition: 2, offset: 41 }));
        assert_eq!(found.headers.len(), spring.len());
    }

    #[test]
    fn what_cannot_be_made_sense_of_is_nobodys_and_never_a_wrong_place() {
        let found = read(&[]);
        assert_eq!((found.writer, found.source), (Writer::Unknown, None));
        for (partition, offset) in [("-1", "3"), ("x", "3"), ("1", "-3"), ("1", ""), ("99999999999", "1")] {
            let headers =
                [pair(header::TOPIC, "t"), pair(header::PARTITION, partition), pair(header::OFFSET, offset)];
            assert_eq!(read(&headers).source, None, "{partition} {offset}");
        }
        let headers =
            [pair("kafka_dlt-original-topic", "t"), pair("kafka_dlt-original-partition", [0xff; 4])];
        assert_eq!(read(&headers).source, None);
    }
}
