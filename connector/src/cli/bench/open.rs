//! `bench open`: how long until the first get, from nothing and from the cache.

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use xxhash_rust::xxh3::Xxh3;

use super::super::table::Output;
use super::made::{Made, failed, key};
use super::{Measured, Scratch, Settings, measured, ms, quantile, timed};
use crate::clock::Clock;
use crate::consumer::Consumer;
use crate::version::Checksum;
use crate::view::Cache;
use crate::{Error, ErrorKind, Result};

const RUNS: usize = 9;
/// Records beyond which a third of them have to do: each run fills the disk with two copies of the snapshot.
const MANY: u64 = 2_000_000;
/// Bytes that are written at a time, as the cache does.
const PIECE: usize = 256 << 10;

/// How long from nothing, and from the cache, to the first get.
#[derive(Debug, Args)]
pub struct Open {
    #[command(flatten)]
    settings: Settings,
    /// What the bench calls itself with: start from this directory, get one record, end
    #[arg(long, hide = true)]
    child: Option<PathBuf>,
    /// What the child holds
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
        if let Some(dir) = self.child {
            start_and_get(&dir, self.holds).await?;
            return Ok(None);
        }
        let clock = Clock::system();
        let scratch = Scratch::new("open")?;
        let made = Made::new(scratch.path(), &self.settings).await?;
        made.note_current(&clock)?;
        let wanted = key(self.settings.records / 2);

        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        let (mut copied, mut filed) = (Vec::new(), Vec::new());
        // These make what the later ones find.
        let first = [Holds::Indexed, Holds::Part].map(|holds| child(scratch.path(), &clock, holds));
        let [first_indexed, first_part] = first;
        let (first_indexed, first_part) = (first_indexed?, first_part?);
        let (mut indexed, mut part) = (Vec::new(), Vec::new());
        let runs = if self.settings.records > MANY { RUNS / 3 } else { RUNS };
        for run in 0..runs {
            // From nothing: the store's blobs are copied, unpacked and checked, then mapped.
            let fresh = Cache::open(scratch.path().join(format!("fresh-{run}")), u64::MAX).map_err(failed)?;
            let start = clock.now();
            let view = made.open(&fresh).await?;
            black_box(view.get(&wanted)?.is_some());
            cold.push(ms(clock.now() - start));
            let bytes = std::fs::read(view_file(&made)?).map_err(failed)?;
            drop(view);
            let _ = std::fs::remove_dir_all(fresh.dir());

            let (_, took) = timed(&clock, || {
                let copy = black_box(bytes.clone());
                black_box(Checksum::of(&copy))
            });
            copied.push(ms(took));
            let to = scratch.path().join("copy");
            let (done, took) = timed(&clock, || copy(&bytes, &to));
            done.map_err(failed)?;
            filed.push(ms(took));
            warm.push(child(scratch.path(), &clock, Holds::Whole)?);
            indexed.push(child(scratch.path(), &clock, Holds::Indexed)?);
            part.push(child(scratch.path(), &clock, Holds::Part)?);
        }
        let copied = quantile(&mut copied, 0.5);
        let baseline = ("copying and checksumming the snapshot, ms", copied);
        let cold = quantile(&mut cold, 0.5);
        let filed = quantile(&mut filed, 0.5);
        let file = ("checksumming the snapshot and copying it to a file, ms", filed);
        let lines = vec![
            measured("open", "cold_ms", (cold, "ms"), file),
            measured("open", "cold_ms_from_memory", (cold, "ms"), baseline),
            measured("open", "warm_ms", (quantile(&mut warm, 0.5), "ms"), baseline),
            measured("open", "warm_indexed_ms", (quantile(&mut indexed, 0.5), "ms"), baseline),
            measured("open", "warm_part_ms", (quantile(&mut part, 0.5), "ms"), baseline),
            measured("open", "first_indexed_ms", (first_indexed, "ms"), baseline),
            measured("open", "first_part_ms", (first_part, "ms"), baseline),
        ];
        Ok(Some((self.settings.output, lines)))
    }
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

/// The plain snapshot's file in the bench's cache.
fn view_file(made: &Made) -> Result<PathBuf> {
    let name = crate::view::FileName::snapshot(&made.snapshot);
    let held = made.cache.find(&made.identity, &name).map_err(failed)?;
    held.map(|held| held.path().to_owned())
        .ok_or_else(|| Error::new(ErrorKind::Internal, "the bench's snapshot has left its cache"))
}

/// Process start to first get, in ms: a process of its own, whose one byte of output says that it has read.
fn child(dir: &Path, clock: &Clock, holds: Holds) -> Result<f64> {
    let program = std::env::current_exe().map_err(failed)?;
    let start = clock.now();
    let mut child = Command::new(program)
        .args(["bench", "open", "--child"])
        .arg(dir)
        .arg("--holds")
        .arg(holds.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned()))
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut byte = [0];
    let got = child.stdout.take().map(|mut out| out.read_exact(&mut byte));
    let took = ms(clock.now() - start);
    child.wait().map_err(failed)?;
    match got {
        Some(Ok(())) => Ok(took),
        _ => Err(Error::new(ErrorKind::Internal, "the bench's child ended without having read a record")),
    }
}

/// A consumer as any, with a warm cache, Kafka away: what it held last is readable at once.
async fn start_and_get(dir: &Path, holds: Holds) -> Result<()> {
    let builder = match holds {
        Holds::Whole => Consumer::builder("bench"),
        Holds::Indexed => Consumer::builder("bench").index(["stock"]),
        Holds::Part => {
            Consumer::builder("bench").filter("stock < 250").fields(["id", "stock"]).index(["stock"])
        }
    };
    let consumer = builder
        // The discard port: nobody listens, and nothing is sent.
        .bootstrap_servers("127.0.0.1:9")
        .blobs(format!("file://{}", dir.join("blobs").display()))
        .cache_dir(dir.join("cache"))
        .serve_stale(true)
        .start()
        .await?;
    let view = consumer.view();
    // One that a part has as well.
    let found = view.get(key(100))?;
    let indexed = match holds {
        Holds::Whole => true,
        Holds::Indexed | Holds::Part => view.by("stock", 100)?.next().transpose()?.is_some(),
    };
    if found.is_some() && indexed {
        print_byte()?;
    }
    // The parent has its time: nothing is left to be put in order.
    std::process::exit(0);
}

fn print_byte() -> Result<()> {
    super::print(|out| out.write_all(b"."))
}
