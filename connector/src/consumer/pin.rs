//! The pin: which of the announced versions this reader holds.
//!
//! ```text
//!  tail ====Seen====> pin ====Seen====> follow      not pinned: all that is announced
//!  control --Told-----^ '---- look up               pinned: the one version, and what is announced beside it
//! ```
//!
//! By the reader's own configuration ([`Fixed`]), which wins, or by a record of the control topic, which says at which
//! offset the version's announcement lies: one fetch finds it. Nothing is handed on before the control topic was read to
//! its end, so that no version is shown that readers are pinned away from. While it is pinned the tail is followed all the
//! same: after an unpin the newest version is here.
//!
//! Owns: what is handed on, the pin that the cache remembers. Does not own: opening it (`follow`), the topic (`control`).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Options;
use super::control::{self, Told};
use super::history::History;
use super::tail::{Announced, Seen, UNREACHABLE};
use crate::error::{Error, ErrorKind, Result};
use crate::format::announcement::Announcement;
use crate::format::control::{Pin, Refusal};
use crate::record::TopicId;
use crate::retry::Backoff;
use crate::version::{Shard, ShardVersions, Version};
use crate::view::Cache;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
/// How soon a version is looked for again that the topic does not hold: only somebody's doing brings it there.
const NOT_THERE: Duration = Duration::from_secs(60);

/// What a reader's own configuration pins it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fixed {
    /// This version.
    Version(Version),
    /// The newest one announced by then, milliseconds since the Unix epoch.
    At(i64),
}

impl Fixed {
    /// Whether a version out of the cache may be shown until Kafka answers: it is the configured one, or was announced
    /// by the configured time.
    pub(super) fn admits(self, announcement: &Announcement) -> bool {
        match self {
            Fixed::Version(version) => announcement.version == version,
            Fixed::At(ms) => announcement.announced_at <= ms,
        }
    }
}

/// What a reader is pinned to, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The version of each shard; empty until it is known which one was the newest at the configured time.
    pub versions: ShardVersions,
    /// By the reader's own configuration, not by the control topic.
    pub fixed: bool,
    /// Who pinned; empty where it is configured.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// When, milliseconds since the Unix epoch; `None` where it is configured.
    pub at: Option<i64>,
}

/// Whether readers are pinned, for health and for who embeds one.
#[derive(Clone, Debug, Default)]
pub struct PinStatus {
    /// To what; `None`: to nothing.
    pub pinned: Option<Pinned>,
    /// Why the pinned version's announcement is not found.
    pub error: Option<String>,
    /// Why the control topic is not read: pins since are not known.
    pub control: Option<String>,
    /// What readers of the dataset refuse, this one among them.
    pub refusals: Vec<Refusal>,
}

impl PinStatus {
    /// Before Kafka has said anything: what the configuration says, or the cache remembers.
    pub fn remembered(options: &Options, pin: Option<&Pin>) -> PinStatus {
        let target = options.fixed.map(Target::Fixed).or_else(|| pin.cloned().map(Target::Pin));
        PinStatus { pinned: target.map(|target| target.told(None)), ..PinStatus::default() }
    }
}

/// What to hold instead of the newest version.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Pin(Pin),
    Fixed(Fixed),
}

impl Target {
    fn told(&self, found: Option<Version>) -> Pinned {
        match self {
            Target::Pin(pin) => Pinned {
                versions: pin.shard_versions(),
                fixed: false,
                by: pin.by.clone(),
                reason: pin.reason.clone(),
                at: Some(pin.at),
            },
            Target::Fixed(fixed) => {
                let version = match fixed {
                    Fixed::Version(version) => Some(*version),
                    Fixed::At(_) => found,
                };
                Pinned {
                    versions: ShardVersions(version.into_iter().collect()),
                    fixed: true,
                    by: String::new(),
                    reason: String::new(),
                    at: None,
                }
            }
        }
    }

    /// Whether an announcement is the one.
    fn is(&self, shard: Shard, announced: &Announced) -> bool {
        let announcement = &announced.announcement;
        match self {
            Target::Pin(pin) => {
                let epoch = announcement.life.epoch;
                pin.names(shard, announced.topic_id, announcement.version, epoch)
            }
            Target::Fixed(fixed) => fixed.admits(announcement),
        }
    }
}

