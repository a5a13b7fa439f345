//! librdkafka's statistics (<https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md>), cut down to what
//! an operator looks at.
//!
//! Owns: reading them. Does not own: the metrics' names (`telemetry/names`), or how often they come
//! (`statistics.interval.ms`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use crate::telemetry::{KafkaMetrics, Metrics};

/// Where the statistics of some clients go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Statistics {
    metrics: Metrics,
    owner: String,
}

impl Statistics {
    /// Into `metrics`, labelled `OWNER/ROLE`.
    pub fn new(metrics: &Metrics, owner: &str) -> Statistics {
        Statistics { metrics: metrics.clone(), owner: owner.to_owned() }
    }

    /// The gauges of one client.
    pub(super) fn of(&self, role: &str) -> Gauges {
        let metrics = self.metrics.kafka(&format!("{}/{role}", self.owner));
        Gauges { metrics, before: Mutex::default() }
    }
}

/// One client's metrics. When the client goes its gauges fall to zero; its counters stay.
pub(super) struct Gauges {
    metrics: Arc<KafkaMetrics>,
    /// Totals at the last report: librdkafka counts from the client's start, the metrics from the process's.
    before: Mutex<Totals>,
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    requests: u64,
    errors: u64,
    sent_bytes: u64,
    received_bytes: u64,
    sent_messages: u64,
    received_messages: u64,
    rebalances: u64,
}

