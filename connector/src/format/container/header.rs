//! A container's header: what the blob is, as Avro file metadata.
//!
//! ```text
//! avro.schema            the entry's, with the dataset's own inline ([`Schema::entry_json`])
//! avro.codec             null (plain) or zstandard (stored)
//! stillwell.format       1
//! stillwell.kind         delta or snapshot
//! stillwell.dataset      name              stillwell.topic_id   of the announcement topic
//! stillwell.shard, .shards                 stillwell.version, .previous
//! stillwell.epoch, .writer                 the life that wrote it
//! stillwell.sources      [{"topic", "topic_id", "partition"}], what an entry's `source` counts into
//! stillwell.upserts, .deletes              where known before the first entry is written
//! stillwell.former_schemas                 where there are any: XXH3-64 of each, hexadecimal, commas between
//! ```

use std::sync::Arc;

use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;

use super::{Error, FORMAT, SYNC_BYTES};
use crate::format::window::{Fault, Window};
use crate::record::{SourcePartition, TopicId};
use crate::schema::Schema;
use crate::schema::wire::{put_bytes, put_long};
use crate::version::{Life, Shard, Version};

const MAGIC: &[u8; 4] = b"Obj\x01";
const SCHEMA: &str = "avro.schema";
const CODEC: &str = "avro.codec";
const FORMER: &str = "stillwell.former_schemas";
/// Most pairs that metadata may have: ours has sixteen, and a header of nothing but empty ones would take 24 times its bytes.
const MOST_PAIRS: usize = 4096;

/// What a blob holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The changes from one version to the next.
    Delta,
    /// All of a version.
    Snapshot,
}

impl Kind {
    /// As it stands in metadata and file names.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Delta => "delta",
            Kind::Snapshot => "snapshot",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How many entries a blob holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// With a value.
    pub upserts: u64,
    /// That delete.
    pub deletes: u64,
}

impl Counts {
    /// Both together.
    pub fn entries(self) -> u64 {
        // Out of a foreign header they may be anything.
        self.upserts.saturating_add(self.deletes)
    }
}

/// What a blob is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Delta or snapshot.
    pub kind: Kind,
    /// Dataset name.
    pub dataset: String,
    /// Id of the announcement topic.
    pub topic_id: TopicId,
    /// The shard.
    pub shard: Shard,
    /// How many shards the dataset has.
    pub shards: u32,
    /// The version that it makes (delta) or holds (snapshot).
    pub version: Version,
    /// The version before.
    pub previous: Version,
    /// The life that wrote it.
    pub life: Life,
    /// The schema of the entries, in which the dataset's own stands inline: [`Schema::entry_json`].
    pub entry_schema: Arc<str>,
    /// What an entry's source counts into: the dataset's append-only list.
    pub sources: Vec<SourcePartition>,
    /// How many entries follow, where it was known beforehand.
    pub counts: Option<Counts>,
    /// Hashes of schemas that the dataset's versions before this one were of, oldest first, without its own: who comes
    /// with one of them comes with yesterday's configuration.
    pub former: Arc<[u64]>,
}

impl Header {
    /// The sync marker: XXH3-128 of the blob's identity.
    pub(super) fn sync(&self) -> [u8; SYNC_BYTES] {
        let identity = format!(
            "stillwell {FORMAT} {} {} {} {} {} {}",
            self.kind, self.dataset, self.topic_id, self.shard, self.version, self.life
        );
        xxh3_128(identity.as_bytes()).to_be_bytes()
    }

    /// The dataset's own schema, out of the entries'. Cost: parses JSON; whoever knows the schema already compares
    /// [`Header::entry_schema`] with its [`Schema::entry_json`] instead.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is no schema of entries.
    pub fn schema(&self) -> Result<Schema, Error> {
        value_schema(&self.entry_schema)
    }

