//! `bench open`: how long until the first get, from nothing and from the cache.
//!
//! | line | Kafka | what the cache holds |
//! | --- | --- | --- |
//! | `cold_ms`, `cold_plain_ms` | not asked: the snapshot alone is opened | nothing; the store has it compressed, and plain |
//! | `warm_ms`, `warm_indexed_ms`, `warm_part_ms` | away, and `serve_stale` | the snapshot, of which this is held |
//! | `warm_25_deltas_ms` | the same | the snapshot, and 25 deltas that change a quarter of it |
//! | `warm_default_ms` | there, with a broker alone | the snapshot; the tail confirms it before it is readable |
//! | `first_indexed_ms`, `first_part_ms` | away | the snapshot; the index, and the part, are made |

use std::ffi::OsString;
use std::hint::black_box;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use xxhash_rust::xxh3::Xxh3;

use super::super::table::Output;
use super::made::{DELTAS, Made, failed, key};
use super::process::{self, Process};
use super::topic::{Announcer, Filled};
use super::{Measured, Scratch, Settings, measured, ms, quantile, timed};
use crate::clock::Clock;
use crate::consumer::Consumer;
use crate::version::{Checksum, SnapshotRef};
use crate::view::Cache;
use crate::{Error, ErrorKind, Result};

const RUNS: usize = 9;
/// Records beyond which a third of them have to do: each run fills the disk with two copies of the snapshot.
const MANY: u64 = 2_000_000;
/// Bytes that are written at a time, as the cache does.
const PIECE: usize = 256 << 10;
/// Longest that a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long from nothing, and from the cache, to the first get.
#[derive(Debug, Args)]
pub struct Open {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    child: Child,
}

/// What the bench starts itself with, to be a process that starts a consumer, gets one record and ends.
#[derive(Debug, Args)]
struct Child {
    /// The directory to start from
    #[arg(long, hide = true)]
    child: Option<PathBuf>,
    /// The dataset
    #[arg(long, hide = true, default_value = "bench")]
    dataset: String,
    /// The version that the first get is to read
    #[arg(long, hide = true, default_value_t = 1)]
    current: u64,
    /// What of it is held
    #[arg(long, hide = true, value_enum, default_value_t)]
    holds: Holds,
}

/// What the consumer that starts holds of the dataset.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Holds {
    /// All, by its keys.
    #[default]
    Whole,
    /// All, by a field too.
    Indexed,
    /// Half of the records and some of their fields, by one of these too.
    Part,
}

impl Open {
    pub(super) async fn run(self) -> Result<Option<(Output, Vec<Measured>)>> {
        if let Some(dir) = &self.child.child {
            start_and_get(dir, &self.child, self.settings.bootstrap_servers.as_deref()).await?;
            return Ok(None);
        }
        let mut topic = match self.settings.bootstrap_servers {
            Some(_) => Some(Filled::new(&self.settings, 0).await?),
            None => None,
        };
        let lines = open(&self.settings, topic.as_mut()).await;
        if let Some(topic) = topic {
            topic.delete().await;
        }
        Ok(Some((self.settings.output, lines?)))
    }
}

/// What is started from.
struct Ground {
    scratch: Scratch,
    made: Made,
    clock: Clock,
    /// The announcement of the snapshot's version, and of the one that is [`DELTAS`] further.
    current: [Vec<u8>; 2],
}

impl Ground {
    /// Of the dataset whose announcements and controls are on the topic's broker, where there is one.
    async fn new(settings: &Settings, topic: Option<&mut Filled>) -> Result<Ground> {
        let (scratch, clock) = (Scratch::new("open")?, Clock::system());
        let mut announcer = None;
        let made = match topic {
            None => Made::new(scratch.path(), settings).await?,
            Some(topic) => {
                let (announcements, id) = topic.make("announcements").await?;
                topic.make("control").await?;
                let topic = &*topic;
                let new = || Announcer::new(topic, announcements, &clock);
                announcer = Some(tokio::task::block_in_place(new)?);
                Made::of(scratch.path(), settings, &topic.name, id).await?
            }
        };
        let (first, _) = made.stored(1, 1).await?;
        let current = made.announcement(&clock, first, None, Vec::new());
        if let Some(announcer) = &mut announcer {
            tokio::task::block_in_place(|| announcer.announce(&current))?;
        }
        let chain = made.cached_deltas().await?;
        let last = chain.last().cloned();
        let last = last.ok_or_else(|| Error::new(ErrorKind::Internal, "the bench's chain is empty"))?;
        let further = made.announcement(&clock, last, None, chain);
        Ok(Ground { scratch, made, clock, current: [current, further] })
    }

