//! `stillwell blob gc`: what the cleaner would delete, and deleting it, by the same rules.
//!
//! Works beside a running producer, which it does not ask: what may go by those rules is named by nothing that anybody
//! can come to announce any more, so that it does not matter who deletes it. It leaves the announcement topic to the
//! producer, which owns it. Of one thing it knows less than the owner: what a life goes on from that has announced nothing
//! yet. What was announced before stays until then.

use std::io::{self, Write};

use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::cli::edge::{Answer, Edge, print};
use crate::cli::given::Given;
use crate::cli::table::{self, Column, Output};
use crate::config::Shared;
use crate::kafka::{self, Admin};
use crate::producer::Options;
use crate::producer::clean::shelf::Fate;
use crate::producer::clean::sweep::{self, AT_A_TIME, Doomed, Heap, Refused, Sweep};
use crate::telemetry::Metrics;
use crate::version::{Shard, Version};
use crate::words::counted;
use crate::{Error, ErrorKind, Result};

/// Deletes blobs that nothing kept names: those below the oldest version kept, after storage.clean_grace, and those that
/// no announcement ever named, of writers that have been replaced
///
/// A running producer does the same by itself. What is pinned stays, and so do blobs with the values of dead letters.
#[derive(Debug, Args)]
pub(super) struct Gc {
    #[command(flatten)]
    given: Given,
    /// Dataset
    dataset: String,
    /// Say what would be deleted, and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

const COLUMNS: [Column; 6] = [
    Column::Text("kind"),
    Column::Number("version"),
    Column::Number("epoch"),
    Column::Number("bytes"),
    Column::Text("why"),
    Column::Text("url"),
];

/// What was found, and done; its JSON is a contract.
#[derive(Debug, Default, Serialize)]
struct Report {
    dataset: String,
    dry_run: bool,
    /// What goes, or would.
    blobs: Vec<Gone>,
    /// Their bytes.
    bytes: u64,
    kept: Sum,
    /// What the present life may be about to announce.
    in_the_making: Sum,
    /// Values of dead letters, which stay.
    letters: Sum,
    /// What is no blob of this release, and stays.
    unknown: Sum,
}

#[derive(Debug, Serialize)]
struct Gone {
    shard: Shard,
    kind: &'static str,
    version: Version,
    epoch: u64,
    bytes: u64,
    /// `passed` or `orphan`.
    why: &'static str,
    url: String,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Sum {
    blobs: u64,
    bytes: u64,
}

impl Sum {
    fn add(&mut self, heap: Heap) {
        self.blobs += heap.blobs;
        self.bytes += heap.bytes;
    }
}

impl Gone {
    fn of(doomed: &Doomed, shard: Shard, options: &Options) -> Gone {
        Gone {
            shard,
            kind: doomed.name.kind.word(),
            version: doomed.name.version,
            epoch: doomed.name.epoch,
            bytes: doomed.bytes,
            why: if doomed.fate == Fate::Orphan { "orphan" } else { "passed" },
            url: options.store.absolute_url(&doomed.name.to_string()),
        }
    }

    fn row(&self) -> Vec<String> {
        let Gone { kind, version, epoch, bytes, why, url, .. } = self;
        let why = match *why {
            "orphan" => "never announced",
            _ => "not kept any more",
        };
        let cells = [(*kind).to_owned(), version.to_string(), epoch.to_string(), bytes.to_string()];
        cells.into_iter().chain([why.to_owned(), url.clone()]).collect()
    }
}

impl Gc {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let config = self.given.load(edge)?;
        let shared = Shared::system(&config, Metrics::new())?;
        let options = config.producer(&self.dataset, &shared)?;
        let runtime = edge.runtime()?;
        let stop = CancellationToken::new();
        let done = runtime.block_on(async {
            tokio::select! {
                done = self.all(&options, edge, &stop) => Some(done),
                _ = tokio::signal::ctrl_c() => None,
            }
        });
        stop.cancel();
        runtime.shutdown_background();
        let Some((report, failed)) = done else { return Ok(Answer::Interrupted) };
        // What is gone is said whatever happened then.
        print(|out| match self.output {
            Output::Json => table::json(out, &report),
            Output::Table => report.lines(out),
        })?;
        failed.map(|()| Answer::Yes)
    }

    async fn all(&self, options: &Options, edge: &Edge, stop: &CancellationToken) -> (Report, Result<()>) {
        let (dataset, dry_run) = (self.dataset.clone(), self.dry_run);
        let mut report = Report { dataset, dry_run, ..Report::default() };
        let done = self.shards(options, edge, stop, &mut report).await;
        (report, done)
    }

