//! The log against a model, through any sequence of appends, announcements, restarts and crashes.

use super::*;

/// What a test of the whole does next.
#[derive(Clone, Debug)]
enum Step {
    /// Appends a chunk: per partition so many records, and behind them an offset without one (a marker).
    Append(BTreeMap<i32, i64>, usize),
    /// Takes chunks from the reader.
    Take(usize),
    /// Announces what was taken, all but so many of the last records, and trims.
    Announce(usize),
    /// Ends the life and begins the next, in this process.
    NextLife,
    /// Closes the log in order and opens it again.
    Restart,
    /// Leaves everything as it lies on the disk, and opens that.
    Crash,
}

fn any_step() -> impl Strategy<Value = Step> {
    let advance = prop::collection::btree_map(0i32..3, 0i64..6, 1..3);
    prop_oneof![
        6 => (advance, prop_oneof![Just(10usize), Just(3_000)]).prop_map(|(ranges, bytes)| Step::Append(ranges, bytes)),
        4 => (1usize..4).prop_map(Step::Take),
        2 => (0usize..8).prop_map(Step::Announce),
        1 => Just(Step::NextLife),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

/// The log, and what must be true of it.
struct Model {
    root: tempfile::TempDir,
    dirs: usize,
    log: Log,
    reader: Reader,
    /// Where the source reads on.
    next: BTreeMap<i32, i64>,
    /// Where the reader must read on.
    taken: BTreeMap<i32, i64>,
    /// What was taken since the last announcement, in order.
    waiting: Vec<(i32, i64)>,
    announced: BTreeMap<i32, i64>,
    appended: u64,
}

fn tiny() -> Options {
    Options { write_buffer_bytes: 64 << 10, ..options() }
}

/// Copies a log that is open, as a crash would leave it: all of its files at one moment. RocksDB writes on meanwhile, and a
/// manifest from before a flush without the write-ahead log that this flush made needless is left by no crash.
pub(super) fn left_by_a_crash(from: &Path, to: &Path) {
    let lengths = || -> std::io::Result<BTreeMap<std::ffi::OsString, u64>> {
        let files = std::fs::read_dir(from)?;
        files.map(|file| file.and_then(|file| Ok((file.file_name(), file.metadata()?.len())))).collect()
    };
    // Whether no file came, went or grew by then.
    let copied = || -> std::io::Result<bool> {
        std::fs::create_dir(to)?;
        let before = lengths()?;
        for name in before.keys() {
            std::fs::copy(from.join(name), to.join(name))?;
        }
        Ok(lengths()? == before)
    };
    let mut last = Ok(false);
    for _ in 0..1_000 {
        last = copied();
        if matches!(last, Ok(true)) {
            return;
        }
        std::fs::remove_dir_all(to).unwrap();
    }
    panic!("{} never rests: {last:?}", from.display());
}

impl Model {
    async fn new() -> Model {
        let root = tempfile::tempdir().unwrap();
        let log = Log::open(&root.path().join("0"), tiny()).await.unwrap();
        let zero: BTreeMap<i32, i64> = (0..3).map(|partition| (partition, 0)).collect();
        let reader = Reader::new(log.clone(), 0);
        let mut model = Model {
            root,
            dirs: 0,
            log,
            reader,
            next: zero.clone(),
            taken: zero.clone(),
            waiting: vec![],
            announced: zero,
            appended: 0,
        };
        model.begin(true).await;
        model
    }

    /// Begins a life at what is announced: the log gives all from there to where the source had come.
    async fn begin(&mut self, all: bool) {
        let positions: Vec<Position> = self.announced.iter().map(|(p, offset)| at(*p, *offset)).collect();
        let next = self.log.resume(&origin(1), &positions).await.unwrap();
        for position in next {
            let partition = position.source.partition;
            assert!(position.offset >= self.announced[&partition]);
            assert!(position.offset <= self.next[&partition].max(self.announced[&partition]));
            if all {
                assert_eq!(position.offset, self.next[&partition], "nothing durable is fetched again");
            }
            self.next.insert(partition, position.offset);
        }
        self.taken = self.announced.clone();
        self.waiting.clear();
        self.reader = self.log.reader(20, Budget::new(20_000));
        self.appended = *self.log.appender().persisted().borrow();
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Append(ranges, bytes) => {
                let mut builder = ChunkBuilder::new();
                for (partition, count) in ranges {
                    let next = self.next.get_mut(&partition).unwrap();
                    let slot = builder.slot(&source(partition), *next);
                    for offset in *next..*next + count {
                        let value = value(partition, offset, bytes);
                        builder.push(slot, offset, 0, Body::Upsert { key: b"k", value: &value });
                    }
                    *next += count + 1;
                    builder.advance(slot, *next);
                }
                self.log.appender().try_append(builder.finish()).unwrap();
                self.appended += 1;
                persisted(&self.log.appender(), self.appended).await;
            }
            Step::Take(chunks) => {
                for _ in 0..chunks {
                    if self.taken == self.next {
                        return;
                    }
                    let logged = tokio::time::timeout(Duration::from_secs(60), self.reader.next()).await;
                    let logged = logged.expect("there is more").unwrap().unwrap();
                    for (partition, offset) in records(&logged) {
                        let next = self.taken.get_mut(&partition).unwrap();
                        assert_eq!(offset, *next, "of partition {partition}");
                        *next = offset + 1;
                        self.waiting.push((partition, offset + 1));
                    }
                    for (range, from) in logged.chunk.ranges().iter().zip(&logged.from) {
                        let next = self.taken.get_mut(&range.source.partition).unwrap();
                        assert!(*from <= *next);
                        if range.to > *next {
                            *next = range.to;
                            self.waiting.push((range.source.partition, range.to));
                        }
                    }
                }
            }
            Step::Announce(but) => {
                let count = self.waiting.len().saturating_sub(but);
                for (partition, position) in self.waiting.drain(..count) {
                    self.announced.insert(partition, position);
                }
                let positions: Vec<Position> =
                    self.announced.iter().map(|(p, offset)| at(*p, *offset)).collect();
                self.log.trim(&positions).await.unwrap();
            }
            Step::NextLife => self.begin(true).await,
            Step::Restart => {
                self.log.close().await.unwrap();
                self.log = Log::open(&self.dir(), tiny()).await.unwrap();
                self.begin(true).await;
            }
            Step::Crash => {
                let before = self.dir();
                self.dirs += 1;
                left_by_a_crash(&before, &self.dir());
                self.log.close().await.unwrap();
                self.log = Log::open(&self.dir(), tiny()).await.unwrap();
                self.begin(true).await;
            }
        }
        let stats = self.log.stats();
        assert!(stats.spilled_records <= stats.pending_records);
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join(self.dirs.to_string())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Through lives, restarts and crashes: every record that became durable and was not announced is handed on
    /// again, in order, none twice in a life, none missing.
    #[test]
    fn whatever_happens_nothing_is_lost_or_handed_on_twice(steps in prop::collection::vec(any_step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut model = Model::new().await;
            for step in steps {
                model.step(step).await;
            }
            // and at the end all that was appended comes
            model.step(Step::NextLife).await;
            model.step(Step::Take(1_000)).await;
            assert_eq!(model.taken, model.next);
            model.step(Step::Announce(0)).await;
            assert_eq!(model.log.stats(), Stats::default());
            model.log.close().await.unwrap();
        });
    }
}
