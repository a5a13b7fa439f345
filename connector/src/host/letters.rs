//! The dead letters of a dataset, for who asks a running process: a list, and one replay at a time.
//!
//! A replay here is the one of `dlq replay`, with its progress, its transaction and its rules, on a thread beside the
//! dataset; it and the command end each other. What the command alone has is `--fix`: a route that runs programs is a
//! shell for whoever has the token.
//!
//! Owns: the replay's task, and what it has done so far. Does not own: the replay itself (`dead`), routes (`http`).

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::directory::rfc3339;
use crate::dead::fate::Replays;
use crate::dead::listing::{Line, Listing};
use crate::dead::outcome::Told;
use crate::dead::replay::{self, Asked, Options};
use crate::dead::select::{CONNECTS, OURS, Selection, Verdict, is_stage};
use crate::dead::topic::{Reader, Topic};
use crate::dead::{self, text};
use crate::kafka::Admin;
use crate::words::nearest;
use crate::{Error, ErrorKind, Result, producer};

/// Most letters of a topic that is listed here, beside a writer or readers: some 160 MB.
const MOST: usize = 2_000_000;

/// The letters of one dataset. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Letters(Arc<Inner>);

struct Inner {
    options: Options,
    state: Mutex<State>,
    /// Ends what runs when the last handle is gone.
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    tasks: JoinSet<()>,
    running: Option<CancellationToken>,
    report: Option<Report>,
}

/// The dataset as a replay is told of it: its own letters.
pub fn options(of: &producer::Options) -> Options {
    Options {
        kafka: of.kafka.clone(),
        dataset: of.dataset.clone(),
        topics: of.topics.clone(),
        key: of.key.clone(),
        bound: of.bound,
        format: of.format.clone(),
        registry: of.registry.clone(),
        schema: of.schema.clone(),
        letters: of.dead_letters.clone(),
        store: of.store.clone(),
        clock: of.clock.clone(),
    }
}

/// A stage that was asked for, and that nobody knows.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoStage(String);

/// Refuses a selection by a stage that is none of ours or Kafka Connect's, and of no letter in the topic either: it would
/// select nothing, and say nothing. `seen` are the stages in the topic.
///
/// # Errors
/// [`ErrorKind::Rejected`], caused by [`NoStage`].
pub fn known_stages(selection: &Selection, letters: &str, seen: &BTreeSet<String>) -> Result<()> {
    let strange = selection.strange_stages().find(|stage| !seen.iter().any(|seen| is_stage(stage, seen)));
    let Some(stage) = strange else { return Ok(()) };
    let is_known = |stage: &&str| stage.is_empty() || OURS.contains(stage) || CONNECTS.contains(stage);
    let theirs = seen.iter().map(String::as_str).filter(|seen| !is_known(seen));
    let all: Vec<&str> = OURS.into_iter().chain(CONNECTS).chain(theirs).collect();
    let said = match nearest(stage, all.iter().copied()) {
        Some(near) => format!("did you mean {near}? No letter in {letters} has failed at it"),
        None => format!("no letter in {letters} has failed at it; stages are {}", all.join(", ")),
    };
    Err(Error::because(ErrorKind::Rejected, format!("stage {stage:?}"), NoStage(said)))
}

/// A replay, under way or ended.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether it runs.
    pub running: bool,
    /// Whether it only says what it would do.
    pub dry_run: bool,
    /// When it began (RFC 3339).
    pub started_at: String,
    /// When it ended.
    pub ended_at: Option<String>,
    /// Letters selected, once they are counted.
    pub selected: Option<u64>,
    /// Those that were handled or left so far, once that is committed.
    pub done: u64,
    /// What was done, once it has ended.
    pub totals: Option<Value>,
    /// Why it ended before its time.
    pub error: Option<String>,
}

