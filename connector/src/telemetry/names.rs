//! Every metric, once: its name, its meaning, its kind and its labels. The structs that the stages hold, and what
//! `/metrics` shows, are made from this list, so that neither can differ from it.
//!
//! A field's name with `stillwell_` before it is the metric's name; its doc comment is the help text.
//! `_seconds` histograms are in seconds; all other histograms count things.

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::family::{By, families};
use super::striped::Striped;

families! {
    /// What the producer of one shard tells about itself.
    pub struct ProducerMetrics["dataset", "shard"] {
        /// Records received from the source topics.
        records_total: IntCounter,
        /// Key and value bytes received from the source topics.
        bytes_total: IntCounter,
        /// Batches flushed.
        batches_total: IntCounter,
        /// Versions announced.
        versions_total: IntCounter,
        /// Records in a batch.
        batch_records: Histogram,
        /// From a batch's first record to its flush.
        batch_flush_seconds: Histogram,
        /// One upload to the blob store that went well, without the attempts before it.
        write_latency_seconds: Histogram,
        /// Received to durable in the log.
        persist_latency_seconds: Histogram,
        /// Received to announced.
        publish_latency_seconds: Histogram,
        /// What each stage took of that, for the oldest record of each version.
        publish_stage_seconds: By<Histogram>["stage"],
        /// Building one snapshot and its index.
        snapshot_seconds: Histogram,
        /// Uploads and announcements that failed, retries included.
        write_failures_total: IntCounter,
        /// Attempts after the first.
        retries_total: IntCounter,
        /// The circuit breaker before a dependency: 0 closed, 1 half-open, 2 open.
        circuit_state: By<IntGauge>["dependency"],
        /// How often that circuit breaker opened.
        circuit_trips_total: By<IntCounter>["dependency"],
        /// Flushes forced by memory pressure.
        memory_pressure_events_total: IntCounter,
        /// Whether the source is paused: 1 while nothing is taken from Kafka.
        source_paused: IntGauge,
        /// Partitions of the source that wait for a record's schema.
        source_waiting_partitions: IntGauge,
        /// Times that a partition stood still although it holds more, and was assigned anew.
        source_stalls_total: IntCounter,
        /// Pressure, 0 idle to 1 full: the largest of its inputs.
        pressure: Gauge,
        /// Records a second that leave the log at most, at the moment; 0: as many as come.
        pace_records_per_second: Gauge,
        /// Records received and not yet announced.
        pending_records: IntGauge,
        /// Pending records that are on disk only.
        spilled_records: IntGauge,
        /// Bytes of the chunks in the log, before they are packed.
        log_bytes: IntGauge,
        /// Uploads under way.
        active_writes: IntGauge,
        /// Records lost by the shed strategy.
        shed_records_total: By<IntCounter>["strategy"],
        /// Records overwritten by a later one of their key within their batch.
        coalesced_records_total: IntCounter,
        /// Records that changed nothing and were dropped.
        unchanged_records_total: IntCounter,
        /// Versions opened from an older snapshot, since a newer blob was missing or damaged.
        restores_total: IntCounter,
        /// From this version on everything is kept.
        oldest_kept_version: IntGauge,
        /// Blobs that the cleaner has deleted, by kind: delta, snapshot or index.
        cleaned_blobs_total: By<IntCounter>["kind"],
        /// Their bytes.
        cleaned_bytes_total: IntCounter,
        /// Cleanings that failed; what they left is tried again.
        clean_failures_total: IntCounter,
        /// Bytes that are kept in the store, as of the last cleaning, by kind: delta, snapshot, index or letter.
        stored_bytes: By<IntGauge>["kind"],
        /// Records between the announced position and the end of the source partition.
        source_lag_records: By<IntGauge>["topic", "partition"],
        /// For how long an open transaction has kept what lies behind it from being read; 0 where none does.
        source_hanging_transaction_seconds: By<Gauge>["topic", "partition"],
        /// Dead letters, by the stage that could not process the record.
        dead_letters_total: By<IntCounter>["stage"],
        /// Records written through this process, by outcome: published, durable, rejected, unsent or unknown.
        written_records_total: By<IntCounter>["outcome"],
        /// A record written through this process to the version that holds it announced.
        written_latency_seconds: Histogram,
    }
}

