//! A partition that was cut: its offsets go to other records, and what the log has of them must not come back.

use super::*;

/// Partition 0 up to offset 75, partition 1 up to 20, in chunks of one and of both.
async fn filled(dir: &Path) -> Log {
    let log = open(dir).await;
    log.resume(&origin(1), &[at(0, 0), at(1, 0)]).await.unwrap();
    let chunks: [&[(i32, i64, i64)]; 4] =
        [&[(0, 0, 40)], &[(0, 40, 70), (1, 0, 10)], &[(0, 70, 75)], &[(1, 10, 20)]];
    for ranges in chunks {
        log.appender().try_append(chunk_of(ranges, 0)).unwrap();
    }
    persisted(&log.appender(), 4).await;
    log
}

#[tokio::test]
async fn what_reaches_past_a_partitions_end_is_taken_out_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let log = filled(dir.path()).await;
    let (announced, ends) = ([at(0, 60), at(1, 0)], [at(0, 40), at(1, 50)]);
    assert_eq!(
        log.resume_within(&origin(1), &announced, &ends).await.unwrap(),
        [at(0, 60), at(1, 20)],
        "of partition 0 nothing is left that joins"
    );
    assert_eq!(take(&mut roomy(&log), 20).await, offsets(1, 0, 20), "the other one is all there");
    // Twice, as after a crash in between, is as good as once; and it stays so.
    assert_eq!(log.resume_within(&origin(1), &announced, &ends).await.unwrap(), [at(0, 60), at(1, 20)]);
    log.close().await.unwrap();
    let log = open(dir.path()).await;
    assert_eq!(log.resume(&origin(1), &[at(0, 40), at(1, 0)]).await.unwrap(), [at(0, 40), at(1, 20)]);
    let mut reader = roomy(&log);
    log.appender().try_append(chunk(0, 40, 45)).unwrap();
    assert_eq!(take(&mut reader, 25).await, [offsets(1, 0, 20), offsets(0, 40, 45)].concat());
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_log_within_the_ends_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = filled(dir.path()).await;
    let (announced, ends) = ([at(0, 60), at(1, 0)], [at(0, 75), at(1, 20)]);
    assert_eq!(log.resume_within(&origin(1), &announced, &ends).await.unwrap(), [at(0, 75), at(1, 20)]);
    assert_eq!(take(&mut roomy(&log), 35).await.len(), 35);
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_chunk_that_should_be_cut_back_and_cannot_be_read_ends_the_log_there() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await.close().await.unwrap();
    damage(dir.path(), 1, |bytes| bytes[100] ^= 1);
    let log = open(dir.path()).await;
    let (announced, ends) = ([at(0, 40), at(1, 0)], [at(0, 40), at(1, 50)]);
    assert_eq!(log.resume_within(&origin(1), &announced, &ends).await.unwrap(), announced);
    log.close().await.unwrap();
    let log = open(dir.path()).await;
    assert_eq!(log.resume(&origin(1), &announced).await.unwrap(), announced);
    let mut reader = roomy(&log);
    log.appender().try_append(chunk_of(&[(0, 40, 45), (1, 0, 5)], 0)).unwrap();
    assert_eq!(take(&mut reader, 10).await, [offsets(0, 40, 45), offsets(1, 0, 5)].concat());
    log.close().await.unwrap();
}
