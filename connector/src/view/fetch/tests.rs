use super::*;
use crate::record::TopicId;
use crate::version::Shard;

#[tokio::test]
async fn a_file_that_cannot_be_read_is_fetched_again_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), u64::MAX).unwrap();
    let path = dir.path().join("products").join("file");
    std::fs::create_dir_all(dir.path().join("products")).unwrap();
    let failed = |doing, errno: i32| {
        let source = std::io::Error::from_raw_os_error(errno);
        Err::<View, _>(Error::Io { doing, path: path.clone(), source })
    };
    const EIO: i32 = 5;
    const EACCES: i32 = 13;
    const EMFILE: i32 = 24;
    const ENOSPC: i32 = 28;
    for (doing, errno) in [("reading", EIO), ("opening", EACCES)] {
        std::fs::write(&path, "x").unwrap();
        let mut again = Again::default();
        assert!(again.after(&cache, failed(doing, errno)).await.unwrap().is_none());
        assert!(!path.exists(), "so that it is fetched");
        assert!(again.after(&cache, failed(doing, errno)).await.is_err(), "the disk is at fault");
        std::fs::write(&path, "x").unwrap();
        again = Again { keeps: true, ..Again::default() };
        assert!(again.after(&cache, failed(doing, errno)).await.is_err() && path.exists(), "all we have");
    }
    std::fs::write(&path, "x").unwrap();
    for (doing, errno) in [("opening", EMFILE), ("writing", ENOSPC), ("mapping", EACCES)] {
        assert!(Again::default().after(&cache, failed(doing, errno)).await.is_err());
        assert!(path.exists(), "it is not to blame");
    }
}

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
