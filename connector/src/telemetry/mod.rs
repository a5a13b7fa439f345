//! Telemetry: what the system tells about itself.
//!
//! ```text
//! names (every metric, once) -> ProducerMetrics, ConsumerMetrics, KafkaMetrics  held by the stages
//!                            -> Metrics (one registry)                          shown at /metrics
//! log                        -> stderr, as lines or JSON
//! ```
//!
//! Owns: the registry, metric names, the shape of logs. Does not own: what is counted (each stage counts its own),
//! or the HTTP route.

use std::sync::Arc;

use prometheus::{Encoder as _, IntGauge, Opts, Registry, TextEncoder};

use crate::version::Shard;

pub mod names;
mod family;
mod striped;
pub mod log;

pub use family::By;
pub use names::{ConsumerMetrics, KafkaMetrics, ProducerMetrics};
pub use striped::Striped;

use family::{Catalogue, Families, Owned, VALID};

type Of<T> = <T as Owned>::Families;

/// One registry with every family in it; hands out what the stages hold. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<All>);

struct All {
    registry: Registry,
    producer: Of<ProducerMetrics>,
    consumer: Of<ConsumerMetrics>,
    kafka: Of<KafkaMetrics>,
}

impl Metrics {
    /// A registry with all families, the process's CPU, memory and descriptors, and `build_info`.
    #[expect(clippy::new_without_default, reason = "a registry is made once, on purpose")]
    pub fn new() -> Metrics {
        let mut catalogue = Catalogue::default();
        let all = All {
            registry: Registry::new(),
            producer: Families::new(&mut catalogue),
            consumer: Families::new(&mut catalogue),
            kafka: Families::new(&mut catalogue),
        };
        for collector in catalogue.collectors {
            all.registry.register(collector).expect(VALID);
        }
        let build =
            Opts::new("build_info", "Always 1; the labels say which build this is.").namespace("stillwell");
        let build = build.const_label("version", env!("CARGO_PKG_VERSION"));
        let build =
            build.const_label("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS));
        let build = IntGauge::with_opts(build).expect(VALID);
        build.set(1);
        all.registry.register(Box::new(build)).expect(VALID);
        #[cfg(target_os = "linux")]
        all.registry
            .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
            .expect(VALID);
        Metrics(Arc::new(all))
    }

    /// The metrics of one shard's producer. The same labels give the same time series.
    pub fn producer(&self, dataset: &str, shard: Shard) -> Arc<ProducerMetrics> {
        Arc::new(self.0.producer.owner(&[dataset, &shard.to_string()]))
    }

    /// The metrics of one shard's consumer. The same labels give the same time series.
    pub fn consumer(&self, dataset: &str, shard: Shard) -> Arc<ConsumerMetrics> {
        Arc::new(self.0.consumer.owner(&[dataset, &shard.to_string()]))
    }

    /// librdkafka's figures of one client, as in `products/0/source`.
    pub fn kafka(&self, client: &str) -> Arc<KafkaMetrics> {
        Arc::new(self.0.kafka.owner(&[client]))
    }

    /// For metrics that are not the stages' own, such as those of HTTP.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Everything, in Prometheus' text format; its content type is [`CONTENT_TYPE`].
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.0.registry.gather(), &mut text);
        encoded.expect("writing to memory cannot fail, and each family has metrics");
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_shown_once_with_its_labels() {
        let metrics = Metrics::new();
        let producer = metrics.producer("products", Shard(0));
        producer.records_total.inc_by(3);
        producer.source_lag_records.with(&["orders", "11"]).set(7);
        producer.source_lag_records.with(&["orders1", "1"]).set(8);
        producer.dead_letters_total.with(&["decode"]).inc();
        let consumer = metrics.consumer("products", Shard(0));
        consumer.dead_letters_total.with(&["decode"]).inc();
        consumer.zero_copy_reads_total.inc();
        metrics.kafka("products/0/source").kafka_brokers_up.set(1);

        let text = metrics.text();
        for line in [
            "stillwell_records_total{dataset=\"products\",shard=\"0\"} 3",
            "stillwell_source_lag_records{dataset=\"products\",partition=\"11\",shard=\"0\",topic=\"orders\"} 7",
            "stillwell_source_lag_records{dataset=\"products\",partition=\"1\",shard=\"0\",topic=\"orders1\"} 8",
            "stillwell_dead_letters_total{dataset=\"products\",shard=\"0\",stage=\"decode\"} 2",
            "stillwell_zero_copy_reads_total{dataset=\"products\",shard=\"0\"} 1",
            "stillwell_kafka_brokers_up{client=\"products/0/source\"} 1",
            "# TYPE stillwell_publish_latency_seconds histogram",
            "# HELP stillwell_records_total Records received from the source topics.",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("stillwell_build_info{"));
        #[cfg(target_os = "linux")]
        assert!(text.contains("process_resident_memory_bytes"));
        assert_eq!(text.matches("# TYPE stillwell_dead_letters_total ").count(), 1);
    }

    #[test]
    fn a_partition_given_away_is_no_longer_shown() {
        let metrics = Metrics::new();
        let producer = metrics.producer("products", Shard(0));
        producer.source_lag_records.with(&["orders", "1"]).set(7);
        producer.source_lag_records.forget(&["orders", "1"]);
        assert!(!metrics.text().contains("topic=\"orders\""));
    }
}
