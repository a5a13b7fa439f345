//! What the next start finds: of a reader that has come by deltas, what was merged beside the flow; of one whose cache has lost its
//! blobs, the note of its newest version.

use super::*;

/// Whether something is kept of this version.
fn is_kept(world: &World, version: Version) -> bool {
    let of = format!("{:020}-", version.0);
    world
        .files(".kept")
        .iter()
        .any(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&of)))
}

/// The store and Kafka are away.
async fn start_alone(world: &World) -> Running {
    world.watched.asked.lock().unwrap().clear();
    world.watched.fails.store(true, Ordering::Release);
    let reader = world.start();
    reader.tail.send_modify(|tail| tail.reachable = Some(false));
    reader
}

fn value(view: &View, number: u32) -> String {
    let value = view.get(format!("P-{number:06}")).unwrap().expect("it is there");
    String::from_utf8_lossy(value.raw().unwrap()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_begins_with_what_was_merged_once_newer_snapshots_are_announced() {
    let mut world = World::new();
    let one = world.write(0..3_000).await;
    let mut reader = world.start();
    reader.told.send(Told { known: true, ..Told::default() }).unwrap();
    reader.announce(&one).await;
    reader.holds(Version(1)).await;
    for round in 1..4u32 {
        // What is merged is of another version than the writer's snapshots: else it would be found by their names.
        for (from, snap) in [(0, true), (5, false)] {
            let next = world.write(round * 10 + from..round * 10 + from + 5).await;
            reader.announce(&next).await;
            reader.holds(next.announcement.version).await;
            if snap {
                world.snap().await;
            }
        }
        let version = world.view().version();
        until("it is merged for the next start", || is_kept(&world, version)).await;
        until("it goes on upon it", || reader.view().base().is_some_and(|base| base.version() == version))
            .await;
        assert_eq!(reader.view().overlay().entries, 0);
    }
    let last = world.write(100..110).await;
    reader.announce(&last).await;
    reader.holds(Version(8)).await;
    reader.end().await;
    assert!(world.watched.asked().iter().all(|name| !name.contains(".snapshot")), "none was ever fetched");

    let mut reader = start_alone(&world).await;
    let readable = reader.holds(Version(8)).await;
    assert!(readable.stale, "{readable:?}");
    let view = reader.view();
    assert_eq!((view.iter().count(), view.base().map(|base| base.version())), (3_000, Some(Version(7))));
    for (number, version) in [(0, 1), (10, 2), (15, 3), (20, 4), (35, 7), (100, 8)] {
        assert!(value(&view, number).ends_with(&format!("version {version}")), "{number}");
    }
    assert!(world.watched.asked().is_empty());
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_overlay_is_merged_beside_the_flow_and_kept() {
    let mut world = World::new();
    let one = world.write(0..12_000).await;
    let mut reader = world.start();
    reader.told.send(Told { known: true, ..Told::default() }).unwrap();
    reader.announce(&one).await;
    reader.holds(Version(1)).await;
    until("it has a base", || reader.view().base().is_some_and(|base| base.version() == Version(1))).await;
    assert_eq!((reader.view().overlay().entries, reader.view().iter().count()), (0, 12_000));
    let two = world.write(5..15).await;
    reader.announce(&two).await;
    reader.holds(Version(2)).await;
    let view = reader.view();
    assert_eq!((view.overlay().entries, view.base().map(|base| base.version())), (10, Some(Version(1))));
    assert!(value(&view, 4).ends_with("version 1") && value(&view, 5).ends_with("version 2"));
    drop(view);
    reader.end().await;

    let mut reader = start_alone(&world).await;
    reader.holds(Version(2)).await;
    assert_eq!(
        reader.view().base().map(|base| base.version()),
        Some(Version(1)),
        "it is not merged once more"
    );
    assert!(world.watched.asked().is_empty());
    reader.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_fetches_the_cached_version_only_where_kafka_is_away() {
    let mut world = World::new();
    world.write(0..3_000).await;
    let old = world.snap().await;
    let two = world.write(0..10).await;
    let mut reader = world.start();
    reader.announce(&two).await;
    reader.holds(Version(2)).await;
    reader.end().await;
    let new = world.snap().await;
    let three = world.write(10..20).await;
    // The note is there, the blobs are not.
    let lose = || {
        world.files(TOPIC.to_string().as_str()).iter().for_each(|path| std::fs::remove_file(path).unwrap())
    };
    lose();
    world.watched.asked.lock().unwrap().clear();
    let mut reader = world.start();
    reader.told.send(Told { known: true, ..Told::default() }).unwrap();
    reader.announce(&three).await;
    reader.holds(Version(3)).await;
    let asked = world.watched.asked();
    assert!(asked.contains(&new) && !asked.contains(&old), "{asked:?}");
    assert_eq!(asked.len(), 3, "snapshot, index, one delta: {asked:?}");
    reader.end().await;

    lose();
    let mut reader = world.start();
    reader.tail.send_modify(|tail| tail.reachable = Some(false));
    let readable = reader.holds(Version(3)).await;
    assert!(readable.stale, "{readable:?}");
    assert_eq!(reader.view().iter().count(), 3_000);
    reader.end().await;
}
