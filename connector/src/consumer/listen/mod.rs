//! Acting on changes: a listener is told of each version's changes, in order, and what it has handled is remembered.
//!
//! ```text
//!  recent ==Step==> Runner --ChangeSet--> Listener        the caller's code, or the webhook (hook.rs)
//!                     |   ^                  |
//!                     |   '-- try again <----'  backoff, breaker; after the last try a letter for each change (letters.rs),
//!                     |                         unless too many sets went that way before (storm.rs)
//!                     v
//!                 checkpoint: the version that was handled, or how far the next one is
//! ```
//!
//! What a listener may rely on:
//!
//! - Each change at least once, and once as long as the process does not die in the middle of a call: what was handled is
//!   written down before the next call.
//! - Versions in order, each by itself. One that is more than [`MOST_BEHIND`] versions behind, or away for longer than
//!   the newest version's chain reaches back, is given several as one: the difference, marked with both versions.
//! - A rollback is one difference, marked so.
//! - Readers never wait for a listener, nor one listener for another.
//!
//! Owns: a listener's thread, its order, its tries. Does not own: what changed (`view`), which versions there are
//! (`recent`).

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::version::Version;
use crate::view::Change;

mod checkpoint;
mod hook;
mod letters;
mod report;
mod storm;
mod run;
#[cfg(test)]
pub(crate) mod tests;

pub use report::{Report, Told};
pub use run::Runner;

/// Changes in a set, where the listener does not say.
const BATCH_SIZE: usize = 1_000;
/// Versions that a listener may be behind and still be given one by one.
pub const MOST_BEHIND: usize = super::recent::MOST;

/// Acts on each version's changes. See [`crate::ConsumerBuilder::listener`].
///
/// ```
/// use stillwell::{ChangeSet, Failed, Listener};
///
/// struct Print;
///
/// impl Listener for Print {
///     async fn changed(&self, set: &ChangeSet<'_>) -> Result<(), Failed> {
///         for change in &set.changes {
///             let key = String::from_utf8_lossy(change.key());
///             match change.after() {
///                 Some(value) => println!("{} {key} = {}", set.version, value.to_json()?),
///                 None => println!("{} {key} is gone", set.version),
///             }
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Listener: Send + Sync + 'static {
    /// Handles changes of one version: all of them, or a part of [`Listener::batch_size`].
    ///
    /// An error has the same set come again, with backoff. After the last try each of its changes becomes a dead letter,
    /// and the listener goes on with the next, unless too many sets were given up before
    /// ([`Tries::breaker_threshold`]); [`Failed::away`] is tried for ever. A panic is an error.
    fn changed(&self, set: &ChangeSet<'_>) -> impl Future<Output = Result<(), Failed>> + Send;

    /// Most changes in one set; a larger version comes in several. A set also ends once its keys and values have 4 MiB.
    /// Default 1000.
    fn batch_size(&self) -> usize {
        BATCH_SIZE
    }
}

/// Changes of one version, or of several where the listener was too far behind.
#[derive(Clone, Debug)]
pub struct ChangeSet<'a> {
    /// Dataset.
    pub dataset: &'a str,
    /// The version that holds them.
    pub version: Version,
    /// The version that they are the difference to: the one before, as a rule. 0: there was none.
    pub from: Version,
    /// The dataset went back to an older version: `version` is below `from`.
    pub rollback: bool,
    /// What was handled last cannot be opened any more, or belongs to another history: these are all records there are, with
    /// no values before. What is not among them is gone.
    pub reset: bool,
    /// When the version was announced, milliseconds since the Unix epoch.
    pub announced_at_ms: i64,
    /// Names this set: the same again when it comes again, after a restart too. Never used for another.
    pub id: String,
    /// Counts the sets of a version, from 0.
    pub batch: u64,
    /// The last set of this version.
    pub last: bool,
    /// In the order of the keys' bytes, each key once.
    pub changes: Vec<Change<'a>>,
}

/// Why a listener did not handle a set, and what follows. Made of any error by `?`.
#[derive(Debug)]
pub struct Failed {
    pub(super) why: Why,
    pub(super) error: BoxError,
    /// Not before.
    pub(super) wait: Option<Duration>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a failure counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The set's tries, and the breaker.
    Failed,
    /// The set's tries: what it needs is there, and does not want it.
    Refused,
    /// The breaker: what it needs is away, which is not the set's fault.
    Away,
}