    /// From nothing, in ms: the store's blobs are copied, unpacked and checked, then mapped. The cache stays until it is dropped.
    async fn cold(&self, snapshot: &SnapshotRef, wanted: &str, run: usize) -> Result<(f64, Fresh)> {
        let fresh = self.scratch.path().join(format!("fresh-{run}"));
        let fresh = Fresh(Cache::open(fresh, u64::MAX).map_err(failed)?);
        let start = self.clock.now();
        let view = self.made.open_from(snapshot, &fresh.0).await?;
        black_box(view.get(wanted)?.is_some());
        Ok((ms(self.clock.now() - start), fresh))
    }

    /// Process start to first get, in ms, with Kafka away: a process of its own, which says when it has read.
    fn warm(&self, holds: Holds) -> Result<f64> {
        let [current, _] = &self.current;
        self.start(current, 1, holds, None)
    }

    /// The same, where the version that was held last is so many deltas above its snapshot.
    fn warm_with_deltas(&self) -> Result<f64> {
        let [_, further] = &self.current;
        self.start(further, 1 + DELTAS, Holds::Whole, None)
    }

    /// The same with these `servers`, and no word of what is stale.
    fn warm_by_default(&self, servers: &str) -> Result<f64> {
        let [current, _] = &self.current;
        self.start(current, 1, Holds::Whole, Some(servers))
    }

    fn start(&self, current: &[u8], version: u64, holds: Holds, servers: Option<&str>) -> Result<f64> {
        self.made.note_current(current)?;
        let holds = holds.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let dataset = self.made.identity.dataset.to_string();
        let mut arguments: Vec<OsString> = vec!["--child".into(), self.scratch.path().into()];
        let words = [("--dataset", dataset), ("--current", version.to_string()), ("--holds", holds)];
        let servers = servers.map(|servers| ("--bootstrap-servers", servers.to_owned()));
        for (name, value) in words.into_iter().chain(servers) {
            arguments.extend([OsString::from(name), OsString::from(value)]);
        }
        let mut process = Process::start(&self.clock, "open", arguments)?;
        let read = process.said(&self.clock)?;
        Ok(ms(read - process.started()))
    }
}

/// A cache that was filled from nothing, gone at its end.
struct Fresh(Cache);

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.0.dir());
    }
}

