//! Values that are computed from others where they are not given.

use std::collections::BTreeMap;
use std::path::{Path, absolute};

use figment::value::Value;

use super::layers::Origin;
use super::load::{Effective, path};
use super::mistakes::Place;
use super::model::{Fallback, SECTIONS};

/// Computes what is not given.
pub fn derive(effective: &mut Effective, datasets: &BTreeMap<String, Place>, env: &BTreeMap<String, String>) {
    let data_dir =
        effective.get(&path(&["storage", "data_dir"])).and_then(Value::as_str).unwrap_or("?").to_owned();
    let data_dir = absolute(&data_dir).unwrap_or_else(|_| data_dir.into());
    set(effective, &path(&["storage", "blobs"]), || {
        format!("file://{}", data_dir.join("blobs").display()).into()
    });
    set(effective, &path(&["instance_id"]), || instance_id(&host(env), &data_dir).into());
    threshold(effective, &path(&["producer"]));
    for name in datasets.keys() {
        set(effective, &path(&["datasets", name, "announcements"]), || {
            format!("{name}.announcements").into()
        });
        set(effective, &path(&["datasets", name, "dead_letters"]), || format!("{name}.dlq").into());
        threshold(effective, &path(&["datasets", name, "producer"]));
    }
}

/// A batch is forced at 80% of what may be in memory.
fn threshold(effective: &mut Effective, producer: &[String]) {
    let batching = [producer, &path(&["batching"])].concat();
    let pending = effective
        .get(&[&batching[..], &path(&["max_pending_records"])].concat())
        .and_then(Value::to_u128)
        .and_then(|pending| u64::try_from(pending).ok());
    let threshold = (pending.unwrap_or(0) * 4 / 5).max(1);
    set(effective, &[&batching[..], &path(&["memory_pressure_threshold"])].concat(), || threshold.into());
}

fn set(effective: &mut Effective, path: &[String], value: impl FnOnce() -> Value) {
    let how = || {
        let pattern: Vec<&str> = match path {
            [datasets, _, producer, rest @ ..] if datasets == "datasets" && producer == "producer" => {
                [producer].into_iter().chain(rest).map(String::as_str).collect()
            }
            [datasets, _, rest @ ..] if datasets == "datasets" => {
                ["datasets", "*"].into_iter().chain(rest.iter().map(String::as_str)).collect()
            }
            path => path.iter().map(String::as_str).collect(),
        };
        let (name, section) = pattern.split_last()?;
        let section = section.join(".");
        let keys = SECTIONS.iter().find(|other| other.path == section)?.keys;
        match keys.iter().find(|key| key.name == *name)?.fallback {
            Fallback::Derived(how) => Some(how),
            Fallback::Required | Fallback::Unset | Fallback::Is(_) => None,
        }
    };
    if !effective.0.contains_key(path) {
        let place = how().map_or(Place::Default, Place::Derived);
        effective.0.insert(path.to_vec(), (value(), Origin { place, via: None }));
    }
}

/// This machine's name. Only a label: where it cannot be found, data_dir alone tells instances apart.
fn host(env: &BTreeMap<String, String>) -> String {
    let from = |file: &str| std::fs::read_to_string(file).ok();
    from("/proc/sys/kernel/hostname")
        .or_else(|| from("/etc/hostname"))
        .or_else(|| env.get("HOSTNAME").cloned())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// `HOST-PATH` in the letters that Kafka allows: two instances on one machine differ in their folders.
fn instance_id(host: &str, data_dir: &Path) -> String {
    let full = format!("{host}-{}", data_dir.display().to_string().trim_matches('/').replace('/', "."));
    let mut id: String = full
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' })
        .collect();
    // Kafka's limit is 249. What had to be changed or cut is told apart by its checksum.
    if id != full || id.len() > 200 {
        id.truncate(200);
        id.push('-');
        id.push_str(&crate::version::Checksum::of(full.as_bytes()).hex());
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_on_one_machine_differ_and_keep_to_kafkas_letters() {
        let id = |dir: &str| instance_id("shop.example.com", Path::new(dir));
        assert_eq!(id("/var/lib/stillwell"), "shop.example.com-var.lib.stillwell");
        assert_ne!(id("/data/ä"), id("/data/ö"));
        let long = id(&format!("/{}", "x".repeat(400)));
        assert!(long.len() < 249 && long.is_ascii(), "{long}");
    }
}
