//! Rebuilding: the source is read anew, and what differs from the last version is announced as the next one.
//!
//! ```text
//!  plan     each partition as it stands: from where it is read, to which end, and what becomes of a key it does not hold
//!  fold     the log (what Kafka holds no more), then every partition up to its end  => sorted runs   (view/fold)
//!  built    the difference to the view, letters, positions at those ends            => store, announce, as any version
//! ```
//!
//! It is all that its life does: the stages before `store` do not run, and what is not announced whole is not announced
//! at all. The outcome stands in the control topic by the transaction that announces the version, so a rebuild that is cut
//! short begins again, from the request, in the next life.
//!
//! Memory: a run's buffer (64 MiB and 48 bytes an entry), what Kafka's client fetches ahead, and the letters.
//!
//! Owns: what a rebuild reads and deletes. Does not own: the request (`control`), the fold's order (`view/fold`).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

mod letters;
mod logged;
pub mod plan;

pub use plan::{Plan, Planned, Standing, plan};

use super::Options;
use super::build::{Built, COMPRESSION_LEVEL, INLINE_BYTES, blob_name};
use super::lap::Lap;
use super::log::{self, Log};
use super::schemas::{Learnt, Library};
use super::snapshot;
use crate::blob::name;
use crate::codec::{self, Codec, SchemaId, Unread};
use crate::dead;
use crate::failpoint;
use crate::format::control::{From, Rebuild, Rebuilt};
use crate::format::letter::{self, Letter};
use crate::kafka::{self, Message, Polled, Poller, Tuning};
use crate::record::{SourcePartition, Stamp};
use crate::version::{BlobRef, DeltaRef, Life};
use crate::view::fold::{Counts, Difference};
use crate::view::{self, About, Cache, DeltaFile, FileName, Fold, Identity, View};

/// Bytes that the client fetches ahead.
const FETCH_AHEAD: u64 = 64 << 20;
/// Most bytes of letters: they go out in one transaction, which has 15 seconds.
const MOST_LETTER_BYTES: u64 = 64 << 20;
/// Longest time without any progress.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is said how far it is.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Why a rebuild cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kafka does not answer, or refuses.
    #[error("{doing}")]
    Kafka {
        /// What was being done.
        doing: &'static str,
        /// Kafka's reason.
        #[source]
        source: kafka::Error,
    },
    /// The configuration does not fit what is there.
    #[error("{0}")]
    Mismatch(String),
    /// Retention was faster.
    #[error("{partition} lost records while it was read ({detail}); it is read again")]
    Lost {
        /// The partition.
        partition: SourcePartition,
        /// Kafka's words.
        detail: String,
    },
    /// So many records do not fit that the format or the schema must be wrong.
    #[error(
        "more than {MOST_LETTER_BYTES} bytes of records fit neither format nor schema, the last one of {partition} at \
         offset {offset}: {message}. Correct `source.format` or `schema`, or withdraw the rebuild \
         (`stillwell rebuild DATASET --withdraw`). {unfit} of them were read before, and no dead letter says that they did not fit: \
         they did, or their letters are gone"
    )]
    Misfits {
        /// Where the last one came from.
        partition: SourcePartition,
        /// Its offset.
        offset: i64,
        /// What is wrong with it.
        message: String,
        /// How many of all lie below the announced positions.
        unfit: u64,
    },
    /// A record whose schema nobody knows was read before, when somebody did: passed over, its key would be lost.
    #[error(
        "{partition} at offset {offset} names {id}, which the schema registry does not know, and no dead letter says that \
         it did not when the record was first read. Nothing is announced. Register the schema, correct `url` in \
         [schema_registry], or withdraw the rebuild (`stillwell rebuild DATASET --withdraw`)"
    )]
    Stranger {
        /// Where the record came from.
        partition: SourcePartition,
        /// Its offset.
        offset: i64,
        /// What it names.
        id: SchemaId,
    },
    /// Whether records that do not fit were dead letters before cannot be looked up.
    #[error("looking whether records that do not fit were dead letters before")]
    Letters(#[source] dead::Error),
    /// The codec cannot be made.
    #[error("preparing the codec")]
    Codec(#[from] codec::Error),
    /// The log cannot be read.
    #[error("reading the log")]
    Log(#[from] log::Error),
    /// The log's bytes are not what they were.
    #[error("a letter of the log cannot be read")]
    Letter(#[from] letter::Error),
    /// The runs, or the view.
    #[error("folding the source")]
    View(#[from] view::Error),
    /// Told to stop.
    #[error("told to stop")]
    Stopped,
}

impl Error {
    /// Whether trying again may help without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Kafka { source, .. } => source.is_transient(),
            Error::Letters(source) => source.is_transient(),
            Error::Mismatch(_) | Error::Misfits { .. } | Error::Stranger { .. } | Error::Codec(_) => false,
            Error::Lost { .. } | Error::Log(_) | Error::Letter(_) | Error::Stopped => true,
            Error::View(source) => source.is_transient(),
        }
    }
}

/// What a fold of the source gives.
pub struct Folded {
    /// The records.
    pub fold: Fold,
    /// Those that do not fit, and were not letters before.
    pub letters: Vec<Letter>,
    /// How many of those were taken when they were first read, and would not be now.
    pub unfit: u64,
    /// Records read, misfits included.
    pub read: u64,
}

/// Reads what the plan says. Blocks, within a runtime; `log` is read first for what the topic does not hold any more.
///
/// # Errors
/// [`Error`].
pub fn fold(
    options: &Options,
    plan: &Plan,
    cache: &Cache,
    identity: &Identity,
    (log, library): (Option<&Log>, Option<Library>),
    stop: &CancellationToken,
) -> Result<Folded, Error> {
    let mut reading = Reading::new(options, plan, (cache, identity), library, stop)?;
    if let Some(log) = log {
        reading.log(log, &options.origin(identity.topic_id))?;
    }
    reading.kafka()?;
    Ok(reading.folded)
}

struct Reading<'a> {
    options: &'a Options,
    plan: &'a Plan,
    codec: Codec,
    folded: Folded,
    letter_bytes: u64,
    /// Where schemas are asked for, if the source's values name any.
    library: Option<Library>,
    /// Those that nobody knows.
    strangers: HashSet<SchemaId>,
    /// The records that are letters already, once it was asked.
    letters: Option<HashSet<letters::Place>>,
    /// One was waited for, and Kafka not asked meanwhile.
    waited: bool,
    stop: &'a CancellationToken,
}

impl<'a> Reading<'a> {
    /// Nothing is read yet.
    fn new(
        options: &'a Options,
        plan: &'a Plan,
        (cache, identity): (&Cache, &Identity),
        library: Option<Library>,
        stop: &'a CancellationToken,
    ) -> Result<Reading<'a>, Error> {
        let sources = plan.positions.iter().map(|position| position.source.clone()).collect();
        let fold = Fold::new(cache.clone(), identity.clone(), options.schema.clone(), sources);
        let mut codec = Codec::new(options.format.clone(), options.key.clone(), options.schema.clone())?;
        codec.set_bound(options.bound);
        Ok(Reading {
            options,
            plan,
            codec,
            folded: Folded { fold, letters: Vec::new(), unfit: 0, read: 0 },
            letter_bytes: 0,
            library,
            strangers: HashSet::new(),
            letters: None,
            waited: false,
            stop,
        })
    }
}