/// The part of the report that is read; a field that a later librdkafka leaves out counts as zero.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Report {
    tx: u64,
    tx_bytes: u64,
    rx_bytes: u64,
    txmsgs: u64,
    rxmsgs: u64,
    msg_cnt: i64,
    msg_size: i64,
    replyq: i64,
    brokers: BTreeMap<String, Broker>,
    topics: BTreeMap<String, Topic>,
    cgrp: Group,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Broker {
    nodeid: i64,
    source: String,
    state: String,
    txerrs: u64,
    rxerrs: u64,
    req_timeouts: u64,
    rtt: Window,
    throttle: Window,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Window {
    avg: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Topic {
    partitions: BTreeMap<String, Partition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Partition {
    fetchq_cnt: i64,
    fetchq_size: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Group {
    rebalance_cnt: u64,
}

impl Broker {
    fn is_up(&self) -> bool {
        // Who proves anew who he is stays connected meanwhile.
        ["UP", "REAUTH"].contains(&self.state.as_str())
    }

    /// Whether a connection is wanted and is not there: a client connects to the brokers that it needs, when it needs them,
    /// and all others stay in state INIT. Coordinators (`logical`) are one of the others.
    fn is_missed(&self) -> bool {
        let is_one = ["learned", "configured"].contains(&self.source.as_str());
        is_one && !self.is_up() && self.state != "INIT"
    }
}

impl Gauges {
    /// Takes over one report, JSON as librdkafka makes it.
    pub(super) fn set(&self, json: &str) {
        let report: Report = match serde_json::from_str(json) {
            Ok(report) => report,
            Err(error) => {
                tracing::warn!(%error, "librdkafka's statistics cannot be read; its metrics stand still");
                return;
            }
        };
        let metrics = &self.metrics;
        // Bootstrap addresses and coordinators are listed as brokers too, without an id of their own.
        let brokers = || report.brokers.values().filter(|broker| broker.nodeid >= 0);
        metrics.kafka_brokers_up.set(brokers().filter(|broker| broker.is_up()).count() as i64);
        let missed = report.brokers.values().filter(|broker| broker.is_missed());
        metrics.kafka_brokers_down.set(missed.count() as i64);
        for broker in brokers() {
            let id = broker.nodeid.to_string();
            metrics.kafka_round_trip_seconds.with(&[&id]).set(broker.rtt.avg as f64 / 1e6);
            metrics.kafka_throttle_seconds.with(&[&id]).set(broker.throttle.avg as f64 / 1e3);
        }
        metrics.kafka_queued_messages.set(report.msg_cnt);
        metrics.kafka_queued_bytes.set(report.msg_size);
        metrics.kafka_waiting_operations.set(report.replyq);
        let partitions = || report.topics.values().flat_map(|topic| topic.partitions.values());
        metrics.kafka_prefetched_messages.set(partitions().map(|partition| partition.fetchq_cnt).sum());
        metrics.kafka_prefetched_bytes.set(partitions().map(|partition| partition.fetchq_size).sum());

        let failures = |broker: &Broker| broker.txerrs + broker.rxerrs + broker.req_timeouts;
        let now = Totals {
            requests: report.tx,
            errors: report.brokers.values().map(failures).sum(),
            sent_bytes: report.tx_bytes,
            received_bytes: report.rx_bytes,
            sent_messages: report.txmsgs,
            received_messages: report.rxmsgs,
            rebalances: report.cgrp.rebalance_cnt,
        };
        let before = std::mem::replace(&mut *self.before.lock().unwrap_or_else(PoisonError::into_inner), now);
        // A broker that is forgotten takes its errors with it: a total may fall, a counter may not.
        let since = |now: u64, before: u64| now.saturating_sub(before);
        metrics.kafka_requests_total.inc_by(since(now.requests, before.requests));
        metrics.kafka_request_errors_total.inc_by(since(now.errors, before.errors));
        metrics.kafka_sent_bytes_total.inc_by(since(now.sent_bytes, before.sent_bytes));
        metrics.kafka_received_bytes_total.inc_by(since(now.received_bytes, before.received_bytes));
        metrics.kafka_sent_messages_total.inc_by(since(now.sent_messages, before.sent_messages));
        metrics.kafka_received_messages_total.inc_by(since(now.received_messages, before.received_messages));
        metrics.kafka_rebalances_total.inc_by(since(now.rebalances, before.rebalances));
    }
}

impl Drop for Gauges {
    fn drop(&mut self) {
        let metrics = &self.metrics;
        for gauge in [
            &metrics.kafka_brokers_up,
            &metrics.kafka_brokers_down,
            &metrics.kafka_queued_messages,
            &metrics.kafka_queued_bytes,
            &metrics.kafka_waiting_operations,
            &metrics.kafka_prefetched_messages,
            &metrics.kafka_prefetched_bytes,
        ] {
            gauge.set(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(tx: u64, fetched: i64) -> String {
        format!(
            r#"{{"name":"x","tx":{tx},"rx_bytes":7,"msg_cnt":3,"brokers":{{
                "b:9092/1":{{"nodeid":1,"state":"UP","txerrs":1,"req_timeouts":1,"rtt":{{"avg":2500}}}},
                "b:9092/bootstrap":{{"nodeid":-1,"state":"UP"}}}},
                "topics":{{"t":{{"partitions":{{"0":{{"fetchq_cnt":{fetched}}},"-1":{{"fetchq_cnt":0}}}}}}}}}}"#
        )
    }

    #[test]
    fn a_broker_that_nobody_wants_is_not_down() {
        let metrics = Metrics::new();
        let gauges = Statistics::new(&metrics, "products/0").of("writes");
        let shown = |brokers: &[(i64, &str, &str)]| {
            let one = |(at, (id, source, state)): (usize, &(i64, &str, &str))| {
                format!(r#""{at}":{{"nodeid":{id},"source":"{source}","state":"{state}"}}"#)
            };
            let brokers: Vec<String> = brokers.iter().enumerate().map(one).collect();
            gauges.set(&format!(r#"{{"brokers":{{{}}}}}"#, brokers.join(",")));
            let shown = &gauges.metrics;
            (shown.kafka_brokers_up.get(), shown.kafka_brokers_down.get())
        };
        let idle = [(1, "learned", "INIT"), (2, "learned", "INIT"), (-1, "configured", "UP")];
        assert_eq!(shown(&idle), (0, 0));
        let busy = [(1, "learned", "UP"), (2, "learned", "INIT"), (-1, "logical", "TRY_CONNECT")];
        assert_eq!(shown(&busy), (1, 0));
        let one_away = [(1, "learned", "UP"), (2, "learned", "TRY_CONNECT"), (-1, "internal", "UP")];
        assert_eq!(shown(&one_away), (1, 1));
        let proving = [(1, "learned", "REAUTH"), (2, "learned", "CONNECT")];
        assert_eq!(shown(&proving), (1, 1));
        assert_eq!(shown(&[(-1, "configured", "DOWN")]), (0, 1), "before any is known");
    }

    #[test]
    fn counters_grow_by_what_is_new_and_gauges_fall_when_the_client_goes() {
        let metrics = Metrics::new();
        let statistics = Statistics::new(&metrics, "products/0");
        let gauges = statistics.of("source");
        gauges.set(&report(10, 5));
        gauges.set(&report(15, 2));
        gauges.set("not JSON");
        let shown = |line: &str| metrics.text().contains(&format!("{line}\n"));
        assert!(
            shown("stillwell_kafka_requests_total{client=\"products/0/source\"} 15"),
            "{}",
            metrics.text()
        );
        assert!(shown("stillwell_kafka_request_errors_total{client=\"products/0/source\"} 2"));
        assert!(shown("stillwell_kafka_prefetched_messages{client=\"products/0/source\"} 2"));
        assert!(shown("stillwell_kafka_brokers_up{client=\"products/0/source\"} 1"));
        assert!(
            metrics
                .text()
                .contains("kafka_round_trip_seconds{broker=\"1\",client=\"products/0/source\"} 0.0025")
        );
        drop(gauges);
        assert!(shown("stillwell_kafka_brokers_up{client=\"products/0/source\"} 0"));
        // A new client counts from zero again; the counter goes on.
        let gauges = statistics.of("source");
        gauges.set(&report(4, 0));
        assert!(shown("stillwell_kafka_requests_total{client=\"products/0/source\"} 19"));
    }
}
