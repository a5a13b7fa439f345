//! Validation: a Kafka record becomes a key and a datum in the dataset's schema, or a misfit that keeps its place.
//!
//! Owns: what a misfit carries on (everything, so that it can be replayed), and what fits, where it may lose a conflict. Does not own: the decoding (`codec/`), the
//! letter's headers (`dead/`), or when a letter goes out (`announce`).

use std::collections::HashSet;
use std::sync::Arc;

use super::Options;
use super::schemas::Learnt;
use crate::codec::{self, Bound, Codec, Format, KeyRule, Misfit, SchemaId, Unread};
use crate::dead;
use crate::format::chunk::{Body, ChunkBuilder, ChunkRecord, Original};
use crate::kafka::Message;
use crate::record::SourcePartition;
use crate::repeat::Tally;
use crate::schema::Schema;
use crate::telemetry::ProducerMetrics;

/// Bytes that are kept for letters.
const KEPT: usize = 1 << 20;

/// Decodes records into chunks. One per source thread: it reuses its buffers.
pub struct Validator {
    codec: Codec,
    letter: Vec<u8>,
    /// Keeps the original of what fits, too; a buffer for it.
    original: Option<Vec<u8>>,
    metrics: Arc<ProducerMetrics>,
    misfits: Misfits,
    /// Schemas that the registry does not know, as far as is known here.
    strangers: HashSet<SchemaId>,
}

/// What the log says of misfits. Cheap to clone; clones count together, so that the next life goes on counting.
#[derive(Clone, Debug, Default)]
pub struct Misfits(Tally);

impl Misfits {
    fn tell(&self, source: &SourcePartition, offset: i64, misfit: &Misfit) {
        let Misfit { stage, class, message } = misfit;
        // Each is news: from here on the dataset holds rows that the database has not.
        if *class == codec::TRUNCATED {
            tracing::error!(
                source = %source, offset,
                "the table behind the source was truncated: its rows stay in the dataset until their keys are deleted \
                 (docs/operations.md, \"A table that was truncated\")"
            );
        }
        // The first is news, and so is each doubling: a schema or key rule that is wrong has no other voice.
        if let Some(so_far) = self.0.again() {
            tracing::warn!(
                source = %source, offset, stage = %stage, class, so_far,
                "a record does not fit and becomes a dead letter; `stillwell dlq list` shows why"
            );
        }
        tracing::debug!(
            source = %source, offset, stage = %stage, class, reason = %message,
            "a record does not fit; it becomes a dead letter"
        );
    }
}

impl Validator {
    /// The validator that a dataset's options ask for, which counts on in `misfits`.
    ///
    /// # Errors
    /// As [`Validator::new`].
    pub fn of(options: &Options, misfits: Misfits) -> Result<Validator, codec::Error> {
        let Options { format, key, schema, metrics, .. } = options.clone();
        let validator = Validator::new(format, key, schema, metrics, misfits)?.bounded(options.bound);
        Ok(Validator { original: options.conflict_letters.then(Vec::new), ..validator })
    }

    /// A validator for one dataset, which counts on in `misfits`.
    ///
    /// # Errors
    /// The codec's, where format, key rule and schema do not go together.
    pub fn new(
        format: Format,
        key: KeyRule,
        schema: Arc<Schema>,
        metrics: Arc<ProducerMetrics>,
        misfits: Misfits,
    ) -> Result<Validator, codec::Error> {
        Ok(Validator {
            codec: Codec::new(format, key, schema)?,
            letter: Vec::new(),
            original: None,
            metrics,
            misfits,
            strangers: HashSet::new(),
        })
    }

    /// The same for records of at most this size.
    #[must_use]
    pub fn bounded(mut self, bound: Bound) -> Validator {
        self.codec.set_bound(bound);
        self
    }

    /// What was found out about a schema. One that nobody knows makes misfits of its records, until it is forgotten.
    pub fn learn(&mut self, id: SchemaId, learnt: &Learnt) {
        match learnt {
            Learnt::Schema(schema) => self.codec.learn(id, Ok(schema)),
            Learnt::Unusable(why) => self.codec.learn(id, Err(why)),
            Learnt::Unknown => {
                self.strangers.insert(id);
            }
        }
    }

    /// A schema that nobody knew may be known by now.
    pub fn forget(&mut self, id: SchemaId) {
        self.strangers.remove(&id);
    }

    /// Appends `message` to `chunk`, whose range of `source` begins at `next` if it has none yet. What does not fit is
    /// told, too.
    ///
    /// # Errors
    /// [`Unread::Unknown`]: nothing was appended. [`Unread::Misfit`]: it was, as a misfit.
    pub fn take(
        &mut self,
        message: &Message<'_>,
        source: &SourcePartition,
        next: i64,
        chunk: &mut ChunkBuilder,
    ) -> Result<(), Unread> {
        let (offset, timestamp) = (message.offset(), message.timestamp_ms());
        let record = message.encoded(self.codec.looks_around());
        let misfit = match self.codec.read(record) {
            Ok(decoded) => {
                let body = match decoded.value {
                    Some(value) => Body::Upsert { key: decoded.key, value },
                    None => Body::Delete { key: decoded.key },
                };
                let parts = (message.key(), message.value());
                let original =
                    self.original.as_mut().map(|out| Original::note(out, &body, parts, message.headers()));
                let slot = chunk.slot(source, next);
                chunk.push_record(ChunkRecord { slot, offset, timestamp, body, original });
                return Ok(());
            }
            Err(Unread::Unknown { id, stage }) if !self.strangers.contains(&id) => {
                return Err(Unread::Unknown { id, stage });
            }
            Err(unread) => unread.misfit(),
        };
        self.misfit(&misfit, message, source);
        let slot = chunk.slot(source, next);
        chunk.push(slot, offset, timestamp, Body::Misfit { letter: &self.letter });
        // A giant is rare, and its letter more than is kept for the next one.
        if self.letter.capacity() > KEPT {
            self.letter = Vec::new();
        }
        Err(misfit.into())
    }

    /// Counts and says it, and makes its letter.
    #[cold]
    fn misfit(&mut self, misfit: &Misfit, message: &Message<'_>, source: &SourcePartition) {
        let offset = message.offset();
        self.metrics.dead_letters_total.with(&[&misfit.stage.to_string()]).inc();
        self.misfits.tell(source, offset, misfit);
        self.letter.clear();
        dead::letter::of(misfit, source, message).encode(&mut self.letter);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;
    use crate::codec::Stage;
    use crate::record::TopicId;

    /// Log lines, as they would be written.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn misfits_are_said_at_doublings_whichever_life_takes_them() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let misfit = Misfit {
            stage: Stage::Decode,
            class: "stillwell.codec.Syntax",
            message: "it ends too early".to_owned(),
        };
        let source = SourcePartition { topic: "orders".into(), topic_id: TopicId::default(), partition: 0 };
        let misfits = Misfits::default();
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..10 {
                let of_a_life = misfits.clone();
                (0..10).for_each(|offset| of_a_life.tell(&source, offset, &misfit));
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let said: Vec<&str> = text.lines().filter_map(|line| line.rsplit("so_far=").next()).collect();
        assert_eq!(said, ["1", "2", "4", "8", "16", "32", "64"], "{text}");
        assert!(text.contains("dlq list") && !text.contains("ends too early"), "{text}");
    }
}
