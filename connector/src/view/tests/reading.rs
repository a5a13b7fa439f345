//! What a reader sees of a value, and readers beside a writer.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[test]
fn a_value_says_where_it_came_from_and_shows_nothing_in_debug() {
    let mut world = World::new();
    assert!(world.view.get("absent").unwrap().is_none());
    assert_eq!(world.view.iter().count(), 0);
    world.advance(&numbered(1..2, "secret"));
    let value = world.view.get(key(1)).unwrap().unwrap();
    assert_eq!((value.key(), value.raw().unwrap()), (&key(1)[..], &b"secret-1"[..]));
    assert_eq!(value.bytes(), datum(b"secret-1"));
    let origin = value.origin();
    assert_eq!(
        (origin.source.unwrap().to_string(), origin.offset, origin.timestamp_ms),
        ("source[4]".into(), 10, 1)
    );
    assert!(!format!("{value:?}").contains("secret"));
    assert_eq!(world.view.versions().to_string(), "1");
}

#[test]
fn reads_are_counted_across_versions() {
    let mut world = World::new();
    world.advance(&numbered(0..10, "a"));
    world.view.get(key(1)).unwrap();
    world.view.get("absent").unwrap();
    world.advance(&numbered(0..5, "b"));
    assert_eq!(world.view.iter().count(), 10);
    let reads = world.view.reads().clone();
    assert_eq!((reads.zero_copy(), reads.fallback()), (11, 0));
    let reopened = world.open().unwrap().counting(reads.clone());
    reopened.get(key(1)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1_000).for_each(|_| drop(reopened.get(key(1)).unwrap())));
        }
    });
    assert_eq!(reads.zero_copy(), 4_012);
}

/// Transfers between accounts: in every version the total is the same, for whoever reads whenever.
#[test]
fn readers_see_whole_versions_while_a_writer_goes_on() {
    const ACCOUNTS: u32 = 500;
    let mut world = World::new();
    let amount = |amount: i64| Some(amount.to_string().into_bytes());
    let mut balances = vec![100i64; ACCOUNTS as usize];
    world.advance(&(0..ACCOUNTS).map(|account| (key(account), amount(100))).collect());
    let current = arc_swap::ArcSwap::from_pointee(world.view.clone());
    let done = AtomicBool::new(false);
    let parse = |value: Value<'_>| std::str::from_utf8(value.raw().unwrap()).unwrap().parse::<i64>().unwrap();
    std::thread::scope(|scope| {
        let reader = || {
            let mut last = Version(0);
            while !done.load(Ordering::Relaxed) {
                let view = current.load_full();
                assert!(view.version() >= last);
                last = view.version();
                let scanned: i64 = view.iter().map(|value| parse(value.unwrap())).sum();
                let got: i64 =
                    (0..ACCOUNTS).map(|account| parse(view.get(key(account)).unwrap().unwrap())).sum();
                assert_eq!((scanned, got), (100 * i64::from(ACCOUNTS), 100 * i64::from(ACCOUNTS)));
            }
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for round in 0..300u32 {
            let (from, to) = (round * 7 % ACCOUNTS, round * 13 % ACCOUNTS);
            balances[from as usize] -= 5;
            balances[to as usize] += 5;
            let change = |account: u32| (key(account), amount(balances[account as usize]));
            world.advance(&[change(from), change(to)].into_iter().collect());
            if round % 50 == 49 {
                let base = world.view.merge_snapshot(LIFE, &world.cache).unwrap().into_base().unwrap();
                world.view = world.view.rebase(base).unwrap();
            }
            current.store(Arc::new(world.view.clone()));
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    assert_eq!(contents(&world.view).unwrap(), world.model);
}
