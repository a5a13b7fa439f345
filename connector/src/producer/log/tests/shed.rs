//! What gives way: every record is handed on once or counted as shed once, and positions move on over both.

use std::sync::atomic::AtomicU64;

use super::super::judge;
use super::*;
use crate::format::chunk::Range;
use crate::producer::shed::Shed;

/// Bytes of a record, and records of a chunk.
const BYTES: usize = 1_000;
const EACH: i64 = 10;

/// A log with a limit, and what its strategy said.
struct Limited {
    dir: tempfile::TempDir,
    options: Options,
    log: Log,
    shed: Arc<AtomicU64>,
    next: i64,
}

impl Limited {
    async fn open(shed: Shed, max_log_bytes: u64) -> Limited {
        let told = Arc::new(AtomicU64::new(0));
        let options = Options {
            max_log_bytes,
            shed,
            on_shed: Some(Arc::new({
                let told = told.clone();
                move |records, ranges: &[Range]| {
                    assert!(!ranges.is_empty());
                    told.fetch_add(records, Ordering::SeqCst);
                }
            })),
            ..options()
        };
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), options.clone()).await.unwrap();
        log.resume(&origin(1), &[at(0, 0)]).await.unwrap();
        Limited { dir, options, log, shed: told, next: 0 }
    }

    /// A reader by which one chunk lies ready, and the others spill.
    fn reader(&self) -> Reader {
        self.log.reader(1, Budget::new(1 << 20))
    }

    async fn append(&mut self, chunks: i64) {
        let appender = self.log.appender();
        let before = *appender.persisted().borrow();
        for _ in 0..chunks {
            appender.try_append(chunk_of(&[(0, self.next, self.next + EACH)], BYTES)).unwrap();
            self.next += EACH;
        }
        persisted(&appender, before + chunks as u64).await;
    }

    /// Makes room, and waits until that is done.
    async fn make_room(&self) {
        self.log.make_room();
        let done = async {
            while self.log.0.shared.queue().shedding {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), done).await.expect("it is done in time");
    }

    async fn reopen(&mut self, from: i64) {
        self.log.close().await.unwrap();
        self.log = Log::open(self.dir.path(), self.options.clone()).await.unwrap();
        assert_eq!(
            self.log.resume(&origin(1), &[at(0, from)]).await.unwrap(),
            [at(0, self.next)],
            "all is accounted for"
        );
    }

    fn shed(&self) -> u64 {
        self.shed.load(Ordering::SeqCst)
    }

    fn chunks(&self) -> usize {
        self.log.0.shared.queue().spilled().count()
    }
}

/// Reads on from `position` to `end`, without a gap; gives the records' offsets.
async fn read(reader: &mut Reader, position: &mut i64, end: i64) -> Vec<i64> {
    let mut offsets = Vec::new();
    while *position < end {
        let next = tokio::time::timeout(Duration::from_secs(60), reader.next()).await;
        let logged = next.unwrap_or_else(|_| panic!("at {position} of {end}")).unwrap().expect("it is open");
        let range = &logged.chunk.ranges()[0];
        assert_eq!(logged.from[0].max(range.from), *position, "positions move on without a gap");
        *position = range.to;
        offsets.extend(records(&logged).into_iter().map(|(_, offset)| offset));
    }
    offsets
}

#[tokio::test]
async fn the_oldest_go_and_the_newest_stay_or_the_other_way_round_also_after_a_restart() {
    for (strategy, kept) in [
        (Shed::DropOldest, [0..10, 120..200].concat_ranges()),
        (Shed::DropNewest, [0..90, 0..0].concat_ranges()),
    ] {
        let mut limited = Limited::open(strategy, 93_000).await;
        let mut reader = limited.reader();
        limited.append(20).await;
        assert!(limited.log.fill().log() > 2.0);
        limited.make_room().await;
        let fill = limited.log.fill();
        assert!(fill.bytes <= 93_000 && fill.bytes > 80_000, "as much as needed, no more: {fill:?}");
        assert_eq!(limited.shed(), 110, "{strategy}: the chunk that lay ready does not give way");
        assert_eq!(limited.log.stats().pending_records, 90);
        assert!(limited.chunks() <= 9, "what is left of a run is one: {}", limited.chunks());
        limited.make_room().await;
        assert_eq!(limited.shed(), 110, "nothing more than needed");
        for restart in [false, true] {
            if restart {
                limited.reopen(0).await;
                reader = limited.reader();
            }
            assert_eq!(read(&mut reader, &mut 0, 200).await, kept, "{strategy}, restart: {restart}");
        }
        assert_eq!(limited.shed(), 110, "{strategy}: a restart sheds nothing a second time");
        limited.log.trim(&[at(0, 200)]).await.unwrap();
        assert_eq!(limited.log.stats(), Stats::default(), "no byte and no record is left over in the counts");
        limited.log.close().await.unwrap();
    }
}

trait ConcatRanges {
    fn concat_ranges(self) -> Vec<i64>;
}

impl<const N: usize> ConcatRanges for [std::ops::Range<i64>; N] {
    fn concat_ranges(self) -> Vec<i64> {
        self.into_iter().flatten().collect()
    }
}

