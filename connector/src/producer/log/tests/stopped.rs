//! RocksDB stops over what it could not write, on whichever thread: it goes on being read and refuses each write. The next
//! life opens it anew, before it takes over where anybody knows.

use std::sync::Weak;

use super::*;

/// The database that is open; held by nobody here, since two cannot be open at once.
fn database(log: &Log) -> Weak<Database> {
    Arc::downgrade(&lock(&log.0.engine).as_ref().unwrap().database)
}

fn failed() -> Error {
    Error::Disk(disk::Error::Failed {
        doing: "keeping",
        dir: "here".into(),
        why: "Input/output error".into(),
    })
}

#[tokio::test]
async fn what_fails_on_the_keepers_thread_has_the_log_opened_anew_and_once_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    log.appender().try_append(chunk(0, 0, 5)).unwrap();
    persisted(&log.appender(), 1).await;

    let healthy = database(&log);
    log.mend().await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    // A chunk that cannot be read is cut out, and nothing is wrong with the database.
    let source = disk::Error::Corrupt { seq: 7, dir: dir.path().to_owned(), why: "noise".into() };
    log.0.shared.fail(Error::Cut { dir: dir.path().to_owned(), seq: 7, records: 0, source });
    log.mend().await.unwrap();
    assert!(healthy.upgrade().is_some(), "opened anew for nothing");

    // Told after something else has ended the life already.
    log.0.shared.fail(failed());
    log.mend().await.unwrap();
    assert!(healthy.upgrade().is_none(), "what refuses each write was kept");
    let mended = database(&log);
    assert!(matches!(log.appender().try_append(chunk(0, 5, 9)), Err(AppendError::Failed(_))), "no life yet");
    assert_eq!(log.resume(&origin(1), &[at(0, 0)]).await.unwrap(), [at(0, 5)]);
    assert!(mended.upgrade().is_some(), "it had just been opened");
    let mut reader = roomy(&log);
    log.appender().try_append(chunk(0, 5, 9)).unwrap();
    assert_eq!(take(&mut reader, 9).await, offsets(0, 0, 9));
    persisted(&log.appender(), 2).await;

    // Found out between the look before the takeover and the life's beginning.
    log.0.shared.fail(failed());
    assert!(reader.next().await.is_err());
    assert_eq!(log.resume(&origin(1), &[at(0, 3)]).await.unwrap(), [at(0, 9)]);
    assert!(mended.upgrade().is_none());
    assert_eq!(take(&mut roomy(&log), 6).await, offsets(0, 3, 9));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_database_that_has_stopped_for_real_is_of_use_again_in_the_next_life() {
    for told in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let (dir, away) = (root.path().join("log"), root.path().join("away"));
        let options = Options { write_buffer_bytes: 1 << 20, ..options() };
        let log = Log::open(&dir, options).await.unwrap();
        log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
        let (appender, mut reader) = (log.appender(), roomy(&log));
        for n in 0..3 {
            appender.try_append(chunk_of(&[(0, n * 10, n * 10 + 10)], 20_000)).unwrap();
        }
        persisted(&appender, 3).await;
        assert_eq!(take(&mut reader, 30).await, offsets(0, 0, 30));

        // What RocksDB has open it can write; a new file it cannot make.
        std::fs::rename(&dir, &away).unwrap();
        std::fs::write(&dir, "in the way").unwrap();
        if told {
            log.0.shared.queue().unreclaimed_bytes = log.0.options.reclaim_bytes();
            log.trim(&[at(0, 10)]).await.unwrap();
            let next = tokio::time::timeout(Duration::from_secs(60), reader.next()).await;
            let error = next.expect("giving room back fails").unwrap_err();
            assert!(matches!(error, Error::Disk(_)), "{error:?}");
        } else {
            // As when it writes a file of its own accord, and nobody waits for the outcome.
            log.0.keeper().unwrap().call(Database::reclaim).unwrap_err();
        }
        std::fs::remove_file(&dir).unwrap();
        std::fs::rename(&away, &dir).unwrap();
        let refused = log.0.keeper().unwrap().call(|database| database.forget(0, 0, false));
        assert!(refused.is_err(), "the disk is well, and RocksDB goes on by itself: nothing is tried here");

        log.mend().await.unwrap();
        if !told {
            // Whatever this life finds out, the next one makes good.
            let error = log.resume(&origin(1), &[at(0, 20)]).await.unwrap_err();
            assert!(matches!(error, Error::Disk(_)), "{error:?}");
            log.mend().await.unwrap();
        }
        // The second chunk is announced, so that something is to be deleted.
        assert_eq!(log.resume(&origin(1), &[at(0, 20)]).await.unwrap(), [at(0, 30)]);
        let mut reader = roomy(&log);
        log.appender().try_append(chunk(0, 30, 35)).unwrap();
        assert_eq!(take(&mut reader, 15).await, offsets(0, 20, 35));
        persisted(&log.appender(), 4).await;
        log.close().await.unwrap();
    }
}
