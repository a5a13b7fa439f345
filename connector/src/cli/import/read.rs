//! The records of a file: JSON lines, or an Avro container.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::ValueEnum;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::format::container::{self, AnyReader};
use crate::producer::write::{Ready, Refused};
use crate::producer::{Write, Writer};
use crate::schema::Schema;
use crate::schema::wire::{take_bytes, take_long};
use crate::{Error, ErrorKind, Result};

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// A JSON value a line
    Jsonl,
    /// An Avro object container file
    Avro,
}

/// The beginning of a container.
const MAGIC: &[u8] = b"Obj\x01";
/// Bytes of records after which a chunk is handed on, whatever its count.
const CHUNK_BYTES: usize = 1 << 20;
/// A line longer than this is none: Kafka's client takes records of 10 MiB.
const MOST_LINE: u64 = 32 << 20;

/// A record that does not fit.
#[derive(Debug)]
pub(super) struct Bad {
    /// What is counted.
    unit: &'static str,
    /// From 1.
    number: u64,
    reason: String,
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.unit, self.number, self.reason)
    }
}

impl std::error::Error for Bad {}

/// Some of a file.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// Those that fit, in order.
    pub records: Vec<Ready>,
    /// Those that do not; where that ends it, there is one, and it comes after all of `records`.
    pub bad: Vec<Bad>,
    /// Bytes of the file that have been read.
    pub through: u64,
}

/// What reads a file.
pub(super) struct Reader {
    pub writer: Writer,
    /// `None`: by its beginning.
    pub format: Option<FileFormat>,
    /// Lines are plain records, whatever they look like.
    pub keyed: bool,
    /// Keys can be made of a record's fields.
    pub makes_keys: bool,
    pub topic: Option<String>,
    pub skip_bad: bool,
    /// Most records in a chunk.
    pub chunk: usize,
}

/// Whether there is more to read.
#[derive(PartialEq, Eq)]
enum Go {
    On,
    /// Nobody takes more, or what does not fit ends it.
    Stop,
}

/// One file under way.
struct Run<'a> {
    reader: &'a Reader,
    out: &'a mpsc::Sender<Chunk>,
    chunk: Chunk,
    bytes: usize,
    unit: &'static str,
    number: u64,
}

impl Reader {
    /// Reads to the end, to the first record that does not fit, or until nobody takes more. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] where the file cannot be read on.
    pub fn run(self, mut input: Box<dyn Read + Send>, out: &mpsc::Sender<Chunk>) -> Result<()> {
        let mut begun = Vec::new();
        (&mut input).take(MAGIC.len() as u64).read_to_end(&mut begun).map_err(unreadable)?;
        let looks = if begun == MAGIC { FileFormat::Avro } else { FileFormat::Jsonl };
        let chunk = Chunk::default();
        let mut run = Run { reader: &self, out, chunk, bytes: 0, unit: "line", number: 0 };
        match self.format.unwrap_or(looks) {
            FileFormat::Jsonl => run.lines(input, begun),
            FileFormat::Avro => run.container(input, &begun),
        }
    }
}

