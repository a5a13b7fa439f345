//! Base and overlay against a `BTreeMap`, through any sequence of deltas, merges, rebases and restarts.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Change(Vec<(u8, Option<u16>)>),
    /// A local merge of the version at hand, under the view as it is by then.
    Merge,
    /// A snapshot of a version `back` versions ago, stored, fetched and put below the view.
    Snapshot {
        back: usize,
    },
    /// A restart: the same from the files.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let changes = prop::collection::vec((any::<u8>(), proptest::option::weighted(0.75, any::<u16>())), 0..40);
    prop_oneof![
        8 => changes.prop_map(Step::Change),
        1 => Just(Step::Merge),
        1 => (0..6usize).prop_map(|back| Step::Snapshot { back }),
        1 => Just(Step::Reopen),
    ]
}

/// Keys of unequal length that share prefixes, among them the empty one.
fn spelled(number: u8) -> Vec<u8> {
    let text = format!("{:b}", number);
    text.trim_start_matches('0')
        .trim_start_matches('1')
        .as_bytes()
        .to_vec()
        .repeat(1 + usize::from(number) % 3)
        .into_iter()
        .chain([number / 16].into_iter().filter(|high| *high > 0))
        .collect()
}

/// Long enough that a few hundred records fill several blocks and pages.
fn value(seed: u16) -> Vec<u8> {
    seed.to_le_bytes().repeat(1 + usize::from(seed % 300))
}

fn check(view: &View, model: &Model) {
    assert_eq!((view.records(), view.count().unwrap()), (model.len() as u64, model.len() as u64));
    assert_eq!(&contents(view).unwrap(), model);
    many(view, model);
    for number in 0..=255u8 {
        let key = spelled(number);
        let got = view.get(&key).unwrap().map(|value| value.raw().unwrap().to_vec());
        assert_eq!(got.as_ref(), model.get(&key), "get {key:?}");
        let held = view.entry(&key).unwrap().and_then(|entry| entry.value.map(|value| value.into_owned()));
        assert_eq!(held, model.get(&key).map(|value| datum(value)), "entry {key:?}");
    }
    for prefix in [&b""[..], b"0", b"01", b"10", b"absent"] {
        let scanned: Vec<_> = view.prefix(prefix).map(|value| value.unwrap().key().to_vec()).collect();
        let expected: Vec<_> = model.keys().filter(|key| key.starts_with(prefix)).cloned().collect();
        assert_eq!(scanned, expected, "prefix {prefix:?}");
        let from = b"011".as_slice();
        let scanned: Vec<_> =
            view.prefix_from(prefix, from).map(|value| value.unwrap().key().to_vec()).collect();
        let expected: Vec<_> = expected.into_iter().filter(|key| key.as_slice() >= from).collect();
        assert_eq!(scanned, expected, "prefix {prefix:?} from {from:?}");
        ranges(view, model, prefix, from);
    }
}

/// All keys there could be at once, in an order of its own, some of them twice.
fn many(view: &View, model: &Model) {
    let keys: Vec<_> = (0..300u32).map(|number| spelled((number * 37 % 256) as u8)).collect();
    let values = view.get_many(&keys).unwrap();
    assert_eq!(values.len(), keys.len());
    for (key, value) in keys.iter().zip(values) {
        assert!(value.as_ref().is_none_or(|value| value.key() == key));
        assert_eq!(value.map(|value| value.raw().unwrap().to_vec()).as_ref(), model.get(key), "{key:?}");
    }
}

