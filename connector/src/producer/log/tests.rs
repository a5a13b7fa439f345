use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::codec::{Format, KeyRule};
use crate::format::chunk::{Body, Chunk, ChunkBuilder};
use crate::record::{SourcePartition, TopicId};
use crate::schema::Schema;

mod ends;
mod full;
mod model;
mod recovery;
mod shed;
mod stopped;
mod torture;

const PLENTY: usize = 1_000_000;

/// A disk that is full from time to time.
pub(super) struct MaybeFull {
    pub(super) database: Arc<Database>,
    pub(super) full: Arc<AtomicBool>,
}

impl disk::Persist for MaybeFull {
    fn persist(&mut self, group: &[Waiting]) -> Result<(), disk::Error> {
        if self.full.load(Ordering::SeqCst) {
            let dir = self.database.dir().to_owned();
            return Err(disk::Error::Failed { doing: "appending to", dir, why: "no space left".into() });
        }
        self.database.persist(group)
    }
}

fn source(partition: i32) -> SourcePartition {
    SourcePartition { topic: "orders".into(), topic_id: Default::default(), partition }
}

/// Of history number `n`.
fn origin(n: u8) -> Origin {
    Origin::of((TopicId([n; 16]), &n.to_string()), &Schema::raw(), &Format::raw(), &KeyRule::Kafka)
}

fn at(partition: i32, offset: i64) -> Position {
    Position { source: source(partition), offset }
}

/// Beyond its beginning noise: what is written takes as much of the disk as it has bytes.
fn value(partition: i32, offset: i64, bytes: usize) -> Vec<u8> {
    let mut value = format!("value {partition}/{offset} ").into_bytes();
    let head = value.len();
    let noise = crate::clock::Entropy::seeded(offset as u64);
    while value.len() < bytes {
        value.extend_from_slice(&noise.next_u64().to_le_bytes());
    }
    value.truncate(bytes.max(head));
    value
}

/// A chunk that accounts for `[from, to)` of each partition given, with a record at each offset.
fn chunk_of(ranges: &[(i32, i64, i64)], bytes: usize) -> Chunk {
    let mut builder = ChunkBuilder::new();
    for (partition, from, to) in ranges {
        let slot = builder.slot(&source(*partition), *from);
        for offset in *from..*to {
            let (key, value) = (format!("key {offset}"), value(*partition, offset, bytes));
            builder.push(slot, offset, offset, Body::Upsert { key: key.as_bytes(), value: &value });
        }
    }
    builder.finish()
}

fn chunk(partition: i32, from: i64, to: i64) -> Chunk {
    chunk_of(&[(partition, from, to)], 0)
}

fn options() -> Options {
    Options::new(Clock::system())
}

async fn open(dir: &Path) -> Log {
    Log::open(dir, options()).await.unwrap()
}

fn roomy(log: &Log) -> Reader {
    log.reader(PLENTY, Budget::new(1 << 30))
}

/// What a reader hands on until `count` records came: (partition, offset), in order. Values are compared.
async fn take(reader: &mut Reader, count: usize) -> Vec<(i32, i64)> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(60), reader.next()).await;
        let logged = next.unwrap_or_else(|_| panic!("{count} records awaited, {} came", taken.len()));
        taken.extend(records(&logged.unwrap().expect("the log is open")));
    }
    taken
}

fn records(logged: &Logged) -> Vec<(i32, i64)> {
    let ranges = logged.chunk.ranges();
    let new = logged.chunk.iter().filter(|(_, record)| record.offset >= logged.from[record.slot as usize]);
    new.map(|(_, record)| {
        let partition = ranges[record.slot as usize].source.partition;
        let Body::Upsert { value: found, .. } = record.body else { panic!("only upserts were written") };
        assert!(found.starts_with(&value(partition, record.offset, 0)));
        (partition, record.offset)
    })
    .collect()
}

fn offsets(partition: i32, from: i64, to: i64) -> Vec<(i32, i64)> {
    (from..to).map(|offset| (partition, offset)).collect()
}

async fn persisted(appender: &Appender, number: u64) {
    let mut persisted = appender.persisted();
    let wait = persisted.wait_for(|end| *end >= number);
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it becomes durable").unwrap();
}

