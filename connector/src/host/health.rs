//! How a dataset is doing, as arithmetic: facts and the time go in, a status and its reasons come out.
//!
//! | status | means | what to do |
//! | --- | --- | --- |
//! | healthy | it writes or reads what there is | nothing |
//! | degraded | it works, with less than it should: the last good version is served, or a failure is tried again | look |
//! | unhealthy | it has ended, or cannot write, by a mistake that waiting does not mend, or fails more often than `max_errors_per_minute` | act: restart or repair |
//!
//! Owns: the judgement. Does not own: gathering the facts (`directory`), showing them (`http`).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::consumer::PinStatus;
use crate::consumer::listen::Told;
use crate::format::control::Refusal;
use crate::producer::circuit::{Dependency, Report};
use crate::retry::Circuit;
use crate::version::Version;

/// What the health route says. Ordered: the worst of several is the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing to say.
    Healthy,
    /// Works, with less than it should.
    Degraded,
    /// Does not do what it is for.
    Unhealthy,
}

impl Status {
    /// As it is spelled in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Status::Healthy => "healthy",
            Status::Degraded => "degraded",
            Status::Unhealthy => "unhealthy",
        }
    }
}

/// The reading side at one moment.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The readable version; 0 while there is none.
    pub version: Version,
    /// The newest one announced.
    pub announced: Version,
    /// Whether it holds all that its sources held at the beginning.
    pub caught_up: bool,
    /// Out of the cache, not confirmed by Kafka.
    pub stale: bool,
    /// How long after its newest record a version became readable within the last minute, where that was later than
    /// `freshness_slo`.
    pub late: Option<Duration>,
    /// Whether Kafka answered last time; `None` before the first try.
    pub reachable: Option<bool>,
    /// The tail's breaker.
    pub circuit: Circuit,
    /// Why the announced version is not the readable one, or why Kafka cannot be read.
    pub error: Option<String>,
    /// What a newer release announced, and this one cannot read.
    pub newer: Option<String>,
    /// Blobs that are gone from the store, so that the version was made of older ones.
    pub restored: Option<String>,
    /// What readers are held to.
    pub pin: PinStatus,
    /// The newest version, where this reader's guard refuses it.
    pub refused: Option<Refusal>,
    /// Who acts on its changes.
    pub listeners: Vec<Told>,
}

/// The writing side at one moment.
#[derive(Clone, Debug)]
pub struct Writing {
    /// Whether Kafka has answered since the start.
    pub reached: bool,
    /// A life is under way and writes.
    pub running: bool,
    /// The breakers before what it depends on.
    pub circuits: Vec<Report>,
    /// Why the last life ended, or the next cannot begin.
    pub error: Option<String>,
    /// Whether nothing but somebody's doing mends that.
    pub refused: bool,
    /// Why nothing is taken from the source at the moment.
    pub paused: Option<String>,
    /// Why some partitions of the source wait.
    pub waiting: Option<String>,
}

impl Writing {
    /// Of a writer that has not begun, since it waits for something.
    pub fn awaiting(why: String) -> Writing {
        Writing {
            reached: false,
            running: false,
            circuits: Vec::new(),
            error: Some(why),
            refused: false,
            paused: None,
            waiting: None,
        }
    }
}

/// All that is known of a dataset at one moment.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The mistake by which one of its sides has ended.
    pub ended: Option<String>,
    /// Errors of the last minute.
    pub errors_last_minute: u64,
    /// The reading side, where this process has one.
    pub reading: Option<Reading>,
    /// The writing side, where this process has one.
    pub writing: Option<Writing>,
}