fn ranges(view: &View, model: &Model, one: &[u8], other: &[u8]) {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let (low, high) = (one.min(other), one.max(other));
    for start in [Included(low), Excluded(low), Unbounded] {
        for end in [Included(high), Excluded(high), Unbounded] {
            if (start, end) == (Excluded(low), Excluded(low)) {
                // A BTreeMap panics on it.
                assert_eq!(view.range::<&[u8]>((start, end)).count(), 0);
                continue;
            }
            let scanned: Vec<_> =
                view.range::<&[u8]>((start, end)).map(|value| value.unwrap().key().to_vec()).collect();
            let expected: Vec<_> = model.range::<[u8], _>((start, end)).map(|(key, _)| key.clone()).collect();
            assert_eq!(scanned, expected, "{start:?} to {end:?}");
        }
    }
    assert_eq!(view.range(b"9".as_slice()..b"0").count(), 0, "the wrong way round");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_version_equals_the_model(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        // All versions that were ever shown stay open and stay what they were.
        let mut shown = vec![(world.view.clone(), Model::new())];
        for step in steps {
            match step {
                Step::Change(changes) => {
                    let changes = changes.into_iter().map(|(key, seed)| (spelled(key), seed.map(value))).collect();
                    world.advance(&changes);
                }
                Step::Merge => {
                    let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
                    world.view = world.view.rebase(base).unwrap();
                    prop_assert_eq!(world.view.overlay().entries, 0);
                }
                Step::Snapshot { back } => {
                    let (older, _) = shown[shown.len().saturating_sub(back + 1)].clone();
                    let oldest = world.chain.snapshot.as_ref().map_or(Version(0), |snapshot| snapshot.version);
                    if older.version() < oldest {
                        continue;
                    }
                    let snapshot = world.snapshot(&older);
                    let rebased = world.runtime.block_on(world.fetcher().rebase(&world.view, &snapshot));
                    match rebased {
                        Ok(view) => world.view = view,
                        // A local merge went further.
                        Err(Error::Gap(_)) => prop_assert!(world.view.base().unwrap().version() > older.version()),
                        Err(error) => panic!("{error}"),
                    }
                }
                Step::Reopen => world.view = world.open().unwrap(),
            }
            prop_assert_eq!(world.view.version(), world.chain.version());
            check(&world.view, &world.model);
            shown.push((world.view.clone(), world.model.clone()));
        }
        for (view, model) in &shown {
            prop_assert_eq!(&contents(view).unwrap(), model);
        }
        let (first, last) = (&shown[0], &shown[shown.len() - 1]);
        for pair in shown.windows(2) {
            changes::check(&pair[0], &pair[1]);
            changes::check(first, &pair[1]);
            changes::check(&pair[1], last);
        }
    }
}

#[test]
fn a_chain_of_512_deltas_opens_as_it_was_applied_and_stays_in_few_runs() {
    let mut world = World::new();
    let mut most = 0;
    for version in 0..512u32 {
        let mut changes = numbered(version * 37 % 9_000..version * 37 % 9_000 + 60, &format!("v{version}"));
        changes.insert(key(version), None);
        world.advance(&changes);
        most = most.max(world.view.overlay().runs);
    }
    let entries = world.view.overlay().entries;
    let classes = 1.0 + (entries as f64 / 1024.0).log(4.0).ceil();
    assert!(most as f64 <= 3.0 * classes, "{most} runs of {entries} entries");
    assert_eq!(contents(&world.view).unwrap(), world.model);
    let opened = world.open().unwrap();
    assert_eq!(opened.overlay().runs, 1);
    assert_eq!(contents(&opened).unwrap(), world.model);
}

#[test]
fn deltas_of_one_size_stay_apart_until_there_are_four_and_so_do_their_runs() {
    let mut world = World::new();
    let mut runs = Vec::new();
    for version in 0..16u32 {
        // Half of the keys of the delta before change again.
        world.advance(&numbered(version * 1_500..version * 1_500 + 3_000, &format!("v{version}")));
        runs.push(world.view.overlay().runs);
    }
    assert_eq!(runs, [1, 2, 3, 1, 2, 3, 4, 2, 3, 4, 5, 3, 4, 5, 6, 1]);
    assert_eq!(contents(&world.view).unwrap(), world.model);
}

