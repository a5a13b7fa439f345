//! `stillwell blob`: what a blob says of itself, whether it is whole, and letting go of those that nothing needs.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use futures::StreamExt as _;
use serde::Serialize;

use super::downloads::watched;
use super::edge::{Answer, Edge, NoInput, print};
use super::given::Given;
use super::table::{self, Output};
use crate::blob::name::Name;
use crate::blob::{self, Store};
use crate::clock::Entropy;
use crate::format::container::{self, Header, Reader, Unpacked};
use crate::format::index::Layout;
use crate::record::SourcePartition;
use crate::version::Checksum;
use crate::view::map::{Map, Paged};
use crate::{Error, ErrorKind, Result};

mod gc;

/// Bytes of a container that its header lies in; schema and sources are in it, nothing else.
const HEADER: usize = 64 << 20;

/// Looks into deltas, snapshots and indexes, and cleans the store
#[derive(Debug, Args)]
pub struct Blob {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(Inspect),
    Verify(Verify),
    Gc(gc::Gc),
}

/// Prints what a blob says of itself: what it is, of which version, how many entries, its checksums
#[derive(Debug, Args)]
struct Inspect {
    #[command(flatten)]
    given: Given,
    /// The blob: a URL as `versions list` prints it, or a path; only other stores than file:// need the configuration
    url: String,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Reads a blob to its end and checks everything: checksums, frames, order, counts
#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    given: Given,
    /// The blob: a URL as `versions list` prints it, or a path; only other stores than file:// need the configuration
    url: String,
}

impl Blob {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        match self.command {
            Command::Gc(command) => return command.run(edge),
            Command::Inspect(command) => {
                let local = Local::of(&command.url, &command.given, edge)?;
                let said = Said::of(&command.url, local.path())?;
                print(|out| match command.output {
                    Output::Json => table::json(out, &said),
                    Output::Table => said.lines(out),
                })?;
            }
            Command::Verify(command) => {
                let local = Local::of(&command.url, &command.given, edge)?;
                let seen = verify(&command.url, local.path())?;
                print(|out| writeln!(out, "{}: whole; {seen}", command.url))?;
            }
        }
        Ok(Answer::Yes)
    }
}

