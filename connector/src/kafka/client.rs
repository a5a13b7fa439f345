//! What all clients share: base configuration, and librdkafka's log lines, errors and statistics.

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use super::Options;
use super::stats::Gauges;

/// A configuration in three layers, the later wins: `ours` (tuning, which users may change), the user's properties,
/// and `fixed` (what the design depends on).
pub(super) fn configuration(
    options: &Options,
    ours: &[(&str, &str)],
    fixed: &[(&str, &str)],
) -> ClientConfig {
    let mut config = ClientConfig::new();
    // librdkafka's own default depends on the `log` crate, which is not used here; the subscriber filters.
    config.set_log_level(RDKafkaLogLevel::Info);
    config.set("socket.nagle.disable", "true").set("socket.keepalive.enable", "true");
    // A broker that comes back is found within a second and not within ten; reconnecting costs little.
    config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
    if options.statistics.is_some() {
        config.set("statistics.interval.ms", "5000");
    }
    for (key, value) in ours {
        config.set(*key, *value);
    }
    for (key, value) in &options.properties {
        config.set(key, value);
    }
    config.set("bootstrap.servers", &options.bootstrap_servers);
    if !options.client_id.is_empty() {
        config.set("client.id", &options.client_id);
    }
    if options.statistics.is_none() {
        // Nobody would read them.
        config.set("statistics.interval.ms", "0");
    }
    for (key, value) in fixed {
        config.set(*key, *value);
    }
    config
}

/// Receives what a client says besides records.
#[derive(Debug)]
pub(super) struct Context {
    /// What this client is for, in log lines.
    role: &'static str,
    gauges: Option<Gauges>,
}

impl Context {
    pub(super) fn new(role: &'static str, options: &Options) -> Context {
        Context { role, gauges: options.statistics.as_ref().map(|statistics| statistics.of(role)) }
    }

    /// A log line of librdkafka's.
    pub(super) fn line(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let role = self.role;
        match level {
            // Its errors are broken connections, which it mends itself: a warning to us. What it cannot mend comes
            // back from the call concerned.
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(role, facility, "librdkafka: {line}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(role, facility, "librdkafka: {line}")
            }
            RDKafkaLogLevel::Debug => tracing::debug!(role, facility, "librdkafka: {line}"),
        }
    }

    /// Something that concerns the client as a whole; what concerns a call comes back from that call.
    pub(super) fn trouble(&self, reason: &str) {
        tracing::warn!(role = self.role, "kafka: {reason}");
    }

    /// librdkafka's statistics, as JSON.
    pub(super) fn statistics(&self, json: &str) {
        if let Some(gauges) = &self.gauges {
            gauges.set(json);
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.line(level, facility, line);
    }

    fn stats_raw(&self, json: &[u8]) {
        self.statistics(std::str::from_utf8(json).unwrap_or(""));
    }

    fn error(&self, _: KafkaError, reason: &str) {
        self.trouble(reason);
    }
}

impl ConsumerContext for Context {}
