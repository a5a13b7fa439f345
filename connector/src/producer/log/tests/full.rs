//! A disk that is full for real: a small volume in memory, where the test may mount one.

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use super::*;
use crate::failpoint::forks;

/// A volume of `megabytes`, gone with the value.
struct Volume(tempfile::TempDir);

impl Volume {
    /// `None`: this user may not mount, and need not, by the rule of tests/harness/volume.rs.
    fn mount(megabytes: u32) -> Option<Volume> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "stillwell-test"]).arg(dir.path());
        let mounted = forks::output(&mut mount);
        if mounted.as_ref().is_ok_and(|mounted| mounted.status.success()) {
            return Some(Volume(dir));
        }
        let root = std::fs::metadata("/proc/self").is_ok_and(|itself| itself.uid() == 0);
        let ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty() && ci != "false");
        let waived = std::env::var_os("STILLWELL_TEST_MOUNTS").is_some_and(|waived| waived == "none");
        assert!(waived || !(root || ci), "nothing was tried on a full disk: {mounted:?}");
        None
    }

    /// Fills what is left of it, but for so many bytes.
    fn fill(&self, but: u64) {
        let free = disk::space(self.0.path()).unwrap().free;
        let filler = self.0.path().join("filler");
        let filler = std::fs::File::options().append(true).create(true).open(filler).unwrap();
        let zeros = vec![0; 64 << 10];
        let mut left = free.saturating_sub(but);
        while left > 0 {
            let piece = left.min(zeros.len() as u64) as usize;
            match std::io::Write::write(&mut &filler, &zeros[..piece]) {
                Ok(0) | Err(_) => break,
                Ok(written) => left -= written as u64,
            }
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = forks::output(Command::new("umount").arg("-l").arg(self.0.path()));
    }
}

