//! `stillwell import`: a file's records, written to the source topic, and waited for until they are readable.
//!
//! ```text
//!  file --read (a thread)--> records that fit --send--> source topic --acknowledged--> tickets --announced--> totals
//!                   |
//!                   +--> a record that does not fit: its line, and the end (or on, with --skip-bad)
//! ```
//!
//! Runs beside the process that makes the versions, and needs neither its log nor its lock.

use std::collections::VecDeque;
use std::io::Read;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod read;

use super::edge::{Answer, Edge, open, print};
use super::given::Given;
use super::progress::Work;
use crate::config::Shared;
use crate::consumer::Steering;
use crate::producer::write::Refused;
use crate::producer::write::follow::Follower;
use crate::producer::write::watch::{Ticket, Watchers};
use crate::producer::{Publication, Writer};
use crate::telemetry::Metrics;
use crate::version::Version;
use crate::words::{counted, nearest};
use crate::{Error, ErrorKind, Result};
use read::{Bad, Chunk, FileFormat, Reader};

/// Records that are sent together.
const CHUNK: u32 = 1_000;
/// Chunks that are read ahead.
const AHEAD: usize = 4;
/// A longer patience would leave the range of the clock.
const MOST_PATIENCE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Chunks that wait for their acknowledgement, beyond which no more are sent.
const UNACKNOWLEDGED: usize = 32;

/// Writes a file's records to a dataset's source topic, and waits until they are readable
///
/// The file has JSON lines, {"key":…, "value":…} as `scan` prints them or plain records whose fields make the key; or it
/// is an Avro container file, a blob of a dataset or anybody's.
#[derive(Debug, Args)]
pub struct Import {
    #[command(flatten)]
    given: Given,
    /// Dataset
    dataset: String,
    /// The file; - reads standard input
    file: PathBuf,
    /// How the file is written [default: as its beginning looks]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<FileFormat>,
    /// Fields of the value that make the key, for records that come without one; separated by commas
    #[arg(long, value_name = "FIELD", value_delimiter = ',')]
    key: Vec<String>,
    /// Source topic, where the dataset has several
    #[arg(long)]
    topic: Option<String>,
    /// Most records a second
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Say which records do not fit and go on, rather than end before the first
    #[arg(long)]
    skip_bad: bool,
    /// End once all is durable in the topic, without waiting for the version that holds it
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
    /// Check all records, and send none
    #[arg(long)]
    dry_run: bool,
    /// Longest wait for the next version, while something waits for it
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    patience: Duration,
}

/// What was done.
#[derive(Debug, Default)]
struct Totals {
    sent: u64,
    durable: u64,
    readable: u64,
    bad: u64,
    version: Option<Version>,
    /// The version before it to which readers are pinned.
    pinned: Option<Version>,
    interrupted: bool,
    /// Why it ended before the file did.
    failed: Option<Error>,
}

