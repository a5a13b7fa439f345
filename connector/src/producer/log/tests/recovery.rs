//! What recovery takes grows with what is not announced, and with nothing else.

use super::*;

const PENDING: i64 = 100;

/// Opens the log and begins a life at `announced`: how long that took, and the records that it still has.
async fn recovered(dir: &Path, announced: i64) -> (Duration, Vec<(i32, i64)>) {
    let clock = Clock::system();
    let began = clock.now();
    let log = Log::open(dir, small()).await.unwrap();
    let next = log.resume(&origin(1), &[at(0, announced)]).await.unwrap();
    let took = clock.now() - began;
    let kept = take(&mut roomy(&log), (next[0].offset - announced) as usize).await;
    log.close().await.unwrap();
    (took, kept)
}

fn small() -> Options {
    Options { write_buffer_bytes: 512 << 10, ..options() }
}

/// A log through which `trimmed` chunks have gone before the last [`PENDING`].
async fn made(dir: &Path, trimmed: i64) {
    let log = Log::open(dir, small()).await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let (appender, mut reader) = (log.appender(), roomy(&log));
    for n in 0..trimmed + PENDING {
        appender.append_within(chunk_of(&[(0, n, n + 1)], 4_000), Duration::from_secs(60)).unwrap();
        if n < trimmed && n % 50 == 49 {
            take(&mut reader, 50).await;
            log.trim(&[at(0, n + 1)]).await.unwrap();
        }
    }
    persisted(&appender, (trimmed + PENDING) as u64).await;
    // As a killed process leaves it, at a moment when no file is half written: nothing that closing would have tidied.
    log.0.keeper().unwrap().call(|_| Ok(())).unwrap();
    let left = dir.with_extension("left");
    model::left_by_a_crash(dir, &left);
    log.close().await.unwrap();
    std::fs::rename(dir, dir.with_extension("closed")).unwrap();
    std::fs::rename(left, dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_announced_long_ago_costs_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut best = Vec::new();
    for (name, trimmed) in [("little", 0), ("much", PENDING * 100)] {
        let dir = root.path().join(name);
        made(&dir, trimmed).await;
        // Without the bound it were a hundred times as much, however often. What is constant: a write-ahead log of at most the
        // memtables' size, and files that are about to go.
        let bound = best.first().map(|least: &Duration| *least * 5 + Duration::from_millis(100));
        let mut fastest = Duration::MAX;
        // Of many where it has to be: a busy machine holds up some.
        for n in 0..30 {
            if n >= 3 && bound.is_none_or(|bound| fastest < bound) {
                break;
            }
            let (took, kept) = recovered(&dir, trimmed).await;
            assert_eq!(kept, offsets(0, trimmed, trimmed + PENDING));
            fastest = fastest.min(took);
        }
        assert!(bound.is_none_or(|bound| fastest < bound), "{fastest:?}, and {best:?} of a short history");
        println!("{PENDING} chunks pending, {trimmed} trimmed before: {fastest:?}");
        best.push(fastest);
    }
}

/// Kafka was never reached: what is there stays needed, and what was trimmed before is no loss that anybody is told of.
#[tokio::test]
async fn a_log_that_is_closed_without_a_life_says_nothing_wrong_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let missing = || {
        let disk = disk::Options { clock: Clock::system(), write_buffer_bytes: 1 << 20 };
        let opened = Database::open(dir.path(), &disk).unwrap();
        (opened.survey.missing, opened.survey.chunks.iter().map(|(seq, _)| *seq).collect::<Vec<_>>())
    };
    let twice = async || {
        for _ in 0..2 {
            open(dir.path()).await.close().await.unwrap();
        }
    };
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let (appender, mut reader) = (log.appender(), roomy(&log));
    (0..5).for_each(|n| appender.try_append(chunk(0, n, n + 1)).unwrap());
    assert_eq!(take(&mut reader, 5).await, offsets(0, 0, 5));
    log.trim(&[at(0, 3)]).await.unwrap();
    log.close().await.unwrap();
    twice().await;
    assert_eq!(missing(), (0, vec![3, 4]));

    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 3)]).await.unwrap();
    assert_eq!(take(&mut roomy(&log), 2).await, offsets(0, 3, 5));
    log.trim(&[at(0, 5)]).await.unwrap();
    log.close().await.unwrap();
    twice().await;
    assert_eq!(missing(), (0, vec![]));
}

#[tokio::test]
async fn what_other_processes_have_trimmed_is_given_back_too() {
    const CHUNKS: i64 = 18;
    let dir = tempfile::tempdir().unwrap();
    let mut most = 0;
    // None of them trims so much that it would look for room by that alone: 1.8 of 2 MB, the half of it written out before.
    for round in 0..12 {
        let options = Options { write_buffer_bytes: 1 << 20, ..options() };
        let log = Log::open(dir.path(), options).await.unwrap();
        most = most.max(disk::chunk_bytes_in(dir.path()));
        let (from, to) = (round * CHUNKS, (round + 1) * CHUNKS);
        assert_eq!(log.resume(&origin(1), &[at(0, from)]).await.unwrap(), [at(0, from)]);
        let (appender, mut reader) = (log.appender(), roomy(&log));
        let durable = *appender.persisted().borrow();
        for n in from..to {
            let chunk = chunk_of(&[(0, n, n + 1)], 100_000);
            appender.append_within(chunk, Duration::from_secs(60)).unwrap();
        }
        persisted(&appender, durable + CHUNKS as u64).await;
        assert_eq!(take(&mut reader, CHUNKS as usize).await, offsets(0, from, to));
        log.trim(&[at(0, to)]).await.unwrap();
        log.close().await.unwrap();
    }
    assert!(most > 500_000, "{most} bytes: nothing was left to be given back");
    assert!(most < 6 << 20, "{most} bytes of chunks that are all trimmed");
}
