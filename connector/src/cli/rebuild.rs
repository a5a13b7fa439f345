//! `stillwell rebuild`: asks the owner of a dataset to read its source anew, and waits for the version that comes of it.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::adopt;
use super::edge::{Answer, Edge, print};
use super::given::Given;
use super::table::{self, Column, Output};
use crate::config::Shared;
use crate::consumer::history::{self, Found, History};
use crate::error::{Error, ErrorKind, Result};
use crate::format::control::{self, Control, From, Rebuilt, rebuild_key};
use crate::kafka::{Admin, Outgoing, Sender};
use crate::producer::control as topic;
use crate::producer::rebuild::{self as rebuilding, Plan, Standing};
use crate::producer::schemas::Library;
use crate::telemetry::Metrics;
use crate::version::{Shard, Version};
use crate::view::Cache;
use crate::words::counted;
use crate::{consumer, producer};

/// Reads the source of a dataset anew, and announces what differs as one next version
///
/// The way out after a gap, a topic that was made anew, or offsets that were reset. The running producer that owns the
/// dataset carries it out; readers keep the version they hold until then.
#[derive(Debug, Args)]
pub struct Rebuild {
    #[command(flatten)]
    given: Given,
    /// Dataset
    dataset: String,
    /// What is read
    #[arg(long, value_enum, default_value_t)]
    from: Begin,
    /// Delete what the source does not hold, though its topic is not compacted
    #[arg(long, conflicts_with = "withdraw")]
    deletes: bool,
    /// Do not ask whether to go on
    #[arg(long)]
    yes: bool,
    /// Read the source here and say what would change, and change nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Take back a request that waits
    #[arg(long, conflicts_with_all = ["dry_run", "from"])]
    withdraw: bool,
    /// Longest time to wait for the version; the request stays [default: without end]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// See [`From`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Begin {
    /// Every partition from its beginning
    #[default]
    Earliest,
    /// On from the announced positions; from the beginning where the topic does not hold them any more
    Positions,
}

impl std::convert::From<Begin> for From {
    fn from(begin: Begin) -> From {
        match begin {
            Begin::Earliest => From::Earliest,
            Begin::Positions => From::Positions,
        }
    }
}

impl Rebuild {
    pub(super) fn run(self, edge: &Edge) -> Result<Answer> {
        if self.deletes && self.from == Begin::Positions {
            return Err(Error::new(
                ErrorKind::Rejected,
                "--deletes needs all of the source: it goes with --from earliest only",
            ));
        }
        let mut config = self.given.load(edge)?;
        adopt::now(&mut config, &self.dataset, edge)?;
        let shared = Shared::system(&config, Metrics::new())?;
        let asked = Asked {
            producer: config.producer(&self.dataset, &shared)?,
            consumer: config.consumer(&self.dataset, &shared)?,
        };
        let runtime = edge.runtime()?;
        let answer = runtime.block_on(async {
            tokio::select! {
                answer = self.answer(&asked, edge) => answer,
                _ = tokio::signal::ctrl_c() => Ok(Answer::Interrupted),
            }
        });
        runtime.shutdown_background();
        answer
    }

