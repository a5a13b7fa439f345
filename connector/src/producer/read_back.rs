//! The writer's own tail: reads back what it has committed, by the rule that readers use, before it counts.
//!
//! Owns: one client on the announcement partition, and the succession up to where it has read. Does not own: the
//! transaction (`announce`), or what to do when something else is found (`recover`).

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::format::announcement::{Announcement, Message};
use crate::format::succession::{Succession, Verdict, window_is_enough};
use crate::kafka::{self, Kept, Polled, Poller};
use crate::version::{Life, Version};

/// Why what was committed does not count.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another life has begun.
    #[error("life {newer} has begun after this one")]
    Superseded {
        /// The newer life.
        newer: Life,
    },
    /// It did not appear in time.
    #[error("it did not appear within the time allowed; the topic was read to offset {next}")]
    Missing {
        /// Where reading stands.
        next: i64,
    },
    /// Kafka said that it was committed, and passes over it: it was aborted all the same.
    #[error(
        "Kafka reads past offset {offset}, where it was written: it was aborted though the commit said otherwise"
    )]
    Aborted {
        /// Where it was written.
        offset: i64,
    },
    /// Told to stop.
    #[error("the life was told to end")]
    Stopped,
    /// The topic cannot be read.
    #[error("reading the announcement topic")]
    Kafka(#[from] kafka::Error),
}

impl Error {
    /// Whether Kafka is the trouble, and not a newer life.
    pub fn is_of_kafka(&self) -> bool {
        !matches!(self, Error::Superseded { .. } | Error::Stopped)
    }
}

/// What the topic says at a moment.
#[derive(Debug, Default)]
pub struct Truth {
    /// The last valid announcement.
    pub last: Option<Box<Announcement>>,
    /// The highest epoch in any record, valid or not.
    pub highest_epoch: u64,
    /// The lowest one.
    pub lowest_epoch: Option<u64>,
    /// Whether all of the topic was read, from its first offset on.
    pub whole: bool,
}

impl Truth {
    /// Whether the topic, which begins at offset `low`, has lost records: it holds no valid announcement, and yet is not a
    /// topic to which none was written. A history that is gone must not be taken for one that has not begun: version 1
    /// would be announced a second time.
    ///
    /// A topic in which only superseded lives have announced anything is one that has not begun: of two that start at
    /// once the slower one's first version does not count. Its lives count from 1, one after the other.
    pub fn is_history_gone(&self, low: i64) -> bool {
        self.last.is_none() && (low > 0 || !self.whole || self.lowest_epoch.is_some_and(|lowest| lowest > 1))
    }
}

/// The reader.
pub struct ReadBack {
    poller: Poller,
    topic: String,
    partition: i32,
    clock: Clock,
    stop: CancellationToken,
    succession: Succession,
    truth: Truth,
    next: i64,
    /// Where the partition ended when that was last told; only of what is committed or aborted, since a record whose
    /// marker is not written yet holds the end back.
    end: i64,
}

impl ReadBack {
    /// Reads the end of the announcement partition, as far back as it takes to judge. Here and later, no wait goes on
    /// once `stop` is cancelled.
    ///
    /// # Errors
    /// [`Error::Kafka`], [`Error::Stopped`].
    pub fn open(
        mut poller: Poller,
        topic: &str,
        partition: i32,
        (low, end): (i64, i64),
        clock: Clock,
        deadline: Instant,
        stop: CancellationToken,
    ) -> Result<ReadBack, Error> {
        let enough = |records: &[Kept]| {
            window_is_enough(
                records
                    .iter()
                    .filter_map(|record| Some(Message::decode(record.value.as_deref()?).ok()?.step())),
            )
        };
        let ends = (low, end);
        let read = kafka::read_back(&mut poller, topic, partition, ends, &clock, deadline, &stop, enough);
        let window = match read {
            Ok(window) => window,
            Err(_) if stop.is_cancelled() => return Err(Error::Stopped),
            Err(error) => return Err(error.into()),
        };
        let mut read_back = ReadBack {
            poller,
            topic: topic.to_owned(),
            partition,
            clock,
            stop,
            succession: Succession::default(),
            truth: Truth { whole: window.whole, ..Truth::default() },
            next: window.next,
            end: window.next,
        };
        for record in window.records {
            read_back.see(record.offset, record.value.as_deref().unwrap_or_default());
        }
        Ok(read_back)
    }

    /// What has been read so far.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Takes the truth out, once it is complete.
    pub fn take_truth(&mut self) -> Truth {
        std::mem::take(&mut self.truth)
    }

    /// Reads on until the epoch record of `life` is there. The verdict is [`Verdict::Superseded`] when another life
    /// of its epoch, or a newer one, came first.
    ///
    /// # Errors
    /// [`Error`].
    pub fn until_life(&mut self, life: Life, deadline: Instant) -> Result<Verdict, Error> {
        self.until(None, deadline, |message, verdict, _| match message {
            Message::Epoch(record) if record.life == life => Some(Ok(verdict)),
            _ => None,
        })
    }

    /// Reads on until the announcement of `version` by `life` is there and valid. `written_at` is its offset, where
    /// the broker told it: once the partition is read beyond it, it will not come any more.
    ///
    /// # Errors
    /// [`Error::Superseded`] as soon as a newer life appears, [`Error::Aborted`], else as above.
    pub fn until_version(
        &mut self,
        life: Life,
        version: Version,
        written_at: Option<i64>,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.until(written_at, deadline, |message, verdict, highest| match message {
            _ if highest.is_some_and(|highest| highest != life) => {
                Some(Err(Error::Superseded { newer: highest.unwrap_or(life) }))
            }
            Message::Announcement(announcement)
                if announcement.life == life
                    && announcement.version == version
                    && verdict == Verdict::Valid =>
            {
                Some(Ok(()))
            }
            _ => None,
        })?;
        // The truth is the life's own from here on; keeping its announcements would only cost memory.
        self.truth.last = None;
        Ok(())
    }

