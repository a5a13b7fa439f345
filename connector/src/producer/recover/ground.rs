//! What the topics themselves say before anything of them is read: the announcement topic is the one that it was, and no
//! source has forgotten deletes that nobody read.

use std::time::Duration;

use super::{Error, Recovery};
use crate::format::announcement::Announcement;
use crate::format::origin::Origin;
use crate::kafka;
use crate::producer::topics;
use crate::record::Position;

impl Recovery {
    /// A compacted source forgets deletes some time after they were written: who left it unread for longer has missed
    /// them in silence. Gives the shortest such time of the sources; `None`: none is compacted.
    pub(super) async fn unread(
        &self,
        last: Option<&Announcement>,
        fetch_from: &[Position],
    ) -> Result<Option<Duration>, Error> {
        let options = &self.options;
        let now = options.clock.wall_ms();
        let logged_at = self.log.newest_timestamp().await.map(|logged_at| logged_at.min(now));
        let read_at = last.map(|last| last.announced_at).max(logged_at).unwrap_or(now);
        let unread_for = Duration::from_millis(now.saturating_sub(read_at).max(0).unsigned_abs());
        let mut shortest: Option<Duration> = None;
        for topic in &options.topics {
            let config = match self.admin.topic_config(topic).await {
                Ok(config) => config,
                Err(kafka::Error::Denied { .. }) => {
                    tracing::warn!(
                        topic,
                        "its settings may not be seen (DescribeConfigs): whether it has forgotten deletes is not known"
                    );
                    continue;
                }
                Err(source) => {
                    return Err(Error::Kafka { doing: "reading the settings of a source topic", source });
                }
            };
            let Some(remembers) = topics::remembers_deletes(&config) else { continue };
            shortest = Some(shortest.map_or(remembers, |shortest| shortest.min(remembers)));
            let Some(last) = last.filter(|_| unread_for > remembers) else { continue };
            let known = |position: &&Position| {
                *position.source.topic == **topic
                    && last.positions.iter().any(|announced| announced.source == position.source)
            };
            for position in fetch_from.iter().filter(known) {
                let (_, end) = self.ends(topic, position.source.partition).await?;
                if position.offset < end {
                    return Err(Error::Mismatch(format!(
                        "source topic {topic} is compacted and remembers deletes for {remembers:?} \
                         (delete.retention.ms), but {position} was left unread for {unread_for:?} and the partition \
                         goes on to offset {end}: keys that were deleted meanwhile may stay for ever. Nothing was \
                         read. Run `stillwell rebuild {}`, which reads the topic from its beginning, and lengthen \
                         delete.retention.ms beyond the longest outage",
                        options.dataset
                    )));
                }
            }
        }
        Ok(shortest)
    }

    /// What the log must have been written for; looked up in each life, before anything is written.
    pub(super) async fn origin(&self) -> Result<Origin, Error> {
        let options = &self.options;
        let topic = &options.announcements;
        let origin = options.origin(self.topic_id);
        let info = self.admin.describe(topic).await;
        let info =
            info.map_err(|source| Error::Kafka { doing: "describing the announcement topic", source })?;
        // Under the lives of this process it may have been made anew, or before this process under the log.
        let noted = self.log.written_for().await.filter(|noted| origin.is_recreated(noted));
        let was = noted.map_or(self.topic_id, |noted| noted.topic_id());
        let now = info.map(|info| info.id);
        if now != Some(was) {
            let now = now.map_or("none".to_owned(), |now| now.to_string());
            return Err(Error::Mismatch(format!(
                "announcement topic {topic} was deleted and created again (topic id {was} then, {now} now): the \
                 history that it held is gone, and version 1 would be announced a second time. Restore the topic, or \
                 choose another announcement topic; to begin a new history in this one stop the process, remove {} \
                 and start again",
                options.log_dir().display()
            )));
        }
        Ok(origin)
    }
}
