//! The announcement topic, read by the published Avro schemas and the crate apache-avro, judged by the rule as
//! docs/formats.md states it. Nothing of Stillwell's own code takes part.

use std::io::Cursor;
use std::sync::LazyLock;

use apache_avro::types::Value;
use apache_avro::{Schema, from_avro_datum};

use crate::topic::Message;
use crate::workspace;

/// Fingerprints as docs/formats.md gives them.
const ANNOUNCEMENT: u64 = 0x51a7_5557_54b4_794a;
const EPOCH: u64 = 0x6de4_6f4d_4183_f8a1;

static SCHEMAS: LazyLock<(Schema, Schema)> = LazyLock::new(|| {
    let parse = |name: &str| {
        let text =
            std::fs::read_to_string(workspace().join("schemas").join(name)).expect("a published schema");
        Schema::parse_str(&text).expect("a published schema is Avro")
    };
    (parse("announcement.avsc"), parse("epoch.avsc"))
});

/// The term of a writer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "the schema's words")]
pub struct Life {
    pub epoch: i64,
    pub writer: String,
}

/// A blob that was announced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the schema's words")]
pub struct Blob {
    pub name: String,
    pub bytes: i64,
    pub checksum: u64,
}

/// A snapshot that was announced.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the schema's words")]
pub struct Snapshot {
    pub version: i64,
    pub blob: Blob,
    pub index: Blob,
    pub records: i64,
}

/// A delta of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the schema's words")]
pub struct Delta {
    pub version: i64,
    pub blob: Blob,
    pub upserts: i64,
    pub deletes: i64,
}

/// A position of an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the schema's words")]
pub struct Position {
    pub topic: String,
    pub partition: i64,
    pub start: i64,
    pub offset: i64,
}

/// An announcement.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the schema's words")]
pub struct Announcement {
    pub life: Life,
    pub version: i64,
    pub previous: Option<(i64, i64)>,
    pub announced_at: i64,
    pub records: i64,
    pub letters: i64,
    pub coalesced: i64,
    pub unchanged: i64,
    pub positions: Vec<Position>,
    pub delta: Delta,
    pub inline: Option<Vec<u8>>,
    pub snapshot: Option<Snapshot>,
    pub earlier: Vec<Delta>,
    pub oldest_kept: i64,
}

/// A record of the topic.
#[derive(Clone, Debug)]
pub enum Told {
    /// A version.
    Announcement(Box<Announcement>),
    /// The beginning of a life.
    Epoch(Life),
}

impl Told {
    /// Reads a record.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(message: &Message) -> Result<Told, String> {
        let value = message.value.as_deref().ok_or("an announcement without a value")?;
        let (head, datum) = value.split_at_checked(10).ok_or("an announcement of less than 10 bytes")?;
        let fingerprint = match head {
            [0xc3, 0x01, rest @ ..] => u64::from_le_bytes(rest.try_into().expect("ten less two")),
            _ => return Err("an announcement that is no single-object encoding".into()),
        };
        let (announcement, epoch) = &*SCHEMAS;
        let read = |schema| {
            let mut bytes = Cursor::new(datum);
            let value = from_avro_datum(schema, &mut bytes, None).map_err(|error| error.to_string())?;
            match bytes.position() == datum.len() as u64 {
                true => Ok(Fields(value)),
                false => Err(format!("{} bytes behind the datum", datum.len() as u64 - bytes.position())),
            }
        };
        match fingerprint {
            ANNOUNCEMENT => Ok(Told::Announcement(Box::new(self::announcement(&read(announcement)?)?))),
            EPOCH => Ok(Told::Epoch(life(&read(epoch)?.of("life")?)?)),
            other => Err(format!("an announcement of unknown schema {other:016x}")),
        }
    }
}