/// What who applies deltas leaves is merged beside, and put below whatever version is held by then.
#[test]
fn merges_that_are_left_are_made_beside_and_bound_the_runs_all_the_same() {
    let mut world = World::new();
    let mut version = 0u32;
    let mut next = |world: &mut World| {
        let changes = numbered(version * 1_500..version * 1_500 + 3_000, &format!("v{version}"));
        version += 1;
        let (delta, about) = world.write(&changes);
        let fetcher = world.fetcher().leaving_merges();
        world.view = world.runtime.block_on(fetcher.apply(&world.view, &delta, None, about)).unwrap();
        world.view.overlay().runs
    };
    assert_eq!(
        [(); 4].map(|()| next(&mut world)),
        [1, 2, 3, 4],
        "the fourth is not merged with those before"
    );
    assert!(world.view.wants_compaction());
    let before = world.view.clone();
    let compaction = before.compact().unwrap().unwrap();
    assert_eq!(next(&mut world), 5);
    let compacted = world.view.compacted(&compaction).unwrap().unwrap();
    assert_eq!((compacted.version(), compacted.overlay().runs), (world.view.version(), 2));
    assert_eq!(contents(&compacted).unwrap(), world.model);
    assert_eq!(contents(&world.view).unwrap(), world.model, "who holds it still is not touched");
    assert!(compacted.compacted(&compaction).unwrap().is_none(), "once");
    assert!(!compacted.wants_compaction() && compacted.compact().unwrap().is_none());
    world.view = compacted;

    // On a base that covers none of them they are still there; on one that covers some they are not.
    assert_eq!([next(&mut world), next(&mut world)], [3, 4]);
    assert!(!world.view.wants_compaction());
    next(&mut world);
    let compaction = world.view.compact().unwrap().unwrap();
    let base = before.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    let rebased = world.view.rebase(base).unwrap();
    assert_eq!(contents(&rebased).unwrap(), world.model);
    let on_it = rebased.compacted(&compaction).unwrap().expect("the runs are above the base");
    assert_eq!(contents(&on_it).unwrap(), world.model);
    let sixth = world.runtime.block_on(world.fetcher().open(
        &world.identity,
        &Chain { deltas: world.chain.deltas[..6].to_vec(), ..world.chain.clone() },
        None,
        About { version: Version(6), ..world.view.about().clone() },
    ));
    let base = sixth.unwrap().merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    let rebased = world.view.rebase(base).unwrap();
    assert!(rebased.compacted(&compaction).unwrap().is_none(), "a run is cut");
    assert_eq!(contents(&rebased).unwrap(), world.model);

    // Where nobody makes what is left there is a bound, and then all at once.
    let runs: Vec<usize> = (0..60).map(|_| next(&mut world)).collect();
    assert!(runs.iter().all(|runs| *runs <= 25) && runs.contains(&24), "{runs:?}");
    assert_eq!(contents(&world.view).unwrap(), world.model);
    while let Some(compaction) = world.view.compact().unwrap() {
        world.view = world.view.compacted(&compaction).unwrap().unwrap();
    }
    assert!(world.view.overlay().runs <= 9, "{}", world.view.overlay().runs);
    assert_eq!(contents(&world.view).unwrap(), world.model);
}

#[test]
fn deltas_of_which_nothing_is_left_are_let_go_of() {
    let mut world = World::new();
    for version in 0..100 {
        world.advance(&numbered(0..50, &format!("v{version}")));
    }
    let size = world.view.overlay();
    assert_eq!((size.entries, size.deltas), (50, 1));
}

#[test]
fn what_does_not_follow_is_refused() {
    let mut world = World::new();
    world.advance(&numbered(0..10, "a"));
    let first = world.view.clone();
    world.advance(&numbered(0..10, "b"));
    let second = world.view.clone();
    let (third, about) = world.write(&numbered(0..10, "c"));
    let fetcher = world.fetcher();
    let skipped = world.runtime.block_on(fetcher.apply(&first, &third, None, about.clone()));
    assert!(matches!(skipped, Err(Error::Gap(_))), "{skipped:?}");
    let third = world.runtime.block_on(fetcher.apply(&second, &third, None, about)).unwrap();
    let base = third.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    assert!(matches!(second.rebase(base.clone()), Err(Error::Gap(_))), "a base from the future");
    let rebased = third.rebase(base).unwrap();
    let older = second.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
    assert!(matches!(rebased.rebase(older), Err(Error::Gap(_))), "deltas in between are gone");
    let mut other = world.identity.clone();
    other.topic_id = TopicId([8; 16]);
    let about = About { version: Version(3), ..About::nothing(world.schema.clone()) };
    let files = world.runtime.block_on(world.fetcher().fetch(&world.identity, &world.chain, None)).unwrap();
    let foreign = View::open(&other, &files, &world.chain, about);
    assert!(matches!(foreign, Err(Error::Corrupt { .. })), "another dataset of the same name: {foreign:?}");
}
