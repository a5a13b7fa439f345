//! Telemetry.
/// Metrics of a producer.
#[derive(Debug)]
pub struct ProducerMetrics;
/// Metrics of a consumer.
#[derive(Debug)]
pub struct ConsumerMetrics;