    /// The header's bytes in plain form.
    pub(super) fn encode(&self) -> Vec<u8> {
        let sources = serde_json::to_vec(&self.sources).expect("strings and numbers always serialize");
        let mut pairs: Vec<(&str, Vec<u8>)> = vec![
            (SCHEMA, self.entry_schema.as_bytes().to_vec()),
            (CODEC, b"null".to_vec()),
            ("stillwell.format", FORMAT.to_string().into_bytes()),
            ("stillwell.kind", self.kind.name().into()),
            ("stillwell.dataset", self.dataset.clone().into_bytes()),
            ("stillwell.topic_id", self.topic_id.to_string().into_bytes()),
            ("stillwell.shard", self.shard.to_string().into_bytes()),
            ("stillwell.shards", self.shards.to_string().into_bytes()),
            ("stillwell.version", self.version.to_string().into_bytes()),
            ("stillwell.previous", self.previous.to_string().into_bytes()),
            ("stillwell.epoch", self.life.epoch.to_string().into_bytes()),
            ("stillwell.writer", self.life.writer.to_string().into_bytes()),
            ("stillwell.sources", sources),
        ];
        if let Some(counts) = self.counts {
            pairs.push(("stillwell.upserts", counts.upserts.to_string().into_bytes()));
            pairs.push(("stillwell.deletes", counts.deletes.to_string().into_bytes()));
        }
        if !self.former.is_empty() {
            let former: Vec<String> = self.former.iter().map(|hash| format!("{hash:016x}")).collect();
            pairs.push((FORMER, former.join(",").into_bytes()));
        }
        let metadata = Metadata {
            pairs: pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            sync: self.sync(),
        };
        metadata.encode()
    }

    /// Reads the header's fields from a container's metadata.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Header, Error> {
        let format: u32 = metadata.parsed("stillwell.format")?;
        if format != FORMAT {
            let what = format!("format {format}; this build reads {FORMAT}: upgrade it");
            return Err(Error::malformed(0, what));
        }
        let kind = match metadata.text("stillwell.kind")? {
            "delta" => Kind::Delta,
            "snapshot" => Kind::Snapshot,
            other => return Err(Error::malformed(0, format!("stillwell.kind is {other:?}"))),
        };
        let sources = serde_json::from_slice(metadata.required("stillwell.sources")?)
            .map_err(|error| Error::malformed(0, format!("stillwell.sources: {error}")))?;
        let counts = match metadata.get("stillwell.upserts") {
            None => None,
            Some(_) => Some(Counts {
                upserts: metadata.parsed("stillwell.upserts")?,
                deletes: metadata.parsed("stillwell.deletes")?,
            }),
        };
        let hash = |hash: &str| {
            u64::from_str_radix(hash, 16).map_err(|_| Error::malformed(0, format!("{FORMER} has {hash:?}")))
        };
        let former = match metadata.get(FORMER) {
            None => Ok(Arc::default()),
            Some(_) => metadata.text(FORMER)?.split(',').map(hash).collect::<Result<Arc<_>, _>>(),
        };
        let header = Header {
            kind,
            dataset: metadata.text("stillwell.dataset")?.to_owned(),
            topic_id: metadata.parsed("stillwell.topic_id")?,
            shard: Shard(metadata.parsed("stillwell.shard")?),
            shards: metadata.parsed("stillwell.shards")?,
            version: Version(metadata.parsed("stillwell.version")?),
            previous: Version(metadata.parsed("stillwell.previous")?),
            life: Life {
                epoch: metadata.parsed("stillwell.epoch")?,
                writer: metadata.parsed::<Uuid>("stillwell.writer")?,
            },
            entry_schema: metadata.text(SCHEMA)?.into(),
            sources,
            counts,
            former: former?,
        };
        // The marker binds the blocks to this header: those of another blob do not fit behind it.
        if header.sync() != metadata.sync {
            return Err(Error::malformed(0, "the sync marker is not that of this blob"));
        }
        Ok(header)
    }
}

