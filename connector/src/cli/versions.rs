//! `stillwell versions`: what has been announced.

use std::collections::BTreeMap;
use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::value::RawValue;

use super::edge::{Answer, Edge, print};
use super::reading::{Which, version_number};
use super::table::{self, Column, Output};
use crate::Result;
use crate::blob::Store;
use crate::consumer::Steering;
use crate::consumer::history::{History, Topics};
use crate::format::announcement::{Announcement, read_positions};
use crate::host::directory::rfc3339;
use crate::record::{Position, TopicId};
use crate::version::{BlobRef, Checksum, Shard, Version};

mod diff;
mod tail;

/// Shows the announced versions of a dataset
#[derive(Debug, Args)]
pub struct Versions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    List(List),
    Show(Show),
    Diff(diff::Diff),
    Tail(tail::Follow),
}

/// Lists the versions that the announcement topic holds, oldest first
#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    which: Which,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Prints all that is announced of one version
#[derive(Debug, Args)]
struct Show {
    #[command(flatten)]
    which: Which,
    /// The version [default: the newest]
    #[arg(value_name = "VERSION", value_parser = version_number)]
    number: Option<u64>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

impl Versions {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        match self.command {
            Command::List(command) => command.run(edge),
            Command::Show(command) => command.run(edge),
            Command::Diff(command) => command.run(edge),
            Command::Tail(command) => command.run(edge),
        }
    }
}

impl List {
    fn run(self, edge: &Edge) -> Result<Answer> {
        let (_, options) = self.which.load(edge)?;
        let runtime = edge.runtime()?;
        let store = options.store.clone();
        let work = edge.screen.work("reading announcements", "versions", None);
        let listed = runtime.block_on(async {
            let history = History::find(options.topics()).await?;
            let pinned = pinned(options.topics(), history.topic_id()).await?;
            let mut listed = Vec::new();
            for shard in 0..history.shards() {
                let (store, work) = (store.clone(), work.clone());
                listed = history
                    .fold(Shard(shard), listed, move |listed: &mut Vec<_>, announcement| {
                        listed.push(Listed::of(&announcement, &store));
                        work.set(listed.len() as u64);
                    })
                    .await?;
            }
            Ok::<_, crate::Error>((listed, pinned))
        });
        runtime.shutdown_background();
        drop(work);
        let (mut listed, pinned) = listed?;
        keep(&mut listed, &pinned);
        print(|out| match self.output {
            Output::Json => table::json(out, &listed),
            Output::Table => table::table(out, &COLUMNS, listed.iter().map(Listed::row)),
        })?;
        Ok(Answer::Yes)
    }
}

/// The versions, one of each shard, that a pin of this history keeps.
async fn pinned(topics: Topics, history: TopicId) -> Result<Vec<Version>> {
    let pin = Steering::new(topics).pinned().await?.filter(|pin| pin.history == history);
    Ok(pin.map_or(Vec::new(), |pin| pin.shard_versions().0))
}

/// Says which can still be had: those from the oldest kept on, by what the newest of their shard says, and what is pinned.
fn keep(listed: &mut [Listed], pinned: &[Version]) {
    let newest: BTreeMap<Shard, Version> = listed.iter().map(|it| (it.shard, it.oldest_kept)).collect();
    for it in listed {
        it.keep(newest.get(&it.shard).copied().unwrap_or_default(), pinned);
    }
}

impl Show {
    fn run(self, edge: &Edge) -> Result<Answer> {
        let (_, options) = self.which.load(edge)?;
        let runtime = edge.runtime()?;
        let store = options.store.clone();
        let found = runtime.block_on(async {
            let found = super::reading::find(&options, self.number.map(Version)).await?;
            let newest = match self.number {
                Some(_) => super::reading::find(&options, None).await?,
                None => found.clone(),
            };
            let pinned = pinned(options.topics(), found.topic_id).await?;
            Ok::<_, crate::Error>((found, newest, pinned))
        });
        runtime.shutdown_background();
        let (found, newest, pinned) = found?;
        let mut shown = Shown::of(&found.announcement, &store);
        shown.listed.keep(newest.announcement.oldest_kept, &pinned);
        print(|out| match self.output {
            Output::Json => table::json(out, &shown),
            Output::Table => shown.lines(out),
        })?;
        Ok(Answer::Yes)
    }
}