    async fn answer(&self, asked: &Asked, edge: &Edge) -> Result<Answer> {
        let admin = Admin::new(&asked.producer.kafka).map_err(|error| asked.failed(error))?;
        if self.withdraw {
            return self.take_back(asked, &admin).await;
        }
        let (history, found) = asked.last().await?;
        let wanted = (self.from.into(), self.deletes);
        let plan = rebuilding::plan(&admin, &asked.producer, Some(&found.announcement), wanted).await;
        let plan = plan.map_err(|error| asked.refused(error))?;
        if self.dry_run {
            let would = asked.compare(plan, self.from, &found, edge).await?;
            print(|out| match self.output {
                Output::Json => table::json(out, &would),
                Output::Table => would.lines(out),
            })?;
            return Ok(Answer::Yes);
        }
        let version = found.announcement.version;
        let _ = write!(io::stderr().lock(), "{}", planned(&self.dataset, &plan, version));
        if !self.yes && !agreed()? {
            return Ok(Answer::No);
        }
        let request = control::Rebuild {
            dataset: self.dataset.clone(),
            shard: Shard(0),
            history: found.topic_id,
            id: asked.producer.entropy.uuid(),
            from: self.from.into(),
            deletes: self.deletes,
            at: asked.producer.clock.wall_ms(),
        };
        let id = request.id;
        // What is said where the time is over holds once the request is there, however long that took.
        let next = asked.ask(&admin, request).await?;
        let outcome = asked.answered(&history, id, next);
        let outcome = match self.wait {
            None => outcome.await?,
            Some(longest) => tokio::time::timeout(longest, outcome).await.unwrap_or_else(|_| {
                let within = humantime::format_duration(longest);
                Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "no version within {within}: does a producer of {} run, and what does its health say? The \
                         request stays, and is carried out once one does; --withdraw takes it back",
                        self.dataset
                    ),
                ))
            })?,
        };
        print(|out| match self.output {
            Output::Json => table::json(out, &Done::of(&outcome)),
            Output::Table => Done::of(&outcome).lines(out),
        })?;
        Ok(Answer::Yes)
    }

    async fn take_back(&self, asked: &Asked, admin: &Admin) -> Result<Answer> {
        let newest = topic::newest(admin, &asked.producer, Shard(0)).await;
        let (newest, _) = newest.map_err(|error| asked.failed(error))?;
        let Some(Control::Rebuild(request)) = newest.control else {
            return Err(Error::new(ErrorKind::Rejected, format!("no rebuild of {} waits", self.dataset)));
        };
        asked.put(None).await?;
        print(|out| writeln!(out, "withdrawn: rebuild {} of {}", request.id, self.dataset))?;
        Ok(Answer::Yes)
    }
}

/// Asks on the terminal; elsewhere nobody could answer.
fn agreed() -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Error::new(ErrorKind::Rejected, "nobody is there to agree: say --yes, or --dry-run"));
    }
    let _ = write!(io::stderr().lock(), "go on? [y/N] ");
    let mut line = String::new();
    io::stdin()
        .read_line(&mut line)
        .map_err(|error| Error::because(ErrorKind::Unavailable, "cannot read the answer", error))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// The dataset, as both sides are told of it.
struct Asked {
    producer: producer::Options,
    consumer: consumer::Options,
}

impl Asked {
    fn failed(&self, error: crate::kafka::Error) -> Error {
        Error::because(error.kind(), format!("asking for a rebuild of {}", self.producer.dataset), error)
    }

    fn refused(&self, error: rebuilding::Error) -> Error {
        let kind = if error.is_transient() { ErrorKind::Unavailable } else { ErrorKind::Rejected };
        Error::because(kind, format!("planning a rebuild of {}", self.producer.dataset), error)
    }