/// The judgement, and in words what led to it, the worst first. No reasons: healthy.
pub fn judge(facts: &Facts, max_errors_per_minute: u32) -> (Status, Vec<String>) {
    let mut reasons: Vec<(Status, String)> = Vec::new();
    let mut say = |status, reason: String| reasons.push((status, reason));
    if let Some(mistake) = &facts.ended {
        say(Status::Unhealthy, format!("it has ended: {mistake}"));
    }
    if facts.errors_last_minute > u64::from(max_errors_per_minute) {
        let errors = facts.errors_last_minute;
        say(
            Status::Unhealthy,
            format!(
                "{errors} errors in the last minute, more than max_errors_per_minute = {max_errors_per_minute}"
            ),
        );
    }
    if let Some(reading) = &facts.reading {
        // Each reason once: an unreachable Kafka is the reason for its own error, its breaker and a stale version.
        if reading.reachable != Some(true) {
            let why = reading.error.as_deref().unwrap_or("it has not answered yet");
            say(Status::Degraded, format!("announcements cannot be read: {why}"));
        } else {
            for reason in held_back(reading) {
                say(Status::Degraded, reason);
            }
        }
        if let Some(newer) = &reading.newer {
            say(Status::Degraded, format!("version {} is not the newest: {newer}", reading.version));
        }
        if let Some(restored) = &reading.restored {
            say(Status::Degraded, format!("version {} is whole, but {restored}", reading.version));
        }
        if let Some(late) = reading.late {
            let version = reading.version;
            say(
                Status::Degraded,
                format!(
                    "version {version} was readable {late:.1?} after its newest record, later than freshness_slo"
                ),
            );
        }
        for Told { name, version, circuit, error, .. } in &reading.listeners {
            // What is wrong with a listener is no reader's concern: they have the newest version.
            match (circuit, error) {
                (Circuit::Closed, None) => {}
                (Circuit::Closed, Some(error)) => {
                    say(
                        Status::Degraded,
                        format!("listener {name} is at version {version} and fails: {error}"),
                    );
                }
                (Circuit::Open | Circuit::HalfOpen, error) => {
                    let (state, why) = (circuit.name(), error.as_deref().unwrap_or("it failed too often"));
                    say(
                        Status::Degraded,
                        format!("listener {name} is at version {version}, its circuit is {state}: {why}"),
                    );
                }
            }
        }
        if reading.version == Version(0) {
            say(Status::Degraded, "no version is readable yet".to_owned());
        } else if reading.stale {
            say(
                Status::Degraded,
                format!("version {} comes from the cache and Kafka has not confirmed it", reading.version),
            );
        } else if !reading.caught_up {
            let version = reading.version;
            say(
                Status::Degraded,
                format!("version {version} does not hold yet all that the sources held at the beginning"),
            );
        }
    }
    if let Some(writing) = &facts.writing {
        if let Some(error) = &writing.error {
            let status = if writing.refused { Status::Unhealthy } else { Status::Degraded };
            say(status, format!("no versions are written: {error}"));
        } else if !writing.reached {
            say(Status::Degraded, "no versions are written: Kafka has not answered yet".to_owned());
        }
        if let Some(why) = &writing.paused {
            say(Status::Degraded, format!("the source is paused: {why}"));
        }
        if let Some(why) = &writing.waiting {
            say(Status::Degraded, format!("partitions of the source wait: {why}"));
        }
        for Report { dependency, state, error } in &writing.circuits {
            let name = dependency.name();
            match (state, error) {
                (Circuit::Closed, None) => {}
                // Said above, in more words.
                (Circuit::Closed, Some(_))
                    if writing.waiting.is_some() && *dependency == Dependency::Registry => {}
                (Circuit::Closed, Some(error)) => {
                    say(Status::Degraded, format!("{name} fails and is tried again: {error}"));
                }
                (Circuit::Open | Circuit::HalfOpen, error) => {
                    let (state, why) = (state.name(), error.as_deref().unwrap_or("it failed too often"));
                    say(
                        Status::Degraded,
                        format!("the circuit before {name} is {state}, versions wait: {why}"),
                    );
                }
            }
        }
    }
    reasons.sort_by_key(|(status, _)| std::cmp::Reverse(*status));
    let worst = reasons.first().map_or(Status::Healthy, |(status, _)| *status);
    (worst, reasons.into_iter().map(|(_, reason)| reason).collect())
}