/// Everything in the log from here on cannot be read.
fn damage(dir: &Path, from: u64, how: impl Fn(&mut Vec<u8>)) {
    let disk = disk::Options { clock: Clock::system(), write_buffer_bytes: 1 << 20 };
    let database = Database::open(dir, &disk).unwrap().database;
    database.damage(from, how);
}

#[tokio::test]
async fn a_log_of_another_origin_is_discarded_and_one_of_none_too() {
    let dir = tempfile::tempdir().unwrap();
    let kept = |log: Log| async move {
        let appender = log.appender();
        appender.try_append(chunk(0, 5, 10)).unwrap();
        persisted(&appender, 1).await;
        log.close().await.unwrap();
    };
    let log = open(dir.path()).await;
    assert_eq!(log.resume(&origin(1), &[at(0, 5)]).await.unwrap(), [at(0, 5)]);
    kept(log).await;

    // the same: all is there; another: nothing, and for the first one neither when it comes back
    let log = open(dir.path()).await;
    assert_eq!(log.resume(&origin(1), &[at(0, 5)]).await.unwrap(), [at(0, 10)]);
    assert_eq!(log.resume(&origin(2), &[at(0, 5)]).await.unwrap(), [at(0, 5)]);
    assert!(log.retained().is_empty());
    log.close().await.unwrap();
    let log = open(dir.path()).await;
    assert_eq!(log.resume(&origin(1), &[at(0, 5)]).await.unwrap(), [at(0, 5)]);
    kept(log).await;

    // as releases left it that noted nothing
    let disk = disk::Options { clock: Clock::system(), write_buffer_bytes: 1 << 20 };
    Database::open(dir.path(), &disk).unwrap().database.forget_origin();
    let log = open(dir.path()).await;
    assert_eq!(log.resume(&origin(1), &[at(0, 5)]).await.unwrap(), [at(0, 5)]);
    let (appender, mut reader) = (log.appender(), roomy(&log));
    appender.try_append(chunk(0, 5, 7)).unwrap();
    assert_eq!(take(&mut reader, 2).await, offsets(0, 5, 7), "and it is of use");
    log.close().await.unwrap();
}

#[tokio::test]
async fn what_is_appended_is_handed_on_in_order_and_again_after_a_restart_until_it_is_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    assert_eq!(log.resume(&origin(1), &[at(0, 5), at(1, 0)]).await.unwrap(), [at(0, 5), at(1, 0)]);
    let (appender, mut reader) = (log.appender(), roomy(&log));
    appender.try_append(chunk_of(&[(0, 5, 10), (1, 0, 3)], 0)).unwrap();
    appender.try_append(chunk(0, 10, 15)).unwrap();
    appender.try_append(chunk(1, 3, 9)).unwrap();
    let expected = [offsets(0, 5, 10), offsets(1, 0, 3), offsets(0, 10, 15), offsets(1, 3, 9)].concat();
    assert_eq!(take(&mut reader, 19).await, expected);
    log.trim(&[at(0, 12), at(1, 3)]).await.unwrap();
    assert_eq!(log.stats().pending_records, 11, "the first chunk is announced, the second only in part");
    log.close().await.unwrap();
    assert!(reader.next().await.unwrap().is_none());

    let log = open(dir.path()).await;
    let held = log.retained();
    assert_eq!(
        held.iter().map(|r| (r.source.partition, r.from, r.to)).collect::<Vec<_>>(),
        [(0, 10, 15), (1, 3, 9)]
    );
    assert_eq!(log.resume(&origin(1), &[at(0, 12), at(1, 3)]).await.unwrap(), [at(0, 15), at(1, 9)]);
    assert_eq!(log.stats().pending_records, 11);
    let mut reader = roomy(&log);
    assert_eq!(take(&mut reader, 9).await, [offsets(0, 12, 15), offsets(1, 3, 9)].concat());
    // and goes on with what comes
    log.appender().try_append(chunk(0, 15, 17)).unwrap();
    assert_eq!(take(&mut reader, 2).await, offsets(0, 15, 17));
    log.trim(&[at(0, 17), at(1, 9)]).await.unwrap();
    assert_eq!(log.stats(), Stats::default());
    log.close().await.unwrap();

    let log = open(dir.path()).await;
    assert_eq!(log.retained(), []);
    assert_eq!(log.resume(&origin(1), &[at(0, 17)]).await.unwrap(), [at(0, 17)]);
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_new_life_in_one_process_begins_at_its_positions_and_closes_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let (old, mut old_reader) = (log.appender(), roomy(&log));
    for from in 0..10 {
        old.try_append(chunk(0, from * 10, from * 10 + 10)).unwrap();
    }
    assert_eq!(take(&mut old_reader, 100).await, offsets(0, 0, 100));
    let waits = async { old_reader.next().await.unwrap().is_none() };
    let positions = [at(0, 33)];
    let own = origin(1);
    let (ended, next) = tokio::join!(waits, log.resume(&own, &positions));
    assert!(ended, "the old reader ends");
    assert_eq!(next.unwrap(), [at(0, 100)]);
    assert!(matches!(old.try_append(chunk(0, 100, 101)), Err(AppendError::Failed(Error::Closed))));
    assert!(matches!(
        old.append_within(chunk(0, 100, 101), Duration::from_secs(5)),
        Err(AppendError::Failed(Error::Closed))
    ));
    let mut reader = roomy(&log);
    assert_eq!(take(&mut reader, 67).await, offsets(0, 33, 100));
    log.appender().try_append(chunk(0, 100, 105)).unwrap();
    assert_eq!(take(&mut reader, 5).await, offsets(0, 100, 105));
    log.close().await.unwrap();
}

