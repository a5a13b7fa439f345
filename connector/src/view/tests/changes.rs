//! The difference of two versions: against the models', by each of the ways to it, and at what cost.

use std::os::unix::fs::FileExt as _;

use super::*;

/// Key, value before, value after.
type Difference = Vec<(Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>)>;

fn expected(before: &Model, after: &Model) -> Difference {
    let keys: std::collections::BTreeSet<_> = before.keys().chain(after.keys()).collect();
    let both = keys.into_iter().map(|key| (key.clone(), before.get(key).cloned(), after.get(key).cloned()));
    both.filter(|(_, old, new)| old != new).collect()
}

fn seen<'a>(changes: impl Iterator<Item = crate::Result<Change<'a>>>) -> Difference {
    let raw = |value: Option<&Value<'_>>| value.map(|value| value.raw().unwrap().to_vec());
    let seen = changes.map(|change| {
        let change = change.unwrap();
        let (old, new) = (raw(change.before()), raw(change.after()));
        assert_eq!(
            change.kind(),
            match (&old, &new) {
                (None, Some(_)) => ChangeKind::Added,
                (Some(_), Some(_)) => ChangeKind::Updated,
                (Some(_), None) => ChangeKind::Deleted,
                (None, None) => panic!("a change of nothing"),
            }
        );
        (change.key().to_vec(), old, new)
    });
    seen.collect()
}

/// Holds all that can be asked of two versions against their models.
pub(super) fn check((older, was): &(View, Model), (newer, is): &(View, Model)) {
    let forth = expected(was, is);
    assert_eq!(seen(newer.changes_from(older)), forth);
    assert_eq!(seen(older.changes_from(newer)), expected(is, was));
    let from = b"011".to_vec();
    let later: Difference = forth.iter().filter(|(key, ..)| *key >= from).cloned().collect();
    assert_eq!(seen(newer.changes_from_key(older, &from)), later);
    match newer.changes_since(older.version()) {
        None => assert!(newer.changes_known_since() > older.version()),
        Some(updates) => {
            let updates: Updated = updates
                .map(|update| update.unwrap())
                .map(|update| {
                    (update.key().to_vec(), update.value().map(|value| value.raw().unwrap().to_vec()))
                })
                .collect();
            for (key, value) in &updates {
                assert_eq!(value.as_ref(), is.get(key), "{key:?}");
            }
            for (key, ..) in &forth {
                assert!(updates.contains_key(key), "{key:?} changed and is not named");
            }
        }
    }
}

type Updated = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

#[test]
fn a_key_that_changed_back_is_no_change_and_yet_was_written() {
    let mut world = World::new();
    world.advance(&numbered(0..10, "a"));
    let first = world.view.clone();
    world.advance(&numbered(3..5, "b"));
    world.advance(&numbered(3..4, "a"));
    let changes = seen(world.view.changes_from(&first));
    assert_eq!(changes, [(key(4), Some(b"a-4".to_vec()), Some(b"b-4".to_vec()))]);
    let written: Vec<_> =
        world.view.changes_since(Version(1)).unwrap().map(|update| update.unwrap().key()).collect();
    assert_eq!(written, [key(3), key(4)]);
    let written: Vec<_> =
        world.view.changes_since(Version(2)).unwrap().map(|update| update.unwrap().key()).collect();
    assert_eq!(written, [key(3)]);
    assert_eq!(world.view.changes_since(Version(3)).unwrap().count(), 0);
    assert!(world.view.changes_since(Version(4)).is_none(), "a version that is not there yet");
    let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    let merged = world.view.rebase(base).unwrap();
    assert!(merged.changes_since(Version(2)).is_none(), "merged into the base");
    assert_eq!(merged.changes_since(Version(3)).unwrap().count(), 0);
    assert_eq!(seen(merged.changes_from(&first)), changes, "by a pass over both");
}

/// Pages of the base that no changed key lies in are damaged: only who passes over the base would come to see them.
#[test]
fn between_versions_on_one_line_or_one_base_only_what_changed_is_read() {
    let mut world = World::new();
    world.advance(&numbered(0..20_000, "a value that takes some room"));
    let snapshot = world.snapshot(&world.view.clone());
    world.view = world.runtime.block_on(world.fetcher().rebase(&world.view, &snapshot)).unwrap();
    let (first, was) = (world.view.clone(), world.model.clone());
    world.advance(&numbered(5..8, "b"));
    // As after a rollback: the older version opened anew, from the same files.
    let again = world.open().unwrap();
    let (second, then) = (world.view.clone(), world.model.clone());
    world.advance(&numbered(7..9, "c"));

    let path = world.files(".snapshot.avro").pop().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    let end = file.metadata().unwrap().len();
    file.write_all_at(&[0xff; 64], end - 8_000).unwrap();
    assert!(world.view.iter().any(|value| value.is_err()), "the damage is there");

    let is = world.model.clone();
    assert_eq!(seen(world.view.changes_from(&first)), expected(&was, &is));
    assert_eq!(seen(first.changes_from(&world.view)), expected(&is, &was));
    assert_eq!(seen(world.view.changes_from(&again)), expected(&then, &is));
    assert_eq!(seen(again.changes_from(&world.view)), expected(&is, &then));
    let mut recast = again.about().clone();
    recast.life = Life { epoch: 9, ..LIFE };
    let other = again.restate(recast).unwrap();
    assert_eq!(seen(second.changes_from(&other)), [], "one version of two lives: by their overlays");
    let base = world.view.merge_snapshot(LIFE, &world.cache);
    assert!(matches!(base, Err(Error::Corrupt { .. })));
    let nothing = View::empty(world.identity.clone(), world.schema.clone());
    assert!(first.changes_from(&nothing).any(|change| change.is_err()), "a pass comes upon it");
}

#[test]
fn another_dataset_of_the_same_numbers_is_compared_whole() {
    let (mut one, mut other) = (World::new(), World::new());
    one.advance(&numbered(0..50, "a"));
    other.advance(&numbered(20..60, "a"));
    other.advance(&numbered(30..40, "b"));
    let mut foreign = other.identity.clone();
    foreign.topic_id = TopicId([1; 16]);
    let alien = View::empty(foreign, other.schema.clone());
    assert_eq!(seen(one.view.changes_from(&alien)), expected(&Model::new(), &one.model));
    assert_eq!(seen(alien.changes_from(&one.view)), expected(&one.model, &Model::new()));
}