    async fn last(&self) -> Result<(History, Found)> {
        let history = History::find(self.consumer.topics()).await?;
        let found = history.last(Shard(0)).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::Rejected,
                format!(
                    "no version of {} is announced yet: its first life reads the source from the beginning anyway",
                    self.producer.dataset
                ),
            )
        })?;
        Ok((history, found))
    }

    /// Writes to the control topic: a request, or that none is any more.
    async fn put(&self, request: Option<control::Rebuild>) -> Result<()> {
        let sender = Sender::new(&self.producer.kafka).map_err(|error| self.failed(error))?;
        let key = rebuild_key(&self.producer.dataset, Shard(0));
        let value = request.map(|request| Control::Rebuild(request).encode());
        let record = Outgoing {
            topic: &self.producer.control,
            partition: Some(0),
            key: Some(key.as_bytes()),
            value: value.as_deref(),
            ..Outgoing::default()
        };
        sender.send(&record).await.map_err(|error| self.failed(error))?;
        Ok(())
    }

    /// Puts the request. The offset of the control topic from which on it is answered.
    async fn ask(&self, admin: &Admin, request: control::Rebuild) -> Result<i64> {
        let newest = topic::newest(admin, &self.producer, Shard(0)).await;
        let (_, topic::Place { next, .. }) = newest.map_err(|error| self.failed(error))?;
        let id = request.id;
        self.put(Some(request)).await?;
        tracing::info!(dataset = self.producer.dataset, request = %id, "asked; waiting for the owner");
        Ok(next)
    }

    /// Waits until the version of request `id` is announced.
    async fn answered(&self, history: &History, id: Uuid, mut next: i64) -> Result<Rebuilt> {
        loop {
            let (options, stop) = (self.producer.clone(), CancellationToken::new());
            let _stopped_on_drop = stop.clone().drop_guard();
            let from = next;
            let answered = tokio::task::spawn_blocking(move || {
                topic::wait_for(&options, Shard(0), from, &stop, |offset, control| {
                    next = offset + 1;
                    match control {
                        Some(Control::Rebuilt(outcome)) if outcome.request.id == id => Some(Ok(outcome)),
                        Some(Control::Rebuild(request)) if request.id == id => None,
                        Some(Control::Rebuild(_)) => Some(Err("another request took its place")),
                        Some(_) => None,
                        None => Some(Err("it was withdrawn")),
                    }
                })
                .map(|answered| (answered, next))
            });
            let answered = answered.await.map_err(|panic| {
                Error::because(ErrorKind::Internal, "waiting for the control topic panicked", panic)
            })?;
            let (answered, after) = answered.map_err(|error| self.failed(error))?;
            next = after;
            match answered {
                // Not announced, its transaction was cut short, and the next life begins again.
                Some(Ok(outcome)) if !announced(history, outcome.version).await? => {}
                Some(Ok(outcome)) => return Ok(outcome),
                Some(Err(why)) => {
                    return Err(Error::new(
                        ErrorKind::Rejected,
                        format!("rebuild {id} is not carried out: {why}"),
                    ));
                }
                None => {}
            }
        }
    }

    /// What would change, by reading the source here.
    async fn compare(&self, plan: Plan, from: Begin, found: &Found, edge: &Edge) -> Result<Would> {
        // Where the schema changes with it, what is held is compared as it will be read.
        let view = history::open(&self.consumer, found, false).await?.turned_to(&self.producer.schema)?;
        let (options, all) = (self.producer.clone(), from == Begin::Earliest);
        let work = edge.screen.work("reading the source", "offsets", Some(plan.offsets()));
        let stop = CancellationToken::new();
        let _stopped_on_drop = stop.clone().drop_guard();
        let compared = tokio::task::spawn_blocking(move || {
            let cache = Cache::open(options.data_dir.join("cache"), u64::MAX)?;
            let life = view.about().life;
            let folded = rebuilding::fold(
                &options,
                &plan,
                &cache,
                view.identity(),
                (None, Library::of(&options, None)),
                &stop,
            )?;
            let (read, letters, unfit) = (folded.read, folded.letters.len() as u64, folded.unfit);
            let counts = rebuilding::compare(&plan, folded, &view, life)?.counts;
            Ok(Would {
                dataset: options.dataset.clone(),
                version: view.version(),
                partitions: plan.partitions.iter().map(Row::of).collect(),
                read,
                letters,
                unfit,
                added: counts.added,
                changed: counts.changed,
                deleted: counts.deleted,
                unchanged: counts.unchanged,
                kept: if all { counts.kept } else { 0 },
            })
        });
        let compared = compared
            .await
            .map_err(|panic| Error::because(ErrorKind::Internal, "reading the source panicked", panic))?;
        drop(work);
        compared.map_err(|error| self.refused(error))
    }
}

/// Whether a version is announced by now: its outcome is seen by the same commit, an instant apart.
async fn announced(history: &History, version: Version) -> Result<bool> {
    let last = history.last(Shard(0)).await?;
    Ok(last.is_some_and(|found| found.announcement.version >= version))
}

/// One partition of a plan.
#[derive(Debug, Serialize)]
struct Row {
    topic: String,
    partition: i32,
    state: &'static str,
    announced: Option<i64>,
    from: i64,
    to: i64,
}

impl Row {
    fn of(planned: &rebuilding::Planned) -> Row {
        Row {
            topic: planned.source.topic.to_string(),
            partition: planned.source.partition,
            state: state(planned.standing),
            announced: planned.announced,
            from: planned.from,
            to: planned.to,
        }
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.topic.clone(),
            self.partition.to_string(),
            self.state.to_owned(),
            self.announced.map(|offset| offset.to_string()).unwrap_or_default(),
            self.from.to_string(),
            self.to.to_string(),
        ]
    }
}

const COLUMNS: [Column; 6] = [
    Column::Text("topic"),
    Column::Number("partition"),
    Column::Text("state"),
    Column::Number("announced"),
    Column::Number("read from"),
    Column::Number("to"),
];