/// Why a reader whose Kafka answers does not hold what it should.
fn held_back(reading: &Reading) -> impl Iterator<Item = String> {
    let Reading { version, announced, pin, .. } = reading;
    let pinned = pin.pinned.as_ref().map(|pinned| match pinned.versions.0.as_slice() {
        [] => "the version of the configured time".to_owned(),
        _ => format!("version {}", pinned.versions),
    });
    let opening = reading.error.as_ref().map(|error| match &pinned {
        Some(pinned) => format!("it is pinned to {pinned}, which cannot be opened: {error}"),
        None => format!("version {announced} cannot be opened: {error}"),
    });
    let finding = pin.error.as_ref().map(|error| {
        let pinned = pinned.as_deref().unwrap_or("a version");
        format!("it is pinned to {pinned}, and holds version {version}: {error}")
    });
    let control = pin
        .control
        .as_ref()
        .map(|error| format!("the control topic cannot be read, so that pins are not known: {error}"));
    let refused = reading.refused.as_ref().map(|refusal| {
        let Refusal { version: refused, reason, .. } = refusal;
        format!("version {refused} is refused by this reader's guard, and version {version} stays: {reason}")
    });
    [opening, finding, refused, control].into_iter().flatten()
}

/// What counts as now.
pub const MINUTE: Duration = Duration::from_secs(60);
/// Samples closer together than this are one, so that asking often costs no memory.
const GRAIN: Duration = Duration::from_secs(1);

/// How much a counter has grown within the last minute, from samples of it.
///
/// What is counted begins at the newest sample that is at least a minute old, so the answer is never too small, and too
/// large by at most what happened between two samples.
#[derive(Debug, Default)]
pub struct LastMinute {
    samples: VecDeque<(Instant, u64)>,
}

