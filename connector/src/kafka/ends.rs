//! How far a source partition reaches: for who reads only what is committed, and altogether.
//!
//! ```text
//!  ...committed | open transaction ... | what came after it |
//!               ^ last stable offset                        ^ high watermark
//! ```
//!
//! Owns: asking for both. Does not own: what it means that they differ (`producer/survey`).

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::client::{Context, make};
use super::tokens::Kept;
use super::{Error, Options, ids};

/// How long one request may take: short, since whoever asks is to stop when told.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks for the ends of partitions. Every call blocks.
pub struct Ends {
    committed: Kept<BaseConsumer<Context>>,
    all: Kept<BaseConsumer<Context>>,
    embedded: bool,
}

impl Ends {
    /// A pair of clients, one for each isolation level. `group` is only shown to the broker. Does not wait for Kafka.
    ///
    /// # Errors
    /// [`Error::Options`] for a property that librdkafka refuses.
    pub fn new(options: &Options, group: &str) -> Result<Ends, Error> {
        let client = |isolation| {
            make(
                options,
                &[("statistics.interval.ms", "0")],
                &[("group.id", group), ("enable.auto.commit", "false"), ("isolation.level", isolation)],
                Context::new("ends", &Options { statistics: None, ..options.clone() }),
                || format!("making the client that asks {} for ends", options.bootstrap_servers),
            )
        };
        Ok(Ends {
            committed: client("read_committed")?,
            all: client("read_uncommitted")?,
            embedded: options.embedded,
        })
    }

    /// The last stable offset and the high watermark of a partition.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the partition's leader does not answer.
    pub fn of(&self, topic: &str, partition: i32) -> Result<(i64, i64), Error> {
        let ask = |client: &BaseConsumer<Context>| ask(client, topic, partition);
        // In this order: what is committed in between must not look as if a transaction were open behind the end.
        let all = ask(&self.all)?;
        let stable = if self.embedded { all } else { ask(&self.committed)? };
        Ok((stable, all.max(stable)))
    }
}

fn ask(client: &BaseConsumer<Context>, topic: &str, partition: i32) -> Result<i64, Error> {
    let ends = client.fetch_watermarks(topic, partition, TIMEOUT);
    ids::serve_unread(client.client(), false);
    let doing = || format!("asking where {topic}[{partition}] ends");
    ends.map(|(_, end)| end)
        .map_err(|error| client.client().context().excused(Error::from_kafka(doing(), &error)))
}
