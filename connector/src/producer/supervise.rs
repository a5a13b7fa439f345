//! Who lives and when: the membership, and one life of the shard's writer after another.
//!
//! ```text
//!  prepare topics -> join the group -> Assigned: a life, after its end another, with backoff and behind the breakers
//!       ^                 |                |  Revoked, Stop: it drains, unless that is in vain;  Lost: it is killed
//!       +-- client ended -+                v  joined before the shard is let go
//! ```
//!
//! Owns: the supervisor's task, the lives' tasks. Does not own: when there is a life (`own`), what one does (`life`).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::announce::Announced;
use super::circuit::Circuits;
use super::life::{self, End, Ground};
use super::log::Log;
use super::own::{Action, Event, Ownership, State};
use super::pace::Pace;
use super::recover::{self, Recovery};
use super::shed::Ledger;
use super::write::watch::Watchers;
use super::{Farewell, Options, Status, topics};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::gauge::Pressure;
use crate::kafka::{self, Admin, Member};
use crate::repeat;
use crate::retry::Backoff;
use crate::version::Shard;
use crate::view::Cache;

/// Between lives, and between attempts to reach Kafka.
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// An instance whose schema will not do stays out of the group for as long: longer than the group remembers a member that has
/// left (6 s), so that the shard goes to another, if there is one.
const ASIDE: Duration = Duration::from_secs(15);
/// How often a drain is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How a term in the group ended.
enum Next {
    /// Told to stop.
    Stop,
    /// The group's client cannot go on: a new one may.
    JoinAgain,
    /// Nothing can be written with the schema that is configured here.
    StandAside,
}

/// What follows a life that has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// Another one.
    Another,
    /// Another one, late: nothing but somebody's doing will make it better.
    Late,
    /// Another one's turn.
    Aside,
}

/// The task that begins lives and ends them.
pub(super) struct Supervisor {
    pub(super) options: Options,
    pub(super) log: Log,
    pub(super) cache: Cache,
    pub(super) circuits: Circuits,
    pub(super) status: watch::Sender<Status>,
    pub(super) announced: watch::Sender<Option<Announced>>,
    pub(super) pace: Pace,
    pub(super) ledger: Ledger,
    pub(super) watchers: Watchers,
}

/// A life under way.
struct Running {
    end: End,
    recovered: Option<oneshot::Receiver<()>>,
}