impl Import {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        let config = self.given.load(edge)?;
        let shared = Shared::system(&config, Metrics::new())?;
        let options = config.producer(&self.dataset, &shared)?;
        if let Some(topic) = self.topic.as_ref().filter(|topic| !options.topics.contains(topic)) {
            // Each line would be refused for it.
            let near = nearest(topic, options.topics.iter().map(String::as_str));
            let hint = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            let what = format!(
                "--topic: {topic} is not a source topic of dataset {}; it has {}{hint}",
                self.dataset,
                options.topics.join(", ")
            );
            return Err(Error::new(ErrorKind::Rejected, what));
        }
        let asked = |topic: &&String| self.topic.as_ref().is_none_or(|to| to == *topic);
        let read_only = |topic: &String| options.format.of_topic(topic).read_only();
        let all: Option<Vec<_>> = options.topics.iter().filter(asked).map(read_only).collect();
        // Where some can be written, each record is refused or taken by its own topic.
        if let Some(why) = all.and_then(|all| all.first().copied()) {
            let doing = format!("importing into {}", self.dataset);
            return Err(Error::because(ErrorKind::Rejected, doing, Refused::ReadOnly(why)));
        }
        let watchers = Watchers::default();
        let writer = Writer::new(&options, watchers.clone())?;
        let steering = Steering::new(config.consumer(&self.dataset, &shared)?.topics());
        if !self.key.is_empty() {
            writer.keyed_by(&self.key)?;
        }
        let (input, length): (Box<dyn Read + Send>, _) = if self.file.as_os_str() == "-" {
            (Box::new(std::io::stdin()), None)
        } else {
            let file = open(&self.file)?;
            let length = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
            (Box::new(file), length)
        };
        let size = self.rate.map_or(CHUNK, |rate| (rate.get() / 10).clamp(1, CHUNK));
        let reader = Reader {
            writer: writer.clone(),
            format: self.format,
            keyed: !self.key.is_empty(),
            makes_keys: !self.key.is_empty() || writer.makes_keys(),
            topic: self.topic.clone(),
            skip_bad: self.skip_bad,
            chunk: size as usize,
        };
        let runtime = edge.runtime()?;
        let totals: Result<Totals> = runtime.block_on(async {
            let stop = CancellationToken::new();
            let mut beside = JoinSet::new();
            beside.spawn(Follower::new(options, watchers, None).run(stop.clone()));
            let _stopped = stop.clone().drop_guard();
            if !self.dry_run {
                // Whether Kafka is there is known before anything is read, and how large a record may be.
                writer.connect().await?;
            }
            let mut totals = self.import(edge, &writer, reader, input, length).await;
            totals.pinned = pinned_before(&steering, totals.version).await;
            Ok(totals)
        });
        // A read of standard input cannot be ended, and nothing depends on it any more.
        runtime.shutdown_background();
        self.tell(totals?)
    }

    async fn import(
        &self,
        edge: &Edge,
        writer: &Writer,
        reader: Reader,
        input: Box<dyn Read + Send>,
        length: Option<u64>,
    ) -> Totals {
        let (chunks, mut chunks_in) = mpsc::channel(AHEAD);
        let mut reading = JoinSet::new();
        reading.spawn_blocking(move || reader.run(input, &chunks));
        let shown = self.file.display().to_string();
        let work = edge.screen.work(&format!("importing {shown}"), "bytes", length);
        let mut importing = Importing {
            writer,
            totals: Totals::default(),
            acknowledgements: FuturesOrdered::new(),
            unread: VecDeque::new(),
            waits: !self.no_wait,
            waiting: None,
            edge,
        };
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let (mut open, began) = (true, Instant::now());
        let mut moved = Instant::now();
        loop {
            let done = !open && importing.acknowledgements.is_empty();
            if done && (importing.gives_up() || importing.unread.is_empty()) {
                return importing.totals;
            }
            tokio::select! {
                // What can be finished goes before what begins.
                biased;
                _ = &mut interrupt => {
                    // A second one does not wait for acknowledgements.
                    if std::mem::replace(&mut importing.totals.interrupted, true) {
                        return importing.totals;
                    }
                    interrupt.set(tokio::signal::ctrl_c());
                    open = false;
                }
                Some((count, publication)) = importing.acknowledgements.next() => {
                    importing.acknowledged(count, publication);
                    moved = Instant::now();
                    open &= importing.totals.failed.is_none();
                }
                (count, version) = readable(&mut importing.unread) => {
                    importing.readable(count, version);
                    if done {
                        importing.show_waiting();
                    }
                    moved = Instant::now();
                }
                chunk = chunks_in.recv(), if open && importing.acknowledgements.len() < UNACKNOWLEDGED => {
                    match chunk {
                        Some(chunk) => {
                            let Chunk { records, bad, through } = chunk;
                            importing.bad(bad, self.skip_bad);
                            if self.dry_run {
                                importing.totals.sent += records.len() as u64;
                            } else if !records.is_empty() {
                                let due = self.rate.map_or(0.0, |rate| {
                                    importing.totals.sent as f64 / f64::from(rate.get())
                                });
                                let sending = async {
                                    tokio::time::sleep_until(began + Duration::from_secs_f64(due)).await;
                                    importing.send(records).await;
                                };
                                tokio::select! {
                                    biased;
                                    () = sending => {}
                                    _ = &mut interrupt => {
                                        importing.totals.interrupted = true;
                                        interrupt.set(tokio::signal::ctrl_c());
                                    }
                                }
                            }
                            open = importing.totals.failed.is_none() && !importing.totals.interrupted;
                            work.set(through);
                        }
                        None => {
                            open = false;
                            // It has ended: by itself, with the mistake that ended it, or by a bug.
                            match reading.join_next().await {
                                Some(Ok(Err(error))) => importing.fail(error),
                                Some(Err(panic)) => importing.fail(Error::because(
                                    ErrorKind::Internal, format!("reading {shown} panicked"), panic,
                                )),
                                Some(Ok(Ok(()))) | None => {}
                            }
                        }
                    }
                    moved = Instant::now();
                }
                () = tokio::time::sleep_until(moved + self.patience.min(MOST_PATIENCE)), if done => {
                    let Totals { durable, readable, .. } = importing.totals;
                    let waiting = durable - readable;
                    importing.fail(Error::new(ErrorKind::Unavailable, format!(
                        "{waiting} records are durable in the source topic of {}, and no version had them for {}: look \
                         at the process that writes its versions; once it runs they become readable, and need not be \
                         imported again", self.dataset, humantime::format_duration(self.patience),
                    )));
                }
            }
        }
    }

    /// Prints the totals; an error, where there is one, comes after them.
    fn tell(&self, totals: Totals) -> Result<Answer> {
        let Totals { sent, durable, readable, bad, version, pinned, interrupted, failed } = totals;
        let mut line = if self.dry_run {
            let fit = if sent == 1 { "fits" } else { "fit" };
            format!("{} {fit} dataset {}; none was sent", counted(sent, "record"), self.dataset)
        } else {
            format!("{} written to dataset {}", counted(durable, "record"), self.dataset)
        };
        if let Some(version) = version {
            let all = if readable == durable { String::new() } else { format!("{readable} of them ") };
            match pinned {
                Some(pinned) => {
                    line.push_str(&format!(", {all}in version {version}; readers are pinned at {pinned}"));
                }
                None => line.push_str(&format!(", {all}readable in version {version}")),
            }
        }
        if bad > 0 {
            line.push_str(&format!("; {bad} did not fit"));
        }
        if interrupted {
            line.push_str("; interrupted");
        }
        print(|out| writeln!(out, "{line}"))?;
        match failed {
            Some(error) => Err(error),
            None if interrupted => Ok(Answer::Interrupted),
            None if bad > 0 => Ok(Answer::No),
            None => Ok(Answer::Yes),
        }
    }
}

