//! Validation: a Kafka record becomes a key and a datum in the dataset's schema, or a misfit that keeps its place.
//!
//! Owns: what a misfit carries on (everything, so that it can be replayed). Does not own: the decoding (`codec/`), the
//! letter's headers (`dead/`), or when a letter goes out (`announce`).

use std::sync::Arc;

use crate::codec::{self, Codec, Format, KeyRule, Misfit};
use crate::dead;
use crate::format::chunk::{Body, ChunkBuilder};
use crate::kafka::Message;
use crate::record::SourcePartition;
use crate::schema::Schema;
use crate::telemetry::ProducerMetrics;

/// Decodes records into chunks. One per source thread: it reuses its buffers.
pub struct Validator {
    codec: Codec,
    letter: Vec<u8>,
    metrics: Arc<ProducerMetrics>,
    /// Misfits so far.
    misfits: u64,
}

impl Validator {
    /// A validator for one dataset.
    ///
    /// # Errors
    /// The codec's, where format, key rule and schema do not go together.
    pub fn new(
        format: Format,
        key: KeyRule,
        schema: Arc<Schema>,
        metrics: Arc<ProducerMetrics>,
    ) -> Result<Validator, codec::Error> {
        Ok(Validator { codec: Codec::new(format, key, schema)?, letter: Vec::new(), metrics, misfits: 0 })
    }

    /// Appends `message` to `chunk` under `slot`. What does not fit is told, too.
    pub fn take(
        &mut self,
        message: &Message<'_>,
        source: &SourcePartition,
        slot: u16,
        chunk: &mut ChunkBuilder,
    ) -> Result<(), Misfit> {
        let (offset, timestamp) = (message.offset(), message.timestamp_ms());
        match self.codec.decode(message.key(), message.value()) {
            Ok(decoded) => {
                let body = match decoded.value {
                    Some(value) => Body::Upsert { key: decoded.key, value },
                    None => Body::Delete { key: decoded.key },
                };
                chunk.push(slot, offset, timestamp, body);
                Ok(())
            }
            Err(misfit) => {
                self.metrics.dead_letters_total.with(&[&misfit.stage.to_string()]).inc();
                self.misfits += 1;
                // The first is news, and so is each doubling: a schema or key rule that is wrong has no other voice.
                if self.misfits.is_power_of_two() {
                    tracing::warn!(
                        source = %source, offset, stage = %misfit.stage, class = misfit.class, so_far = self.misfits,
                        "a record does not fit and becomes a dead letter; `stillwell dlq list` shows why"
                    );
                }
                tracing::debug!(
                    source = %source, offset, stage = %misfit.stage, class = misfit.class, reason = %misfit.message,
                    "a record does not fit; it becomes a dead letter"
                );
                self.letter.clear();
                dead::letter::of(&misfit, source, message).encode(&mut self.letter);
                chunk.push(slot, offset, timestamp, Body::Misfit { letter: &self.letter });
                Err(misfit)
            }
        }
    }
}
