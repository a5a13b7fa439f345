//! Looking at the topics under a life: what changes there while it runs is told by nothing else.
//!
//! ```text
//!  a source has more partitions   -> the life drains, and the next one takes them in
//!  a topic was deleted, made anew -> the life ends at once; the next one says what to do (recover)
//! ```
//!
//! Owns: asking, and telling a change from none. Does not own: taking partitions in, or judging a topic (`recover`).

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Options;
use crate::kafka::{Admin, TopicInfo};
use crate::record::{Position, TopicId};

/// A topic that a life stands on was deleted, or made anew.
#[derive(Debug, thiserror::Error)]
#[error("topic {topic} was deleted{}", now.map(|now| format!(" and created again as {now}, it was {was}")).unwrap_or_default())]
pub struct Moved {
    topic: String,
    was: TopicId,
    now: Option<TopicId>,
}

/// A topic as the life found it.
#[derive(Clone, Debug)]
struct Known {
    topic: String,
    id: TopicId,
    /// Partitions that the life reads; `None`: not a source.
    partitions: Option<i32>,
}

/// What became of a topic.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Grown(i32),
    Moved(Option<TopicId>),
}

impl Known {
    fn compare(&self, now: Option<TopicInfo>) -> Change {
        match now {
            Some(now) if now.id != self.id => Change::Moved(Some(now.id)),
            Some(now) if self.partitions.is_some_and(|read| now.partitions > read) => {
                Change::Grown(now.partitions)
            }
            Some(_) => Change::None,
            None => Change::Moved(None),
        }
    }
}

/// The task.
pub struct Look {
    admin: Admin,
    known: Vec<Known>,
    every: Duration,
    drain: CancellationToken,
}

impl Look {
    /// At the topics of `read`, which a life reads, and the announcement topic; cancels `drain` to end the life
    /// gracefully.
    pub fn new(
        admin: Admin,
        options: &Options,
        announcements: TopicId,
        read: &[Position],
        drain: CancellationToken,
    ) -> Look {
        let sources = options.topics.iter().filter_map(|topic| {
            let of_it = || read.iter().filter(|position| *position.source.topic == **topic);
            let id = of_it().next()?.source.topic_id;
            Some(Known { topic: topic.clone(), id, partitions: Some(of_it().count() as i32) })
        });
        let own = Known { topic: options.announcements.clone(), id: announcements, partitions: None };
        let known = sources.chain([own]).collect();
        Look { admin, known, every: options.look_every, drain }
    }

    /// Looks until the life drains, which it brings about itself where a source has grown.
    ///
    /// # Errors
    /// [`Moved`]: what is read and announced from here on would be another topic's.
    pub async fn run(self) -> Result<(), Moved> {
        loop {
            tokio::select! {
                () = self.drain.cancelled() => return Ok(()),
                () = tokio::time::sleep(self.every) => {}
            }
            let mut grown = false;
            for known in &self.known {
                let described = tokio::select! {
                    () = self.drain.cancelled() => return Ok(()),
                    described = self.admin.describe(&known.topic) => described,
                };
                let now = match described {
                    Ok(now) => now,
                    Err(error) => {
                        // Who reads and announces says that Kafka is away.
                        tracing::debug!(topic = known.topic, %error, "a topic cannot be described");
                        continue;
                    }
                };
                match known.compare(now) {
                    Change::None => {}
                    Change::Grown(partitions) => {
                        tracing::warn!(
                            topic = known.topic,
                            read = known.partitions.unwrap_or(0),
                            partitions,
                            "partitions were added to a source: a new life begins, which reads them too"
                        );
                        grown = true;
                    }
                    Change::Moved(now) => {
                        return Err(Moved { topic: known.topic.clone(), was: known.id, now });
                    }
                }
            }
            if grown {
                self.drain.cancel();
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_grows_and_any_topic_can_be_made_anew() {
        let (one, two) = (TopicId([1; 16]), TopicId([2; 16]));
        let topic = |id, partitions| Some(TopicInfo { id, partitions });
        let source = Known { topic: "s".into(), id: one, partitions: Some(3) };
        assert_eq!(source.compare(topic(one, 3)), Change::None);
        assert_eq!(source.compare(topic(one, 5)), Change::Grown(5));
        assert_eq!(source.compare(topic(two, 5)), Change::Moved(Some(two)), "that comes first");
        assert_eq!(source.compare(None), Change::Moved(None));
        let own = Known { partitions: None, ..source };
        assert_eq!(own.compare(topic(one, 9)), Change::None);
        assert_eq!(own.compare(topic(two, 9)), Change::Moved(Some(two)));
    }

    #[test]
    fn it_says_what_errors_md_quotes() {
        let (was, now) = (TopicId([1; 16]), TopicId([2; 16]));
        let moved = |now| Moved { topic: "s".into(), was, now }.to_string();
        assert_eq!(moved(None), "topic s was deleted");
        assert_eq!(moved(Some(now)), format!("topic s was deleted and created again as {now}, it was {was}"));
    }
}