#[tokio::test]
async fn what_does_not_join_is_discarded_per_partition_and_never_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 0), at(1, 0), at(2, 0)]).await.unwrap();
    let appender = log.appender();
    appender.try_append(chunk_of(&[(0, 0, 4), (1, 0, 4), (2, 0, 4)], 0)).unwrap();
    appender.try_append(chunk_of(&[(0, 4, 8), (1, 4, 8), (2, 4, 8)], 0)).unwrap();
    // partition 0 joins; 1 was announced beyond its end; 2 is no longer ours
    assert_eq!(log.resume(&origin(1), &[at(0, 6), at(1, 20)]).await.unwrap(), [at(0, 8), at(1, 20)]);
    let mut reader = roomy(&log);
    assert_eq!(take(&mut reader, 2).await, offsets(0, 6, 8));
    // partition 1 goes on at 20: what is in between will never join
    log.appender().try_append(chunk_of(&[(1, 20, 22)], 0)).unwrap();
    assert_eq!(take(&mut reader, 2).await, offsets(1, 20, 22));
    // a life whose announced position lies before what the log holds of partition 1
    assert_eq!(log.resume(&origin(1), &[at(0, 8), at(1, 10)]).await.unwrap(), [at(0, 8), at(1, 10)]);
    let mut reader = roomy(&log);
    log.appender().try_append(chunk_of(&[(1, 10, 12)], 0)).unwrap();
    assert_eq!(take(&mut reader, 2).await, offsets(1, 10, 12));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_chunk_that_leaves_offsets_out_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 3)]).await.unwrap();
    let appender = log.appender();
    for (chunk, end) in [(chunk(0, 4, 5), Some(3)), (chunk(1, 0, 1), None)] {
        let refused = appender.try_append(chunk).unwrap_err();
        assert!(
            matches!(refused, AppendError::Failed(Error::Gap { end: found, .. }) if found == end),
            "{refused:?}"
        );
    }
    appender.try_append(chunk(0, 3, 5)).unwrap();
    appender.try_append(chunk(0, 4, 6)).unwrap(); // an overlap is entered where it is new
    let mut reader = roomy(&log);
    assert_eq!(take(&mut reader, 3).await, offsets(0, 3, 6));
    log.close().await.unwrap();
}

#[tokio::test]
async fn beyond_its_room_it_spills_and_pages_back_in_order_while_more_comes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let (appender, memory) = (log.appender(), Budget::new(100_000));
    let mut reader = log.reader(50, memory.clone());
    for n in 0..20 {
        appender.try_append(chunk_of(&[(0, n * 10, n * 10 + 10)], 1_000)).unwrap();
    }
    persisted(&appender, 20).await;
    let stats = log.stats();
    assert_eq!(stats.pending_records, 200);
    assert_eq!(stats.spilled_records, 150, "50 fit");
    assert!(memory.used() <= 100_000, "{}", memory.used());
    assert_eq!(take(&mut reader, 30).await, offsets(0, 0, 30));
    for n in 20..30 {
        appender.try_append(chunk_of(&[(0, n * 10, n * 10 + 10)], 1_000)).unwrap();
    }
    persisted(&appender, 30).await;
    let mut taken = Vec::new();
    while taken.len() < 270 {
        taken.extend(take(&mut reader, 10).await);
        assert!(memory.used() <= 100_000, "{}", memory.used());
    }
    assert_eq!(taken, offsets(0, 30, 300));
    assert_eq!((log.stats().spilled_records, log.stats().pending_records), (0, 300));
    // caught up: from memory again
    appender.try_append(chunk(0, 300, 301)).unwrap();
    persisted(&appender, 31).await;
    assert_eq!(log.stats().spilled_records, 0);
    assert_eq!(take(&mut reader, 1).await, [(0, 300)]);
    log.trim(&[at(0, 301)]).await.unwrap();
    assert_eq!(log.stats(), Stats::default());
    log.close().await.unwrap();
}