/// What is handed on.
enum Goal {
    /// Nothing: the control topic has not been read to its end yet.
    Unknown,
    /// All that is announced.
    Newest,
    /// One version, once it is found: which one, of which topic.
    Held { target: Target, found: Option<(TopicId, Version)> },
}

/// The stage.
pub struct PinStage {
    options: Options,
    shard: Shard,
    cache: Cache,
    seen: mpsc::Receiver<Seen>,
    told: watch::Receiver<Told>,
    out: mpsc::Sender<Seen>,
    status: watch::Sender<PinStatus>,
    goal: Goal,
    newest: Option<Arc<Announced>>,
    at_end: bool,
    lookups: JoinSet<Result<Arc<Announced>>>,
    backoff: Backoff,
    retry_at: Option<tokio::time::Instant>,
    /// That the present goal is not found was counted: how often it is looked for makes it no worse.
    counted: bool,
}

/// Whoever listened is gone.
struct Gone;

impl PinStage {
    /// Stands between the tail (`seen`) and the follower (`out`).
    pub fn new(
        options: Options,
        shard: Shard,
        cache: Cache,
        seen: mpsc::Receiver<Seen>,
        told: watch::Receiver<Told>,
        out: mpsc::Sender<Seen>,
        status: watch::Sender<PinStatus>,
    ) -> PinStage {
        let backoff = Backoff::new(FIRST_BACKOFF, options.max_backoff);
        PinStage {
            options,
            shard,
            cache,
            seen,
            told,
            out,
            status,
            goal: Goal::Unknown,
            newest: None,
            at_end: false,
            lookups: JoinSet::new(),
            backoff,
            retry_at: None,
            counted: false,
        }
    }

