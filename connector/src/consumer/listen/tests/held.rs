//! What a listener is told where the consumer holds a part of its dataset, and another one than before.

use super::*;
use crate::codec::Filter;
use crate::consumer::recent::Opening;

const NAMED: &str = r#"{"type":"record","name":"P","fields":[{"name":"name","type":"string"}]}"#;
const WITH_X: &str = r#"{"type":"record","name":"P","fields":[{"name":"name","type":"string"},
    {"name":"x","type":"long","default":0}]}"#;

fn holding(filter: &str) -> Arc<Hold> {
    Arc::new(Hold::new(Some(Filter::parse(filter).unwrap()), None, Vec::new()))
}

#[tokio::test]
async fn a_version_that_the_filter_does_not_fit_is_gone_for_good() {
    let mut world = World::new();
    world.schema = Arc::new(Schema::dataset(NAMED).unwrap());
    world.write(&[("a", Some("1"))]).await;
    // The dataset gains a field, and its reader is started again with a filter on it.
    world.schema = Arc::new(Schema::dataset(WITH_X).unwrap());
    world.more = vec![2];
    world.write(&[("b", Some("2"))]).await;
    world.hold = holding("x = 1");
    world.restart();
    world.show(2);
    let opened = world.recent.open_announced(&world.versions[0].1).await;
    assert!(
        matches!(&opened, Opening::Gone(why) if why.contains("do not fit")),
        "it would be tried for ever"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_filter_is_a_reset_and_the_same_is_none() {
    let mut world = World::new();
    let scribe = Scribe::default();
    world.schema = Arc::new(Schema::dataset(NAMED).unwrap());
    world.hold = holding("name != '2'");
    world.restart();
    world.advance(&[("a", Some("1")), ("b", Some("2"))]).await;
    let (report, task) = world.listen(quick("audit", &scribe));
    assert_eq!(scribe.heard(1).await, [r#"0->1: a=>{"name":"1"}"#]);
    until(&report, |told| told.version == Version(1)).await;
    ends(&world, task).await;

    // Now b is let in and a is not, which is in no difference between two versions.
    world.hold = holding("name != '1'");
    world.restart();
    world.advance(&[("c", Some("3"))]).await;
    let (report, task) = world.listen(quick("audit", &scribe));
    assert_eq!(scribe.heard(1).await, [r#"0->2 reset: b=>{"name":"2"} c=>{"name":"3"}"#]);
    until(&report, |told| told.version == Version(2)).await;
    ends(&world, task).await;

    // The same filter again: on from there.
    world.hold = holding("name != '1'");
    world.restart();
    world.advance(&[("a", Some("1")), ("c", None)]).await;
    let (report, task) = world.listen(quick("audit", &scribe));
    assert_eq!(scribe.heard(1).await, [r#"2->3: c={"name":"3"}>"#]);
    until(&report, |told| told.version == Version(3)).await;
    ends(&world, task).await;

    // A checkpoint of an earlier release does not say of what it is: nobody gets a reset for that.
    let (file, state) = Checkpoint::open(&world.options().listener_dir, "products", "audit").unwrap();
    file.save(&State { held: None, ..state.unwrap() }).unwrap();
    drop(file);
    world.restart();
    world.advance(&[("c", Some("4"))]).await;
    let (_, task) = world.listen(quick("audit", &scribe));
    assert_eq!(scribe.heard(1).await, [r#"3->4: c=>{"name":"4"}"#]);
    ends(&world, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_comes_again_as_it_was_though_sets_are_larger_now() {
    let mut world = World::new();
    let scribe = |batch| Scribe(Arc::new(Inner { batch: Some(batch), ..Inner::default() }));
    let two = scribe(2);
    world.advance(&[("a", Some("0"))]).await;
    let (report, task) = world.listen(quick("audit", &two));
    two.heard(1).await;
    until(&report, |told| told.version == Version(1)).await;
    // The second set does not get through before the process ends.
    let away = || Failed::away(std::io::Error::other("no"));
    let go = Arc::new(Notify::new());
    *two.0.hold.lock().unwrap() = Some(go.clone());
    let changes: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|key| (*key, Some("1"))).collect();
    world.advance(&changes).await;
    go.notify_one();
    assert_eq!(two.heard(1).await, ["1->2 more: a=0>1 b=>1"]);
    two.fail((0..1_000).map(|_| away()));
    *two.0.hold.lock().unwrap() = None;
    go.notify_one();
    let again = two.heard_with_ids(1).await.remove(0);
    assert_eq!(again.0, "1->2 more: c=>1 d=>1 failed");
    ends(&world, task).await;

    world.restart();
    world.show(2);
    let four = scribe(4);
    let (report, task) = world.listen(quick("audit", &four));
    let heard = four.heard_with_ids(2).await;
    assert_eq!(
        (heard[0].0.as_str(), &heard[0].1),
        ("1->2 more: c=>1 d=>1", &again.1),
        "the same id, the same set"
    );
    assert_eq!(heard[1].0, "1->2: e=>1");
    until(&report, |told| told.version == Version(2)).await;
    let changes: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|key| (*key, Some("2"))).collect();
    world.advance(&changes).await;
    assert_eq!(four.heard(2).await[1], "2->3: e=1>2", "from the next version on they are larger");
    ends(&world, task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_a_listeners_own_batch_size_ends_nothing() {
    struct Panics(Scribe);
    impl Listener for Panics {
        async fn changed(&self, set: &ChangeSet<'_>) -> Result<(), Failed> {
            self.0.changed(set).await
        }

        fn batch_size(&self) -> usize {
            panic!("on purpose")
        }
    }
    let (mut world, scribe) = (World::new(), Scribe::default());
    world.advance(&[("a", Some("1"))]).await;
    let listening =
        Listening { tries: quick("x", &scribe).tries, ..Listening::new("audit", Panics(scribe.clone())) };
    let (report, task) = world.listen(listening);
    assert_eq!(scribe.heard(1).await, ["0->1: a=>1"]);
    until(&report, |told| told.version == Version(1)).await;
    assert!(!world.stop.is_cancelled());
    ends(&world, task).await;
}