impl Run<'_> {
    fn lines(&mut self, input: impl Read, begun: Vec<u8>) -> Result<()> {
        let mut input = BufReader::with_capacity(256 << 10, (&begun[..]).chain(input));
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut input).take(MOST_LINE).read_until(b'\n', &mut line).map_err(unreadable)?;
            if read == 0 {
                self.hand_on();
                return Ok(());
            }
            self.number += 1;
            self.chunk.through += read as u64;
            if read as u64 == MOST_LINE {
                // Where the next one begins is not looked for: what has such lines is another kind of file.
                let reason = format!("it has more than {MOST_LINE} bytes; this is no file of JSON lines");
                let bad = Bad { unit: self.unit, number: self.number, reason };
                self.hand_on();
                return Err(Error::because(ErrorKind::Rejected, "the file cannot be read on", bad));
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let record = self.of_line(text);
            if self.take(record) == Go::Stop {
                return Ok(());
            }
        }
    }

    fn of_line(&self, line: &[u8]) -> Result<Write, String> {
        if self.reader.keyed {
            return Ok(Write::json(None, line.to_vec()));
        }
        match serde_json::from_slice::<Entry<'_>>(line) {
            Ok(entry) => entry.write(),
            Err(_) if self.reader.makes_keys => Ok(Write::json(None, line.to_vec())),
            Err(error) if error.is_data() => {
                Err("it is neither {\"key\": …, \"value\": …}, nor is it known which of its fields make its key: \
                     name them with --key, as in --key id"
                    .to_owned())
            }
            Err(error) => Err(format!("it is not JSON: {error}")),
        }
    }

    fn container(&mut self, input: impl Read, begun: &[u8]) -> Result<()> {
        let malformed = |error: container::Error| {
            Error::because(ErrorKind::Rejected, "the Avro container cannot be read on", error)
        };
        self.unit = "record";
        let mut file = AnyReader::open(input, begun).map_err(malformed)?;
        let (datums, entries) = match file.value_schema().map_err(malformed)? {
            Some(values) => (Arc::new(values), true),
            None => {
                let schema = Schema::parse(file.schema()).map_err(|error| {
                    Error::because(ErrorKind::Rejected, "the file's schema cannot be used", error)
                })?;
                (Arc::new(schema), false)
            }
        };
        if !entries && !self.reader.makes_keys {
            return Err(Error::new(
                ErrorKind::Rejected,
                "the file's records have no key of their own: name the fields that make it with --key",
            ));
        }
        let mut block = Vec::new();
        loop {
            let count = match file.block(&mut block) {
                Ok(Some(count)) => count,
                ended => {
                    self.hand_on();
                    return ended.map(|_| ()).map_err(malformed);
                }
            };
            self.chunk.through = file.position();
            let shared = Bytes::from(std::mem::take(&mut block));
            let mut rest = &shared[..];
            for _ in 0..count {
                self.number += 1;
                let record = if entries { entry(&datums, &mut rest) } else { datum(&datums, &mut rest) };
                let Some((key, value)) = record else {
                    self.hand_on();
                    let reason = "its bytes are no datum of the file's schema".to_owned();
                    let bad = Bad { unit: self.unit, number: self.number, reason };
                    return Err(Error::because(
                        ErrorKind::Rejected,
                        "the Avro container cannot be read on",
                        bad,
                    ));
                };
                let key = key.map(|key| shared.slice_ref(key));
                let record = match (key, value) {
                    (key, Some(value)) => Write::datum(key, Arc::clone(&datums), shared.slice_ref(value)),
                    (key, None) => Write::delete(key.unwrap_or_default()),
                };
                if self.take(Ok(record)) == Go::Stop {
                    return Ok(());
                }
            }
        }
    }

    /// Takes a record into the chunk, if it fits.
    fn take(&mut self, record: Result<Write, String>) -> Go {
        let record = record.and_then(|mut record| {
            if let Some(topic) = &self.reader.topic {
                record = record.topic(topic.as_str());
            }
            self.reader.writer.prepare(record).map_err(|refused| match refused {
                Refused::Misfit(misfit) => misfit.message,
                other => other.to_string(),
            })
        });
        match record {
            Ok(ready) => {
                self.bytes += ready.bytes();
                self.chunk.records.push(ready);
            }
            Err(reason) => {
                self.chunk.bad.push(Bad { unit: self.unit, number: self.number, reason });
                if !self.reader.skip_bad {
                    self.hand_on();
                    return Go::Stop;
                }
            }
        }
        let full = self.chunk.records.len() >= self.reader.chunk
            || self.bytes >= CHUNK_BYTES
            || self.chunk.bad.len() >= self.reader.chunk;
        if full { self.hand_on() } else { Go::On }
    }

    fn hand_on(&mut self) -> Go {
        let next = Chunk { through: self.chunk.through, ..Chunk::default() };
        self.bytes = 0;
        match self.out.blocking_send(std::mem::replace(&mut self.chunk, next)) {
            Ok(()) => Go::On,
            Err(_) => Go::Stop,
        }
    }
}

/// A line as `scan` and `export` print it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "where the record once came from is known, and says nothing of where it goes")]
struct Entry<'a> {
    #[serde(borrow)]
    key: &'a RawValue,
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(default)]
    version: IgnoredAny,
    #[serde(default)]
    timestamp: IgnoredAny,
    #[serde(default)]
    topic: IgnoredAny,
    #[serde(default)]
    partition: IgnoredAny,
    #[serde(default)]
    offset: IgnoredAny,
}

/// A key as [`crate::codec::text::key_to_json`] prints it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Key {
    Text(String),
    Bytes { base64: String },
}

impl Entry<'_> {
    fn write(&self) -> Result<Write, String> {
        let key = match serde_json::from_str(self.key.get()) {
            Ok(Key::Text(key)) => key.into_bytes(),
            Ok(Key::Bytes { base64 }) => {
                STANDARD.decode(base64).map_err(|error| format!("its key is not base64: {error}"))?
            }
            Err(_) => return Err("its key is neither a string nor {\"base64\": …}".to_owned()),
        };
        Ok(match self.value.get() {
            "null" => Write::delete(key),
            value => Write::json(Some(key.into()), value.as_bytes().to_vec()),
        })
    }
}

type Parts<'a> = Option<(Option<&'a [u8]>, Option<&'a [u8]>)>;

/// Takes an entry of a blob off `rest`: its key, and its value's datum unless it is a delete.
fn entry<'a>(values: &Schema, rest: &mut &'a [u8]) -> Parts<'a> {
    let key = take_bytes(rest)?;
    // timestamp, source, offset
    for _ in 0..3 {
        take_long(rest)?;
    }
    match take_long(rest)? {
        0 => Some((Some(key), None)),
        1 => datum(values, rest).map(|(_, value)| (Some(key), value)),
        _ => None,
    }
}

/// Takes a datum off `rest`.
fn datum<'a>(schema: &Schema, rest: &mut &'a [u8]) -> Parts<'a> {
    let length = schema.validate(rest).ok()?;
    let (datum, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some((None, Some(datum)))
}

fn unreadable(error: std::io::Error) -> Error {
    Error::because(ErrorKind::Unavailable, "reading the file", error)
}

#[cfg(test)]
mod tests;
