//! A branch: announcements of a life that is over, written all the same. Fencing keeps librdkafka from doing that; a
//! commit that was under way when its life was fenced, or a late duplicate, can do it. Readers and recovery refuse it by
//! the same rule.

use stillwell::format::announcement::{Announcement, Message, key};
use stillwell::version::{Shard, Version};
use stillwell_tests::{Record, Setting, scratch};

use crate::SCHEMA;
use crate::history::{History, announced, announcements, good};

/// Writes an announcement by librdkafka, as it would stand there.
fn write(setting: &Setting, announcement: Announcement) {
    let record = Record {
        key: Some(key(setting.dataset(), Shard(0)).into_bytes()),
        value: Some(Message::Announcement(Box::new(announcement)).encode()),
        partition: Some(0),
        ..Record::default()
    };
    announcements(setting).produce([record]);
}

/// What a life would have announced next: a version that follows `last`, with positions far beyond what there is, so
/// that a writer that believed it would skip records.
fn next(last: &Announcement) -> Announcement {
    let mut next = last.clone();
    next.version = last.version.next();
    next.previous = Some((last.version, last.life.epoch));
    next.delta.version = next.version;
    next.chain.push(next.delta.clone());
    next.positions.iter_mut().for_each(|position| position.offset += 1_000);
    next
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_and_recovery_refuse_what_an_older_life_announces_after_a_newer_began() {
    let mut setting = Setting::new("branch", 1, SCHEMA);
    let (cache, late) = (scratch(), scratch());
    let producer = setting.producer().await;
    let record = good(&mut setting, "first life", 1.0);
    setting.topic.produce([record]);
    let consumer = setting.consumer(cache.path()).await;
    setting.settled(&consumer).await;
    producer.shutdown().await.expect("it stops");
    let older = History::of(&setting).valid.pop().expect("it announced");

    let producer = setting.producer().await;
    let record = good(&mut setting, "second life", 2.0);
    setting.topic.produce([record]);
    setting.settled(&consumer).await;
    let newest = History::of(&setting).valid.pop().expect("it announced");
    assert_ne!(newest.life, older.life);

    // The branch: the old life's next version, which has a number of the new one's; and one that follows the newest.
    let sibling = next(&older);
    let after = Announcement { life: older.life, ..next(&newest) };
    write(&setting, sibling);
    write(&setting, after);
    // And the newest itself once more, as a replayed commit would show it: read twice, it counts once.
    write(&setting, newest.clone());

    // Readers that were there, readers that come now, the writer that reads its own back, and the next one's recovery.
    let record = good(&mut setting, "still the second", 3.0);
    setting.topic.produce([record]);
    setting.settled(&consumer).await;
    assert_eq!(producer.status().failures, 0, "{:?}", producer.status());
    let end = producer.shutdown().await.expect("it stops").version.expect("it announced");
    write(&setting, Announcement { life: older.life, ..next(&newest) });
    let newcomer = setting.consumer(late.path()).await;
    setting.settled(&newcomer).await;
    assert_eq!(newcomer.view().version(), end, "a branch at the very end is stepped over");

    let producer = setting.producer().await;
    let record = good(&mut setting, "third life", 4.0);
    setting.topic.produce([record]);
    announced(&producer, end.0 + 1).await;
    for consumer in [&consumer, &newcomer] {
        setting.settled(consumer).await;
        let readable = consumer.status().readable;
        assert!(readable.error.is_none(), "{readable:?}");
    }
    producer.shutdown().await.expect("it stops");
    let history = History::of(&setting);
    history.assert_gapless();
    assert_eq!(history.refused.len(), 4);
    let first_of_third = history.valid.iter().find(|version| version.life == history.lives[2]);
    assert_eq!(first_of_third.map(|first| first.version), Some(Version(end.0 + 1)));
    consumer.shutdown().await.expect("it stops");
    newcomer.shutdown().await.expect("it stops");
}
