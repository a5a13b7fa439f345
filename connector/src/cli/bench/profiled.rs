//! A dataset as the configuration makes it, for the benches that speak of a profile: its values stand in one place.

use super::Scratch;
use super::made::SCHEMA;
use super::topic::Filled;
use crate::config::{Config, Shared, Sources};
use crate::telemetry::Metrics;
use crate::{Error, ErrorKind, Result};
use crate::{consumer, producer};

/// What both sides of `dataset` are given that is made from the bench's topic, with its files in `scratch`.
pub(super) fn configured(
    profile: &str,
    topic: &Filled,
    dataset: &str,
    scratch: &Scratch,
) -> Result<(producer::Options, consumer::Options)> {
    let config = configuration(profile, &topic.name, dataset, scratch)?;
    let shared = Shared::system(&config, Metrics::new())?;
    let mut writes = config.producer(dataset, &shared)?;
    let mut reads = config.consumer(dataset, &shared)?;
    writes.kafka = topic.kafka.clone();
    reads.kafka = topic.kafka.clone();
    Ok((writes, reads))
}

fn configuration(profile: &str, topic: &str, dataset: &str, scratch: &Scratch) -> Result<Config> {
    let dir = scratch.path();
    std::fs::write(dir.join("schema.avsc"), SCHEMA).map_err(|error| {
        Error::because(ErrorKind::Unavailable, format!("cannot write in {}", dir.display()), error)
    })?;
    let text = format!(
        r#"
        profile = "{profile}"
        [storage]
        data_dir = "data"
        [datasets."{dataset}"]
        source = {{ topics = ["{topic}"], format = "json" }}
        schema = "schema.avsc"
        "#
    );
    let file = Some((dir.join("stillwell.toml"), text));
    Ok(Config::read(&Sources { file, ..Sources::default() })?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_profile_is_all_that_the_configuration_says_of_it() {
        let scratch = Scratch::new("test").unwrap();
        let config = |profile| configuration(profile, "t", "d", &scratch).unwrap();
        let low = config("low-latency");
        let producer = &low.model().datasets["d"].producer;
        assert_eq!(producer.batching.batch_timeout.0, Duration::ZERO);
        assert_eq!(producer.performance.snapshot_frequency, 200);
        assert_eq!(low.model().consumer.max_backoff.0, Duration::from_secs(1));
        let high = config("high-throughput");
        let producer = &high.model().datasets["d"].producer;
        assert_eq!((producer.batching.max_batch_size, producer.performance.worker_pool_size), (100_000, 8));
        assert_eq!(producer.batching.memory_pressure_threshold, 800_000);
    }
}
