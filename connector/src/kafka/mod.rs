//! Kafka: every client that Stillwell uses, each for one purpose. The only user of `rdkafka`.
//!
//! ```text
//!                     source topics          announcements          dead letters
//!                          |                  |    ^   ^                 ^
//!            Poller (source)   Poller (tail) -+    |   |                 |
//!                                                  |   +-- Transaction --+   letters, source offsets, announcement
//!            Member: who owns which shard ---------+       (one thread)
//!            Ends: last stable offset, high watermark         Group: offsets of who joins none (replays)
//!            Admin: topic ids, settings, rights, creation Sender: plain idempotent records
//!            Cluster: librdkafka's embedded broker, for the demo
//!            Tokens: what each of them shows to Kafka where it comes in by OIDC
//! ```
//!
//! Owns: the librdkafka settings that the design depends on, telling errors apart by what the caller does next, and what
//! of librdkafka's many lines is worth one of ours (`reach`).
//! Does not own: what is read or written, positions, or when to try again.
//!
//! A client may block: [`Poller`] and [`Transaction`] are meant for one thread each. [`Admin`], [`Member`] and
//! [`Sender`] are async and bring their own threads.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use crate::telemetry::Metrics;

mod client;
mod describe;
mod encoded;
pub mod allowed;
pub mod back;
pub mod embedded;
pub mod ends;
mod error;
pub mod group;
pub mod ids;
pub mod poll;
pub mod properties;
pub mod reach;
pub mod rebalance;
pub mod sender;
pub mod stats;
mod tokens;
pub mod topics;
pub mod transaction;

#[cfg(test)]
mod tests;

pub use back::{Kept, read_back, read_on};
pub use embedded::Cluster;
pub use error::{Error, is_denied};
pub use group::{Committed, Group};
pub use ids::Message;
pub use poll::{Polled, Poller, Tuning, Waker};
pub use reach::Reach;
pub use rebalance::{Event, GroupMetadata, HANDOVER, Member, Membership, Revoked};
pub use sender::{Receipt, Sender};
pub use stats::Statistics;
pub use tokens::Tokens;
pub use topics::{Admin, Timestamps, TopicInfo, TopicSpec};
pub use transaction::{Outcome, Transaction};

/// How to reach Kafka.
#[derive(Clone, Default)]
pub struct Options {
    /// `bootstrap.servers`.
    pub bootstrap_servers: String,
    /// Any other librdkafka property. What the design depends on (`isolation.level` and the like) is set after
    /// these and wins; that they do not conflict is checked where they are configured.
    pub properties: BTreeMap<String, String>,
    /// `client.id`.
    pub client_id: String,
    /// The servers are a [`Cluster`], which knows no administration, topic ids or transactional offsets.
    pub embedded: bool,
    /// Where librdkafka's statistics go; `None`: nowhere.
    pub statistics: Option<Statistics>,
    /// What is known of whether Kafka answers: the same for all clients of a process, so that an outage is said once.
    pub reach: Reach,
    /// Who gets tokens for clients that come in by OIDC: the same for all clients of a process, so that they share one.
    pub tokens: Tokens,
}

impl Options {
    /// Whether librdkafka takes the properties, each by itself, and the servers as they are written: to be asked before the
    /// first client, so that a mistake ends a start and is not tried again for ever.
    ///
    /// # Errors
    /// [`Error::Options`], with all that it does not take; without values, which may be secrets.
    pub fn check(&self) -> Result<(), Error> {
        let refused = self.properties.iter().filter_map(|(name, value)| {
            properties::refused(name, value).map(|refused| format!("property {name:?} {refused}"))
        });
        let unnamed = properties::no_mechanism(&self.properties);
        let unnamed = unnamed.map(|what| format!("property \"security.protocol\" {what}"));
        let servers = properties::schemes(&self.bootstrap_servers, &self.properties);
        let servers = servers.into_iter().map(|what| format!("bootstrap server {what}"));
        let refused: Vec<String> = refused.chain(unnamed).chain(servers).collect();
        match refused.as_slice() {
            [] => Ok(()),
            all => Err(Error::Options {
                doing: "reading the properties of Kafka's clients".to_owned(),
                detail: all.join("; "),
            }),
        }
    }

    /// The same, with the clients' statistics shown in `metrics`, labelled `OWNER/ROLE` (`products/0/source`).
    pub fn measured(mut self, metrics: &Metrics, owner: &str) -> Options {
        self.statistics = Some(Statistics::new(metrics, owner));
        self
    }
}

impl fmt::Debug for Options {
    /// Shows which properties are set, never their values: passwords, keys and tokens are among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("properties", &self.properties.keys())
            .field("client_id", &self.client_id)
            .field("embedded", &self.embedded)
            .finish()
    }
}

/// A record on its way into Kafka.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outgoing<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition; `None`: by the key, as Java's clients place it.
    pub partition: Option<i32>,
    /// Key.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a delete.
    pub value: Option<&'a [u8]>,
    /// Headers, in order.
    pub headers: &'a [(String, Option<Bytes>)],
    /// Headers behind those: who puts some on records of others need not copy what they have.
    pub behind: &'a [(&'a str, &'a [u8])],
    /// Milliseconds since the Unix epoch; `None`: now.
    pub timestamp: Option<i64>,
}

/// Where a record ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Partition.
    pub partition: i32,
    /// The record's own offset. With acknowledgements from the embedded broker, -1 where it tells none.
    pub offset: i64,
}