fn announcement(value: &Fields) -> Result<Announcement, String> {
    let previous = match value.optional("previous")? {
        Some(previous) => Some((previous.long("version")?, previous.long("epoch")?)),
        None => None,
    };
    let snapshot = match value.optional("snapshot")? {
        Some(it) => Some(Snapshot {
            version: it.long("version")?,
            blob: blob(&it.of("blob")?)?,
            index: blob(&it.of("index")?)?,
            records: it.long("records")?,
        }),
        None => None,
    };
    let position = |it: &Fields| {
        Ok(Position {
            topic: it.text("topic")?,
            partition: it.long("partition")?,
            start: it.long("start")?,
            offset: it.long("offset")?,
        })
    };
    Ok(Announcement {
        life: life(&value.of("life")?)?,
        version: value.long("version")?,
        previous,
        announced_at: value.long("announced_at")?,
        records: value.long("records")?,
        letters: value.long("letters")?,
        coalesced: value.long("coalesced")?,
        unchanged: value.long("unchanged")?,
        positions: value.array("positions")?.iter().map(position).collect::<Result<_, String>>()?,
        delta: delta(&value.of("delta")?)?,
        inline: value.optional("inline")?.map(|it| it.bytes()).transpose()?,
        snapshot,
        earlier: value.array("earlier")?.iter().map(delta).collect::<Result<_, String>>()?,
        oldest_kept: value.long("oldest_kept")?,
    })
}

fn life(value: &Fields) -> Result<Life, String> {
    Ok(Life { epoch: value.long("epoch")?, writer: value.text("writer")? })
}

fn delta(value: &Fields) -> Result<Delta, String> {
    Ok(Delta {
        version: value.long("version")?,
        blob: blob(&value.of("blob")?)?,
        upserts: value.long("upserts")?,
        deletes: value.long("deletes")?,
    })
}

fn blob(value: &Fields) -> Result<Blob, String> {
    let checksum = value.of("checksum")?.bytes()?;
    let checksum = checksum.try_into().map_err(|_| "a checksum that has not 8 bytes".to_owned())?;
    Ok(Blob {
        name: value.text("name")?,
        bytes: value.long("bytes")?,
        checksum: u64::from_be_bytes(checksum),
    })
}

/// A value of apache-avro, asked for by the schema's names.
#[derive(Clone, Debug)]
pub struct Fields(pub Value);

impl Fields {
    /// A field of a record.
    ///
    /// # Errors
    /// That it is not there.
    pub fn of(&self, name: &str) -> Result<Fields, String> {
        let Value::Record(fields) = &self.0 else { return Err(format!("no record around {name}")) };
        let found = fields.iter().find(|(field, _)| field == name);
        found.map(|(_, value)| Fields(value.clone())).ok_or_else(|| format!("no field {name}"))
    }

    /// A field that may be null.
    ///
    /// # Errors
    /// That it is not there.
    pub fn optional(&self, name: &str) -> Result<Option<Fields>, String> {
        match self.of(name)?.0 {
            Value::Union(_, value) if *value == Value::Null => Ok(None),
            Value::Union(_, value) => Ok(Some(Fields(*value))),
            other => Err(format!("{name} is no union: {other:?}")),
        }
    }

    /// A field with any whole number.
    ///
    /// # Errors
    /// That it is none.
    pub fn long(&self, name: &str) -> Result<i64, String> {
        match self.of(name)?.0 {
            Value::Long(value) | Value::TimestampMillis(value) => Ok(value),
            Value::Int(value) => Ok(value.into()),
            other => Err(format!("{name} is no number: {other:?}")),
        }
    }

    /// A field with a text.
    ///
    /// # Errors
    /// That it is none.
    pub fn text(&self, name: &str) -> Result<String, String> {
        match self.of(name)?.0 {
            Value::String(value) => Ok(value),
            Value::Uuid(value) => Ok(value.to_string()),
            other => Err(format!("{name} is no text: {other:?}")),
        }
    }

    /// The bytes that it is.
    ///
    /// # Errors
    /// That it is none.
    pub fn bytes(&self) -> Result<Vec<u8>, String> {
        match &self.0 {
            Value::Bytes(bytes) | Value::Fixed(_, bytes) => Ok(bytes.clone()),
            other => Err(format!("no bytes: {other:?}")),
        }
    }

    /// A field with an array.
    ///
    /// # Errors
    /// That it is none.
    pub fn array(&self, name: &str) -> Result<Vec<Fields>, String> {
        match self.of(name)?.0 {
            Value::Array(items) => Ok(items.into_iter().map(Fields).collect()),
            other => Err(format!("{name} is no array: {other:?}")),
        }
    }
}
