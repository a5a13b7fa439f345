//! Mending: a page of the base that a reader found damaged is never served, and would stay an error in all later versions,
//! which share the base. Its files are fetched again, beside the flow: versions that come meanwhile are read as ever.
//!
//! The damaged files stay where they are until whole ones take their places: their other pages are good, and with the
//! store away they are all that a start would find.
//!
//! Owns: whether and when files are fetched for that. Does not own: fetching (`open`), what becomes of the view (`follow`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::open::{Error, Opener};
use super::tail::Announced;
use crate::clock::Entropy;
use crate::retry::Backoff;
use crate::version::Version;
use crate::view::{Cache, View};

/// How often the view is asked whether a page of it was found damaged.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait before a damaged file is fetched again.
const LONGEST: Duration = Duration::from_secs(60);

/// What came of it.
pub struct Mended {
    /// The version that was opened anew.
    pub announced: Arc<Announced>,
    /// Its view, all of whose files came whole from the store.
    pub opened: Result<View, Error>,
    /// As in [`Opener`].
    pub restored: Option<(Version, String)>,
    /// What it was for.
    pub damaged: Damaged,
}

/// Files of the cache.
pub struct Damaged(Vec<PathBuf>);

impl Damaged {
    /// Removes them, but for those whose places whole ones of `view` have taken.
    pub fn clear(&self, view: &View, cache: &Cache, dataset: &str) {
        let files = view.base().and_then(|base| base.files());
        let is_new = |path: &PathBuf| {
            files.is_some_and(|files| [&files.snapshot, &files.index].iter().any(|held| held.path() == path))
        };
        for path in self.0.iter().filter(|path| !is_new(path)) {
            if let Err(error) = cache.discard(path) {
                tracing::warn!(dataset, %error, "a damaged file cannot be discarded");
            }
        }
    }
}

/// The mending of one shard.
pub struct Mending {
    entropy: Entropy,
    running: JoinSet<Mended>,
    backoff: Backoff,
    /// Not before, after an attempt that failed.
    again_at: Option<tokio::time::Instant>,
}

impl Mending {
    /// Nothing is damaged yet. Waits are at most as long as `max_backoff`, or a minute where that is shorter.
    pub fn new(max_backoff: Duration, entropy: Entropy) -> Mending {
        let backoff = Backoff::new(LOOK_EVERY, max_backoff.max(LONGEST));
        Mending { entropy, running: JoinSet::new(), backoff, again_at: None }
    }

    /// Begins to fetch anew what was found damaged of `held`, if anything was. `last` is what it was made of.
    pub fn begin(&mut self, held: &View, last: &Arc<Announced>, opener: &Opener, dataset: &str) {
        let waits = self.again_at.is_some_and(|at| tokio::time::Instant::now() < at);
        if waits || !self.running.is_empty() {
            return;
        }
        let Some(damaged) = held.damaged() else { return };
        let damaged: Vec<_> = damaged.map(std::path::Path::to_owned).into();
        tracing::warn!(dataset, files = ?damaged, "a file of the blob cache is damaged; fetching it again");
        let (mut opener, announced) = (opener.anew(&damaged), last.clone());
        self.running.spawn(async move {
            let opened = opener.open_or_restore(announced.topic_id, &announced.announcement).await;
            Mended { announced, opened, restored: opener.restored, damaged: Damaged(damaged) }
        });
    }

    /// The next one that is done; `None` while none runs. A panic there is one here.
    pub async fn next(&mut self) -> Option<Mended> {
        match self.running.join_next().await? {
            Ok(mended) => Some(mended),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => None,
            },
        }
    }

    /// All is well again.
    pub fn done(&mut self) {
        self.again_at = None;
        self.backoff.reset();
    }

    /// It did not work: how long until the next attempt.
    pub fn failed(&mut self) -> Duration {
        let wait = self.backoff.next(&self.entropy);
        self.again_at = Some(tokio::time::Instant::now() + wait);
        wait
    }
}