#[tokio::test]
async fn an_append_that_finds_no_room_loses_nothing_and_the_log_mends_itself_when_there_is_some() {
    let Some(volume) = Volume::mount(64) else {
        eprintln!("not allowed to mount: a_full_disk_ends_the_life… covers what can be without");
        return;
    };
    let log = Log::open(&volume.0.path().join("log"), options()).await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let fill = log.fill();
    assert_eq!(fill.reserve, 8 << 20, "an eighth of a small volume is to spare");
    assert!(fill.disk() < 0.2, "{fill:?}");
    let appender = log.appender();
    let mut next = 0;
    let mut append = |appender: &Appender| {
        let outcome =
            appender.append_within(chunk_of(&[(0, next, next + 10)], 20_000), Duration::from_secs(60));
        if outcome.is_ok() {
            next += 10;
        }
        outcome.map(|()| next)
    };
    append(&appender).unwrap();
    persisted(&appender, 1).await;
    volume.fill(1 << 20);
    assert!(log.fill().disk() >= 1.0, "{:?}", log.fill());

    // Against better knowledge: until the disk refuses.
    let mut durable = appender.persisted();
    let failed = loop {
        match append(&appender) {
            Ok(end) => assert!(end < 10_000, "the disk never refuses"),
            Err(AppendError::Failed(error)) => break error,
            Err(AppendError::Full(_)) => {}
        }
    };
    assert!(matches!(failed, Error::Disk(disk::Error::Full { .. })) && failed.is_transient(), "{failed:?}");
    assert_eq!(failed.kind(), crate::ErrorKind::Unavailable);
    let kept = 10 * *durable.borrow_and_update() as i64;
    // Still full: each attempt says so, and none makes it worse.
    volume.fill(0);
    for _ in 0..3 {
        if let Err(error) = log.mend().await {
            assert!(matches!(error, Error::Disk(disk::Error::Full { .. })), "{error:?}");
        }
    }
    volume.make_room();
    log.mend().await.unwrap();
    let resumed = log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    assert!(resumed[0].offset >= kept, "{resumed:?}: all that was called durable is there, up to {kept}");
    let end = resumed[0].offset;
    let mut reader = roomy(&log);
    assert_eq!(take(&mut reader, end as usize).await, offsets(0, 0, end));
    log.appender().try_append(chunk_of(&[(0, end, end + 10)], 20_000)).unwrap();
    assert_eq!(take(&mut reader, 10).await, offsets(0, end, end + 10));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_log_that_fills_its_own_volume_opens_and_empties_there() {
    let Some(volume) = Volume::mount(96) else { return };
    // Nobody heeds the reserve, nobody reads: RocksDB itself runs into the end of the disk.
    let dir = volume.0.path().join("log");
    let log = Log::open(&dir, options()).await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let appender = log.appender();
    let mut next = 0;
    // Up to where the source would have paused: 1.25 times the reserve.
    while log.fill().disk() < 0.8 {
        assert!(next < 10_000, "the volume never fills: {:?}", log.fill());
        match appender.append_within(chunk_of(&[(0, next, next + 10)], 100_000), Duration::from_secs(60)) {
            // One by one: what waits for the fsync is not on the disk yet, and would not be seen.
            Ok(()) => {
                next += 10;
                persisted(&appender, next as u64 / 10).await;
            }
            Err(refused) => panic!("before its reserve is used up the disk has room: {refused}"),
        }
    }
    log.close().await.unwrap();
    let log = Log::open(&dir, options()).await.expect("what is to spare is enough to open it");
    assert_eq!(log.resume(&origin(1), &[at(0, 0)]).await.unwrap(), [at(0, next)]);
    let mut reader = log.reader(1, Budget::new(4 << 20));
    for end in (10..=next).step_by(10) {
        assert_eq!(take(&mut reader, 10).await, offsets(0, end - 10, end));
        log.trim(&[at(0, end)]).await.unwrap();
    }
    let empty = async {
        while log.fill().disk() > 0.6 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), empty).await.unwrap_or_else(|_| panic!("{:?}", log.fill()));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_process_that_starts_on_a_full_disk_waits_for_room() {
    let Some(volume) = Volume::mount(64) else { return };
    let dir = volume.0.path().join("log");
    let log = Log::open(&dir, options()).await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    log.appender().try_append(chunk(0, 0, 10)).unwrap();
    persisted(&log.appender(), 1).await;
    log.close().await.unwrap();
    volume.fill(0);
    let log = Log::open(&dir, options()).await.expect("that is no reason to end the process");
    for _ in 0..2 {
        let full = log.mend().await.unwrap_err();
        assert!(matches!(full, Error::Disk(disk::Error::Full { .. })) && full.is_transient(), "{full:?}");
    }
    assert!(log.fill().disk() >= 1.0);
    assert!(matches!(log.appender().try_append(chunk(0, 10, 20)), Err(AppendError::Failed(_))));
    volume.make_room();
    log.mend().await.unwrap();
    assert_eq!(log.resume(&origin(1), &[at(0, 0)]).await.unwrap(), [at(0, 10)], "what was there is there");
    assert_eq!(take(&mut roomy(&log), 10).await, offsets(0, 0, 10));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_chunk_counts_once_also_in_the_moment_in_which_it_becomes_durable() {
    let dir = tempfile::tempdir().unwrap();
    let place = Arc::new(std::sync::OnceLock::<Log>::new());
    let (tell, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let options = Options {
        // On the writer's thread, which has not yet counted it as written.
        on_persisted: Some({
            let place = place.clone();
            Arc::new(move |_| tell.send(place.get().unwrap().fill().bytes).unwrap())
        }),
        ..options()
    };
    let log = Log::open(dir.path(), options).await.unwrap();
    place.set(log.clone()).unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let appender = log.appender();
    let before = *appender.persisted().borrow();
    // Nobody reads yet: it is taken in once it is durable. The second goes to memory at once.
    let first = chunk(0, 0, 10);
    let bytes = first.len() as u64;
    appender.try_append(first).unwrap();
    persisted(&appender, before + 1).await;
    assert_eq!(seen.recv().await, Some(bytes));
    let mut reader = roomy(&log);
    assert_eq!(take(&mut reader, 10).await, offsets(0, 0, 10));
    appender.try_append(chunk(0, 10, 20)).unwrap();
    assert_eq!(log.fill().bytes, log.stats().log_bytes, "it lies ready");
    assert_eq!(take(&mut reader, 10).await, offsets(0, 10, 20));
    persisted(&appender, before + 2).await;
    let second = seen.recv().await;
    log.close().await.unwrap();
    assert_eq!(second, Some(log.stats().log_bytes));
}