    /// Hands on until `stop`, or until one of its neighbours is gone.
    pub async fn run(mut self, stop: CancellationToken) {
        // What was told before this began counts too.
        self.told.mark_changed();
        let mut telling = true;
        loop {
            let went = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                changed = self.told.changed(), if telling => match changed {
                    Ok(()) => self.decide().await,
                    Err(_) => {
                        telling = false;
                        Ok(())
                    }
                },
                Some(looked) = self.lookups.join_next() => self.looked(looked).await,
                () = super::next::sleep_until(self.retry_at) => {
                    self.retry_at = None;
                    self.look();
                    Ok(())
                }
                seen = self.seen.recv() => match seen {
                    Some(seen) => self.take(seen).await,
                    None => return,
                },
            };
            if let Err(Gone) = went {
                return;
            }
        }
    }

    async fn hand_on(&self, seen: Seen) -> std::result::Result<(), Gone> {
        self.out.send(seen).await.map_err(|_| Gone)
    }

    async fn take(&mut self, seen: Seen) -> std::result::Result<(), Gone> {
        match &seen {
            Seen::Announced(announced) => self.newest = Some(announced.clone()),
            Seen::UpToDate => self.at_end = true,
            _ => {}
        }
        match (seen, &self.goal) {
            (Seen::Announced(announced), Goal::Newest) => self.hand_on(Seen::Announced(announced)).await,
            (Seen::Announced(announced), Goal::Held { target, found }) => {
                let (is, found) = (target.is(self.shard, &announced), found.is_some());
                self.hand_on(Seen::Newest(announced.clone())).await?;
                if is {
                    return self.found(announced).await;
                }
                // How fast versions come says nothing about when it is there: the wait after a failure is kept.
                if !found && self.retry_at.is_none() {
                    self.look();
                }
                Ok(())
            }
            (Seen::Announced(_), Goal::Unknown) => Ok(()),
            (Seen::UpToDate, Goal::Newest) => self.hand_on(Seen::UpToDate).await,
            (Seen::UpToDate, _) => Ok(()),
            (seen, _) => self.hand_on(seen).await,
        }
    }

    /// What is to be held, by what is known now.
    async fn decide(&mut self) -> std::result::Result<(), Gone> {
        let told = self.told.borrow_and_update().clone();
        let refusals: Vec<Refusal> = told.standing.refusals.into_values().collect();
        let back = told.error.is_none() && self.status.borrow().control.is_some();
        self.status.send_modify(|status| {
            status.control.clone_from(&told.error);
            status.refusals = refusals;
        });
        let target = match (self.options.fixed, told.known) {
            (Some(fixed), _) => Some(Target::Fixed(fixed)),
            (None, true) => told.standing.pin.map(Target::Pin),
            (None, false) => return Ok(()),
        };
        if self.options.fixed.is_none() {
            self.remember(target.as_ref(), told.topic);
        }
        let dataset = &self.options.dataset;
        match target {
            None if matches!(self.goal, Goal::Newest) => Ok(()),
            None => {
                if matches!(self.goal, Goal::Held { .. }) {
                    tracing::info!(dataset, "unpinned: the newest version is followed again");
                }
                self.turn(Goal::Newest);
                self.tell(None, None);
                if let Some(newest) = self.newest.clone() {
                    self.hand_on(Seen::Announced(newest)).await?;
                }
                if self.at_end { self.hand_on(Seen::UpToDate).await } else { Ok(()) }
            }
            Some(target) if matches!(&self.goal, Goal::Held { target: now, .. } if *now == target) => {
                // Kafka answers again.
                if back && matches!(self.goal, Goal::Held { found: None, .. }) {
                    self.retry_at = None;
                    self.look();
                }
                Ok(())
            }
            Some(target) => {
                let Pinned { versions, fixed, by, reason, .. } = target.told(None);
                tracing::info!(dataset, %versions, fixed, by, reason, "pinned");
                self.tell(Some(target.told(None)), None);
                let newest = self.newest.clone();
                let is = newest.as_ref().is_some_and(|newest| target.is(self.shard, newest));
                self.turn(Goal::Held { target, found: None });
                if let Some(newest) = newest {
                    self.hand_on(Seen::Newest(newest.clone())).await?;
                    if is {
                        return self.found(newest).await;
                    }
                }
                self.look();
                Ok(())
            }
        }
    }

    fn turn(&mut self, goal: Goal) {
        self.goal = goal;
        self.lookups = JoinSet::new();
        self.retry_at = None;
        self.backoff.reset();
        self.counted = false;
    }

    /// Before anything moves: a start that comes next must find what readers were told last.
    fn remember(&self, target: Option<&Target>, topic: Option<TopicId>) {
        let pin = match target {
            Some(Target::Pin(pin)) => Some(control::encoded(pin)),
            _ => None,
        };
        let dataset = &self.options.dataset;
        // The topic first: a pin beside another one's topic would look like one that outlives its topic. One that is not told
        // is the one that was noted.
        let noted = match (&pin, topic) {
            (Some(_), None) => Ok(()),
            (Some(_), topic) => self.cache.save_pin_topic(dataset, topic),
            (None, _) => self.cache.save_pin_topic(dataset, None),
        };
        if let Err(error) = noted.and_then(|()| self.cache.save_pin(dataset, pin.as_deref())) {
            tracing::warn!(dataset = self.options.dataset, %error, "the cache cannot note the pin");
        }
    }

    fn tell(&self, pinned: Option<Pinned>, error: Option<String>) {
        let version =
            pinned.as_ref().and_then(|pinned| pinned.versions.0.get(self.shard.0 as usize).copied());
        self.options.metrics.pinned_version.set(version.unwrap_or_default().0 as i64);
        self.status.send_modify(|status| {
            status.pinned = pinned;
            status.error = error;
        });
    }

    /// Looks for the pinned version's announcement.
    fn look(&mut self) {
        let Goal::Held { target, found: None } = &self.goal else { return };
        let target = target.clone();
        if !self.lookups.is_empty() {
            return;
        }
        let newest = self.newest.as_ref().map(|newest| newest.announcement.version);
        match (&target, newest) {
            // Which is said, and cannot be looked for without reading all of the topic.
            (Target::Fixed(Fixed::Version(version)), Some(newest)) if *version > newest => {
                let error = format!("there is no version {version} yet: {newest} is the newest");
                self.tell(Some(target.told(None)), Some(error));
                return;
            }
            // The tail asks for less, and says whether Kafka answers at all.
            (Target::Fixed(_), None) => return,
            _ => {}
        }
        let (options, shard) = (self.options.clone(), self.shard);
        self.lookups.spawn(async move { look_up(options, shard, target).await.map(Arc::new) });
    }

    async fn looked(
        &mut self,
        looked: std::result::Result<Result<Arc<Announced>>, tokio::task::JoinError>,
    ) -> std::result::Result<(), Gone> {
        let error = match looked {
            Ok(Ok(announced)) => return self.found(announced).await,
            // The tail has met it meanwhile: nothing is missing, and nothing would take the error back.
            Ok(Err(_)) if matches!(self.goal, Goal::Held { found: Some(_), .. }) => return Ok(()),
            Ok(Err(error)) => error,
            Err(panic) => Error::because(ErrorKind::Internal, "looking for the pinned version", panic),
        };
        let wait = match error.kind() {
            ErrorKind::Rejected => NOT_THERE,
            _ => self.backoff.next(&self.options.entropy),
        };
        self.retry_at = Some(tokio::time::Instant::now() + wait);
        let Goal::Held { target, .. } = &self.goal else { return Ok(()) };
        let text = error.chain();
        tracing::warn!(
            dataset = self.options.dataset,
            error = text,
            ?wait,
            "the pinned version is not found; what is held stays readable; trying again"
        );
        let stage = if error.kind() == ErrorKind::Unavailable { UNREACHABLE } else { "pin" };
        if stage == UNREACHABLE || !std::mem::replace(&mut self.counted, true) {
            self.options.metrics.errors_total.with(&[stage]).inc();
        }
        self.tell(Some(target.told(None)), Some(text));
        Ok(())
    }

    async fn found(&mut self, announced: Arc<Announced>) -> std::result::Result<(), Gone> {
        let Goal::Held { target, found } = &mut self.goal else { return Ok(()) };
        let (topic, version) = (announced.topic_id, announced.announcement.version);
        // Of a time that is still to come more than one version is the newest by then, one after the other. Tail and look-up
        // find them each by itself, and whichever is slower must not lead back.
        let is_behind = found.is_some_and(|(of, newest)| of == topic && version < newest);
        if is_behind && matches!(target, Target::Fixed(Fixed::At(_))) {
            return Ok(());
        }
        *found = Some((topic, version));
        let told = target.told(Some(version));
        self.tell(Some(told), None);
        self.retry_at = None;
        self.hand_on(Seen::Pinned(announced)).await
    }
}