impl LastMinute {
    /// Takes a sample, and answers.
    pub fn sample(&mut self, now: Instant, total: u64) -> u64 {
        let recent = self.samples.back().is_some_and(|(at, _)| now.saturating_duration_since(*at) < GRAIN);
        if !recent {
            self.samples.push_back((now, total));
        }
        while let Some((second, _)) = self.samples.get(1)
            && now.saturating_duration_since(*second) >= MINUTE
        {
            self.samples.pop_front();
        }
        // Counting begins with the first sample: what happened before it is not known to be recent.
        self.samples.front().map_or(0, |(_, base)| total.saturating_sub(*base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::consumer::Pinned;
    use crate::record::TopicId;
    use crate::version::{Shard, ShardVersions};

    fn reading() -> Reading {
        Reading {
            version: Version(7),
            announced: Version(7),
            caught_up: true,
            stale: false,
            late: None,
            reachable: Some(true),
            circuit: Circuit::Closed,
            error: None,
            newer: None,
            restored: None,
            pin: PinStatus::default(),
            refused: None,
            listeners: Vec::new(),
        }
    }

    fn writing() -> Writing {
        Writing {
            reached: true,
            running: true,
            circuits: Vec::new(),
            error: None,
            refused: false,
            paused: None,
            waiting: None,
        }
    }

    fn judged(facts: Facts) -> (Status, String) {
        let (status, reasons) = judge(&facts, 10);
        (status, reasons.join("; "))
    }

    #[test]
    fn what_works_is_healthy_whatever_sides_it_has() {
        for (reading, writing) in [
            (None, None),
            (Some(reading()), None),
            (None, Some(writing())),
            (Some(reading()), Some(writing())),
        ] {
            let facts = Facts { reading, writing, errors_last_minute: 10, ..Facts::default() };
            assert_eq!(judged(facts), (Status::Healthy, String::new()));
        }
    }

    #[test]
    fn an_outage_of_kafka_degrades_and_says_so_once() {
        let away = Reading {
            reachable: Some(false),
            circuit: Circuit::Open,
            error: Some("connection refused".into()),
            stale: true,
            ..reading()
        };
        let (status, reasons) = judge(&Facts { reading: Some(away), ..Facts::default() }, 10);
        assert_eq!(status, Status::Degraded);
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons.first().unwrap().contains("connection refused"), "{reasons:?}");
    }

    #[test]
    fn a_version_that_cannot_be_opened_degrades_while_the_last_good_one_is_served() {
        let behind = Reading { announced: Version(8), error: Some("blob missing".into()), ..reading() };
        let (status, reasons) = judged(Facts { reading: Some(behind), ..Facts::default() });
        assert_eq!(status, Status::Degraded);
        assert!(reasons.contains("version 8 cannot be opened: blob missing"), "{reasons}");
    }

    fn pinned(versions: Vec<Version>) -> PinStatus {
        let versions = ShardVersions(versions);
        let (by, reason) = ("olga".into(), String::new());
        let pinned = Pinned { versions, fixed: false, by, reason, at: Some(0) };
        PinStatus { pinned: Some(pinned), ..PinStatus::default() }
    }

    #[test]
    fn a_pin_that_is_held_is_healthy_and_one_that_cannot_be_is_not() {
        let held = Reading { announced: Version(9), pin: pinned(vec![Version(7)]), ..reading() };
        assert_eq!(judged(Facts { reading: Some(held.clone()), ..Facts::default() }).0, Status::Healthy);
        let lost = PinStatus { error: Some("gone".into()), ..pinned(vec![Version(6)]) };
        for (reading, said) in [
            (Reading { pin: lost, ..held.clone() }, "pinned to version 6, and holds version 7: gone"),
            (
                Reading { error: Some("missing".into()), pin: pinned(vec![Version(6)]), ..held.clone() },
                "pinned to version 6, which cannot be opened: missing",
            ),
            (
                Reading { error: Some("missing".into()), pin: pinned(Vec::new()), ..held.clone() },
                "pinned to the version of the configured time",
            ),
            (
                Reading {
                    pin: PinStatus { control: Some("no right".into()), ..PinStatus::default() },
                    ..held.clone()
                },
                "pins are not known: no right",
            ),
        ] {
            let (status, reasons) = judged(Facts { reading: Some(reading), ..Facts::default() });
            assert_eq!(status, Status::Degraded);
            assert!(reasons.contains(said), "{reasons}");
        }
    }

    #[test]
    fn a_version_that_the_guard_refuses_degrades_and_says_which_stays() {
        let refusal = Refusal {
            dataset: "products".into(),
            shard: Shard(0),
            history: TopicId::default(),
            version: Version(8),
            epoch: 1,
            held: Version(7),
            by: "here".into(),
            reason: "too few".into(),
            at: 0,
        };
        let refusing = Reading { announced: Version(8), refused: Some(refusal), ..reading() };
        let (status, reasons) = judged(Facts { reading: Some(refusing), ..Facts::default() });
        assert_eq!(status, Status::Degraded);
        assert!(
            reasons.contains("version 8 is refused by this reader's guard, and version 7 stays: too few"),
            "{reasons}"
        );
    }

    #[test]
    fn a_store_that_is_away_degrades_and_says_which_and_why() {
        let report = |state, error: Option<&str>| Report {
            dependency: Dependency::BlobStore,
            state,
            error: error.map(str::to_owned),
        };
        for (state, error, status, word) in [
            (Circuit::Closed, None, Status::Healthy, ""),
            (Circuit::Closed, Some("full"), Status::Degraded, "blob_store fails and is tried again: full"),
            (Circuit::Open, Some("full"), Status::Degraded, "the circuit before blob_store is open"),
            (Circuit::HalfOpen, Some("full"), Status::Degraded, "half-open, versions wait: full"),
        ] {
            let writing = Writing { circuits: vec![report(state, error)], ..writing() };
            let (judged, reasons) = judged(Facts { writing: Some(writing), ..Facts::default() });
            assert_eq!(judged, status);
            assert!(reasons.contains(word), "{reasons}");
        }
    }

    #[test]
    fn a_listener_that_fails_degrades_and_says_how_far_it_is() {
        let told = |circuit, error: Option<&str>| Told {
            name: "webhook".into(),
            version: Version(5),
            circuit,
            error: error.map(str::to_owned),
            held: false,
            letters: 0,
        };
        for (circuit, error, status, said) in [
            (Circuit::Closed, None, Status::Healthy, ""),
            (
                Circuit::Closed,
                Some("500"),
                Status::Degraded,
                "listener webhook is at version 5 and fails: 500",
            ),
            (Circuit::Open, Some("500"), Status::Degraded, "version 5, its circuit is open: 500"),
        ] {
            let reading = Reading { listeners: vec![told(circuit, error)], ..reading() };
            let (judged, reasons) = judged(Facts { reading: Some(reading), ..Facts::default() });
            assert_eq!(judged, status);
            assert!(reasons.contains(said), "{reasons}");
        }
    }

    #[test]
    fn a_version_made_of_older_blobs_is_served_and_degraded() {
        let restored = Reading { restored: Some("it was made from snapshot 2".into()), ..reading() };
        let (status, reasons) = judged(Facts { reading: Some(restored), ..Facts::default() });
        assert_eq!(status, Status::Degraded);
        assert!(reasons.contains("version 7 is whole, but it was made from snapshot 2"), "{reasons}");
    }

    #[test]
    fn what_a_newer_release_announced_degrades_and_says_what_to_do() {
        let newer =
            Reading { newer: Some("the record at offset 9 … upgrade this one".into()), ..reading() };
        let (status, reasons) = judged(Facts { reading: Some(newer), ..Facts::default() });
        assert_eq!(status, Status::Degraded);
        assert!(reasons.contains("version 7 is not the newest: the record at offset 9"), "{reasons}");
    }

    #[test]
    fn what_is_later_than_promised_degrades() {
        let late = Reading { late: Some(Duration::from_millis(3_210)), ..reading() };
        let (status, reasons) = judged(Facts { reading: Some(late), ..Facts::default() });
        assert_eq!(status, Status::Degraded);
        assert!(reasons.contains("version 7 was readable 3.2s after its newest record"), "{reasons}");
    }

    #[test]
    fn a_start_is_degraded_until_something_whole_is_readable() {
        let nothing = Reading { version: Version(0), caught_up: false, ..reading() };
        let partly = Reading { caught_up: false, ..reading() };
        for start in [nothing, partly] {
            let (status, reasons) = judge(&Facts { reading: Some(start), ..Facts::default() }, 10);
            assert_eq!((status, reasons.len()), (Status::Degraded, 1), "{reasons:?}");
        }
    }

    #[test]
    fn one_error_too_many_or_an_end_is_unhealthy_and_named_first() {
        let waiting = Writing { reached: false, running: false, ..writing() };
        let facts = Facts { errors_last_minute: 11, writing: Some(waiting), ..Facts::default() };
        let (status, reasons) = judge(&facts, 10);
        assert_eq!((status, reasons.len()), (Status::Unhealthy, 2));
        assert!(reasons.first().unwrap().starts_with("11 errors"), "{reasons:?}");
        let (status, reasons) = judged(Facts { ended: Some("wrong topic".into()), ..Facts::default() });
        assert_eq!((status, reasons.as_str()), (Status::Unhealthy, "it has ended: wrong topic"));
    }

    #[test]
    fn a_paused_source_degrades_and_says_why() {
        let paused = Writing { paused: Some("the disk is full".into()), ..writing() };
        let (status, reasons) = judged(Facts { writing: Some(paused), ..Facts::default() });
        assert_eq!((status, reasons.as_str()), (Status::Degraded, "the source is paused: the disk is full"));
    }

    #[test]
    fn a_writer_that_waits_is_degraded_and_one_that_only_people_can_help_is_unhealthy() {
        let error = || Some("the schema is another".to_owned());
        for (refused, status) in [(false, Status::Degraded), (true, Status::Unhealthy)] {
            let writing = Writing { running: false, error: error(), refused, ..writing() };
            let facts = Facts { reading: Some(reading()), writing: Some(writing), ..Facts::default() };
            assert_eq!(judged(facts), (status, "no versions are written: the schema is another".to_owned()));
        }
    }

    #[test]
    fn a_minute_passes_and_its_errors_are_forgotten() {
        let clock = Clock::manual(0);
        let mut errors = LastMinute::default();
        assert_eq!(errors.sample(clock.now(), 100), 0, "from before the first sample");
        clock.advance(Duration::from_secs(5));
        assert_eq!(errors.sample(clock.now(), 104), 4);
        for _ in 0..11 {
            clock.advance(Duration::from_secs(5));
            assert_eq!(errors.sample(clock.now(), 104), 4);
        }
        clock.advance(Duration::from_secs(5));
        assert_eq!(errors.sample(clock.now(), 104), 0);
        assert_eq!(errors.sample(clock.now(), 105), 1, "seen at once");
    }

    #[test]
    fn asking_often_costs_no_memory() {
        let clock = Clock::manual(0);
        let mut errors = LastMinute::default();
        for total in 0..100_000 {
            clock.advance(Duration::from_millis(10));
            errors.sample(clock.now(), total);
        }
        assert!(errors.samples.len() <= 62, "{}", errors.samples.len());
    }
}
