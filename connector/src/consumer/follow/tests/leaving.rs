//! What becomes of a version that is being opened when another one is to be held.

use super::*;

/// How often the store was asked for it.
fn asked(world: &World, name: &str) -> usize {
    world.watched.asked().iter().filter(|asked| *asked == name).count()
}

/// Begins to open the first, says the second while its snapshot is waited for, and lets that come.
async fn times_fetched(fixed: bool, other: bool) -> usize {
    let mut world = World::new();
    world.fixed = fixed.then_some(Fixed::At(i64::MAX));
    world.write(0..100).await;
    let snapshot = world.snap().await;
    let (two, three) = (world.write(0..10).await, world.write(10..20).await);
    let next = if other { &three } else { &two };
    world.watched.slow.send_replace(true);
    let mut reader = world.start();
    reader.seen.send(Seen::Pinned(two.clone())).await.unwrap();
    until("the snapshot is waited for", || asked(&world, &snapshot) == 1).await;
    reader.seen.send(Seen::Pinned(next.clone())).await.unwrap();
    until("it has heard", || reader.seen.capacity() == reader.seen.max_capacity()).await;
    if !fixed && other {
        until("it begins anew", || asked(&world, &snapshot) == 2).await;
    }
    world.watched.slow.send_replace(false);
    reader.holds(next.announcement.version).await;
    reader.end().await;
    asked(&world, &snapshot)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_opened_is_left_for_another_pin_alone() {
    assert_eq!(times_fetched(false, true).await, 2, "pinned elsewhere");
    assert_eq!(times_fetched(false, false).await, 1, "the same version, found in two ways");
    // Else none would be readable before that time where versions come faster than a first one is opened.
    assert_eq!(times_fetched(true, true).await, 1, "the newest by a time still to come, twice");
}

/// Whoever acts on each version would be shown some that no reader held, and could not go on from them.
#[tokio::test(flavor = "multi_thread")]
async fn versions_on_the_way_to_one_that_was_given_up_are_not_passed_on() {
    let mut world = World::new();
    let (one, two) = (world.write(0..10).await, world.write(10..20).await);
    let (three, four) = (world.write(20..30).await, world.write(30..40).await);
    let mut reader = world.start();
    reader.announce(&one).await;
    reader.holds(Version(1)).await;
    reader.announce(&two).await;
    reader.holds(Version(2)).await;
    let mut cursor = reader.recent.cursor().expect("a version");
    // Of what leads to the fourth, the third is at hand.
    let cache = Cache::open(world.dir.path(), u64::MAX).unwrap();
    let fetcher = Fetcher::new(world.store(), cache);
    let _third = fetcher.delta(&world.identity, &three.announcement.delta, None).await.unwrap();
    world.watched.fails.store(true, Ordering::Release);
    reader.announce(&four).await;
    let failed = reader.readable.wait_for(|readable| readable.error.is_some());
    tokio::time::timeout(LONG, failed).await.expect("it cannot be opened").unwrap();
    reader.seen.send(Seen::Pinned(one.clone())).await.unwrap();
    reader.holds(Version(1)).await;
    let next = cursor.waiting().await.expect("there is one");
    assert_eq!(next.view.version(), Version(1), "there and back is one step");
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_not_asked_as_often_as_versions_come() {
    let mut world = World::new();
    let one = world.write(0..10).await;
    let mut reader = world.start();
    reader.announce(&one).await;
    reader.holds(Version(1)).await;
    let mut versions = Vec::new();
    for _ in 0..200 {
        versions.push(world.write(0..1).await);
    }
    world.watched.fails.store(true, Ordering::Release);
    world.watched.asked.lock().unwrap().clear();
    let clock = Clock::system();
    let begun = clock.now();
    for next in &versions {
        reader.announce(next).await;
        until("it has heard", || reader.seen.capacity() == reader.seen.max_capacity()).await;
    }
    until("it is tried", || !world.watched.asked().is_empty()).await;
    let asked = world.watched.asked().len() as u128;
    // A wait is of half its 50 ms at the least.
    let most = 2 + (clock.now() - begun).as_millis() / 25;
    assert!((1..=most).contains(&asked), "asked {asked} times of {most}");
    world.watched.fails.store(false, Ordering::Release);
    reader.holds(Version(201)).await;
    reader.end().await;
}