impl Supervisor {
    /// Runs until `stop`, or a mistake that waiting does not mend.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<Farewell> {
        let dataset = self.options.dataset.clone();
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        // Why this instance has stood aside: said until a life here takes over.
        let mut aside: Option<String> = None;
        let ended = loop {
            match self.supervise(stop.clone(), aside.take().as_deref()).await {
                Ok(Next::Stop) => break Ok(()),
                Ok(Next::JoinAgain) => {
                    let wait = backoff.next(&self.options.entropy);
                    tracing::warn!(dataset, ?wait, "the group's client has ended; joining again");
                    tokio::select! {
                        () = stop.cancelled() => break Ok(()),
                        () = tokio::time::sleep(wait) => {}
                    }
                }
                Ok(Next::StandAside) => {
                    aside = self.status.borrow().error.clone();
                    tracing::error!(dataset, wait = ?ASIDE, "the shard is left to another instance, if there is one");
                    tokio::select! {
                        () = stop.cancelled() => break Ok(()),
                        () = tokio::time::sleep(ASIDE) => {}
                    }
                }
                Err(error) => break Err(error),
            }
        };
        if let Err(error) = &ended {
            tracing::error!(dataset, error = %error.chain(), "the producer has ended");
        }
        let synced = self.log.close().await;
        let farewell = {
            let announced = self.announced.borrow();
            Farewell {
                version: announced.as_ref().map(|announced| announced.version),
                positions: announced
                    .as_ref()
                    .map(|announced| announced.positions.clone())
                    .unwrap_or_default(),
                left_in_log: self.log.stats().pending_records,
            }
        };
        ended?;
        synced
            .map_err(|error| Error::because(error.kind(), format!("closing the log of {dataset}"), error))?;
        Ok(farewell)
    }

    async fn supervise(&self, stop: CancellationToken, aside: Option<&str>) -> Result<Next> {
        let options = &self.options;
        let Some((admin, prepared)) = self.prepare(&stop).await? else { return Ok(Next::Stop) };
        if let Some(why) = aside {
            let why = why.to_owned();
            self.status.send_modify(|status| (status.error, status.refused) = (Some(why), true));
        }
        let unavailable = |doing: &str, error: crate::kafka::Error| {
            Error::because(error.kind(), format!("{doing} for dataset {}", options.dataset), error)
        };
        let group = format!("stillwell.{}", options.dataset);
        let mut member = Member::join(&options.kafka, &group, &options.announcements, &options.instance_id)
            .map_err(|error| unavailable("joining the group", error))?;
        tracing::info!(dataset = options.dataset, group, instance = options.instance_id, "joining the group");
        let ground = Ground {
            recovery: Recovery {
                options: options.clone(),
                shard: Shard(0),
                admin,
                topic_id: prepared.announcements_id,
                cache: self.cache.clone(),
                log: self.log.clone(),
            },
            member: member.membership(),
            announced: self.announced.clone(),
            watchers: self.watchers.clone(),
            pressure: Pressure::new(options.clock.clone()),
            pace: self.pace.clone(),
            ledger: self.ledger.clone(),
            status: self.status.clone(),
            circuits: self.circuits.clone(),
        };

        let mut ownership = Ownership::default();
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        let mut lives = JoinSet::new();
        let mut running: Option<Running> = None;
        let mut release = None;
        let mut stopping = false;
        let (mut recovered_at, mut after) = (None, After::Another);
        let mut drain: Option<Drain> = None;
        let mut ends = Ends::default();
        loop {
            self.status.send_modify(|status| status.state = Some(ownership.state()));
            let event = tokio::select! {
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    Event::Stop
                }
                event = member.next() => match event {
                    None => {
                        stop_life(&running, &mut lives).await;
                        return Ok(Next::JoinAgain);
                    }
                    Some(kafka::Event::Assigned(partitions)) if partitions.contains(&0) => {
                        tracing::info!(dataset = options.dataset, "the shard is ours; taking over");
                        // Who is given a shard was answered by Kafka just now.
                        self.circuits.kafka.look_now();
                        Event::Assigned
                    }
                    Some(kafka::Event::Revoked(revoked)) => {
                        if !revoked.partitions.contains(&0) {
                            revoked.release();
                            continue;
                        }
                        release = Some(revoked);
                        Event::Revoked
                    }
                    Some(kafka::Event::Lost(partitions)) if partitions.contains(&0) => Event::Lost,
                    Some(kafka::Event::Assigned(_) | kafka::Event::Lost(_)) => continue,
                    // A broker that restarts looks like a refusal for a moment; the member goes on by itself, and where
                    // it cannot, nothing follows and the arm above joins again.
                    Some(kafka::Event::Failed(error)) => {
                        // Each broker that is away is an event each time it is tried: said at doublings.
                        let dataset = &options.dataset;
                        if let Some(times) = options.kafka.reach.again(&format!("group of {dataset}")) {
                            tracing::warn!(dataset, %error, times, "the group has trouble; going on");
                        }
                        continue;
                    }
                    Some(kafka::Event::Fenced(error)) => {
                        // Another process runs under this instance_id; two must not take turns.
                        stop_life(&running, &mut lives).await;
                        return Err(Error::because(
                            ErrorKind::Config,
                            format!(
                                "another process runs as instance {:?} of dataset {}: give each its own instance_id",
                                options.instance_id, options.dataset
                            ),
                            error,
                        ));
                    }
                },
                why = in_vain(&mut drain, &self.circuits, &options.clock) => {
                    tracing::warn!(
                        dataset = options.dataset, why,
                        "the life is ended without a drain; what it has not announced stays in the log"
                    );
                    if let Some(running) = &running {
                        running.end.kill.cancel();
                    }
                    continue;
                }
                () = recovered(&mut running) => {
                    recovered_at = Some(options.clock.now());
                    self.status.send_modify(|status| {
                        (status.error, status.refused, status.has_run) = (None, false, true);
                    });
                    Event::Recovered
                }
                Some(ended) = lives.join_next() => {
                    running = None;
                    drain = None;
                    after = self.note_end(ended, &mut ends);
                    // Only a life that lasted was a success: one that fails at its first step must not be begun hot.
                    let lasted = recovered_at.take().map(|at| options.clock.now().saturating_duration_since(at));
                    if lasted.is_some_and(|lasted| lasted > LONGEST_BACKOFF) {
                        backoff.reset();
                    }
                    Event::Ended
                }
            };
            match ownership.on(event) {
                Action::Wait => {}
                Action::BeginAgain if after == After::Aside => {
                    member.close().await;
                    self.status.send_modify(|status| status.state = Some(State::Standby));
                    return Ok(Next::StandAside);
                }
                action @ (Action::Begin | Action::BeginAgain) => {
                    let wait = match action {
                        Action::BeginAgain if after == After::Late => LONGEST_BACKOFF,
                        Action::BeginAgain => backoff.next(&options.entropy),
                        _ => Duration::ZERO,
                    };
                    let end = End::default();
                    let (recovered, recovered_in) = oneshot::channel();
                    running = Some(Running { end: end.clone(), recovered: Some(recovered_in) });
                    let ground = ground.clone();
                    lives.spawn(async move {
                        tokio::select! {
                            () = end.kill.cancelled() => return Ok(()),
                            () = tokio::time::sleep(wait) => {}
                        }
                        life::live(ground, end, recovered).await
                    });
                }
                Action::Drain => {
                    if let Some(running) = &running {
                        running.end.last_snapshot.store(stopping, Ordering::Release);
                        running.end.drain.cancel();
                    }
                    let handover = release.as_ref().map(|_| options.clock.now() + kafka::HANDOVER);
                    drain = Some(Drain { handover });
                }
                Action::Kill => {
                    if let Some(running) = &running {
                        running.end.kill.cancel();
                    }
                }
                Action::Release => {
                    if let Some(ack) = release.take() {
                        ack.release();
                    }
                }
                Action::Leave => {
                    if let Some(ack) = release.take() {
                        ack.release();
                    }
                    member.close().await;
                    self.status.send_modify(|status| status.state = Some(ownership.state()));
                    return Ok(Next::Stop);
                }
            }
        }
    }

    /// Waits for Kafka, and for the topics. `None`: told to stop meanwhile.
    async fn prepare(&self, stop: &CancellationToken) -> Result<Option<(Admin, topics::Prepared)>> {
        let options = &self.options;
        let admin = Admin::new(&options.kafka).map_err(|error| {
            Error::because(
                error.kind(),
                format!("creating Kafka's admin client for {}", options.dataset),
                error,
            )
        })?;
        let mut backoff = Backoff::new(FIRST_BACKOFF, LONGEST_BACKOFF);
        loop {
            let error = tokio::select! {
                () = stop.cancelled() => return Ok(None),
                prepared = topics::prepare(&admin, options) => match prepared {
                    Ok(prepared) => {
                        self.status.send_modify(|status| status.error = None);
                        topics::warn_of_rights(&admin, options).await;
                        return Ok(Some((admin, prepared)));
                    }
                    Err(error) => error,
                },
            };
            let (transient, denied) = (error.is_transient(), error.is_denied());
            let error = Error::because(
                if transient { ErrorKind::Unavailable } else { ErrorKind::Config },
                format!("preparing the topics of dataset {}", options.dataset),
                error,
            );
            if !transient && !denied {
                return Err(error);
            }
            let wait = backoff.next(&options.entropy);
            if repeat::is_said(u64::from(backoff.failures())) {
                tracing::warn!(
                    dataset = options.dataset, servers = options.kafka.bootstrap_servers, error = %error.chain(),
                    failures = backoff.failures(),
                    "{}; trying again", if denied { "Kafka does not allow it" } else { "Kafka is not ready" }
                );
            }
            self.status.send_modify(|status| status.error = Some(error.chain()));
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Says how a life ended.
    fn note_end(
        &self,
        ended: Result<Result<(), life::Error>, tokio::task::JoinError>,
        ends: &mut Ends,
    ) -> After {
        let dataset = &self.options.dataset;
        let error = match ended {
            Ok(Ok(())) => {
                tracing::info!(dataset, "the life has ended");
                return After::Another;
            }
            Ok(Err(error)) => error,
            Err(panic) => life::Error::Panicked(panic),
        };
        let (fenced, unavailable) = (error.is_fenced(), error.is_outage());
        // What is not allowed now is not allowed the next moment either.
        let transient = error.is_transient() && !kafka::is_denied(&error);
        let permanent = !fenced && !transient;
        let after = match permanent {
            true if matches!(&error, life::Error::Recover(recover::Error::Schema(_))) => After::Aside,
            true => After::Late,
            false => After::Another,
        };
        let kind = match &error {
            _ if fenced => ErrorKind::Fenced,
            _ if transient => ErrorKind::Unavailable,
            _ => ErrorKind::Config,
        };
        let error = Error::because(kind, format!("writing dataset {dataset}"), error);
        if fenced {
            tracing::warn!(dataset, error = %error.chain(), "fenced; standing by, or beginning anew where still owner");
        } else if let Some(times) = ends.count(&error.chain()) {
            tracing::error!(dataset, error = %error.chain(), times, "the life has ended; nothing that was logged is lost");
        }
        self.status.send_modify(|status| {
            (status.error, status.refused) = (Some(error.chain()), permanent);
            (status.failures, status.last_failure) = (status.failures + 1, status.error.clone());
            status.unavailable += u64::from(unavailable && !permanent);
        });
        after
    }
}

/// Lives that ended alike: a missing right ends one every ten seconds, until somebody gives it.
#[derive(Default)]
struct Ends {
    why: String,
    times: u64,
}

impl Ends {
    /// How many in a row have ended for this reason, where that is to be said.
    fn count(&mut self, why: &str) -> Option<u64> {
        // How long it took, which version it was: numbers make no other reason.
        let why: String = why.chars().filter(|each| !each.is_ascii_digit()).collect();
        if self.why != why {
            *self = Ends { why, times: 0 };
        }
        self.times += 1;
        repeat::is_said(self.times).then_some(self.times)
    }
}

async fn stop_life(running: &Option<Running>, lives: &mut JoinSet<Result<(), life::Error>>) {
    if let Some(running) = running {
        running.end.kill.cancel();
    }
    while lives.join_next().await.is_some() {}
}

/// A life that finishes what it has begun.
struct Drain {
    /// When the shard is handed over, finished or not; `None` where the process stops and nobody waits.
    handover: Option<Instant>,
}

/// Resolves, once, when a drain has become pointless, with the reason.
async fn in_vain(drain: &mut Option<Drain>, circuits: &Circuits, clock: &Clock) -> String {
    loop {
        let Some(Drain { handover }) = drain else { return std::future::pending().await };
        let why = match circuits.open() {
            Some(dependency) => Some(format!("{} is away: its circuit is open", dependency.name())),
            // Who stops is waited for; the next start takes up what is in the log.
            None if handover.is_none() => {
                circuits.failing().map(|(dependency, error)| format!("{} fails: {error}", dependency.name()))
            }
            // Whoever has it by now fences this life; it would only find out late.
            None if handover.is_some_and(|at| clock.now() >= at) => {
                Some("the shard is handed over".to_owned())
            }
            None => None,
        };
        if let Some(why) = why {
            *drain = None;
            return why;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Resolves when the life under way has taken over.
async fn recovered(running: &mut Option<Running>) {
    let Some(Running { recovered, .. }) = running else { return std::future::pending().await };
    let Some(receiver) = recovered else { return std::future::pending().await };
    let taken = receiver.await;
    *recovered = None;
    if taken.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::Reliability;
    use crate::telemetry::ProducerMetrics;

    #[test]
    fn lives_that_end_alike_are_told_of_ever_more_rarely() {
        let mut ends = Ends::default();
        let said: Vec<u64> = (0..100).filter_map(|n| ends.count(&format!("denied (after {n} ms)"))).collect();
        assert_eq!(said.first(), Some(&1));
        assert!(said.len() < 20, "{said:?}");
        assert_eq!(ends.count("another"), Some(1));
        assert_eq!(ends.count("denied (after 1 ms)"), Some(1));
    }

    #[tokio::test]
    async fn a_drain_is_in_vain_when_nothing_can_go_out_or_nobody_waits_any_more() {
        let clock = Clock::manual(0);
        let reliability = Reliability { circuit_breaker_threshold: 1, ..Reliability::default() };
        let circuits = Circuits::new(&reliability, &clock, &ProducerMetrics::detached());
        let mut none = None;
        assert!(futures::poll!(std::pin::pin!(in_vain(&mut none, &circuits, &clock))).is_pending());

        let handover = Some(clock.now() + Duration::from_secs(20));
        let mut drain = Some(Drain { handover });
        assert!(futures::poll!(std::pin::pin!(in_vain(&mut drain, &circuits, &clock))).is_pending());
        clock.advance(Duration::from_secs(20));
        assert!(in_vain(&mut drain, &circuits, &clock).await.contains("handed over"));
        assert!(drain.is_none(), "said once");

        circuits.store.failed("full".into());
        let mut drain = Some(Drain { handover: None });
        assert!(in_vain(&mut drain, &circuits, &clock).await.contains("blob_store is away"));

        // One that has failed once, and whose circuit is closed, may come back; nobody stops for so long.
        let circuits = Circuits::new(&Reliability::default(), &clock, &ProducerMetrics::detached());
        circuits.store.failed("denied".into());
        let mut handed = Some(Drain { handover: Some(clock.now() + Duration::from_secs(20)) });
        assert!(futures::poll!(std::pin::pin!(in_vain(&mut handed, &circuits, &clock))).is_pending());
        let mut drain = Some(Drain { handover: None });
        assert_eq!(in_vain(&mut drain, &circuits, &clock).await, "blob_store fails: denied");
    }
}
