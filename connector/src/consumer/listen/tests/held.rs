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