families! {
    /// What the consumer of one dataset's shard tells about itself.
    pub struct ConsumerMetrics["dataset", "shard"] {
        /// Versions made readable.
        processed_versions_total: IntCounter,
        /// Reads that borrowed from the map.
        zero_copy_reads_total: Striped,
        /// Reads that decoded a copy.
        fallback_reads_total: Striped,
        /// Errors, by stage.
        errors_total: By<IntCounter>["stage"],
        /// Versions opened from an older snapshot, since a newer blob was missing or damaged.
        restores_total: IntCounter,
        /// Announced to readable.
        processing_latency_seconds: Histogram,
        /// Newest source timestamp in a version to that version readable.
        freshness_seconds: Histogram,
        /// The version that is readable.
        current_version: IntGauge,
        /// When the readable version was announced, in seconds since the Unix epoch: its age is the time since.
        current_version_timestamp_seconds: Gauge,
        /// The newest version announced.
        announced_version: IntGauge,
        /// The version that readers are pinned to; 0: none, the newest is followed.
        pinned_version: IntGauge,
        /// Versions that this reader's guard refused.
        refused_versions_total: IntCounter,
        /// The present wait between polls.
        backoff_seconds: Gauge,
        /// The circuit breaker before a dependency: 0 closed, 1 half-open, 2 open.
        circuit_state: By<IntGauge>["dependency"],
        /// How often that circuit breaker opened.
        circuit_trips_total: By<IntCounter>["dependency"],
        /// Bytes held, by kind.
        memory_bytes: By<IntGauge>["kind"],
        /// Dead letters, by the stage that could not process the record.
        dead_letters_total: By<IntCounter>["stage"],
        /// The version that a listener or webhook has handled.
        listener_version: By<IntGauge>["listener"],
        /// Changes that it has handled.
        listener_changes_total: By<IntCounter>["listener"],
        /// Attempts that failed.
        listener_failures_total: By<IntCounter>["listener"],
        /// One attempt that went well.
        listener_seconds: By<Histogram>["listener"],
        /// Whether a listener or webhook is held: 1 while too many sets were given up, and no more becomes a letter.
        listener_held: By<IntGauge>["listener"],
        /// Clients that follow the changes as server-sent events.
        change_streams: IntGauge,
        /// Event streams that this process ended, by why: slow, shutdown, unreadable or closed.
        change_streams_ended_total: By<IntCounter>["reason"],
    }
}

families! {
    /// librdkafka's statistics of one client (<https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md>).
    /// The client label says dataset, shard and what the client does, as in `products/0/source`.
    pub struct KafkaMetrics["client"] {
        /// Brokers that the client is connected to: none need be where it has nothing to ask.
        kafka_brokers_up: IntGauge,
        /// Brokers that the client wants a connection to and has none.
        kafka_brokers_down: IntGauge,
        /// Requests sent.
        kafka_requests_total: IntCounter,
        /// Request errors and time-outs.
        kafka_request_errors_total: IntCounter,
        /// Bytes sent.
        kafka_sent_bytes_total: IntCounter,
        /// Bytes received.
        kafka_received_bytes_total: IntCounter,
        /// Messages sent.
        kafka_sent_messages_total: IntCounter,
        /// Messages received.
        kafka_received_messages_total: IntCounter,
        /// Messages in the client's producer queues.
        kafka_queued_messages: IntGauge,
        /// Bytes in the client's producer queues.
        kafka_queued_bytes: IntGauge,
        /// Operations that wait for the application to poll.
        kafka_waiting_operations: IntGauge,
        /// Messages fetched ahead of the application, all partitions.
        kafka_prefetched_messages: IntGauge,
        /// Bytes fetched ahead of the application, all partitions.
        kafka_prefetched_bytes: IntGauge,
        /// Rebalances seen.
        kafka_rebalances_total: IntCounter,
        /// Round trip to a broker, average of the last window.
        kafka_round_trip_seconds: By<Gauge>["broker"],
        /// Time for which a broker throttled the client, average of the last window.
        kafka_throttle_seconds: By<Gauge>["broker"],
    }
}
