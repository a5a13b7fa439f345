//! What the topic of a store must be.

use std::collections::BTreeMap;

use crate::kafka::TopicSpec;
use crate::kafka::allowed::{Need, On, Operation};

/// Partitions of a topic that is made: one for the catalogue, and three over which chunks are spread.
const PARTITIONS: i32 = 4;
/// Bytes of a record that are neither key nor value, and of the batch around it.
const AROUND: usize = 1 << 10;
/// Larger records gain nothing.
const MOST: usize = 1 << 20;
/// Smaller ones would be more overhead than blob.
const LEAST: usize = 16 << 10;
/// So long compaction has to keep deletes: who follows the catalogue reads all of it anew after half of that
/// ([`super::read`]), and would else take for there what is gone.
const DELETES_KEPT_MS: i64 = 24 * 60 * 60 * 1_000;

/// What to make by hand.
pub(super) const WANTED: &str = "several partitions, cleanup.policy=compact";

/// Whether Kafka takes a topic of this name.
pub(in crate::blob) fn check_name(name: &str) -> Result<(), &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name {
        "" => Err("it names no topic; write kafka://TOPIC"),
        "." | ".." => Err("no topic can be called so"),
        _ if name.contains('/') => Err("a topic has no folders; write kafka://TOPIC"),
        _ if name.len() > 249 || !name.chars().all(fits) => {
            Err("no topic can be called so: a name has letters, digits, '.', '_' and '-', 249 at most")
        }
        _ => Ok(()),
    }
}

/// The topic as it is made.
pub(super) fn spec(name: &str, replication: Option<i16>) -> TopicSpec {
    // The brokers' default may be less.
    let kept = ("delete.retention.ms".to_owned(), DELETES_KEPT_MS.to_string());
    let config = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned()), kept]);
    TopicSpec { name: name.to_owned(), partitions: PARTITIONS, replication, config }
}

/// Rights on the topic that whoever stores there, or only fetches, needs.
pub(in crate::blob) fn needs(name: &str, stores: bool) -> Vec<Need> {
    let of = |operation, without| Need { on: On::Topic(name.to_owned()), operation, without };
    match stores {
        false => vec![of(Operation::Read, "no version is opened that needs a blob")],
        true => vec![
            of(Operation::Read, "what is stored is not known"),
            of(Operation::Write, "nothing is stored"),
            of(Operation::DescribeConfigs, "it is not known how large a record may be"),
        ],
    }
}

/// Bytes of key and value that a record may have; or what is wrong with the topic, and what to do.
pub(super) fn record_limit(settings: &BTreeMap<String, String>) -> Result<usize, String> {
    let policy = settings.get("cleanup.policy").map_or("", String::as_str);
    if policy.split(',').map(str::trim).ne(["compact"]) {
        // With `delete` blobs go by their age, whoever needs them; and what was deleted never goes.
        return Err(format!("has cleanup.policy={policy}, by which blobs are lost: set it to compact"));
    }
    let kept = settings.get("delete.retention.ms").and_then(|kept| kept.parse::<i64>().ok());
    if let Some(kept) = kept.filter(|kept| *kept < DELETES_KEPT_MS) {
        return Err(format!(
            "has delete.retention.ms={kept}, so that deletes are forgotten before all have seen them: set it to \
             {DELETES_KEPT_MS} at least"
        ));
    }
    let limit = settings.get("max.message.bytes").and_then(|limit| limit.parse::<usize>().ok());
    let limit = limit.unwrap_or(MOST);
    if limit < LEAST {
        return Err(format!("has max.message.bytes={limit}: let it take records of {LEAST} bytes at least"));
    }
    Ok(limit.min(MOST) - AROUND)
}

/// Chunks of a blob of which the record in the catalogue is no larger than `record`, also where other uploads' records lie
/// between them: of up to 8,000 at a time a place takes two bytes.
pub(super) fn most_chunks(record: usize) -> u64 {
    record.saturating_sub(AROUND) as u64 / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_that_loses_blobs_is_refused() {
        let limit = |policy: &str, bytes: &str| {
            let settings = [("cleanup.policy", policy), ("max.message.bytes", bytes)];
            record_limit(&settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
        };
        assert_eq!(limit("compact", "1048588"), Ok((1 << 20) - AROUND));
        assert_eq!(limit("compact", "100000"), Ok(100_000 - AROUND));
        for policy in ["delete", "compact,delete", ""] {
            assert!(limit(policy, "1048588").unwrap_err().contains("set it to compact"), "{policy}");
        }
        assert!(limit("compact", "1000").unwrap_err().contains("max.message.bytes"));
        let kept = |ms: &str| {
            let settings = [("cleanup.policy", "compact"), ("delete.retention.ms", ms)];
            record_limit(&settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
        };
        assert_eq!(kept("86400000"), Ok((1 << 20) - AROUND));
        assert!(kept("86399999").unwrap_err().contains("86400000 at least"));
    }

    #[test]
    fn what_no_topic_can_be_called_is_refused() {
        assert_eq!(check_name("stillwell.blobs_1-a"), Ok(()));
        for name in ["", ".", "a/b", "a b", "ä", &"a".repeat(250)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
