//! The names of blobs, made and read back.
//!
//! ```text
//! DATASET/TOPICID/SHARD/VERSION-EPOCH-CHECKSUM.delta.avro       changes that make VERSION
//! DATASET/TOPICID/SHARD/VERSION-EPOCH-CHECKSUM.snapshot.avro    all of VERSION
//! DATASET/TOPICID/SHARD/VERSION-EPOCH-CHECKSUM.index            beside the snapshot with the same VERSION and EPOCH
//! DATASET/TOPICID/SHARD/SOURCE-SOURCEID-PARTITION-OFFSET.letter         value of a dead letter too large for its topic
//! DATASET/TOPICID/SHARD/SOURCE-SOURCEID-PARTITION-OFFSET.whole.letter   all of one whose key and headers alone are too large
//! ```
//!
//! SOURCE is the first 128 characters of the source topic's name, and SOURCEID its id: one that was made anew has other records
//! at the same offsets. (Blobs of older letters
//! have no SOURCEID. Only a letter itself names its blob, so they are read as ever.)
//!
//! VERSION has 20 digits, so that names sort as versions do. Name and content go together: EPOCH tells lives apart and
//! CHECKSUM (of the blob as stored) contents, hence putting a name again puts the same bytes, and no blob is ever
//! overwritten by a different one. TOPICID is the announcement topic's, so that a recreated dataset of the same name
//! shares a store with its former self without touching it.

use std::fmt;
use std::str::FromStr;

use crate::format::letter::bounded;
use crate::record::{SourcePartition, TopicId};
use crate::version::{Checksum, Shard, Version};

use super::Error;

/// What kind of blob a versioned name names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `.delta.avro`
    Delta,
    /// `.snapshot.avro`
    Snapshot,
    /// `.index`
    Index,
}

impl Kind {
    /// The end of its names, with the first dot.
    pub fn suffix(self) -> &'static str {
        match self {
            Kind::Delta => ".delta.avro",
            Kind::Snapshot => ".snapshot.avro",
            Kind::Index => ".index",
        }
    }

    /// As metrics and commands say it.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Delta => "delta",
            Kind::Snapshot => "snapshot",
            Kind::Index => "index",
        }
    }
}

/// The folder of one shard's blobs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Folder {
    /// Dataset name.
    pub dataset: String,
    /// Id of its announcement topic.
    pub topic_id: TopicId,
    /// Shard.
    pub shard: Shard,
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.dataset, Id(self.topic_id), self.shard)
    }
}

/// A topic id as a part of a name: as Kafka prints it, save that an id which starts with `-` gets a `=` (which base64
/// has only at its end) before it, since programs take a leading dash for an option.
struct Id(TopicId);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        if text.starts_with('-') {
            f.write_str("=")?;
        }
        f.write_str(&text)
    }
}

/// The name of a delta, snapshot or index.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// Where it lies.
    pub folder: Folder,
    /// The version that it makes or holds.
    pub version: Version,
    /// Epoch of the life that wrote it.
    pub epoch: u64,
    /// Checksum of the blob as stored.
    pub checksum: Checksum,
    /// What it is.
    pub kind: Kind,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Name { folder, version, epoch, checksum, kind } = self;
        write!(f, "{folder}/{:020}-{epoch}-{}{}", version.0, checksum.hex(), kind.suffix())
    }
}

impl FromStr for Name {
    type Err = Error;

    /// Reads a name back; only what [`Display`](fmt::Display) writes is accepted.
    fn from_str(text: &str) -> Result<Name, Error> {
        let not = |problem| Error::Name { name: text.to_owned(), problem };
        let mut parts = text.split('/');
        let (Some(dataset), Some(id), Some(shard), Some(file), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(not("it is not DATASET/TOPICID/SHARD/FILE"));
        };
        let topic_id = id.strip_prefix('=').unwrap_or(id).parse().map_err(|_| not("its topic id is none"))?;
        let shard = shard.parse().map(Shard).map_err(|_| not("its shard is not a number"))?;
        let kind = [Kind::Delta, Kind::Snapshot, Kind::Index]
            .into_iter()
            .find(|kind| file.ends_with(kind.suffix()))
            .ok_or_else(|| not("it ends in none of .delta.avro, .snapshot.avro, .index"))?;
        let stem = file.strip_suffix(kind.suffix()).expect("the kind was found by its suffix");
        let mut fields = stem.split('-');
        let (Some(version), Some(epoch), Some(checksum), None) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return Err(not("its file is not VERSION-EPOCH-CHECKSUM"));
        };
        let name = Name {
            folder: Folder { dataset: dataset.to_owned(), topic_id, shard },
            version: version.parse().map(Version).map_err(|_| not("its version is not a number"))?,
            epoch: epoch.parse().map_err(|_| not("its epoch is not a number"))?,
            checksum: u64::from_str_radix(checksum, 16)
                .map(Checksum)
                .map_err(|_| not("its checksum is not hexadecimal"))?,
            kind,
        };
        // Signs, missing zeroes, capital hex digits: two spellings of one blob would escape a comparison of names.
        if name.to_string() == text { Ok(name) } else { Err(not("it is not spelled as we spell it")) }
    }
}

/// What of a dead letter a blob holds, because it is too large for its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterPart {
    /// Its value, byte for byte.
    Value,
    /// All of it, as `schemas/letter.avsc` says.
    Whole,
}

/// How the names of blobs with dead letters end, both parts.
pub const LETTER: &str = ".letter";

/// Longest part of a topic's name in that of a blob: a file's name has 255 bytes, and a topic's up to 249.
const MAX_SOURCE: usize = 128;

/// The name of a blob with a dead letter that is too large for its topic.
pub fn letter(folder: &Folder, source: &SourcePartition, offset: i64, part: LetterPart) -> String {
    let suffix = match part {
        LetterPart::Value => "letter",
        LetterPart::Whole => "whole.letter",
    };
    let SourcePartition { topic, topic_id, partition } = source;
    let topic = bounded(topic, MAX_SOURCE);
    format!("{folder}/{topic}-{}-{partition}-{offset}.{suffix}", Id(*topic_id))
}

/// Checks a name against the rules of [`BlobStore`](super::BlobStore), so that no name from an announcement leads out
/// of the store's folder.
pub fn check(name: &str) -> Result<(), Error> {
    let not = |problem| Err(Error::Name { name: name.to_owned(), problem });
    if name.is_empty() {
        return not("it is empty");
    }
    for part in name.split('/') {
        if part.is_empty() {
            return not("it has an empty part");
        }
        if part.starts_with('.') {
            return not("a part starts with a dot");
        }
        if part.contains(['\\', '\0', '%', '#', '?', '*']) || part.chars().any(char::is_control) {
            return not("it has a character that some store does not take");
        }
    }
    Ok(())
}