    /// Reads what is there by now and waits for nothing: for a life that announces nothing for a while. In a client that
    /// nobody polls statistics pile up for ever, and the error of an outage that is over would be told to the next
    /// read-back. What is wrong with the connection is passed over here: it matters once something is to be read.
    ///
    /// # Errors
    /// [`Error::Superseded`] where another life than `life` has begun; [`Error::Kafka`] where the topic no longer holds
    /// what comes next.
    pub fn look(&mut self, life: Life) -> Result<(), Error> {
        loop {
            let (offset, value) = match self.poller.poll(Duration::ZERO) {
                Some(Polled::Record { message, .. }) => {
                    (message.offset(), message.value().unwrap_or_default().to_vec())
                }
                Some(Polled::End { offset, .. }) => {
                    self.end = offset;
                    continue;
                }
                Some(Polled::Lost { detail, .. }) => return Err(self.lost(detail)),
                Some(Polled::Error(error)) => {
                    tracing::debug!(topic = self.topic, %error, "nothing is to be read back now; passed over");
                    continue;
                }
                None => break,
            };
            if offset >= self.next {
                self.see(offset, &value);
            }
        }
        // What came in with the last call.
        self.poller.tend();
        self.truth.last = None;
        match self.succession.life() {
            Some(newer) if newer != life => Err(Error::Superseded { newer }),
            _ => Ok(()),
        }
    }

    fn lost(&self, detail: String) -> Error {
        let doing = format!("reading {}[{}] at offset {}", self.topic, self.partition, self.next);
        kafka::Error::Unavailable { doing, detail }.into()
    }

    fn until<T>(
        &mut self,
        written_at: Option<i64>,
        deadline: Instant,
        mut found: impl FnMut(&Message, Verdict, Option<Life>) -> Option<Result<T, Error>>,
    ) -> Result<T, Error> {
        loop {
            if let Some((message, verdict)) = self.step(Duration::from_millis(100))?
                && let Some(found) = found(&message, verdict, self.succession.life())
            {
                return found;
            }
            if let Some(written_at) = written_at.filter(|written_at| *written_at < self.end) {
                return Err(Error::Aborted { offset: written_at });
            }
            if self.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            if self.clock.now() >= deadline {
                return Err(Error::Missing { next: self.next });
            }
        }
    }

    /// The next valid announcement, waited for for up to `wait`: for who follows without writing.
    ///
    /// # Errors
    /// [`Error::Kafka`].
    pub fn next_valid(&mut self, wait: Duration) -> Result<Option<Box<Announcement>>, Error> {
        Ok(match self.step(wait)? {
            Some((Message::Announcement(announcement), Verdict::Valid)) => Some(announcement),
            _ => None,
        })
    }

    /// Reads one record, if one comes within `wait`.
    fn step(&mut self, wait: Duration) -> Result<Option<(Message, Verdict)>, Error> {
        let (offset, value) = match self.poller.poll(wait) {
            Some(Polled::Record { message, .. }) => {
                (message.offset(), message.value().unwrap_or_default().to_vec())
            }
            Some(Polled::Lost { detail, .. }) => return Err(self.lost(detail)),
            Some(Polled::Error(error)) if !error.is_transient() => return Err(error.into()),
            Some(Polled::End { offset, .. }) => {
                self.end = offset;
                return Ok(None);
            }
            Some(Polled::Error(_)) | None => return Ok(None),
        };
        Ok(if offset >= self.next { self.see(offset, &value) } else { None })
    }

    fn see(&mut self, offset: i64, value: &[u8]) -> Option<(Message, Verdict)> {
        self.next = offset + 1;
        let message = match Message::decode(value) {
            Ok(message) => message,
            Err(error) => {
                // As readers do: a stray line must not stop the writer for good.
                tracing::error!(
                    topic = self.topic, offset, %error,
                    "this record is not one of ours; it is passed over. Nobody but Stillwell may write here"
                );
                return None;
            }
        };
        let life = message.life();
        self.truth.highest_epoch = self.truth.highest_epoch.max(life.epoch);
        let lowest = self.truth.lowest_epoch.get_or_insert(life.epoch);
        *lowest = life.epoch.min(*lowest);
        let verdict = match &message {
            Message::Epoch(_) => self.succession.epoch(life),
            Message::Announcement(announcement) => {
                let verdict = self.succession.announcement(life, announcement.version);
                if verdict == Verdict::Valid {
                    self.truth.last = Some(announcement.clone());
                }
                verdict
            }
        };
        Some((message, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_lost_its_beginning_is_no_first_start() {
        let truth = |lowest_epoch, whole| Truth { lowest_epoch, whole, ..Truth::default() };
        assert!(!truth(None, true).is_history_gone(0), "a new topic");
        assert!(!truth(Some(1), true).is_history_gone(0), "lives that announced nothing that counts");
        assert!(truth(None, true).is_history_gone(8), "emptied");
        assert!(truth(Some(7), true).is_history_gone(0), "compacted");
        assert!(truth(Some(1), false).is_history_gone(0), "not read to its beginning");
    }
}
