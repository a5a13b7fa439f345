//! Dead letters of what a listener did not handle.
//!
//! Owns: that they are in the topic before the listener goes on. Does not own: what is in one (`dead`).

use std::time::Duration;

use super::{ChangeSet, Stage};
use crate::dead::letter::{Unhandled, of_change};
use crate::format::letter::{Elsewhere, Letter};
use crate::kafka::{self, Outgoing, Sender};

/// How long Kafka may take to acknowledge a letter, before it is sent again.
const DELIVERY_MS: &str = "30000";

/// The way to the dead-letter topic.
pub(super) struct Letters {
    kafka: kafka::Options,
    topic: String,
    /// As Connect's connector: here the dataset.
    dataset: String,
    /// Made by the first letter: most listeners never send one.
    sender: Option<Sender>,
}

/// Why letters are not in the topic.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("sending dead letters to {topic}")]
    Kafka {
        topic: String,
        #[source]
        source: kafka::Error,
    },
}

impl Letters {
    pub(super) fn new(kafka: kafka::Options, topic: String, dataset: String) -> Letters {
        Letters { kafka, topic, dataset, sender: None }
    }

    /// The letters of a set's changes.
    pub(super) fn of(set: &ChangeSet<'_>, listener: &str, stage: Stage, why: &str) -> Vec<Letter> {
        let unhandled = Unhandled { listener, stage: stage.label(), why, version: set.version };
        set.changes.iter().map(|change| of_change(change, &unhandled)).collect()
    }

    /// Sends letters; those that Kafka has acknowledged are taken out of the list.
    pub(super) async fn send(&mut self, letters: &mut Vec<Letter>, failed_at_ms: i64) -> Result<(), Error> {
        let failed = |source| Error::Kafka { topic: self.topic.clone(), source };
        let sender = match &self.sender {
            Some(sender) => sender.clone(),
            None => {
                let mut kafka = self.kafka.clone();
                kafka.properties.entry("message.timeout.ms".to_owned()).or_insert(DELIVERY_MS.to_owned());
                let sender = Sender::new(&kafka).map_err(failed)?;
                self.sender.insert(sender).clone()
            }
        };
        let mut dated = true;
        while !letters.is_empty() {
            // A few at a time: what was acknowledged is not sent again after a failure.
            let now = letters.len().min(500);
            let mut receipts = Vec::with_capacity(now);
            for letter in letters.iter().take(now) {
                let headers = letter.kafka_headers(&self.dataset, 0, failed_at_ms, &Elsewhere::Nothing);
                let outgoing = Outgoing {
                    topic: &self.topic,
                    partition: None,
                    key: letter.key.as_deref(),
                    value: letter.value.as_deref(),
                    headers: &headers,
                    // Kafka 4 takes none of a time to come.
                    timestamp: (dated && letter.timestamp > 0).then_some(letter.timestamp.min(failed_at_ms)),
                    ..Outgoing::default()
                };
                receipts.push(sender.enqueue(&outgoing).await);
            }
            let (mut outcome, mut refused) = (Ok(()), false);
            let mut left = Vec::new();
            for (letter, receipt) in letters.drain(..now).zip(receipts) {
                let sent = match receipt {
                    Ok(delivered) => delivered.await.map(|_| ()),
                    Err(error) => Err(error),
                };
                match sent {
                    Ok(()) => {}
                    // It may be for its timestamp (`message.timestamp.before.max.ms`): once more with that of now.
                    Err(kafka::Error::Rejected { .. }) if dated => {
                        refused = true;
                        left.push(letter);
                    }
                    Err(kafka::Error::Rejected { .. }) if letter.value.is_some() => {
                        left.push(without_value(letter))
                    }
                    Err(error) => {
                        left.push(letter);
                        outcome = Err(failed(sender.over(&self.topic).unwrap_or(error)));
                    }
                }
            }
            letters.splice(..0, left);
            dated &= !refused;
            if outcome.is_err() && sender.over(&self.topic).is_some() {
                self.sender = None;
            }
            outcome?;
        }
        Ok(())
    }
}

/// The topic does not take the record, and it will be no smaller: what its value was can be read in the version.
fn without_value(mut letter: Letter) -> Letter {
    let bytes = letter.value.take().map_or(0, |value| value.len());
    letter.message = format!("(its value of {bytes} bytes is in the version alone) {}", letter.message);
    letter
}

/// Between attempts to send letters.
pub(super) const FIRST_WAIT: Duration = Duration::from_millis(200);