/// The dataset's own schema, out of the entries'.
pub(super) fn value_schema(entry_schema: &str) -> Result<Schema, Error> {
    #[derive(serde::Deserialize)]
    struct Outer {
        fields: Vec<Field>,
    }
    #[derive(serde::Deserialize)]
    struct Field {
        name: String,
        #[serde(rename = "type")]
        kind: Box<serde_json::value::RawValue>,
    }
    let outer: Outer = serde_json::from_str(entry_schema)
        .map_err(|error| Error::malformed(0, format!("avro.schema: {error}")))?;
    let value = outer.fields.iter().find(|field| field.name == "value");
    let value = value.ok_or_else(|| Error::malformed(0, "avro.schema has no field \"value\""))?;
    let branches: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(value.kind.get())
        .map_err(|error| Error::malformed(0, format!("avro.schema, field \"value\": {error}")))?;
    match branches.as_slice() {
        [null, value] if null.get() == "\"null\"" => Schema::dataset(value.get())
            .map_err(|error| Error::malformed(0, format!("the dataset's schema: {error}"))),
        _ => Err(Error::malformed(0, "avro.schema, field \"value\" is not [\"null\", S]")),
    }
}

/// A container's metadata as it lies in the file: the order of its pairs is kept, so that the plain form is a function
/// of the stored one.
#[derive(Clone, Debug)]
pub(super) struct Metadata {
    pairs: Vec<(String, Vec<u8>)>,
    pub(super) sync: [u8; SYNC_BYTES],
}

impl Metadata {
    /// Reads what stands at the start of `window`; also says how long it is.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Metadata, usize), Fault> {
        let mut window = Window::new(bytes);
        if window.take(MAGIC.len())? != MAGIC {
            return Err(Fault::Bad("not an Avro object container file"));
        }
        let mut pairs = Vec::new();
        loop {
            let count = match window.long()? {
                0 => break,
                count if count < 0 => {
                    window.long()?; // the block's bytes, for those who skip it
                    count.unsigned_abs()
                }
                count => count.unsigned_abs(),
            };
            // Not reserved: a hostile count costs nothing, since each pair needs bytes of its own.
            for _ in 0..count {
                let name = std::str::from_utf8(window.bytes()?)
                    .map_err(|_| Fault::Bad("a metadata name that is not UTF-8"))?;
                pairs.push((name.to_owned(), window.bytes()?.to_vec()));
                if pairs.len() > MOST_PAIRS {
                    return Err(Fault::Bad("more metadata than a header has"));
                }
            }
        }
        let sync = window.take(SYNC_BYTES)?.try_into().map_err(|_| Fault::Short)?;
        Ok((Metadata { pairs, sync }, bytes.len() - window.rest().len()))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        put_long(&mut out, self.pairs.len() as i64);
        for (name, value) in &self.pairs {
            put_bytes(&mut out, name.as_bytes());
            put_bytes(&mut out, value);
        }
        out.push(0);
        out.extend_from_slice(&self.sync);
        out
    }

    /// `avro.codec`; absent means `null`.
    pub(super) fn codec(&self) -> &[u8] {
        self.get(CODEC).unwrap_or(b"null")
    }

    pub(super) fn set_codec(&mut self, codec: &str) {
        match self.pairs.iter_mut().find(|(name, _)| name == CODEC) {
            Some((_, value)) => *value = codec.into(),
            None => self.pairs.push((CODEC.to_owned(), codec.into())),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&[u8]> {
        self.pairs.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_slice())
    }

    fn required(&self, name: &str) -> Result<&[u8], Error> {
        self.get(name).ok_or_else(|| Error::malformed(0, format!("{name} is missing: not a Stillwell blob")))
    }

    fn text(&self, name: &str) -> Result<&str, Error> {
        std::str::from_utf8(self.required(name)?)
            .map_err(|_| Error::malformed(0, format!("{name} is not UTF-8")))
    }

    fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<T, Error> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Error::malformed(0, format!("{name} is {text:?}")))
    }
}