impl Reading<'_> {
    fn kafka(&mut self) -> Result<(), Error> {
        let plan = self.plan;
        let clock = &self.options.clock;
        let kafka = |doing| move |source| Error::Kafka { doing, source };
        let open: Vec<&Planned> =
            plan.partitions.iter().filter(|planned| planned.from < planned.to).collect();
        let group = format!("stillwell.{}", self.options.dataset);
        let tuning = Tuning { role: "rebuild", ..Tuning::source(&group, FETCH_AHEAD) };
        let mut poller =
            Poller::new(&self.options.kafka, &tuning).map_err(kafka("creating a client to rebuild with"))?;
        let assignment: Vec<(&str, i32, i64)> = open
            .iter()
            .map(|planned| (&*planned.source.topic, planned.source.partition, planned.from))
            .collect();
        poller.assign(&assignment).map_err(kafka("assigning the source's partitions"))?;
        let mut next: Vec<i64> = open.iter().map(|planned| planned.from).collect();
        let mut left = open.len();
        let (mut progress, mut said): (Instant, Instant) = (clock.now(), clock.now());
        while left > 0 {
            if self.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            let mut done = None;
            match poller.poll(Duration::from_millis(100)) {
                Some(Polled::Record { slot, message }) => {
                    progress = clock.now();
                    if let Some((planned, next)) = open.get(slot).zip(next.get_mut(slot))
                        && *next < planned.to
                        && message.offset() >= *next
                    {
                        if message.offset() < planned.to {
                            self.record(planned, &message)?;
                            if std::mem::take(&mut self.waited) {
                                progress = clock.now();
                            }
                        }
                        *next = message.offset() + 1;
                        done = (*next >= planned.to).then_some(slot);
                    }
                }
                Some(Polled::End { slot, offset }) => {
                    progress = clock.now();
                    if let Some((planned, next)) = open.get(slot).zip(next.get_mut(slot))
                        && *next < planned.to
                        && offset >= planned.to
                    {
                        *next = offset;
                        done = Some(slot);
                    }
                }
                Some(Polled::Lost { slot, detail }) => {
                    let partition = open.get(slot).map(|planned| planned.source.clone());
                    let partition = partition.ok_or_else(|| Error::Mismatch(detail.clone()))?;
                    return Err(Error::Lost { partition, detail });
                }
                Some(Polled::Error(error)) if !error.is_transient() => {
                    return Err(Error::Kafka { doing: "reading the source topics", source: error });
                }
                Some(Polled::Error(error)) => {
                    tracing::warn!(%error, "reading the source topics; the client tries again");
                }
                None => {}
            }
            if let Some(slot) = done {
                left -= 1;
                poller.pause([slot]).map_err(kafka("pausing a partition that was read"))?;
            }
            let now = clock.now();
            if now.saturating_duration_since(progress) > PATIENCE {
                let source = kafka::Error::Unavailable {
                    doing: format!("reading the sources of {} to their ends", self.options.dataset),
                    detail: format!("nothing came for {PATIENCE:?}"),
                };
                return Err(Error::Kafka { doing: "reading the source topics", source });
            }
            if now.saturating_duration_since(said) > SAY_EVERY {
                said = now;
                let (read, of) = (self.folded.read, plan.offsets());
                tracing::info!(dataset = self.options.dataset, read, of, "rebuilding: reading the source");
            }
        }
        Ok(())
    }

    fn record(&mut self, planned: &Planned, message: &Message<'_>) -> Result<(), Error> {
        self.folded.read += 1;
        let stamp =
            Stamp { timestamp: message.timestamp_ms(), source: planned.index, offset: message.offset() };
        let record = message.encoded(self.codec.looks_around());
        while let Some(id) = self.codec.unknown(record).filter(|id| !self.strangers.contains(id)) {
            self.learn(id)?;
        }
        let unread = match self.codec.read(record) {
            Ok(decoded) => return Ok(self.folded.fold.push(decoded.key, decoded.value, stamp)?),
            Err(unread) => unread,
        };
        if planned.announced.is_some_and(|next| message.offset() < next) {
            if self.was_letter(stamp)? {
                return Ok(());
            }
            // It was taken then: schema, format, bounds or the codec's own rules are others now, and passed over its key would
            // go without a word. A registry forgets, or is another one: that can be mended, so nothing is announced.
            if let Unread::Unknown { id, .. } = unread {
                let (partition, offset) = (planned.source.clone(), stamp.offset);
                return Err(Error::Stranger { partition, offset, id });
            }
            self.folded.unfit += 1;
        }
        let letter = dead::letter::of(&unread.misfit(), &planned.source, message);
        self.options.metrics.dead_letters_total.with(&[&letter.stage]).inc();
        self.misfit(letter)
    }

    /// Waits for a schema, for as long as it takes.
    fn learn(&mut self, id: SchemaId) -> Result<(), Error> {
        self.waited = true;
        let library = self.library.clone();
        let learnt = Handle::current().block_on(async {
            tokio::select! {
                () = self.stop.cancelled() => Err(Error::Stopped),
                learnt = async {
                    match &library {
                        Some(library) => library.find(id).await,
                        None => Learnt::Unknown,
                    }
                } => Ok(learnt),
            }
        })?;
        match learnt {
            Learnt::Schema(schema) => self.codec.learn(id, Ok(&schema)),
            Learnt::Unusable(why) => self.codec.learn(id, Err(&why)),
            Learnt::Unknown => {
                self.strangers.insert(id);
            }
        }
        Ok(())
    }

    /// Whether a record that was read before is a letter already.
    fn was_letter(&mut self, stamp: Stamp) -> Result<bool, Error> {
        let known = match &mut self.letters {
            Some(known) => known,
            none => {
                self.waited = true;
                none.insert(letters::look(self.options, self.plan, self.stop)?)
            }
        };
        Ok(known.contains(&letters::Place::of(&stamp)))
    }

    fn misfit(&mut self, letter: Letter) -> Result<(), Error> {
        self.letter_bytes += letter.size() as u64;
        if self.letter_bytes > MOST_LETTER_BYTES {
            let Letter { source: partition, offset, message, .. } = letter;
            return Err(Error::Misfits { partition, offset, message, unfit: self.folded.unfit });
        }
        self.folded.letters.push(letter);
        Ok(())
    }
}

