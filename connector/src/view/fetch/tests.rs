use super::*;
use crate::record::TopicId;
use crate::version::Shard;

#[test]
fn what_is_long_in_coming_is_told_now_and_then() {
    let clock = Clock::manual(0);
    let identity = Identity { dataset: "d".into(), topic_id: TopicId::default(), shard: Shard(0), shards: 1 };
    let checksum = Checksum(0);
    let (bytes, plain_bytes) = (1_000_000, 4_000_000);
    let name = "snapshot".to_owned();
    let blob = BlobRef { name, bytes, checksum, plain_bytes, plain_checksum: checksum, location: None };
    let mut progress = Progress::new(clock.clone(), &identity, &blob);
    let start = progress.told;
    clock.advance(Duration::from_secs(4));
    progress.came(100_000);
    assert_eq!(progress.told, start, "too soon");
    clock.advance(Duration::from_secs(1));
    progress.came(100_000);
    assert_eq!((progress.told, progress.pace(progress.told)), (start + TELL_EVERY, (40_000, 20)));
    clock.advance(Duration::from_secs(3));
    progress.came(100_000);
    assert_eq!(progress.told, start + TELL_EVERY);
}
