//! Runs of the overlay that a version did not wait for become one beside the flow.

use std::collections::BTreeMap;

use super::*;

/// All that it holds; a lookup of each key says what the scan says.
fn contents(view: &View) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let each = view.iter().map(|scanned| {
        let scanned = scanned.unwrap();
        let found = view.get(scanned.key()).unwrap().expect("the scan found it");
        assert_eq!(found.raw(), scanned.raw());
        (text(scanned.key()), text(scanned.raw().unwrap()))
    });
    each.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_no_version_waited_for_are_merged_beside_the_flow() {
    let mut world = World::new();
    // A guard is shown a version as it was applied, before anything is merged beside for its sake.
    let applied: Arc<Mutex<Vec<usize>>> = Arc::default();
    let seen = applied.clone();
    world.guards.push(Arc::new(move |_: Option<&View>, next: &View| {
        seen.lock().unwrap().push(next.overlay().runs);
        Ok(())
    }));
    let mut reader = world.start();
    let mut model = BTreeMap::new();
    let mut fourth = None;
    // Four of the large ones are more than is merged while a version waits, and too few to be merged into a base.
    for (version, keys) in (1..).zip([0..2_100, 1_000..3_100, 2_000..4_100, 3_000..5_100, 50..60]) {
        let value = format!("the value of this key in version {version}");
        model.extend(keys.clone().map(|number| (format!("P-{number:06}"), value.clone())));
        let announced = world.write(keys).await;
        reader.announce(&announced).await;
        reader.holds(Version(version)).await;
        if version == 4 {
            fourth = Some((reader.view(), model.clone()));
        }
    }
    assert_eq!(applied.lock().unwrap()[..4], [1, 2, 3, 4], "the fourth waited for no merge");
    until("the four runs are one", || reader.view().overlay().runs == 2).await;
    let view = reader.view();
    assert_eq!((view.version(), view.overlay().entries), (Version(5), 5_110));
    assert!(view.base().is_none(), "they are merged into a run, not into a base");
    assert_eq!(contents(&view), model);
    // Who has held the fourth all the while reads what it was.
    let (fourth, model) = fourth.expect("there were five");
    assert_eq!(contents(&fourth), model);
    reader.end().await;
}
