//! Stillwell takes the records of Kafka topics, holds them durably, and releases them as numbered, immutable versions
//! of a keyed dataset, which any number of services hold and read locally.
//!
//! ```text
//! source -> validate -> log (WAL + spill) -> pace -> batch -> build -> store -> announce      (producer)
//!                                                                                  |
//!        read <- view <- follow <- fetch + cache <----------------------------- tail          (consumer)
//!
//! what fails at any stage -> dead-letter topic
//! ```
//!
//! Reading:
//!
//! ```no_run
//! # async fn read() -> stillwell::Result<()> {
//! let products = stillwell::Consumer::builder("products")
//!     .bootstrap_servers("localhost:9092")
//!     .blobs("file:///var/lib/stillwell/blobs")
//!     .cache_dir("/var/cache/stillwell")
//!     .start()
//!     .await?; // returns when a version is readable
//! let view = products.view(); // one version: never changes, never locks
//! if let Some(value) = view.get("P-100")? {
//!     println!("{} in {}", value.to_json()?, view.versions());
//! }
//! products.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Writing:
//!
//! ```no_run
//! # async fn write() -> Result<(), Box<dyn std::error::Error>> {
//! let producer = stillwell::Producer::builder("products")
//!     .bootstrap_servers("localhost:9092")
//!     .source("products")
//!     .schema_file("schemas/product.avsc")
//!     .data_dir("/var/lib/stillwell")
//!     .start()
//!     .await?;
//! tokio::signal::ctrl_c().await?;
//! println!("{}", producer.shutdown().await?); // last version, positions, records left in the log
//! # Ok(())
//! # }
//! ```

// ground: values and arithmetic, no I/O, no tasks; touches ground only
pub mod error;
pub mod record;
pub mod version;
#[doc(hidden)]
pub mod clock;
#[doc(hidden)]
pub mod retry;
#[doc(hidden)]
pub mod repeat;
#[doc(hidden)]
pub mod words;
#[doc(hidden)]
pub mod gauge;
#[doc(hidden)]
pub mod failpoint;
#[doc(hidden)]
pub mod schema;
#[doc(hidden)]
pub mod codec;
#[doc(hidden)]
pub mod format;

// pipes: one outside thing each, knowing no dataset; touch ground and telemetry
#[doc(hidden)]
pub mod tls;
#[doc(hidden)]
pub mod kafka;
#[doc(hidden)]
pub mod disk;
#[doc(hidden)]
pub mod threads;
#[doc(hidden)]
pub mod registry;
#[doc(hidden)]
pub mod webhook;
#[doc(hidden)]
pub mod telemetry;

// stores: blobs, in topics too; touches ground, telemetry and kafka
#[doc(hidden)]
pub mod blob;

// the shared room: a version in memory, the same for writer and readers
#[doc(hidden)]
pub mod view;

// rooms of the flow: touch ground, pipes, blob, view and dead, never each other
#[doc(hidden)]
pub mod producer;
#[doc(hidden)]
pub mod consumer;
#[doc(hidden)]
pub mod dead;

// outside: may touch all above; nothing above touches it
#[doc(hidden)]
pub mod host;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod http;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod demo;

pub use consumer::listen::{Begin, ChangeSet, Failed, Listener, Listening, Tries};
pub use consumer::{Bounds, Consumer, ConsumerBuilder, Fixed, Guard};
pub use error::{Error, ErrorKind, Result};
pub use producer::{Farewell, Landed, Producer, ProducerBuilder, Publication, Write, Written};
pub use record::{Position, SourcePartition, TopicId};
pub use version::{Shard, ShardVersions, Version};
pub use view::{Change, ChangeKind, Changes, Matches, Scan, Term, Update, Updates, Value, View};

// README.md's example is compiled with those of this documentation.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
