//! The writer of a dataset: begun with the host, or in its own task once the dataset's schema is known.
//!
//! ```text
//!  options, whole ---------------------------------------------> begin -> run, until told to stop
//!  options, the schema to come -> task: wait, and say for what --^
//! ```
//!
//! Owns: when a writer begins, and the task that runs it. Does not own: where a schema comes from (`Later` is given),
//! what a writer does (`producer`).

use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::directory::{Dataset, Writes, WritingSide};
use super::letters::{self, Letters};
use crate::clock::Clock;
use crate::error::Result;
use crate::producer::{Farewell, Options, Producer};
use crate::schema::Schema;
use crate::view::Cache;

/// A dataset's schema that comes later.
pub struct Later {
    /// Resolves to it, however long that takes, or to what waiting does not mend. Dropped when the process stops.
    pub schema: BoxFuture<'static, Result<Arc<Schema>>>,
    /// What it waits for, for who asks meanwhile.
    pub why: watch::Receiver<String>,
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later").field("why", &self.why).finish_non_exhaustive()
    }
}

/// A writer whose task is not the host's yet.
pub(super) enum Writer {
    /// It runs.
    Begun(Box<Producer>),
    /// It begins once its schema is known, with the others' cache.
    Waits(Box<Options>, Cache, Later),
}

/// Begins to write, and what others are to have of it.
pub(super) async fn begin(options: Options, cache: Option<Cache>) -> Result<(Producer, Writes)> {
    let (metrics, log_dir) = (options.metrics.clone(), options.log_dir());
    let dead = Letters::new(letters::options(&options));
    let producer = Producer::start_in(options, cache).await?;
    let writes = Writes {
        side: Some(WritingSide::new(&producer, metrics, log_dir)),
        records: Some(producer.writer().clone()),
        pace: Some(producer.pace()),
        storm: Some(producer.circuits().storm.clone()),
        letters: Some(dead),
    };
    Ok((producer, writes))
}

impl Writer {
    /// Writes until `stop`, or until a mistake that waiting does not mend.
    pub(super) async fn run(
        self,
        dataset: Arc<Dataset>,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<Option<Farewell>> {
        let producer = match self {
            Writer::Begun(producer) => *producer,
            Writer::Waits(mut options, cache, later) => {
                options.schema = tokio::select! {
                    () = stop.cancelled() => return Ok(None),
                    schema = later.schema => schema?,
                };
                let (producer, writes) = begin(*options, Some(cache)).await?;
                dataset.begin(writes);
                producer
            }
        };
        run(producer, &dataset, &clock, &stop).await
    }
}

async fn run(
    mut producer: Producer,
    dataset: &Dataset,
    clock: &Clock,
    stop: &CancellationToken,
) -> Result<Option<Farewell>> {
    let mut announced = producer.announced();
    loop {
        tokio::select! {
            () = stop.cancelled() => return producer.shutdown().await.map(Some),
            ended = producer.ended() => return ended.map(Some),
            // Gone with the producer, which the branch above sees.
            Ok(()) = announced.changed() => dataset.touch(clock),
        }
    }
}

impl WritingSide {
    /// The writing side of a dataset.
    pub fn new(
        producer: &Producer,
        metrics: Arc<crate::telemetry::ProducerMetrics>,
        log_dir: std::path::PathBuf,
    ) -> Self {
        WritingSide {
            status: producer.watch(),
            announced: producer.announced(),
            circuits: producer.circuits().clone(),
            metrics,
            log_dir,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::codec::{Misfit, Stage};
    use crate::producer::circuit::Circuits;
    use crate::producer::{Reliability, Status};
    use crate::telemetry::ProducerMetrics;

    /// The source is lost and has ended, what the log still holds comes to nothing: all of it loses.
    #[test]
    fn a_storm_is_told_where_no_source_is_left_to_tell_it() {
        let reliability = Reliability { misfit_share: 0.1, misfit_window: 10, ..Reliability::default() };
        let circuits = Circuits::new(&reliability, &Clock::system(), &ProducerMetrics::detached());
        let lost = Status { error: Some("the source is lost".to_owned()), ..Status::default() };
        let side = WritingSide {
            status: watch::channel(lost).1,
            announced: watch::channel(None).1,
            circuits: circuits.clone(),
            metrics: ProducerMetrics::detached(),
            log_dir: std::path::PathBuf::new(),
        };
        assert_eq!(side.facts().paused, None);
        let misfit = Misfit { stage: Stage::Conflict, class: "a", message: "another is newer".to_owned() };
        let mut window = circuits.storm.window();
        assert!((0..2).any(|_| window.fails(&misfit)));
        let facts = side.facts();
        assert!(facts.paused.is_some_and(|why| why.contains("another is newer")), "and what to do about it");
        assert_eq!(facts.error.as_deref(), Some("the source is lost"));
        circuits.storm.let_through();
        assert_eq!(side.facts().paused, None);
    }
}