fn state(standing: Standing) -> &'static str {
    match standing {
        Standing::New => "new",
        Standing::Follows => "goes on",
        Standing::Trimmed => "records are gone",
        Standing::Shorter => "ends too early",
        Standing::Recreated => "made anew",
    }
}

/// What a rebuild would do, as far as it is known before anything is read.
fn planned(dataset: &str, plan: &Plan, version: Version) -> String {
    let mut out = Vec::new();
    let rows = plan.partitions.iter().map(|planned| Row::of(planned).cells());
    // Writing to memory cannot fail.
    let _ = table::table(&mut out, &COLUMNS, rows);
    let deleting = match plan.deleting.as_slice() {
        [] => "nothing is deleted but what the source deletes itself".to_owned(),
        topics => format!("what {} does not hold is deleted", topics.join(", ")),
    };
    format!(
        "{}{dataset}: up to {} records are read, and what differs from version {version} is announced as version {}; \
         {deleting}\n",
        String::from_utf8_lossy(&out),
        plan.offsets(),
        version.next()
    )
}

/// What a dry run found.
#[derive(Debug, Serialize)]
struct Would {
    dataset: String,
    version: Version,
    partitions: Vec<Row>,
    read: u64,
    letters: u64,
    unfit: u64,
    added: u64,
    changed: u64,
    deleted: u64,
    unchanged: u64,
    kept: u64,
}

impl Would {
    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        table::table(out, &COLUMNS, self.partitions.iter().map(Row::cells))?;
        writeln!(
            out,
            "{}: {} read; against version {} {} would be added, {} changed, {} deleted; {} stay the same; {} would become \
             dead letters",
            self.dataset,
            counted(self.read, "record"),
            self.version,
            counted(self.added, "key"),
            self.changed,
            self.deleted,
            self.unchanged,
            counted(self.letters, "record")
        )?;
        if self.unfit > 0 {
            writeln!(
                out,
                "of those {} were taken when they were first read and do not fit any more: by another schema, format or \
                 max_record_size than now",
                self.unfit
            )?;
        }
        kept(out, self.kept, "would be")
    }
}

fn kept(out: &mut dyn Write, keys: u64, were: &str) -> io::Result<()> {
    match keys {
        0 => Ok(()),
        keys => writeln!(
            out,
            "{} that the source does not hold {were} kept, since nothing says that the source deleted them; --deletes does",
            counted(keys, "key")
        ),
    }
}

/// What was done.
#[derive(Debug, Serialize)]
struct Done {
    dataset: String,
    version: Version,
    epoch: u64,
    request: String,
    read: u64,
    letters: u64,
    upserts: u64,
    deletes: u64,
    kept: u64,
}

impl Done {
    fn of(outcome: &Rebuilt) -> Done {
        Done {
            dataset: outcome.request.dataset.clone(),
            version: outcome.version,
            epoch: outcome.epoch,
            request: outcome.request.id.to_string(),
            read: outcome.read,
            letters: outcome.letters,
            upserts: outcome.upserts,
            deletes: outcome.deletes,
            kept: outcome.kept,
        }
    }

    fn lines(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(
            out,
            "{} is rebuilt as version {}: {} read, {} added or changed, {} deleted, {}",
            self.dataset,
            self.version,
            counted(self.read, "record"),
            counted(self.upserts, "key"),
            self.deletes,
            counted(self.letters, "dead letter")
        )?;
        kept(out, self.kept, if self.kept == 1 { "was" } else { "were" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{SourcePartition, TopicId};

    #[test]
    fn a_plan_says_what_is_read_and_what_is_deleted() {
        let source = SourcePartition { topic: "orders".into(), topic_id: TopicId([1; 16]), partition: 3 };
        let planned = rebuilding::Planned {
            source,
            index: 0,
            standing: Standing::Trimmed,
            announced: Some(40),
            from: 50,
            to: 75,
        };
        let mut plan = Plan { partitions: vec![planned], positions: Vec::new(), deleting: Vec::new() };
        let said = super::planned("shop", &plan, Version(7));
        assert!(said.contains("up to 25 records are read"), "{said}");
        assert!(said.contains("announced as version 8; nothing is deleted"), "{said}");
        assert!(said.contains("records are gone") && said.contains("40"), "{said}");
        plan.deleting.push("orders".into());
        assert!(super::planned("shop", &plan, Version(7)).contains("what orders does not hold is deleted"));
    }
}