const COLUMNS: [Column; 12] = [
    Column::Number("shard"),
    Column::Number("version"),
    Column::Number("epoch"),
    Column::Text("announced"),
    Column::Text("caught up"),
    Column::Text("kept"),
    Column::Number("records"),
    Column::Number("upserts"),
    Column::Number("deletes"),
    Column::Number("delta bytes"),
    Column::Number("snapshot"),
    Column::Text("positions"),
];

/// A version in the listing; its JSON is a contract.
#[derive(Debug, Serialize)]
struct Listed {
    dataset: String,
    shard: Shard,
    version: Version,
    epoch: u64,
    announced_at: String,
    caught_up: bool,
    /// Its blobs are kept, as the newest version says, or for the pin; else they are gone or about to go.
    kept: bool,
    /// Readers are pinned to it.
    pinned: bool,
    #[serde(skip)]
    oldest_kept: Version,
    records: u64,
    upserts: u64,
    deletes: u64,
    positions: Vec<Position>,
    delta: Blob,
    snapshot: Option<Snapshot>,
    schema: Option<Box<RawValue>>,
}

#[derive(Debug, Serialize)]
struct Blob {
    url: String,
    bytes: u64,
    checksum: Checksum,
}

#[derive(Debug, Serialize)]
struct Snapshot {
    url: String,
    version: Version,
    bytes: u64,
    checksum: Checksum,
}

/// A version by itself: as listed, and the rest of what was announced.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    listed: Listed,
    shards: u32,
    writer: String,
    previous: Option<Version>,
    /// Records of its batch that became dead letters, that a later one of their key replaced, that changed nothing.
    letters: u64,
    coalesced: u64,
    unchanged: u64,
    newest_timestamp: Option<String>,
    oldest_kept: Version,
    schema_fingerprint: String,
    index: Option<Blob>,
    /// The deltas above the snapshot, oldest first: with it, all that it takes to open the version.
    chain: Vec<Link>,
    inline_bytes: Option<usize>,
    traceparent: Option<String>,
}

#[derive(Debug, Serialize)]
struct Link {
    version: Version,
    epoch: u64,
    upserts: u64,
    deletes: u64,
    #[serde(flatten)]
    blob: Blob,
}

impl Blob {
    fn of(blob: &BlobRef, store: &Store) -> Blob {
        Blob { url: store.absolute_url(&blob.name), bytes: blob.bytes, checksum: blob.checksum }
    }
}

impl Listed {
    fn of(announcement: &Announcement, store: &Store) -> Listed {
        let snapshot = announcement.snapshot.as_ref().map(|snapshot| {
            let Blob { url, bytes, checksum } = Blob::of(&snapshot.blob, store);
            Snapshot { url, version: snapshot.version, bytes, checksum }
        });
        Listed {
            dataset: announcement.dataset.clone(),
            shard: announcement.shard,
            version: announcement.version,
            epoch: announcement.life.epoch,
            announced_at: rfc3339(announcement.announced_at),
            caught_up: announcement.caught_up,
            kept: true,
            pinned: false,
            oldest_kept: announcement.oldest_kept,
            records: announcement.records,
            upserts: announcement.upserts,
            deletes: announcement.deletes,
            positions: read_positions(&announcement.positions).map(|position| position.position()).collect(),
            delta: Blob::of(&announcement.delta.blob, store),
            snapshot,
            schema: RawValue::from_string(announcement.schema.clone()).ok(),
        }
    }

    fn keep(&mut self, oldest: Version, pinned: &[Version]) {
        self.pinned = pinned.get(self.shard.0 as usize) == Some(&self.version);
        self.kept = self.pinned || self.version >= oldest;
    }

