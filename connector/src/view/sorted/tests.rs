use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::format::container::{Kind, Writer};
use crate::format::index;
use crate::record::{Entry, SourcePartition, Stamp, TopicId};
use crate::schema::Schema;
use crate::version::Shard;
use crate::view::Identity;
use crate::view::tests::{Changes, LIFE, datum};

/// The version that changed a key last, and its datum; `None`: deleted.
type Change = (i64, Option<Vec<u8>>);
type Newest = BTreeMap<Vec<u8>, Change>;

/// The delta of this version; also notes in `model` what it brings.
fn run(version: u64, changes: &Changes, schema: &Arc<Schema>, model: &mut Newest) -> Sorted {
    let identity =
        Identity { dataset: "products".into(), topic_id: TopicId([9; 16]), shard: Shard(0), shards: 1 };
    let source = SourcePartition { topic: "source".into(), topic_id: TopicId([1; 16]), partition: 0 };
    let (now, before) = (Version(version), Version(version - 1));
    let header = identity.header(Kind::Delta, now, before, LIFE, schema, vec![source]);
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    for (key, value) in changes {
        let value = value.as_deref().map(datum);
        let stamp = Stamp { timestamp: version as i64, source: 0, offset: 0 };
        writer.push(&Entry { key, stamp, value: value.as_deref() }).unwrap();
        model.insert(key.clone(), (version as i64, value));
    }
    let (_, plain) = writer.finish().unwrap();
    Sorted::of(&DeltaFile::from_plain(plain, &identity, schema).unwrap())
}

/// What it holds, in its own order.
fn held(sorted: &Sorted) -> Vec<(Vec<u8>, Change)> {
    let entries = sorted.refs.iter().map(|at| {
        let (key, found) = (sorted.key(*at).unwrap(), sorted.entry(*at).unwrap());
        assert_eq!((at.hash, found.entry.key), (index::hash(key), key));
        (key.to_vec(), (found.entry.stamp.timestamp, found.entry.value.map(<[u8]>::to_vec)))
    });
    entries.collect()
}

/// A merge in so many ranges of keys, whatever there is in them; else it takes tens of thousands of entries and several processors.
fn merged_in(many: usize, all: &[&Sorted]) -> Sorted {
    let ranges = parts(all, many).unwrap();
    assert_eq!(ranges.len(), many);
    let refs: Vec<Ref> = ranges.iter().flat_map(|range| merged(range).unwrap()).collect();
    let files = all.iter().flat_map(|sorted| &sorted.files).cloned().collect();
    Sorted { files, refs: refs.into() }.without_idle_files()
}

/// Keys that begin alike for longer than is compared as a number, are beginnings of one another, or differ in zeros alone.
fn a_key() -> impl Strategy<Value = Vec<u8>> {
    let starts: [&'static [u8]; 4] = [b"", b"P-0000", b"P-000000", b"\0\0\0\0\0\0\0\0"];
    let byte = prop::sample::select(vec![0u8, 1, b'a', 0xff]);
    (prop::sample::select(starts.to_vec()), prop::collection::vec(byte, 0..11))
        .prop_map(|(start, rest)| [start, rest.as_slice()].concat())
}

/// Changes of a version: which keys of those that there are, and to what.
fn layer() -> impl Strategy<Value = Vec<(usize, Option<u8>)>> {
    prop::collection::vec((0..40usize, proptest::option::weighted(0.7, any::<u8>())), 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn a_merge_is_the_model_however_many_runs_and_ranges_there_are(
        keys in prop::collection::vec(a_key(), 1..40),
        layers in prop::collection::vec(layer(), 0..14),
    ) {
        let (schema, mut model, mut runs) = (Arc::new(Schema::raw()), Newest::new(), Vec::new());
        for (version, layer) in (1u64..).zip(layers) {
            let key = |at: usize| keys[at % keys.len()].clone();
            let changes = layer.into_iter().map(|(at, value)| (key(at), value.map(|byte| vec![byte])));
            let changes: Changes = changes.collect();
            // The newest first.
            runs.insert(0, run(version, &changes, &schema, &mut model));
        }
        let expected: Vec<_> = model.into_iter().collect();
        let all: Vec<&Sorted> = runs.iter().collect();
        let one = Sorted::merge(&all).unwrap();
        prop_assert_eq!(&held(&one), &expected);
        for many in 1..=5 {
            prop_assert_eq!(&held(&merged_in(many, &all)), &expected, "{} ranges", many);
        }

        // Runs of several files each, whose entries then are moved behind those of others.
        let grouped = runs.chunks(3).map(|some| Sorted::merge(&some.iter().collect::<Vec<_>>()).unwrap());
        let grouped: Vec<Sorted> = grouped.collect();
        let groups: Vec<&Sorted> = grouped.iter().collect();
        prop_assert_eq!(&held(&Sorted::merge(&groups).unwrap()), &expected, "in two steps");
        prop_assert_eq!(&held(&merged_in(3, &groups)), &expected, "in two steps, the second in ranges");

        let used: BTreeSet<u64> = one.refs.iter().map(|at| at.at >> OFFSET_BITS).collect();
        prop_assert_eq!(used.len(), one.files.len(), "a file of which nothing is left is kept");
        for key in &keys {
            let below = expected.partition_point(|(have, _)| have < key);
            prop_assert_eq!(one.first_at(key).unwrap(), below, "{:?}", key);
        }
        let newer: Vec<_> = expected.iter().filter(|(_, (version, _))| *version > 3).cloned().collect();
        prop_assert_eq!(&held(&one.above(Version(3))), &newer);
    }
}

#[test]
fn what_several_threads_have_merged_is_the_model_too() {
    let (schema, mut model, mut runs) = (Arc::new(Schema::raw()), Newest::new(), Vec::new());
    for version in 1..=5u64 {
        // Every second key, every third and so on: many are in several runs.
        let numbers = (0..20_000u64).map(|number| number * (version + 1));
        let change = |number: u64| (format!("P-{number:08}").into_bytes(), Some(vec![version as u8]));
        let changes: Changes = numbers.map(change).collect();
        runs.insert(0, run(version, &changes, &schema, &mut model));
    }
    let entries: usize = runs.iter().map(|run| run.refs.len()).sum();
    assert!(entries >= 2 * WIDE_FROM, "{entries} entries are merged by one thread");
    let all: Vec<&Sorted> = runs.iter().collect();
    let merged = held(&Sorted::merge(&all).unwrap());
    let expected: Vec<_> = model.into_iter().collect();
    let differs = merged.iter().zip(&expected).find(|(have, want)| have != want);
    assert_eq!((merged.len(), differs), (expected.len(), None));
}
