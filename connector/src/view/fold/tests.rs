use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::format::container::Reader;
use crate::record::TopicId;
use crate::view::tests::{LIFE, Model, World, contents, datum, key};
use crate::view::{About, DeltaFile};

fn sources() -> Arc<[SourcePartition]> {
    let source = |partition| SourcePartition { topic: "s".into(), topic_id: TopicId([1; 16]), partition };
    [source(0), source(1)].into()
}

fn fold(world: &World, entries: usize) -> Fold {
    Fold::new(world.cache.clone(), world.identity.clone(), world.schema.clone(), sources())
        .with_runs_of(entries)
}

fn stamp(source: u32, offset: i64) -> Stamp {
    Stamp { timestamp: offset, source, offset }
}

/// Applies a difference as the writer does, and gives the view.
fn applied(world: &World, difference: Difference) -> View {
    let plain = std::fs::read(difference.file.path()).unwrap();
    Reader::parse(&plain).unwrap();
    let file = DeltaFile::from_plain(plain, &world.identity, &world.schema).unwrap();
    let about = About { version: world.view.version().next(), life: LIFE, ..world.view.about().clone() };
    world.view.apply(Arc::new(file), about).unwrap()
}

type Records = Vec<(u8, Option<u8>)>;

fn model_of(records: &Records) -> (Model, Vec<Vec<u8>>) {
    let mut last: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
    for (number, value) in records {
        last.insert(key(u32::from(*number)), value.map(|value| vec![value]));
    }
    let seen = last.keys().cloned().collect();
    (last.into_iter().filter_map(|(key, value)| Some((key, value?))).collect(), seen)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the view held, it becomes the fold of the records, with runs of any size; or, where what is absent is
    /// kept, that and the rest of what it held.
    #[test]
    fn a_view_becomes_the_fold(
        before: BTreeMap<u8, u8>,
        records: Records,
        entries in 1..40usize,
        keep: bool,
    ) {
        let mut world = World::new();
        let changes = before.iter().map(|(number, value)| (key(u32::from(*number)), Some(vec![*value]))).collect();
        world.advance(&changes);
        let mut fold = fold(&world, entries);
        for (offset, (number, value)) in records.iter().enumerate() {
            let value = value.map(|value| datum(&[value]));
            fold.push(&key(u32::from(*number)), value.as_deref(), stamp(0, offset as i64)).unwrap();
        }
        prop_assert_eq!(fold.pushed(), records.len() as u64);
        let absent = if keep { Absent::Keep } else { Absent::Delete };
        let difference = fold.difference(&world.view, LIFE, |_| absent).unwrap();
        let counts = difference.counts;
        let (mut model, seen) = model_of(&records);
        if keep {
            let kept: Model =
                world.model.iter().filter(|(key, _)| !seen.contains(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
            prop_assert_eq!(counts.kept, kept.len() as u64);
            model.extend(kept);
        }
        prop_assert_eq!(counts.added + counts.changed, difference.summary.counts.upserts);
        prop_assert_eq!(counts.deleted, difference.summary.counts.deletes);
        prop_assert_eq!(world.model.len() as u64 + counts.added - counts.deleted, model.len() as u64);
        let after = contents(&applied(&world, difference)).unwrap();
        prop_assert_eq!(after, model);
    }
}

#[test]
fn what_was_read_twice_counts_by_offset_and_other_partitions_by_time() {
    let world = World::new();
    let mut fold = fold(&world, 2);
    // The log first, which reaches further than what Kafka then gives again.
    for (source, offset, value) in [(0, 9, "new"), (0, 3, "old"), (0, 9, "new")] {
        fold.push(b"a", Some(&datum(value.as_bytes())), stamp(source, offset)).unwrap();
    }
    for (source, offset, value) in [(1, 7, "later"), (0, 5, "earlier")] {
        fold.push(b"b", Some(&datum(value.as_bytes())), stamp(source, offset)).unwrap();
    }
    let view = applied(&world, fold.difference(&world.view, LIFE, |_| Absent::Delete).unwrap());
    let want = [(b"a".to_vec(), b"new".to_vec()), (b"b".to_vec(), b"later".to_vec())];
    assert_eq!(contents(&view).unwrap(), Model::from(want));
}

#[test]
fn its_files_are_gone_with_it() {
    let world = World::new();
    let mut fold = fold(&world, 1);
    for number in 0..20 {
        fold.push(&key(number), Some(&datum(b"x")), stamp(0, number.into())).unwrap();
    }
    assert!(
        std::fs::read_dir(world.dir.path().join(world.identity.folder().to_string())).unwrap().count() >= 20
    );
    let difference = fold.difference(&world.view, LIFE, |_| Absent::Delete).unwrap();
    assert_eq!(difference.counts, Counts { added: 20, ..Counts::default() });
    drop(difference);
    assert_eq!(
        std::fs::read_dir(world.dir.path().join(world.identity.folder().to_string())).unwrap().count(),
        0
    );
}