impl std::fmt::Debug for Letters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Letters").field(&self.0.options.letters).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Letters {
    /// Those of a dataset.
    pub fn new(options: Options) -> Letters {
        Letters(Arc::new(Inner { options, state: Mutex::default(), stop: CancellationToken::new() }))
    }

    /// The dataset, and where its letters are.
    pub fn options(&self) -> &Options {
        &self.0.options
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last letter of each record that is meant, the first `most` of them.
    ///
    /// # Errors
    /// Kafka's; [`ErrorKind::Rejected`] where there is no such topic, or nobody knows such a stage.
    pub async fn list(&self, selection: Selection, most: usize) -> Result<Vec<Line>> {
        let wanted = selection.clone();
        let (lines, seen) = self.read(selection, most).await?;
        known_stages(&wanted, &self.0.options.letters, &seen)?;
        Ok(lines)
    }

    /// Refuses a selection that cannot select anything; reads the topic only where a stage is asked for that may be
    /// somebody else's.
    ///
    /// # Errors
    /// As [`Letters::list`].
    pub async fn check(&self, selection: &Selection) -> Result<()> {
        match selection.strange_stages().next() {
            None => Ok(()),
            Some(_) => self.list(selection.clone(), 0).await.map(|_| ()),
        }
    }

    /// The lines, and all stages in the topic.
    async fn read(&self, selection: Selection, most: usize) -> Result<(Vec<Line>, BTreeSet<String>)> {
        let stop = self.0.stop.child_token();
        // Whoever asked and went away does not want it read to its end.
        let _stopped_on_drop = stop.clone().drop_guard();
        let (options, stopped) = (self.0.options.clone(), stop.clone());
        let listed = tokio::task::spawn_blocking(move || {
            let failed = |source| dead::Error::Kafka { doing: "making a client".to_owned(), source };
            let admin = Admin::new(&options.kafka).map_err(failed)?;
            let topic = Topic::look(&admin, &options.letters)?;
            let group = format!("stillwell.{}", options.dataset);
            let (mut listing, mut seen) = (Listing::within(MOST), BTreeSet::new());
            listing.knowing(Replays::look(&options.kafka, &selection, &topic)?);
            let ranges = topic.ranges.clone();
            let mut reader = Reader::new(&options.kafka, &group, topic, options.clock.clone(), stopped)?;
            for (partition, (low, _)) in (0..).zip(ranges) {
                reader.begin(partition, low)?;
                reader.read(partition, |found| {
                    let is_meant = selection.judge(&found) == Verdict::Meant;
                    listing.take(&found, is_meant)?;
                    if !seen.contains(found.stage) {
                        seen.insert(found.stage.to_owned());
                    }
                    Ok(ControlFlow::<()>::Continue(()))
                })?;
            }
            let mut chosen = listing.chosen(most);
            chosen.read(&mut reader)?;
            Ok::<_, dead::Error>((chosen.lines(), seen))
        });
        let listed = listed
            .await
            .map_err(|panic| Error::because(ErrorKind::Internal, "listing letters panicked", panic))?;
        listed.map_err(|error| failed(&self.0.options.letters, error))
    }

    /// Begins a replay.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] while one runs.
    pub fn begin(&self, asked: Asked) -> Result<Report> {
        let mut state = self.state();
        while state.tasks.try_join_next().is_some() {}
        if state.running.is_some() {
            return Err(Error::new(
                ErrorKind::Rejected,
                "a replay of these letters is under way; end it first",
            ));
        }
        let clock = self.0.options.clock.clone();
        let report = Report {
            running: true,
            dry_run: asked.dry_run,
            started_at: rfc3339(clock.wall_ms()),
            ended_at: None,
            selected: None,
            done: 0,
            totals: None,
            error: None,
        };
        let stop = self.0.stop.child_token();
        (state.running, state.report) = (Some(stop.clone()), Some(report.clone()));
        let (options, of) = (self.0.options.clone(), Arc::downgrade(&self.0));
        state.tasks.spawn_blocking(move || {
            // Upgraded for a moment only: a process that ends does not wait for it.
            let change = |change: &dyn Fn(&mut State)| {
                if let Some(inner) = of.upgrade() {
                    change(&mut inner.state.lock().unwrap_or_else(PoisonError::into_inner));
                }
            };
            let with = |told: &dyn Fn(&mut Report)| {
                change(&|state| {
                    if let Some(report) = &mut state.report {
                        told(report);
                    }
                });
            };
            let mut done = 0;
            let (totals, ended) = replay::run(&options, &asked, &stop, |told| match told {
                Told::Selected(selected) => with(&|report| report.selected = Some(selected)),
                Told::Looked(_) => {}
                Told::Done(..) => done += 1,
                Told::Through => with(&|report| report.done = done),
            });
            let error = ended.err().map(|error| failed(&options.letters, error).chain());
            tracing::info!(
                dataset = options.dataset,
                replayed = totals.replayed,
                stale = totals.stale,
                replaced = totals.replaced,
                left = totals.unhandled(),
                dry_run = asked.dry_run,
                error = error.as_deref(),
                "a replay of dead letters has ended"
            );
            let (ended_at, totals) = (rfc3339(clock.wall_ms()), text::totals(&totals, asked.dry_run));
            // Together: who sees that it has ended may begin the next.
            change(&|state| {
                state.running = None;
                if let Some(report) = &mut state.report {
                    report.running = false;
                    report.ended_at = Some(ended_at.clone());
                    report.totals = Some(totals.clone());
                    report.error = error.clone();
                }
            });
        });
        Ok(report)
    }

    /// The replay under way, or the last one of this process.
    pub fn report(&self) -> Option<Report> {
        self.state().report.clone()
    }

    /// Ends the replay under way, after the transaction that has begun. What it was at that moment.
    pub fn end(&self) -> Option<Report> {
        let state = self.state();
        if let Some(running) = &state.running {
            running.cancel();
        }
        state.report.clone()
    }
}

fn failed(letters: &str, error: dead::Error) -> Error {
    Error::because(error.kind(), format!("dead letters in {letters}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_of_which_nobody_knows_is_refused_and_somebody_elses_is_not() {
        let seen: BTreeSet<String> = ["VALUE_CONVERTER", "", "their-own"].map(str::to_owned).into();
        let asked = |stage: &str| {
            let selection = Selection { stages: vec![stage.to_owned()], ..Selection::default() };
            known_stages(&selection, "products.dlq", &seen).map_err(|error| error.chain())
        };
        for known in ["decode", "task_poll", "their-own", "Their-Own"] {
            assert_eq!(asked(known), Ok(()), "{known}");
        }
        let said = asked("decod").unwrap_err();
        assert_eq!(said, "stage \"decod\": did you mean decode? No letter in products.dlq has failed at it");
        assert!(asked("theirown").unwrap_err().contains("did you mean their-own?"));
        let said = asked("xyzzy").unwrap_err();
        assert!(said.contains("stages are decode, validate") && said.contains("their-own"), "{said}");
    }
}