/// How the view differs from a fold of the source, without making a version of it. Blocks.
///
/// # Errors
/// [`Error::View`].
pub fn compare(plan: &Plan, folded: Folded, view: &View, life: Life) -> Result<Difference, Error> {
    Ok(folded.fold.difference(view, life, |stamp| plan.absent(stamp))?)
}

/// The stage: all that a life does which rebuilds.
pub struct Rebuilder {
    /// The producer's options.
    pub options: Options,
    /// What was asked for.
    pub request: Rebuild,
    /// What is read.
    pub plan: Plan,
    /// The last version.
    pub view: View,
    /// Nothing of it can be had.
    pub lost: bool,
    /// This life.
    pub life: Life,
    /// Dataset, announcement topic id, shard.
    pub identity: Identity,
    /// Where runs and the delta are.
    pub cache: Cache,
    /// The log.
    pub log: Log,
    /// Where schemas are asked for, if the source's values name any.
    pub library: Option<Library>,
}

impl Rebuilder {
    /// Hands on the one version that makes the dataset what its source holds. Ends early when `kill` is cancelled.
    ///
    /// # Errors
    /// [`Error`]; nothing was announced then.
    pub async fn run(self, out: mpsc::Sender<Built>, kill: CancellationToken) -> Result<(), Error> {
        let stop = kill.child_token();
        // A thread cannot be aborted: whoever drops this future still ends it.
        let _stopped_on_drop = stop.clone().drop_guard();
        let built = tokio::task::spawn_blocking(move || self.build(&stop));
        match built.await {
            Ok(Ok(built)) => {
                let _ = out.send(built).await;
                failpoint::pass("rebuild.handed-on");
                Ok(())
            }
            Ok(Err(Error::Stopped)) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Ok(()),
            },
        }
    }

    fn build(self, stop: &CancellationToken) -> Result<Built, Error> {
        let Rebuilder { options, request, plan, view, lost, life, identity, cache, log, library } = self;
        let began = options.clock.now();
        tracing::warn!(
            dataset = options.dataset, request = %request.id, from = %request.from, offsets = plan.offsets(),
            deleting = ?plan.deleting, "rebuilding from the source; readers keep version {}", view.version()
        );
        let mut folded = fold(&options, &plan, &cache, &identity, (Some(&log), library), stop)?;
        failpoint::pass("rebuild.folded");
        let letters = std::mem::take(&mut folded.letters);
        let (read, unfit) = (folded.read, folded.unfit);
        let difference = compare(&plan, folded, &view, life)?;
        let Counts { added, changed, deleted, mut kept, unchanged } = difference.counts;
        if request.from == From::Positions {
            // What lies before the positions was not read: that it is absent says nothing.
            kept = 0;
        }
        let (version, records) = (view.version().next(), view.records() + added - deleted);
        let level = options.performance.enable_compression.then_some(COMPRESSION_LEVEL);
        let (stored, checksum) = difference.pack(level, &cache, &identity)?;
        let Difference { file, summary, .. } = difference;
        let delta = DeltaRef {
            version,
            epoch: life.epoch,
            blob: BlobRef {
                name: blob_name(&identity, name::Kind::Delta, version, life, checksum),
                bytes: stored.len() as u64,
                checksum,
                plain_bytes: summary.plain_bytes,
                plain_checksum: summary.plain_checksum,
                location: None,
            },
            upserts: summary.counts.upserts,
            deletes: summary.counts.deletes,
        };
        let held = cache.keep(&identity, &FileName::delta(&delta), file)?;
        failpoint::pass("rebuild.packed");
        let file = DeltaFile::open(&held, &identity, &delta, view.schema())?;
        let about = About { version, life, records, ..view.about().clone() };
        let view = view.apply(Arc::new(file), about)?;
        tracing::warn!(
            dataset = options.dataset, request = %request.id, %version, read, added, changed, deleted, kept, unchanged,
            letters = letters.len(), took = ?options.clock.now().saturating_duration_since(began),
            "rebuilt; the version is stored and announced now"
        );
        if unfit > 0 {
            tracing::warn!(
                dataset = options.dataset,
                records = unfit,
                "these were taken when they were first read and do not fit any more: they are dead letters now"
            );
        }
        if kept > 0 {
            tracing::warn!(
                dataset = options.dataset,
                keys = kept,
                "the source does not hold these keys, and is not compacted: they were kept. `--deletes` deletes them"
            );
        }
        // Where the last version is lost, a delta to it is of no use to anybody: readers take the snapshot.
        let whole = match lost {
            true => {
                Some(Box::new(snapshot::merge(&view, &cache, life, options.performance.enable_compression)?))
            }
            false => None,
        };
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        logged::cut_back(&log, &options.origin(identity.topic_id), &plan)?;
        let outcome = Rebuilt {
            request,
            version,
            epoch: life.epoch,
            at: options.clock.wall_ms(),
            read,
            letters: letters.len() as u64,
            upserts: added + changed,
            deletes: deleted,
            kept,
        };
        Ok(Built {
            inline: (stored.len() <= INLINE_BYTES).then(|| stored.clone()),
            delta,
            stored,
            view,
            positions: Vec::new(),
            letters,
            coalesced: 0,
            unchanged,
            newest_timestamp: None,
            received_at: None,
            leases: Vec::new(),
            turn: None,
            lap: Lap::default(),
            outcome: Some(Box::new(outcome)),
            whole,
        })
    }
}