#[tokio::test]
async fn memory_that_is_taken_elsewhere_stops_paging_until_it_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let (appender, memory) = (log.appender(), Budget::new(10_000));
    let elsewhere = memory.try_lease(10_000).unwrap();
    let mut reader = log.reader(PLENTY, memory.clone());
    appender.try_append(chunk_of(&[(0, 0, 5)], 1_000)).unwrap();
    persisted(&appender, 1).await;
    assert_eq!(log.stats().spilled_records, 5);
    {
        let mut waits = Box::pin(reader.next());
        assert!(futures::poll!(&mut waits).is_pending());
    } // dropped while it waits: nothing is lost
    drop(elsewhere);
    assert_eq!(take(&mut reader, 5).await, offsets(0, 0, 5));
    // a chunk beyond the whole budget goes alone
    appender.try_append(chunk_of(&[(0, 5, 25)], 1_000)).unwrap();
    assert_eq!(take(&mut reader, 20).await, offsets(0, 5, 25));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_chunk_that_cannot_be_read_ends_the_life_and_the_next_one_reads_on_before_it() {
    for flip in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let log = open(dir.path()).await;
        log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
        let appender = log.appender();
        for n in 0..10 {
            appender.try_append(chunk_of(&[(0, n * 10, n * 10 + 10)], 500)).unwrap();
        }
        log.close().await.unwrap();
        damage(dir.path(), 4, |bytes| if flip { bytes[100] ^= 1 } else { bytes.truncate(1000) });

        let log = open(dir.path()).await;
        assert_eq!(
            log.resume(&origin(1), &[at(0, 5)]).await.unwrap(),
            [at(0, 100)],
            "summaries are whole, chunks are not read yet"
        );
        let mut reader = roomy(&log);
        assert_eq!(take(&mut reader, 35).await, offsets(0, 5, 40));
        let cut = reader.next().await.unwrap_err();
        assert!(matches!(cut, Error::Cut { seq: 4, records: 60, .. }), "{cut:?}");
        assert!(cut.is_transient());
        assert!(matches!(
            log.appender().try_append(chunk(0, 100, 101)),
            Err(AppendError::Failed(Error::Cut { .. }))
        ));
        // the next life, in this process
        assert_eq!(log.resume(&origin(1), &[at(0, 5)]).await.unwrap(), [at(0, 40)]);
        let mut reader = roomy(&log);
        log.appender().try_append(chunk(0, 40, 50)).unwrap();
        assert_eq!(take(&mut reader, 45).await, offsets(0, 5, 50));
        log.close().await.unwrap();
        // and after a restart
        let log = open(dir.path()).await;
        assert_eq!(log.resume(&origin(1), &[at(0, 5)]).await.unwrap(), [at(0, 50)]);
        assert_eq!(take(&mut roomy(&log), 45).await, offsets(0, 5, 50));
        log.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_tail_that_cannot_be_read_is_cut_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    for n in 0..5 {
        log.appender().try_append(chunk(0, n * 10, n * 10 + 10)).unwrap();
    }
    log.close().await.unwrap();
    damage(dir.path(), 3, |bytes| bytes[50] ^= 0x80);
    damage(dir.path(), 4, Vec::clear);
    let log = open(dir.path()).await;
    assert_eq!(log.resume(&origin(1), &[at(0, 0)]).await.unwrap(), [at(0, 30)]);
    assert_eq!(take(&mut roomy(&log), 30).await, offsets(0, 0, 30));
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_together_is_made_durable_together() {
    let dir = tempfile::tempdir().unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let options = Options {
        on_persisted: Some({
            let told = told.clone();
            Arc::new(move |_| {
                told.fetch_add(1, Ordering::Relaxed);
            })
        }),
        max_waiting_bytes: 100_000,
        ..options()
    };
    let log = Log::open(dir.path(), options).await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let (appender, mut reader) = (log.appender(), roomy(&log));
    // Far more than may wait: the appender is held back and everything arrives all the same.
    let appending = tokio::task::spawn_blocking(move || {
        let mut full = 0;
        for n in 0..500 {
            let mut chunk = chunk_of(&[(0, n, n + 1)], 10_000);
            loop {
                match appender.append_within(chunk, Duration::from_millis(1)) {
                    Ok(()) => break,
                    Err(AppendError::Full(back)) => (full, chunk) = (full + 1, back),
                    Err(AppendError::Failed(error)) => panic!("{error}"),
                }
            }
        }
        full
    });
    assert_eq!(take(&mut reader, 500).await, offsets(0, 0, 500));
    appending.await.unwrap();
    log.close().await.unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 500);
}