    /// As a person reads it.
    fn is_kept(&self) -> &'static str {
        match (self.kept, self.pinned) {
            (_, true) => "pinned",
            (true, false) => "yes",
            (false, false) => "no",
        }
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.shard.to_string(),
            self.version.to_string(),
            self.epoch.to_string(),
            self.announced_at.clone(),
            if self.caught_up { "yes" } else { "no" }.to_owned(),
            self.is_kept().to_owned(),
            self.records.to_string(),
            self.upserts.to_string(),
            self.deletes.to_string(),
            self.delta.bytes.to_string(),
            self.snapshot.as_ref().map(|snapshot| snapshot.version.to_string()).unwrap_or_default(),
            positions(&self.positions),
        ]
    }
}

/// Few as they are, many as a count.
fn positions(positions: &[Position]) -> String {
    match positions {
        few if few.len() <= 4 => few.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        many => format!("{} partitions", many.len()),
    }
}

impl Shown {
    fn of(announcement: &Announcement, store: &Store) -> Shown {
        let link = |delta: &crate::version::DeltaRef| Link {
            version: delta.version,
            epoch: delta.epoch,
            upserts: delta.upserts,
            deletes: delta.deletes,
            blob: Blob::of(&delta.blob, store),
        };
        Shown {
            listed: Listed::of(announcement, store),
            shards: announcement.shards,
            writer: announcement.life.writer.to_string(),
            previous: announcement.previous.map(|(version, _)| version),
            letters: announcement.letters,
            coalesced: announcement.coalesced,
            unchanged: announcement.unchanged,
            newest_timestamp: announcement.newest_timestamp.map(rfc3339),
            oldest_kept: announcement.oldest_kept,
            schema_fingerprint: format!("{:016x}", announcement.schema_fingerprint),
            index: announcement.snapshot.as_ref().map(|snapshot| Blob::of(&snapshot.index, store)),
            chain: announcement.chain.iter().map(link).collect(),
            inline_bytes: announcement.inline.as_ref().map(|inline| inline.len()),
            traceparent: announcement.traceparent.clone(),
        }
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        let listed = &self.listed;
        let blob = |blob: &Blob| format!("{} ({} bytes, {})", blob.url, blob.bytes, blob.checksum);
        let mut line = |name: &str, value: String| writeln!(out, "{name:<18}{value}");
        line("dataset", format!("{}, shard {} of {}", listed.dataset, listed.shard, self.shards))?;
        line("version", listed.version.to_string())?;
        if let Some(previous) = self.previous {
            line("previous", previous.to_string())?;
        }
        line("life", format!("epoch {}, writer {}", listed.epoch, self.writer))?;
        line("announced", listed.announced_at.clone())?;
        line("caught up", if listed.caught_up { "yes" } else { "no" }.to_owned())?;
        line("records", listed.records.to_string())?;
        line("delta", format!("{} upserts, {} deletes", listed.upserts, listed.deletes))?;
        line("", blob(&listed.delta))?;
        if let Some(bytes) = self.inline_bytes {
            line("", format!("carried in the announcement too ({bytes} bytes)"))?;
        }
        line(
            "its batch",
            format!(
                "{} dead letters, {} coalesced, {} unchanged",
                self.letters, self.coalesced, self.unchanged
            ),
        )?;
        for (at, position) in listed.positions.iter().enumerate() {
            line(if at == 0 { "positions" } else { "" }, position.to_string())?;
        }
        if let Some(newest) = &self.newest_timestamp {
            line("newest record", newest.clone())?;
        }
        match &listed.snapshot {
            Some(snapshot) => line(
                "snapshot",
                format!(
                    "version {}: {} ({} bytes, {})",
                    snapshot.version, snapshot.url, snapshot.bytes, snapshot.checksum
                ),
            )?,
            None => line("snapshot", "none yet".to_owned())?,
        }
        if let Some(index) = &self.index {
            line("index", blob(index))?;
        }
        line("chain", format!("{} deltas since", self.chain.len()))?;
        line("kept", listed.is_kept().to_owned())?;
        line("oldest kept", format!("{}, when it was announced", self.oldest_kept))?;
        line("schema", format!("fingerprint {}", self.schema_fingerprint))?;
        if let Some(schema) = &listed.schema {
            line("", schema.get().to_owned())?;
        }
        Ok(())
    }
}