async fn open(settings: &Settings, topic: Option<&mut Filled>) -> Result<Vec<Measured>> {
    let ground = Ground::new(settings, topic).await?;
    let plain = ground.made.stored_plain().await?;
    let (clock, wanted) = (&ground.clock, key(settings.records / 2));

    let (mut cold, mut cold_plain) = (Vec::new(), Vec::new());
    let (mut copied, mut filed) = (Vec::new(), Vec::new());
    // These make what the later ones find.
    let (first_indexed, first_part) = (ground.warm(Holds::Indexed)?, ground.warm(Holds::Part)?);
    let (mut warm, mut indexed, mut part) = (Vec::new(), Vec::new(), Vec::new());
    let (mut with_deltas, mut by_default) = (Vec::new(), Vec::new());
    let runs = if settings.records > MANY { RUNS / 3 } else { RUNS };
    for run in 0..runs {
        let (took, fresh) = ground.cold(&ground.made.snapshot, &wanted, run).await?;
        cold.push(took);
        let bytes = std::fs::read(ground.made.snapshot_file()?).map_err(failed)?;
        drop(fresh);

        let (_, took) = timed(clock, || {
            let copy = black_box(bytes.clone());
            black_box(Checksum::of(&copy))
        });
        copied.push(ms(took));
        let to = ground.scratch.path().join("copy");
        let (done, took) = timed(clock, || copy(&bytes, &to));
        done.map_err(failed)?;
        filed.push(ms(took));
        drop(bytes);
        warm.push(ground.warm(Holds::Whole)?);
        indexed.push(ground.warm(Holds::Indexed)?);
        part.push(ground.warm(Holds::Part)?);
        with_deltas.push(ground.warm_with_deltas()?);
        if let Some(servers) = &settings.bootstrap_servers {
            by_default.push(ground.warm_by_default(servers)?);
        }
        let (took, _fresh) = ground.cold(&plain, &wanted, run).await?;
        cold_plain.push(took);
    }
    let baseline = ("copying and checksumming the snapshot, ms", quantile(&mut copied, 0.5));
    let file = ("checksumming the snapshot and copying it to a file, ms", quantile(&mut filed, 0.5));
    let (cold, warm) = (quantile(&mut cold, 0.5), quantile(&mut warm, 0.5));
    let line = |metric, took, baseline| measured("open", metric, (took, "ms"), baseline);
    let mut lines = vec![
        line("cold_ms", cold, file),
        line("cold_ms_from_memory", cold, baseline),
        line("cold_plain_ms", quantile(&mut cold_plain, 0.5), file),
        line("warm_ms", warm, baseline),
        line("warm_indexed_ms", quantile(&mut indexed, 0.5), baseline),
        line("warm_part_ms", quantile(&mut part, 0.5), baseline),
        line("warm_25_deltas_ms", quantile(&mut with_deltas, 0.5), baseline),
    ];
    if !by_default.is_empty() {
        lines.push(line("warm_default_ms", quantile(&mut by_default, 0.5), baseline));
    }
    lines.push(line("first_indexed_ms", first_indexed, baseline));
    lines.push(line("first_part_ms", first_part, baseline));
    Ok(lines)
}

/// What whoever keeps the snapshot in a file does at least, without unpacking it.
fn copy(bytes: &[u8], to: &Path) -> std::io::Result<()> {
    let mut file = std::fs::File::create(to)?;
    let mut checksum = Xxh3::new();
    for piece in bytes.chunks(PIECE) {
        checksum.update(piece);
        file.write_all(piece)?;
    }
    black_box(checksum.digest());
    drop(file);
    std::fs::remove_file(to)
}

/// A consumer as any, with a warm cache: with `servers` as the README types it; without, Kafka is away, and what it held last is
/// readable at once.
async fn start_and_get(dir: &Path, asked: &Child, servers: Option<&str>) -> Result<()> {
    let builder = Consumer::builder(&*asked.dataset)
        .blobs(format!("file://{}", dir.join("blobs").display()))
        .cache_dir(dir.join("cache"));
    let builder = match servers {
        Some(servers) => builder.bootstrap_servers(servers),
        // The discard port: nobody listens, and nothing is sent.
        None => builder.bootstrap_servers("127.0.0.1:9").serve_stale(true),
    };
    let builder = match asked.holds {
        Holds::Whole => builder,
        Holds::Indexed => builder.index(["stock"]),
        Holds::Part => builder.filter("stock < 250").fields(["id", "stock"]).index(["stock"]),
    };
    let consumer = tokio::time::timeout(PATIENCE, builder.start()).await.map_err(|_| {
        Error::new(ErrorKind::Unavailable, format!("no version was readable within {PATIENCE:?}"))
    })??;
    let view = consumer.view();
    // One that a part has as well.
    let found = view.get(key(100))?;
    let indexed = match asked.holds {
        Holds::Whole => true,
        Holds::Indexed | Holds::Part => view.by("stock", 100)?.next().transpose()?.is_some(),
    };
    if found.is_some() && indexed && view.version().0 == asked.current {
        process::say()?;
    }
    // The parent has its time: nothing is left to be put in order.
    std::process::exit(0);
}
