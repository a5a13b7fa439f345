//! `bench recovery`: a killed process's log of records that are durable and in no version, from the start of the next process
//! until the last of them is handed on.
//!
//! ```text
//!  topic --child--> log, durable --kill--> a copy for each round --child--> opened, resumed, read to its end
//! ```
//!
//! The log opens as a life opens it at a takeover, with the positions where it begins. What is read lies in the page cache, as
//! after a restart in place. The baselines are what there is without a log, consuming the records again, and what nobody does
//! without who reads a log at all, its files.

use std::ffi::OsString;
use std::hint::black_box;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::super::table::Output;
use super::ingest::{self, failed};
use super::process::{self, Process};
use super::topic::{Bare, Filled};
use super::{Measured, Scratch, Settings, measured, quantile, timed};
use crate::clock::Clock;
use crate::gauge::Budget;
use crate::producer::Batching;
use crate::producer::log::{self, Log};
use crate::record::Position;
use crate::{Error, ErrorKind, Result};

const ROUNDS: usize = 5;

/// From the start of a process until the last record of its log is handed on.
#[derive(Debug, Args)]
pub struct Recovery {
    #[command(flatten)]
    settings: Settings,
    /// What the bench starts itself with: fill the log in this directory, and wait to be killed
    #[arg(long, hide = true, requires = "topic")]
    fill: Option<PathBuf>,
    /// The topic to fill it from
    #[arg(long, hide = true)]
    topic: Option<String>,
    /// What the bench starts itself with: open the log in this directory, and read it to its end
    #[arg(long, hide = true, conflicts_with = "fill")]
    recover: Option<PathBuf>,
}

impl Recovery {
    pub(super) async fn run(self) -> Result<Option<(Output, Vec<Measured>)>> {
        let (settings, clock) = (self.settings, Clock::system());
        if let Some(dir) = &self.recover {
            recover(dir, settings.records, &clock).await?;
            return Ok(None);
        }
        if let (Some(dir), Some(topic)) = (&self.fill, self.topic) {
            fill(dir, topic, &settings, &clock).await?;
            return Ok(None);
        }
        let topic = Arc::new(Filled::new(&settings, settings.records).await?);
        let lines = rounds(&topic, &settings, &clock).await;
        if let Some(topic) = Arc::into_inner(topic) {
            topic.delete().await;
        }
        Ok(Some((settings.output, lines?)))
    }
}

async fn rounds(topic: &Arc<Filled>, settings: &Settings, clock: &Clock) -> Result<Vec<Measured>> {
    let scratch = Scratch::new("recovery")?;
    let left = scratch.path().join("left");
    let records = settings.records;
    let words = |what: &str, dir: &Path| -> Vec<OsString> {
        vec![what.into(), dir.into(), "--records".into(), records.to_string().into()]
    };
    let mut filling = words("--fill", &left);
    filling.extend([OsString::from("--topic"), OsString::from(&topic.name)]);
    filling.extend([OsString::from("--bootstrap-servers"), OsString::from(settings.bootstrap()?)]);
    let mut child = Process::start(clock, "recovery", filling)?;
    child.said(clock)?;
    // Killed: nothing is closed or tidied.
    drop(child);

    let (mut first, mut all, mut consumed, mut files) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Opening it changes it.
        let dir = scratch.path().join(format!("round-{round}"));
        copy(&left, &dir).map_err(failed)?;
        let (read, took) = timed(clock, || read_files(&dir));
        black_box(read.map_err(failed)?);
        files.push(took.as_secs_f64());
        let mut child = Process::start(clock, "recovery", words("--recover", &dir))?;
        let began = child.started();
        first.push((child.said(clock)? - began).as_secs_f64());
        all.push((child.said(clock)? - began).as_secs_f64());
        drop(child);
        std::fs::remove_dir_all(&dir).map_err(failed)?;
        consumed.push(records as f64 / topic.bare(Bare::Poll, records, clock).await?);
    }
    let [first, all, consumed, files] =
        [first, all, consumed, files].map(|mut runs| quantile(&mut runs, 0.5));
    let consumed = ("consuming them again by rd_kafka_consumer_poll, s", consumed);
    Ok(vec![
        measured("recovery", "seconds", (all, "s"), consumed),
        measured("recovery", "seconds_to_files", (all, "s"), ("reading the log's files, s", files)),
        measured("recovery", "first_record_seconds", (first, "s"), ("until the last one, s", all)),
    ])
}

/// All of the topic's records into the log, then nothing more: the parent kills this process once they are durable.
async fn fill(dir: &Path, topic: String, settings: &Settings, clock: &Clock) -> Result<()> {
    let topic = Filled::there(settings, topic)?;
    let (_log, _) = ingest::fill(&topic, dir, settings.records, clock).await?;
    process::say()?;
    // It ends where the parent does without having killed this.
    let _ = std::io::stdin().read(&mut [0]);
    Ok(())
}

/// Says when the first record has been handed on, and when the last one has.
async fn recover(dir: &Path, records: u64, clock: &Clock) -> Result<()> {
    let log = Log::open(dir, log::Options::new(clock.clone())).await.map_err(failed)?;
    let retained = log.retained();
    let held: i64 = retained.iter().map(|range| range.to - range.from).sum();
    if held < records as i64 {
        let doing = format!("the bench's log holds {held} of {records} records");
        return Err(Error::new(ErrorKind::Internal, doing));
    }
    let begins = retained.into_iter().map(|range| Position { source: range.source, offset: range.from });
    log.resume(&ingest::origin(), &begins.collect::<Vec<_>>()).await.map_err(failed)?;
    let batching = Batching::default();
    let mut reader = log.reader(batching.max_pending_records, Budget::new(batching.memory().batches));
    let (mut seen, mut bytes) = (0, 0);
    while seen < records {
        let logged = reader.next().await.map_err(failed)?;
        let logged = logged.ok_or_else(|| Error::new(ErrorKind::Internal, "the bench's log was closed"))?;
        if seen == 0 {
            process::say()?;
        }
        for (_, record) in logged.chunk.iter() {
            (seen, bytes) = (seen + 1, bytes + record.bytes());
        }
    }
    black_box(bytes);
    process::say()?;
    // The parent has its time: nothing is left to be put in order.
    std::process::exit(0);
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for file in std::fs::read_dir(from)? {
        let file = file?;
        std::fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

/// The bytes of all files in a directory.
fn read_files(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for file in std::fs::read_dir(dir)? {
        bytes += black_box(std::fs::read(file?.path())?).len() as u64;
    }
    Ok(bytes)
}