#[tokio::test]
async fn a_sample_thins_the_oldest_first_and_everything_again_when_that_is_not_enough() {
    let mut limited = Limited::open(Shed::Sample, 150_000).await;
    let mut reader = limited.reader();
    limited.append(20).await;
    limited.make_room().await;
    let once = limited.shed();
    assert!((50..90).contains(&once), "a few chunks are thinned: {once}");
    limited.append(30).await;
    limited.make_room().await;
    assert!(limited.log.fill().bytes <= 150_000, "{:?}", limited.log.fill());
    let kept = read(&mut reader, &mut 0, 500).await;
    assert_eq!(kept.len() as u64 + limited.shed(), 500);
    assert!(kept.starts_with(&(0..10).collect::<Vec<_>>()), "what lay ready is whole");
    assert!(kept.ends_with(&(490..500).collect::<Vec<_>>()), "the newest are not thinned yet");
    limited.log.trim(&[at(0, 500)]).await.unwrap();
    assert_eq!(limited.log.stats(), Stats::default());

    // A limit that one in ten does not keep either.
    let mut limited = Limited::open(Shed::Sample, 10_000).await;
    let mut reader = limited.reader();
    limited.append(100).await;
    limited.make_room().await;
    let kept = read(&mut reader, &mut 0, 1_000).await;
    assert!(kept.len() < 60, "sampled again: {}", kept.len());
    assert_eq!(kept.len() as u64 + limited.shed(), 1_000);
    limited.log.close().await.unwrap();
}

#[tokio::test]
async fn misfits_never_give_way_and_what_was_announced_is_not_counted() {
    for strategy in [Shed::DropOldest, Shed::DropNewest, Shed::Sample] {
        let mut limited = Limited::open(strategy, 1).await;
        let mut builder = ChunkBuilder::new();
        let slot = builder.slot(&source(0), 0);
        for offset in 0..100 {
            let body = match offset % 4 {
                0 => Body::Misfit { letter: b"letter" },
                _ => Body::Delete { key: b"k" },
            };
            builder.push(slot, offset, offset, body);
        }
        limited.log.appender().try_append(builder.finish()).unwrap();
        persisted(&limited.log.appender(), 1).await;
        limited.next = 100;
        // Announced up to the middle of it, by a life before this one.
        limited.reopen(50).await;
        let mut reader = limited.reader();
        let counted = || limited.shed();
        let done = async {
            // A sample may need many passes to find the last of them.
            while limited.log.stats().pending_records > 25 {
                limited.make_room().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), done).await.expect("only misfits are left");
        assert_eq!(counted(), 38, "{strategy}: 50..100 without its misfits");
        let logged = reader.next().await.unwrap().unwrap();
        assert_eq!((logged.chunk.misfits(), logged.chunk.records(), logged.from[0]), (25, 25, 50));
        limited.make_room().await;
        assert_eq!(counted(), 38);
        limited.log.close().await.unwrap();
    }
}

#[tokio::test]
async fn without_a_strategy_and_below_the_limit_nothing_gives_way() {
    for (strategy, limit) in [(Shed::None, 1), (Shed::DeadLetter, 1), (Shed::DropNewest, 1 << 20)] {
        let mut limited = Limited::open(strategy, limit).await;
        let mut reader = limited.reader();
        limited.append(20).await;
        limited.make_room().await;
        assert_eq!(limited.shed(), 0);
        assert_eq!(reader.overflows(), strategy == Shed::DeadLetter);
        assert_eq!(read(&mut reader, &mut 0, 200).await.len(), 200);
        assert!(!reader.overflows(), "all of it has been handed on");
        limited.log.close().await.unwrap();
    }
}

/// What a test of the whole does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Append(i64),
    Shed,
    /// Takes and announces some chunks.
    Announce(i64),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1i64..12).prop_map(Step::Append),
        3 => Just(Step::Shed),
        3 => (1i64..8).prop_map(Step::Announce),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: published and shed together are all that was appended, and nothing drifts.
    #[test]
    fn published_and_shed_together_are_all(
        strategy in prop::sample::select(vec![Shed::DropOldest, Shed::DropNewest, Shed::Sample]),
        steps in prop::collection::vec(any_step(), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut limited = Limited::open(strategy, 40_000).await;
            let mut reader = limited.reader();
            let (mut position, mut published) = (0, 0);
            for step in steps {
                match step {
                    Step::Append(chunks) => limited.append(chunks).await,
                    Step::Shed => limited.make_room().await,
                    Step::Announce(chunks) => {
                        let end = (position + chunks * EACH).min(limited.next);
                        published += read(&mut reader, &mut position, end).await.len() as u64;
                        limited.log.trim(&[at(0, position)]).await.unwrap();
                    }
                    Step::Restart => {
                        limited.reopen(position).await;
                        reader = limited.reader();
                    }
                }
            }
            let end = limited.next;
            published += read(&mut reader, &mut position, end).await.len() as u64;
            limited.log.trim(&[at(0, end)]).await.unwrap();
            assert_eq!(published + limited.shed(), end as u64);
            let stats = limited.log.stats();
            assert_eq!((stats.log_bytes, stats.pending_records, stats.spilled_records), (0, 0, 0));
            assert_eq!(limited.log.0.shared.queue().waiting_bytes(), 0);
            assert!(judge::joined(&limited.log.retained()).len() <= 1);
            limited.log.close().await.unwrap();
        });
    }
}