/// To which version before this one readers are pinned, if they are: then it is announced, and read by nobody.
async fn pinned_before(steering: &Steering, version: Option<Version>) -> Option<Version> {
    let version = version?;
    match steering.pinned().await {
        // A writer writes one shard, and there is one.
        Ok(pin) => pin?.shard_versions().0.into_iter().next().filter(|pinned| *pinned < version),
        Err(error) => {
            tracing::warn!(error = %error.chain(), "whether readers are pinned cannot be asked");
            None
        }
    }
}

/// What is under way.
struct Importing<'a> {
    writer: &'a Writer,
    totals: Totals,
    acknowledgements: FuturesOrdered<Acknowledgement>,
    /// Durable and not yet readable, in the order of sending.
    unread: VecDeque<Unread>,
    /// Versions are waited for.
    waits: bool,
    /// Shows the waiting, once there is only that.
    waiting: Option<Work>,
    edge: &'a Edge,
}

type Acknowledgement = std::pin::Pin<Box<dyn Future<Output = (u64, Publication)> + Send>>;

struct Unread {
    count: u64,
    tickets: Vec<Ticket>,
    version: Version,
}

impl Importing<'_> {
    async fn send(&mut self, records: Vec<crate::producer::write::Ready>) {
        let count = records.len() as u64;
        match self.writer.send(records).await {
            Ok(written) => {
                self.totals.sent += count;
                let published = written.published(Duration::ZERO);
                self.acknowledgements.push_back(Box::pin(async move { (count, published.await) }));
            }
            Err(error) => self.fail(error),
        }
    }

    fn acknowledged(&mut self, count: u64, publication: Publication) {
        match publication {
            Publication::Durable { records } => {
                self.totals.durable += count;
                if self.waits {
                    let tickets = self.writer.tickets(&records);
                    self.unread.push_back(Unread { count, tickets, version: Version(0) });
                }
            }
            Publication::Published { version, .. } => {
                self.totals.durable += count;
                self.readable(count, Some(version));
            }
            Publication::Rejected { records, reason, .. } => {
                self.totals.durable += records.iter().flatten().count() as u64;
                self.fail(Error::new(ErrorKind::Rejected, format!("the broker refused a record: {reason}")));
            }
            Publication::Unsent { records, reason, .. } => {
                self.totals.durable += records.iter().flatten().count() as u64;
                let left = count - records.iter().flatten().count() as u64;
                self.fail(Error::new(
                    ErrorKind::Unavailable,
                    format!("{left} records were not sent: {reason}"),
                ));
            }
            Publication::Unknown { records, reason, .. } => {
                self.totals.durable += records.iter().flatten().count() as u64;
                let left = count - records.iter().flatten().count() as u64;
                self.fail(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "Kafka did not acknowledge {left} records, which may be written or not; importing the file \
                         again is safe: {reason}"
                    ),
                ));
            }
        }
    }

    fn readable(&mut self, count: u64, version: Option<Version>) {
        let Some(version) = version else {
            return self.fail(Error::new(ErrorKind::Closed, "announcements are not followed any more"));
        };
        self.totals.readable += count;
        self.totals.version = self.totals.version.max(Some(version));
    }

    /// Once all is durable: how many are readable.
    fn show_waiting(&mut self) {
        let total = self.totals.durable;
        let waiting = self.waiting.get_or_insert_with(|| {
            self.edge.screen.work("waiting until they are readable", "records", Some(total))
        });
        waiting.set(self.totals.readable);
    }

    fn bad(&mut self, bad: Vec<Bad>, skip: bool) {
        for bad in bad {
            self.totals.bad += 1;
            if skip {
                tracing::warn!("{bad}; passed over");
            } else {
                self.fail(Error::because(
                    ErrorKind::Rejected,
                    "a record does not fit; what comes before it was written, nothing from it on",
                    bad,
                ));
            }
        }
    }

    fn fail(&mut self, error: Error) {
        // The first mistake is the cause.
        self.totals.failed.get_or_insert(error);
    }

    /// Whether there is no point in waiting for versions.
    fn gives_up(&self) -> bool {
        self.totals.interrupted
            || self.totals.failed.as_ref().is_some_and(|error| error.kind() != ErrorKind::Rejected)
    }
}

/// Waits until the oldest that are not readable are. Cancel safe: what was told is kept.
async fn readable(unread: &mut VecDeque<Unread>) -> (u64, Option<Version>) {
    let Some(first) = unread.front_mut() else { return std::future::pending().await };
    while let Some(ticket) = first.tickets.last_mut() {
        let version = ticket.version().await;
        let Some(version) = version else {
            let count = first.count;
            unread.pop_front();
            return (count, None);
        };
        first.version = first.version.max(version);
        first.tickets.pop();
    }
    let told = (first.count, Some(first.version));
    unread.pop_front();
    told
}
