//! The announcement topic as it stands, judged by the rule that readers use, and what must hold of it whatever happened.

use std::time::Duration;

use serde_json::json;
use stillwell::Producer;
use stillwell::format::announcement::{Announcement, Message};
use stillwell::format::succession::{Succession, Verdict};
use stillwell::version::{Life, Version};
use stillwell_tests::{Record, Setting, Topic};

/// Longest that anything here may take.
pub const DEADLINE: Duration = Duration::from_secs(180);

/// What the topic holds.
pub struct History {
    /// All that count, in order.
    pub valid: Vec<Announcement>,
    /// Those that do not.
    pub refused: Vec<Announcement>,
    /// The lives that began, in order.
    pub lives: Vec<Life>,
}

impl History {
    /// Reads all of it, by librdkafka.
    pub fn of(setting: &Setting) -> History {
        let mut history = History { valid: Vec::new(), refused: Vec::new(), lives: Vec::new() };
        let mut succession = Succession::default();
        for record in announcements(setting).read() {
            let value = record.value.expect("nothing in this topic is deleted");
            match Message::decode(&value).expect("only our own records are in it") {
                Message::Epoch(record) => {
                    if succession.epoch(record.life) == Verdict::Valid {
                        history.lives.push(record.life);
                    }
                }
                Message::Announcement(announcement) => {
                    match succession.announcement(announcement.life, announcement.version) {
                        Verdict::Valid => history.valid.push(*announcement),
                        Verdict::Superseded | Verdict::Repeated => history.refused.push(*announcement),
                    }
                }
            }
        }
        history
    }

    /// No version is missing, none is there twice, and each follows the one before it.
    #[track_caller]
    pub fn assert_gapless(&self) -> &History {
        for (at, announcement) in self.valid.iter().enumerate() {
            assert_eq!(announcement.version, Version(at as u64 + 1), "version {} of the topic", at + 1);
            let before = at.checked_sub(1).map(|before| &self.valid[before]);
            let previous = before.map(|before| (before.version, before.life.epoch));
            assert_eq!(announcement.previous, previous, "what version {} follows", announcement.version);
        }
        self
    }

    /// Nothing was written that does not count.
    #[track_caller]
    pub fn assert_no_branch(&self) -> &History {
        assert_eq!(self.refused.len(), 0, "announcements that do not count");
        self
    }
}

/// The dataset's announcement topic.
pub fn announcements(setting: &Setting) -> Topic {
    setting.topic.beside(&format!("{}.announcements", setting.dataset()))
}

/// The dataset's dead-letter topic.
pub fn dead_letters(setting: &Setting) -> Topic {
    setting.topic.beside(&format!("{}.dlq", setting.dataset()))
}

/// A record that fits, for the model too.
pub fn good(setting: &mut Setting, id: &str, price: f64) -> Record {
    setting.upsert(id, json!({"id": id, "price": price}))
}

/// One that does not.
pub fn misfit(key: &str) -> Record {
    Record::upsert(key, "{\"id\": ")
}

/// Waits until the producer has announced `version` or a later one.
pub async fn announced(producer: &Producer, version: u64) {
    let mut announced = producer.announced();
    let there = announced.wait_for(|now| now.as_ref().is_some_and(|now| now.version >= Version(version)));
    let waited = tokio::time::timeout(DEADLINE, there).await;
    drop(waited.unwrap_or_else(|_| panic!("version {version} is not announced: {:?}", producer.status())));
}

/// Waits until `lives` have ended with an error, and returns the last error.
pub async fn ended(producer: &Producer, lives: u64) -> String {
    let mut status = producer.watch();
    let there = status.wait_for(|status| status.failures >= lives);
    let Ok(ended) = tokio::time::timeout(DEADLINE, there).await else {
        panic!("no life has ended: {:?}", producer.status());
    };
    // Of the error that shows the next life makes nothing, and that may be before this task has its turn.
    ended.expect("it runs").last_failure.clone().expect("each has one")
}

/// Sets the largest record that a topic takes.
pub fn limit(topic: &Topic, bytes: &str) {
    topic.set(&[("max.message.bytes", bytes)]);
}