#[tokio::test]
async fn trimming_gives_the_disk_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path(), Options { write_buffer_bytes: 8 << 20, ..options() }).await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let (appender, mut reader) = (log.appender(), log.reader(PLENTY, Budget::new(4 << 20)));
    let total = 400;
    for n in 0..total {
        appender.append_within(chunk_of(&[(0, n, n + 1)], 1 << 20), Duration::from_secs(60)).unwrap();
    }
    persisted(&appender, total as u64).await;
    // Less than all: where a flush ends between the list of files and their lengths, neither its old files are counted nor its
    // new one. That is three memtables at most.
    assert!(log.disk_bytes() > 370 << 20);
    assert!(log.stats().spilled_records > 300);
    for n in 0..total {
        assert_eq!(take(&mut reader, 1).await, [(0, n)]);
        log.trim(&[at(0, n + 1)]).await.unwrap();
    }
    assert_eq!(log.stats(), Stats::default());
    let deadline = std::time::Duration::from_secs(60);
    let small = async {
        while log.disk_bytes() > 200 << 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(deadline, small).await.unwrap_or_else(|_| panic!("{} bytes stay", log.disk_bytes()));
    println!("{} MB of files after {total} MB were trimmed", log.disk_bytes() >> 20);
    log.close().await.unwrap();
    println!("{} MB after closing", disk::bytes_in(dir.path()) >> 20);
    let log = open(dir.path()).await;
    assert_eq!(log.retained(), []);
    println!("{} MB after opening", disk::bytes_in(dir.path()) >> 20);
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_full_disk_ends_the_life_and_the_next_one_opens_the_log_anew() {
    let dir = tempfile::tempdir().unwrap();
    let options = options();
    let log = Log::open(dir.path(), options.clone()).await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    let (appender, mut reader) = (log.appender(), roomy(&log));
    appender.try_append(chunk(0, 0, 5)).unwrap();
    persisted(&appender, 1).await;
    options.full_disk.store(true, Ordering::SeqCst);
    appender.try_append(chunk(0, 5, 9)).unwrap();
    assert_eq!(take(&mut reader, 9).await, offsets(0, 0, 9), "what is on its way to the disk is handed on");
    let failed = reader.next().await.unwrap_err();
    assert!(matches!(failed, Error::Disk(disk::Error::Failed { .. })) && failed.is_transient(), "{failed:?}");
    options.full_disk.store(false, Ordering::SeqCst);
    // Nobody knows what of the failed commit is on the disk: nothing more goes there in this life.
    assert!(matches!(appender.try_append(chunk(0, 9, 10)), Err(AppendError::Failed(Error::Disk(_)))));
    assert!(matches!(
        appender.append_within(chunk(0, 9, 10), Duration::from_secs(60)),
        Err(AppendError::Failed(Error::Disk(_)))
    ));

    assert_eq!(log.resume(&origin(1), &[at(0, 2)]).await.unwrap(), [at(0, 5)]);
    let mut reader = roomy(&log);
    log.appender().try_append(chunk(0, 5, 9)).unwrap();
    assert_eq!(take(&mut reader, 7).await, offsets(0, 2, 9));

    // and a disk that is still full when the life after tries
    options.full_disk.store(true, Ordering::SeqCst);
    log.appender().try_append(chunk(0, 9, 12)).unwrap();
    assert_eq!(take(&mut reader, 3).await, offsets(0, 9, 12));
    assert!(reader.next().await.is_err());
    assert_eq!(log.resume(&origin(1), &[at(0, 9)]).await.unwrap(), [at(0, 9)]);
    log.appender().try_append(chunk(0, 9, 12)).unwrap();
    assert!(roomy(&log).next().await.is_err());
    options.full_disk.store(false, Ordering::SeqCst);
    assert_eq!(log.resume(&origin(1), &[at(0, 9)]).await.unwrap(), [at(0, 9)]);
    log.appender().try_append(chunk(0, 9, 12)).unwrap();
    assert_eq!(take(&mut roomy(&log), 3).await, offsets(0, 9, 12));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_life_that_cannot_open_the_log_leaves_it_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let (dir, away) = (dir.path().join("log"), dir.path().join("away"));
    let options = options();
    let log = Log::open(&dir, options.clone()).await.unwrap();
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    log.appender().try_append(chunk(0, 0, 5)).unwrap();
    persisted(&log.appender(), 1).await;
    options.full_disk.store(true, Ordering::SeqCst);
    log.appender().try_append(chunk(0, 5, 9)).unwrap();
    assert!(matches!(take_error(&log).await, Error::Disk(_)));
    options.full_disk.store(false, Ordering::SeqCst);
    std::fs::rename(&dir, &away).unwrap();
    std::fs::write(&dir, "in the way").unwrap();
    assert!(matches!(
        log.resume(&origin(1), &[at(0, 0)]).await,
        Err(Error::Disk(disk::Error::Directory { .. }))
    ));
    assert!(matches!(log.appender().try_append(chunk(0, 5, 9)), Err(AppendError::Failed(_))));
    std::fs::remove_file(&dir).unwrap();
    std::fs::rename(&away, &dir).unwrap();
    assert_eq!(log.resume(&origin(1), &[at(0, 0)]).await.unwrap(), [at(0, 5)]);
    assert_eq!(take(&mut roomy(&log), 5).await, offsets(0, 0, 5));
    log.close().await.unwrap();
    assert!(matches!(log.resume(&origin(1), &[at(0, 0)]).await, Err(Error::Closed)));
    assert!(matches!(log.trim(&[]).await, Err(Error::Closed)));
    log.close().await.unwrap();
}

async fn take_error(log: &Log) -> Error {
    let mut reader = roomy(log);
    loop {
        if let Err(error) = reader.next().await {
            return error;
        }
    }
}

/// A disk that takes nothing until it is told to.
struct Held {
    database: Arc<Database>,
    go: std::sync::mpsc::Receiver<()>,
}

impl disk::Persist for Held {
    fn persist(&mut self, group: &[Waiting]) -> Result<(), disk::Error> {
        let _ = self.go.recv();
        self.database.persist(group)
    }
}

#[tokio::test]
async fn what_is_announced_before_it_is_durable_is_deleted_after() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).await;
    log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
    // Another writer in the place of its own: the disk waits for us.
    let (tell, go) = std::sync::mpsc::channel();
    {
        let mut engine = lock(&log.0.engine);
        let engine = engine.as_mut().unwrap();
        let (shared, database) = (log.0.shared.clone(), engine.database.clone());
        let next = engine.writer.next();
        let told = committed(shared, log.0.options.clone());
        let pace = disk::Pace { apart: Duration::ZERO, clock: Clock::system() };
        engine.writer =
            Arc::new(Writer::start(next, (1 << 20, 16), pace, Held { database, go }, told).unwrap());
    }
    let (appender, mut reader) = (log.appender(), roomy(&log));
    let before = *appender.persisted().borrow();
    for n in 0..3 {
        appender.try_append(chunk(0, n * 5, n * 5 + 5)).unwrap();
        assert_eq!(take(&mut reader, 5).await, offsets(0, n * 5, n * 5 + 5), "nothing is on the disk");
    }
    log.trim(&[at(0, 10)]).await.unwrap();
    assert_eq!(log.stats().pending_records, 5);
    assert_eq!(log.fill().bytes, log.stats().log_bytes, "nothing counts twice");
    assert_eq!(log.0.shared.queue().take_forget(), (before, before), "what is not there cannot be deleted");
    drop(tell);
    persisted(&appender, before + 3).await;
    assert_eq!(log.0.shared.queue().take_forget(), (before, before + 2));
    assert_eq!(log.fill().bytes, log.stats().log_bytes);
    log.close().await.unwrap();
}