async fn look_up(options: Options, shard: Shard, target: Target) -> Result<Announced> {
    let dataset = options.dataset.clone();
    let history = History::find(options.topics()).await?;
    let found = match target {
        Target::Fixed(Fixed::Version(version)) => history.version(shard, version).await?,
        Target::Fixed(Fixed::At(ms)) => history.at(shard, ms).await?,
        Target::Pin(pin) => {
            let refused = |why: String| {
                let versions = pin.shard_versions();
                Error::new(ErrorKind::Rejected, format!("the pin of dataset {dataset} to {versions} {why}"))
            };
            let now = history.topic_id();
            if pin.history != now {
                let was = pin.history;
                return Err(refused(format!(
                    "is of another history: it names announcement topic {was}, which is {now} by now. Unpin it"
                )));
            }
            let Some(pinned) = pin.versions.get(shard.0 as usize).copied() else {
                return Err(refused(format!("names no version of shard {shard}")));
            };
            let found = history.lying_at(shard, pinned.offset).await?;
            let is = |found: &super::history::Found| {
                let announcement = &found.announcement;
                (announcement.version, announcement.life.epoch) == (pinned.version, pinned.epoch)
            };
            found.filter(is).ok_or_else(|| {
                refused("cannot be obeyed: the announcement topic does not hold it any more".to_owned())
            })?
        }
    };
    let super::history::Found { topic_id, announcement, encoded, .. } = found;
    Ok(Announced { topic_id, announcement, encoded })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::follow::tests::{World, announced};
    use super::*;
    use crate::format::control::{self, Standing};

    #[tokio::test]
    async fn what_is_not_found_is_looked_for_when_it_is_due_and_when_kafka_is_back() {
        let world = World::new();
        let options = world.options();
        let cache = Cache::open(&options.cache_dir, u64::MAX).unwrap();
        let (_seen, seen_in) = mpsc::channel(16);
        let (told, told_in) = watch::channel(Told::default());
        let (out, mut handed) = mpsc::channel(16);
        let status = watch::channel(PinStatus::default()).0;
        let mut stage = PinStage::new(options, Shard(0), cache, seen_in, told_in, out, status);
        let newest = Arc::new(announced(7));
        let pin = Pin {
            dataset: "products".into(),
            history: newest.topic_id,
            id: Uuid::nil(),
            versions: vec![control::Pinned { version: Version(6), epoch: 1, offset: 6 }],
            by: String::new(),
            reason: String::new(),
            at: 0,
        };
        stage.goal = Goal::Held { target: Target::Pin(pin.clone()), found: None };
        let due = tokio::time::Instant::now() + NOT_THERE;
        stage.retry_at = Some(due);
        assert!(stage.take(Seen::Announced(newest.clone())).await.is_ok());
        assert!(stage.lookups.is_empty() && stage.retry_at == Some(due), "a new version is no reason");
        assert!(matches!(handed.recv().await, Some(Seen::Newest(_))));
        let standing = Standing { pin: Some(pin), ..Standing::default() };
        for (error, looks) in [(Some("away".to_owned()), false), (None, true)] {
            let standing = standing.clone();
            told.send(Told { known: true, standing, error, ..Told::default() }).unwrap();
            assert!(stage.decide().await.is_ok());
            assert_eq!((!stage.lookups.is_empty(), stage.retry_at.is_none()), (looks, looks));
        }
        stage.lookups = JoinSet::new();
        assert!(stage.take(Seen::Announced(newest)).await.is_ok());
        assert!(!stage.lookups.is_empty(), "nothing has failed");
    }

    #[tokio::test]
    async fn of_a_time_to_come_the_newest_version_is_held_however_slow_the_look_up() {
        let world = World::new();
        let options = world.options();
        let cache = Cache::open(&options.cache_dir, u64::MAX).unwrap();
        let (_seen, seen_in) = mpsc::channel(16);
        let (out, mut handed) = mpsc::channel(16);
        let (status, told) = watch::channel(PinStatus::default());
        let told_in = watch::channel(Told::default()).1;
        let mut stage = PinStage::new(options, Shard(0), cache, seen_in, told_in, out, status);
        stage.goal = Goal::Held { target: Target::Fixed(Fixed::At(i64::MAX)), found: None };
        let versions = |versions: &[u64]| ShardVersions(versions.iter().copied().map(Version).collect());
        let mut pinned = |stage: &PinStage| {
            let handed = std::iter::from_fn(|| handed.try_recv().ok());
            let pinned = handed.filter_map(|seen| match seen {
                Seen::Pinned(announced) => Some(announced.announcement.version.0),
                _ => None,
            });
            (pinned.collect::<Vec<_>>(), stage.status.borrow().pinned.clone().unwrap().versions)
        };
        // The look-up began before 8 was announced, and says 7 when that is known already.
        assert!(stage.take(Seen::Announced(Arc::new(announced(8)))).await.is_ok());
        assert_eq!(pinned(&stage), (vec![8], versions(&[8])));
        assert!(stage.looked(Ok(Ok(Arc::new(announced(7))))).await.is_ok());
        assert_eq!(pinned(&stage), (vec![], versions(&[8])));
        // And one that was ahead of the tail.
        assert!(stage.looked(Ok(Ok(Arc::new(announced(10))))).await.is_ok());
        assert!(stage.take(Seen::Announced(Arc::new(announced(9)))).await.is_ok());
        assert_eq!(pinned(&stage), (vec![10], versions(&[10])));
        // In a topic made anew versions begin anew.
        let anew = Announced { topic_id: TopicId([9; 16]), ..announced(1) };
        assert!(stage.take(Seen::Announced(Arc::new(anew))).await.is_ok());
        assert_eq!(pinned(&stage), (vec![1], versions(&[1])));
        drop(told);
    }
}
