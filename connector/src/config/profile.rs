//! The profiles: sets of values to start from. Each value stands beside its key in `model.rs`; why, stands here.
//!
//! **low-latency**: from the source to the reader in tens of milliseconds. No batch waits for a timer: it fills while the
//! version before it is announced. Many small versions: the next snapshot after 200 of them, since its cost does not depend on
//! theirs; retries, breakers and polls at a tenth of the usual times, since a second is already an outage.
//!
//! **high-throughput**: as many records a second as the machine takes. What a version costs whatever its size (a
//! transaction, two fsyncs, a wake-up of each reader) is spread over 100,000 records. Ten such batches may be in
//! memory; larger blobs may take longer to upload.
//!
//! **small-memory**: for a container of 256 MB: half-size batches, a fifth of the records in memory, two uploads at a
//! time. What does not fit spills to disk, which costs time, not data.

use super::model::SECTIONS;

/// Names of the profiles; `default` changes nothing.
pub const NAMES: &[&str] = &["default", "low-latency", "high-throughput", "small-memory"];

/// The values of a profile: section path, key, value as it would be written. Nothing for `default` and for names
/// that do not exist.
pub fn values(profile: &str) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    let column = NAMES.iter().skip(1).position(|name| *name == profile);
    SECTIONS.iter().flat_map(|section| section.keys.iter().map(|key| (section.path, key))).filter_map(
        move |(path, key)| {
            let value = column.and_then(|column| key.profiles.get(column).copied().flatten())?;
            Some((path, key.name, value))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_differs_from_the_defaults_wherever_it_says_something() {
        for name in &NAMES[1..] {
            assert!(values(name).count() > 3, "{name}");
        }
        assert_eq!(values("default").count(), 0);
        for section in SECTIONS {
            for key in section.keys {
                if let super::super::model::Fallback::Is(default) = key.fallback {
                    assert!(!key.profiles.contains(&Some(default)), "{}.{}: write _", section.path, key.name);
                }
            }
        }
    }
}