impl Failed {
    /// It may go better next time; one of the set's tries.
    pub fn again(error: impl Into<BoxError>) -> Failed {
        Failed { why: Why::Failed, error: error.into(), wait: None }
    }

    /// What the listener needs does not answer, or lets it not in (expired credentials, say): the set is tried until it does,
    /// and never becomes a letter for that. An outage is not a poisoned record.
    pub fn away(error: impl Into<BoxError>) -> Failed {
        Failed { why: Why::Away, error: error.into(), wait: None }
    }

    /// The set is not acceptable; one of its tries, though nothing is amiss with what the listener needs.
    pub fn refused(error: impl Into<BoxError>) -> Failed {
        Failed { why: Why::Refused, error: error.into(), wait: None }
    }

    /// The same, and not to be tried again before so long.
    #[must_use]
    pub fn after(self, wait: Duration) -> Failed {
        Failed { wait: Some(wait), ..self }
    }
}

// `Failed` is no `Error` itself, or this would overlap with the conversion of a type into itself.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for Failed {
    fn from(error: E) -> Failed {
        Failed::again(error)
    }
}

/// A listener as it is kept: without its type.
pub(crate) trait Handler: Send + Sync {
    fn handle<'a>(&'a self, set: &'a ChangeSet<'a>) -> BoxFuture<'a, Result<(), Failed>>;
    fn batch_size(&self) -> usize;
}

impl<L: Listener> Handler for L {
    fn handle<'a>(&'a self, set: &'a ChangeSet<'a>) -> BoxFuture<'a, Result<(), Failed>> {
        Box::pin(self.changed(set))
    }

    fn batch_size(&self) -> usize {
        Listener::batch_size(self)
    }
}

/// Where a listener begins that has handled nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Begin {
    /// With all records of the newest version, as changes from nothing.
    #[default]
    Everything,
    /// With the first version after the newest one.
    Newest,
}

/// How often a set is tried, and when.
#[derive(Clone, Copy, Debug)]
pub struct Tries {
    /// Attempts after the first.
    pub more: u32,
    /// First wait between attempts; it doubles.
    pub first_wait: Duration,
    /// Longest.
    pub longest_wait: Duration,
    /// Failures in a row that open the breaker. Also: sets that may be given up beyond as many as were handled; then the
    /// listener is held at the next that fails, which is tried until it is handled, and nothing becomes a letter until it
    /// is, or [`crate::Consumer::let_through`] is called.
    pub breaker_threshold: u32,
    /// How long it stays open before it lets one attempt through.
    pub breaker_reset: Duration,
}

impl Default for Tries {
    fn default() -> Tries {
        Tries {
            more: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(30),
            breaker_threshold: 10,
            breaker_reset: Duration::from_secs(30),
        }
    }
}

/// A listener, and how it is to be run.
#[derive(Clone)]
pub struct Listening {
    /// Its name: of its checkpoint, in metrics, in health.
    pub name: String,
    pub(super) handler: Arc<dyn Handler>,
    /// The stage of its dead letters.
    pub(super) stage: Stage,
    /// Where it begins.
    pub begin: Begin,
    /// Its tries.
    pub tries: Tries,
}

/// Which kind of listener failed, as letters and metrics spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Code of who embeds the library.
    Listener,
    /// A webhook.
    Webhook,
}

impl Stage {
    /// As metrics and letters spell it.
    pub fn label(self) -> &'static str {
        match self {
            Stage::Listener => "listener",
            Stage::Webhook => "webhook",
        }
    }
}

impl Listening {
    /// A listener of this name.
    pub fn new(name: impl Into<String>, listener: impl Listener) -> Listening {
        Listening {
            name: name.into(),
            handler: Arc::new(listener),
            stage: Stage::Listener,
            begin: Begin::default(),
            tries: Tries::default(),
        }
    }

    fn as_webhook(handler: impl Handler + 'static, begin: Begin, tries: Tries) -> Listening {
        let handler = Arc::new(handler);
        Listening { name: Stage::Webhook.label().to_owned(), handler, stage: Stage::Webhook, begin, tries }
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening")
            .field("name", &self.name)
            .field("begin", &self.begin)
            .finish_non_exhaustive()
    }
}