/// What a blob says of itself.
#[derive(Debug, Serialize)]
struct Said {
    url: String,
    kind: &'static str,
    bytes: u64,
    checksum: Checksum,
    #[serde(flatten)]
    what: What,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum What {
    Container {
        codec: &'static str,
        plain_bytes: u64,
        plain_checksum: Option<Checksum>,
        dataset: String,
        topic_id: String,
        shard: u32,
        shards: u32,
        version: u64,
        previous: u64,
        epoch: u64,
        writer: String,
        upserts: Option<u64>,
        deletes: Option<u64>,
        sources: Vec<SourcePartition>,
        schema: Box<serde_json::value::RawValue>,
    },
    Index {
        entries: u64,
        records: u64,
        blocks: u64,
        snapshot_bytes: u64,
        snapshot_checksum: Checksum,
    },
}

impl Said {
    fn of(url: &str, path: &Path) -> Result<Said> {
        if is_index(url) {
            let bytes = fs::read(path).map_err(|error| no_input(url, error))?;
            let layout = Layout::parse(&bytes).map_err(|error| corrupt(url, error))?;
            return Ok(Said {
                url: url.to_owned(),
                kind: "index",
                bytes: layout.bytes,
                checksum: Checksum::of(&bytes),
                what: What::Index {
                    entries: layout.entries,
                    records: layout.records,
                    blocks: layout.blocks,
                    snapshot_bytes: layout.snapshot_bytes,
                    snapshot_checksum: layout.snapshot_checksum,
                },
            });
        }
        let mut head = Head(Vec::new());
        let unpacked = unpack(url, path, &mut head)?;
        let header = Reader::parse(&head.0).map_err(|error| corrupt(url, error))?.into_header();
        Ok(Said {
            url: url.to_owned(),
            kind: header.kind.name(),
            bytes: unpacked.bytes,
            checksum: unpacked.checksum,
            what: container(url, header, &unpacked)?,
        })
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        let said = serde_json::to_value(self)?;
        let said = said.as_object().into_iter().flatten();
        for (name, value) in said.filter(|(_, value)| !value.is_null()) {
            match value.as_str() {
                Some(text) => writeln!(out, "{name:18} {text}")?,
                None => writeln!(out, "{name:18} {value}")?,
            }
        }
        Ok(())
    }
}

fn container(url: &str, header: Header, unpacked: &Unpacked) -> Result<What> {
    let schema = header.schema().map_err(|error| corrupt(url, error))?;
    let schema = serde_json::value::RawValue::from_string(schema.json().to_owned());
    Ok(What::Container {
        // Compressed blocks are announced by the header, so that not even the headers of both forms are the same.
        codec: if unpacked.plain_checksum == Some(unpacked.checksum) { "null" } else { "zstandard" },
        plain_bytes: unpacked.plain_bytes,
        plain_checksum: unpacked.plain_checksum,
        dataset: header.dataset,
        topic_id: header.topic_id.to_string(),
        shard: header.shard.0,
        shards: header.shards,
        version: header.version.0,
        previous: header.previous.0,
        epoch: header.life.epoch,
        writer: header.life.writer.to_string(),
        upserts: header.counts.map(|counts| counts.upserts),
        deletes: header.counts.map(|counts| counts.deletes),
        sources: header.sources,
        schema: schema.map_err(|error| corrupt(url, error))?,
    })
}

/// Checks all that can be checked of one blob, and says what was seen.
fn verify(url: &str, path: &Path) -> Result<String> {
    let (checksum, seen) = if is_index(url) {
        let bytes = fs::metadata(path).map_err(|error| no_input(url, error))?.len();
        let map = Map::open(path, bytes).map_err(|error| corrupt(url, error))?;
        let layout = Layout::parse(map.bytes()).map_err(|error| corrupt(url, error))?;
        let checksum = Checksum::of(map.bytes());
        let sums = layout.body_sums(map.bytes());
        let start = usize::try_from(layout.body).map_err(|error| corrupt(url, error))?;
        Paged::new(map, start, sums).check_all().map_err(|error| corrupt(url, error))?;
        (checksum, format!("index of {} entries", layout.entries))
    } else {
        let plain = Scratch::new()?;
        let mut file =
            File::create_new(&plain.0).map_err(|error| unreadable(&plain.0.display().to_string(), error))?;
        let unpacked = unpack(url, path, &mut file)?;
        let map = Map::open(&plain.0, unpacked.plain_bytes).map_err(|error| corrupt(url, error))?;
        map.will_scan();
        let reader = Reader::parse(map.bytes()).map_err(|error| corrupt(url, error))?;
        let schema = reader.header().schema().map_err(|error| corrupt(url, error))?;
        let (mut upserts, mut deletes) = (0u64, 0u64);
        for located in reader.entries(&schema) {
            match located.map_err(|error| corrupt(url, error))?.entry.value {
                Some(_) => upserts += 1,
                None => deletes += 1,
            }
        }
        let header = reader.header();
        let Header { kind, dataset, version, .. } = header;
        (
            unpacked.checksum,
            format!("{kind} of {dataset}, version {version}: {upserts} upserts, {deletes} deletes"),
        )
    };
    // The name carries the checksum that the blob was stored with; a file of another name carries none.
    match named(Path::new(url)) {
        Some(name) if name.checksum != checksum => {
            let what = format!("its checksum is {checksum}, its name says {}", name.checksum);
            Err(corrupt(url, io::Error::other(what)))
        }
        Some(_) => Ok(format!("{seen}; {checksum}, as its name says")),
        None => Ok(format!("{seen}; {checksum}")),
    }
}

/// The blob's name, where its URL or path ends in one.
fn named(url: &Path) -> Option<Name> {
    let parts: Vec<&str> = url.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
    parts.get(parts.len().checked_sub(4)?..)?.join("/").parse().ok()
}

fn is_index(url: &str) -> bool {
    url.ends_with(".index")
}

/// Reads a container, checks its frames and sums both forms.
fn unpack(url: &str, path: &Path, out: &mut impl Write) -> Result<Unpacked> {
    let mut file = File::open(path).map_err(|error| no_input(url, error))?;
    let length = file.metadata().map_err(|error| unreadable(url, error))?.len();
    // zstd packs up to some 1:1000; what claims more is not a blob of ours.
    let most = length.saturating_mul(2_000).saturating_add(HEADER as u64);
    let mut failed = None;
    let pieces = std::iter::from_fn(|| {
        let mut piece = vec![0; 1 << 18];
        let read = file.read(&mut piece).map_err(|error| failed = Some(error)).ok()?;
        piece.truncate(read);
        (read > 0).then_some(piece)
    });
    let unpacked = container::unpack(pieces, length, most, out);
    match failed {
        Some(error) => Err(unreadable(url, error)),
        None => unpacked.map_err(|error| corrupt(url, error)),
    }
}

/// A blob as a file here.
enum Local {
    File(PathBuf),
    /// Out of a store that is none of files.
    Fetched(Scratch),
}

impl Local {
    fn of(url: &str, given: &Given, edge: &Edge) -> Result<Local> {
        let here = match url.split_once("://") {
            None => Some(url),
            Some(("file", path)) => Some(path),
            Some(_) => None,
        };
        match here.map(PathBuf::from) {
            // It can be opened, and not be read.
            Some(path) if path.is_dir() => {
                let what = "it is a folder; name one blob, whose URL `versions show` prints";
                Err(no_input(url, io::Error::new(io::ErrorKind::IsADirectory, what)))
            }
            Some(path) => {
                edge.log(None);
                Ok(Local::File(path))
            }
            None => {
                let config = given.load(edge)?;
                let base = config.model().storage.blobs.trim_end_matches('/');
                let name = url.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
                let name = name.ok_or_else(|| {
                    let what = format!("{url} is not in {base}, the store of the configuration");
                    Error::new(ErrorKind::Rejected, what)
                })?;
                let store = watched(config.store_made(false)?, &edge.screen);
                let runtime = edge.runtime()?;
                let fetched = runtime.block_on(fetch(&store, name, url));
                runtime.shutdown_background();
                fetched.map(Local::Fetched)
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Local::File(path) => path,
            Local::Fetched(scratch) => &scratch.0,
        }
    }
}

async fn fetch(store: &Store, name: &str, url: &str) -> Result<Scratch> {
    let failed = |error: blob::Error| match error {
        blob::Error::Missing { .. } => {
            no_input(url, io::Error::new(io::ErrorKind::NotFound, "the store has no such blob"))
        }
        blob::Error::Name { .. } => Error::because(ErrorKind::Rejected, "reading the blob", error),
        error => Error::because(error.kind(), "reading the blob", error),
    };
    let scratch = Scratch::new()?;
    let shown = scratch.0.display().to_string();
    let mut file = File::create_new(&scratch.0).map_err(|error| unreadable(&shown, error))?;
    let length = store.head(name).await.map_err(failed)?;
    let missing = || blob::Error::Missing { url: url.to_owned() };
    let length = length.ok_or_else(missing).map_err(failed)?;
    // By its range: whoever shows how far it has come sees parts.
    let mut content = store.get_range(name, 0..length, None).await.map_err(failed)?.content;
    while let Some(piece) = content.next().await {
        file.write_all(&piece.map_err(failed)?).map_err(|error| {
            Error::because(ErrorKind::Unavailable, format!("cannot write {shown}"), error)
        })?;
    }
    Ok(scratch)
}

/// The command line names a file that cannot be opened.
fn no_input(url: &str, error: io::Error) -> Error {
    NoInput::error("cannot read", Path::new(url), error)
}

/// The disk refuses.
fn unreadable(url: &str, error: io::Error) -> Error {
    Error::because(ErrorKind::Unavailable, format!("cannot read {url}"), error)
}

fn corrupt(url: &str, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::because(ErrorKind::Corrupt, format!("{url} is not whole"), error)
}

/// Keeps the beginning of what is written to it.
struct Head(Vec<u8>);

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = HEADER.saturating_sub(self.0.len());
        self.0.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file of our own, gone when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let name = format!("stillwell-{}.avro", Entropy::system().uuid());
        Ok(Scratch(std::env::temp_dir().join(name)))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_file(&self.0);
    }
}
