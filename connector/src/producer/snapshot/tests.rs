//! When one is due, and what a life finds when it begins.

use super::*;
use crate::blob::Store;
use crate::clock::Entropy;
use crate::gauge::Pressure;
use crate::producer::Reliability;
use crate::producer::announce::Carried;
use crate::producer::build::tests::{LIFE, versions};
use crate::producer::circuit::Circuits;

const LONG: Duration = Duration::from_secs(60);

fn rules() -> Performance {
    Performance {
        worker_pool_size: 1,
        write_timeout: Duration::from_secs(1),
        snapshot_frequency: 25,
        snapshot_min_change: 0.25,
        snapshot_max_interval: Duration::from_secs(3600),
        enable_compression: true,
    }
}

fn since() -> Since {
    Since {
        versions: 25,
        chain: 25,
        entries: 100,
        changed_bytes: 250,
        snapshot_bytes: Some(1_000),
        age: Duration::from_secs(1),
        first_load_done: true,
    }
}

#[test]
fn due_needs_both_enough_versions_and_enough_change() {
    assert!(is_due(&since(), &rules()));
    assert!(!is_due(&Since { versions: 24, ..since() }, &rules()));
    assert!(!is_due(&Since { changed_bytes: 249, ..since() }, &rules()));
}

#[test]
fn an_old_or_long_chain_is_enough_by_itself_but_an_unchanged_version_never() {
    let quiet = Since { entries: 1, changed_bytes: 0, versions: 1, chain: 1, ..since() };
    assert!(!is_due(&quiet, &rules()));
    assert!(is_due(&Since { age: Duration::from_secs(3600), ..quiet }, &rules()));
    assert!(is_due(&Since { chain: LONGEST_CHAIN, ..quiet }, &rules()));
    assert!(!is_due(&Since { entries: 0, age: Duration::from_secs(9999), ..quiet }, &rules()));
}

#[test]
fn the_first_one_waits_for_the_first_load() {
    let first = Since { snapshot_bytes: None, first_load_done: false, ..since() };
    assert!(!is_due(&first, &rules()));
    assert!(is_due(&Since { first_load_done: true, ..first }, &rules()));
    assert!(is_due(&Since { chain: LONGEST_CHAIN, ..first }, &rules()));
}

/// What the stage of a life makes that takes over three versions and is told to end before anything is announced.
async fn made_at_once(due: bool, asked: Option<Version>, schema: Schema) -> Option<Version> {
    let (ground, mut built) = versions(3);
    let mut carried = Carried::default();
    carried.chain.deltas = built.iter().map(|built| built.delta.clone()).collect();
    let view = built.pop().expect("three").view;
    let (clock, metrics) = (Clock::system(), ProducerMetrics::detached());
    let reliability = Reliability::default();
    let store = (Store::open("memory://").unwrap(), Circuits::new(&reliability, &clock, &metrics).store);
    let (chance, pressure) = ((clock.clone(), Entropy::seeded(1)), Pressure::new(clock.clone()));
    let rules = Performance::default();
    let snapshotter = Snapshotter {
        identity: view.identity().clone(),
        life: LIFE,
        schema: Arc::new(schema),
        uploader: Uploader::new(store, &rules, &reliability, chance, pressure, metrics.clone()),
        rules,
        cache: ground.cache.clone(),
        last: None,
        due,
        clock,
        metrics,
    };
    let (_announced, told) = watch::channel(Some(Announced::of(Version(3), view, &carried)));
    let (_wanted, wanted) = watch::channel(asked);
    let (listed, mut snapshots) = mpsc::channel(2);
    let (rebases, _rebases) = mpsc::channel(2);
    let ends = std::future::ready((Version(3), false));
    let running = snapshotter.run(told, wanted, listed, rebases, ends);
    tokio::time::timeout(LONG, running).await.expect("it ends");
    snapshots.try_recv().ok().map(|made| made.snapshot.version)
}

#[tokio::test]
async fn what_is_due_or_asked_for_at_a_takeover_waits_for_no_version() {
    assert_eq!(made_at_once(false, None, Schema::raw()).await, None, "nothing is due");
    assert_eq!(made_at_once(true, None, Schema::raw()).await, Some(Version(3)));
    assert_eq!(made_at_once(false, Some(Version(3)), Schema::raw()).await, Some(Version(3)));
    // The next version is of another schema and comes by itself: a snapshot of this one would have to be made over.
    let other = || Schema::dataset(r#"{"type":"record","name":"P","fields":[]}"#).unwrap();
    assert_eq!(made_at_once(true, None, other()).await, None);
}