    async fn shards(
        &self,
        options: &Options,
        edge: &Edge,
        stop: &CancellationToken,
        report: &mut Report,
    ) -> Result<()> {
        let topic = &options.announcements;
        let failed = |error: kafka::Error| {
            Error::because(error.kind(), format!("asking about the topic {topic}"), error)
        };
        let admin = Admin::new(&options.kafka).map_err(failed)?;
        let Some(info) = admin.describe(topic).await.map_err(failed)? else {
            let what = format!(
                "announcement topic {topic} does not exist: no producer of {} has started",
                self.dataset
            );
            return Err(Error::new(ErrorKind::Unavailable, what));
        };
        let mut refused = None;
        for shard in (0..u32::try_from(info.partitions).unwrap_or(0)).map(Shard) {
            let sweep = Sweep::new(options.clone(), admin.clone(), info.id, shard, None)
                .heeding(options.data_dir.join("cache"));
            if let Err(error) = self.shard((sweep, shard), options, edge, stop, report).await {
                let is_refusal = error.is_refusal();
                let what = format!("cleaning shard {shard} of dataset {}", self.dataset);
                let error = Error::because(error.kind(), what, error);
                if !is_refusal {
                    return Err(error);
                }
                // One blob of one shard, say: the others are cleaned all the same.
                refused.get_or_insert(error);
            }
        }
        refused.map_or(Ok(()), Err)
    }

    async fn shard(
        &self,
        (mut sweep, shard): (Sweep, Shard),
        options: &Options,
        edge: &Edge,
        stop: &CancellationToken,
        report: &mut Report,
    ) -> Result<(), sweep::Error> {
        sweep.read(stop).await?;
        // By the clocks of who announced and of this machine: readers have had the grace.
        let grace = i64::try_from(options.cleaning.grace.as_millis()).unwrap_or(i64::MAX);
        let over = options.clock.wall_ms().saturating_sub(grace);
        let Some(life) = sweep.shelf().life().filter(|_| sweep.shelf().newest().is_some()) else {
            return Err(sweep::Error::Unknown("no version is announced yet".to_owned()));
        };
        // Within the first grace of all nothing is over; what no announcement names may go all the same.
        let below = sweep.shelf().oldest_kept_by(over).unwrap_or(Version(0)).max(sweep.shelf().oldest());
        let mut confirmed = sweep.confirm(life, stop).await?;
        let plan = sweep.plan_beside(life, below, confirmed.pin).await?;
        plan.kept.iter().for_each(|heap| report.kept.add(*heap));
        report.in_the_making.add(plan.fresh);
        report.letters.add(plan.letters);
        report.unknown.add(plan.strange);
        let work = edge.screen.work("deleting", "blobs", Some(plan.doomed.len() as u64));
        let mut refused = Refused::default();
        for some in plan.doomed.chunks(AT_A_TIME) {
            let (gone, failed) = if self.dry_run {
                (some.iter().collect(), Ok(()))
            } else {
                if sweep.is_stale(&confirmed) {
                    confirmed = sweep.confirm(life, stop).await?;
                }
                sweep.delete(some, below, confirmed.pin, &mut refused).await
            };
            for doomed in gone {
                report.bytes += doomed.bytes;
                report.blobs.push(Gone::of(doomed, shard, options));
            }
            work.set(report.blobs.len() as u64);
            failed?;
        }
        refused.outcome()
    }
}

impl Report {
    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        let Report { dataset, dry_run, blobs, bytes, kept, in_the_making, letters, unknown } = self;
        if !blobs.is_empty() {
            table::table(out, &COLUMNS, blobs.iter().map(Gone::row))?;
        }
        let done = if *dry_run { "would be deleted" } else { "deleted" };
        writeln!(
            out,
            "{dataset}: {} with {} {done}; {} with {} kept",
            counted(blobs.len() as u64, "blob"),
            counted(*bytes, "byte"),
            kept.blobs,
            kept.bytes
        )?;
        for (sum, what) in [
            (in_the_making, "stay: the present writer may be about to announce them"),
            (letters, "stay: values of dead letters"),
            (unknown, "stay: not of this release"),
        ] {
            if sum.blobs > 0 {
                let (blobs, bytes) = (counted(sum.blobs, "blob"), counted(sum.bytes, "byte"));
                writeln!(out, "{dataset}: {blobs} with {bytes} {what}")?;
            }
        }
        Ok(())
    }
}
