//! Any sequence of upserts, deletes, misfits and rewrites, in any chunks, cut into any batches.

use super::*;
use crate::format::chunk::Range;

/// Keys of unequal length, among them the empty one and some that only differ behind their first eight bytes.
const KEYS: [&[u8]; 9] = [
    b"",
    b"\0",
    b"a",
    b"same-begin",
    b"same-begin\0",
    b"same-begin-1",
    b"same-begin-2",
    b"same-be",
    b"\xff\xff",
];

/// By key: its datum.
type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// By key: stamp and datum, `None` for a delete.
type Changes = BTreeMap<Vec<u8>, (Stamp, Option<Vec<u8>>)>;

#[derive(Clone, Copy, Debug)]
enum What {
    Upsert(u8),
    Delete,
    /// The value that the key has by then: a write that changes nothing.
    Rewrite,
    Misfit,
    /// Offsets without a record: markers, aborted records.
    Gap(u8),
}

#[derive(Clone, Copy, Debug)]
struct Step {
    key: usize,
    what: What,
    /// Whether the chunk ends behind it.
    ends_chunk: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let what = prop_oneof![
        6 => (0..4u8).prop_map(What::Upsert),
        3 => Just(What::Delete),
        2 => Just(What::Rewrite),
        1 => Just(What::Misfit),
        1 => (1..4u8).prop_map(What::Gap),
    ];
    (0..KEYS.len(), what, proptest::bool::weighted(0.15)).prop_map(|(key, what, ends_chunk)| Step {
        key,
        what,
        ends_chunk,
    })
}

/// What happens between two batches.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    /// What is unsaid has waited long enough.
    Say,
    /// A snapshot of the version `back` ago is done.
    Rebase {
        back: usize,
    },
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        4 => Just(Between::Nothing),
        2 => Just(Between::Say),
        1 => (0..3usize).prop_map(|back| Between::Rebase { back }),
    ]
}

/// A key lives in one partition.
fn partition_of(key: usize) -> usize {
    key % 3
}

fn index_of(source: &SourcePartition) -> usize {
    sources().iter().position(|one| one == source).expect("it is one of ours")
}

/// A record of the source, as the fold knows it.
#[derive(Clone, Debug)]
struct Told {
    partition: usize,
    offset: i64,
    timestamp: i64,
    /// `None`: a misfit.
    change: Option<(Vec<u8>, Option<Vec<u8>>)>,
}

/// The steps as records with offsets, as chunks for a life that begins at `from`, and where each partition ends.
fn write(steps: &[Step], memory: &Budget, from: [i64; 3]) -> (Vec<Told>, Vec<Logged>, [i64; 3]) {
    let mut next = [0i64, 40, 7];
    let mut values: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    let (mut told, mut chunks, mut builder) = (Vec::new(), Vec::new(), ChunkBuilder::new());
    let clock = Clock::manual(0);
    for (index, step) in steps.iter().enumerate() {
        let partition = partition_of(step.key);
        let (offset, timestamp) = (next[partition], 1_000 + index as i64);
        let slot = builder.slot(&sources()[partition], offset);
        next[partition] += 1;
        let key = KEYS[step.key];
        let value = match step.what {
            What::Upsert(value) => Some(datum(&[value; 3])),
            What::Rewrite => values.get(&step.key).cloned(),
            What::Delete | What::Misfit | What::Gap(_) => None,
        };
        let change = match step.what {
            What::Gap(more) => {
                next[partition] += i64::from(more);
                builder.advance(slot, next[partition]);
                None
            }
            What::Misfit => {
                let mut bytes = Vec::new();
                letter(partition, offset).encode(&mut bytes);
                builder.push(slot, offset, timestamp, Body::Misfit { letter: &bytes });
                Some(None)
            }
            What::Upsert(_) | What::Rewrite | What::Delete => {
                let body = match &value {
                    Some(value) => Body::Upsert { key, value },
                    None => Body::Delete { key },
                };
                builder.push(slot, offset, timestamp, body);
                match value.clone() {
                    Some(value) => values.insert(step.key, value),
                    None => values.remove(&step.key),
                };
                Some(Some((key.to_vec(), value)))
            }
        };
        told.extend(change.map(|change| Told { partition, offset, timestamp, change }));
        if step.ends_chunk || index + 1 == steps.len() {
            let chunk = builder.finish();
            let from = chunk.ranges().iter().map(|range: &Range| from[index_of(&range.source)]).collect();
            let lease = memory.try_lease(chunk.len() as u64);
            chunks.push(Logged { chunk, from, lease, received_at: clock.now() });
        }
    }
    (told, chunks, next)
}

/// What the fold says of the batches since the last version.
#[derive(Debug, Default)]
struct Expected {
    letters: Vec<Letter>,
    coalesced: u64,
    unchanged: u64,
    newest_timestamp: Option<i64>,
    changes: Changes,
}

impl Expected {
    /// Folds `records`, one batch, into `model`.
    fn fold(&mut self, records: &[Told], model: &mut Model) {
        let mut last = Changes::new();
        for record in records {
            let Some((key, value)) = &record.change else {
                self.letters.push(letter(record.partition, record.offset));
                continue;
            };
            self.newest_timestamp = self.newest_timestamp.max(Some(record.timestamp));
            let (timestamp, source, offset) = (record.timestamp, record.partition as u32, record.offset);
            if last.insert(key.clone(), (Stamp { timestamp, source, offset }, value.clone())).is_some() {
                self.coalesced += 1;
            }
        }
        for (key, (stamp, value)) in last {
            if model.get(&key) == value.as_ref() {
                self.unchanged += 1;
                continue;
            }
            match value.clone() {
                Some(value) => model.insert(key.clone(), value),
                None => model.remove(&key),
            };
            self.changes.insert(key, (stamp, value));
        }
    }

    fn must_be_a_version(&self) -> bool {
        let letters: u64 = self.letters.iter().map(|letter| letter.size() as u64).sum();
        !self.changes.is_empty() || letters >= MAX_LETTER_BYTES
    }
}

/// The entries of a delta as the store gets it, read by another implementation of Avro.
fn read(stored: &[u8]) -> Changes {
    use apache_avro::types::Value;
    let number = |value: &Value| match value {
        Value::Long(number) | Value::TimestampMillis(number) => *number,
        Value::Int(number) => (*number).into(),
        other => panic!("a number, not {other:?}"),
    };
    let bytes = |value: &Value| match value {
        Value::Bytes(bytes) => bytes.clone(),
        other => panic!("bytes, not {other:?}"),
    };
    let mut entries = Changes::new();
    for entry in apache_avro::Reader::new(stored).expect("a container") {
        let Value::Record(fields) = entry.expect("an entry") else { panic!("a record") };
        let field =
            |name: &str| &fields.iter().find(|(field, _)| field == name).expect("the field is there").1;
        let key = bytes(field("key"));
        let value = match field("value") {
            Value::Union(_, value) if **value == Value::Null => None,
            Value::Union(_, value) => Some(datum(&bytes(value))),
            other => panic!("a union, not {other:?}"),
        };
        let (timestamp, offset) = (number(field("timestamp")), number(field("offset")));
        let stamp = Stamp { timestamp, source: number(field("source")) as u32, offset };
        assert!(entries.keys().next_back().is_none_or(|last| *last < key), "sorted, each key once");
        entries.insert(key, (stamp, value));
    }
    entries
}

/// The values without their datum's length.
fn plain(model: &Model) -> Model {
    model.iter().map(|(key, value)| (key.clone(), value[1..].to_vec())).collect()
}

fn check(built: Built, expected: &Expected, model: &Model) {
    let changes = read(&built.stored);
    assert_eq!(changes, expected.changes);
    let upserts = changes.values().filter(|(_, value)| value.is_some()).count() as u64;
    assert_eq!((built.delta.upserts, built.delta.deletes), (upserts, changes.len() as u64 - upserts));
    assert_eq!(built.delta.blob.checksum, Checksum::of(&built.stored));
    assert_eq!(built.inline.as_ref(), Some(&built.stored), "small enough to travel along");
    assert_eq!((built.view.version(), built.view.records()), (built.delta.version, model.len() as u64));
    assert_eq!(contents(&built.view), plain(model));
    assert_eq!(built.letters, expected.letters);
    assert_eq!((built.coalesced, built.unchanged), (expected.coalesced, expected.unchanged));
    assert_eq!(built.newest_timestamp, expected.newest_timestamp);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn each_version_is_the_fold_up_to_its_positions(
        steps in prop::collection::vec(step(), 1..160),
        limits in prop::collection::vec((1..24usize, prop_oneof![Just(u64::MAX), 1..60u64]), 1..5),
        between in prop::collection::vec(between(), 1..8),
        from in (0..6i64, 40..46i64, 7..13i64),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (from, memory) = ([from.0, from.1, from.2], Budget::new(1 << 30));
        let (mut told, chunks, ends) = write(&steps, &memory, from);
        // A life begins at announced positions: what lies before them is none of its records.
        told.retain(|record| record.offset >= from[record.partition]);

        let dir = tempfile::tempdir().expect("a folder");
        let log = runtime.block_on(Log::open(dir.path(), log::Options::new(Clock::manual(0)))).expect("it opens");
        let batches = cut(log.reader(1, memory.clone()), chunks, &limits);
        runtime.block_on(log.close()).expect("it closes");

        let ground = Ground::new();
        let mut builder = ground.builder(false);
        let (mut model, mut expected) = (Model::new(), Expected::default());
        let (mut reached, mut said) = (from, from);
        let mut views = vec![builder.state.view.clone()];
        let mut rest = told.as_slice();
        for (batch, between) in batches.into_iter().zip(between.iter().cycle()) {
            let (records, after) = rest.split_at(batch.records());
            rest = after;
            for position in &batch.positions {
                let reached = &mut reached[index_of(&position.source)];
                prop_assert!(position.offset >= *reached, "no position moves back");
                *reached = position.offset;
            }
            // Exact to the record: below a position is what this batch or one before it holds, and nothing else.
            for record in records {
                prop_assert!(record.offset < reached[record.partition], "{:?} {:?}", reached, record);
            }
            for record in rest {
                prop_assert!(record.offset >= reached[record.partition], "{:?} {:?}", reached, record);
            }
            expected.fold(records, &mut model);
            let now = ground.clock.now();
            let mut step = |input| builder.state.step(input, now, &ground.metrics).expect("it builds");
            let mut built = step(Input::Batch(batch));
            prop_assert_eq!(built.is_some(), expected.must_be_a_version());
            if built.is_none() && matches!(between, Between::Say) {
                built = step(Input::Say);
                prop_assert!(built.is_some());
            }
            match built {
                None => prop_assert!(builder.state.unsaid.since.is_some(), "it is said later"),
                Some(built) => {
                    prop_assert_eq!(built.delta.version, views[views.len() - 1].version().next());
                    for position in &built.positions {
                        said[index_of(&position.source)] = position.offset;
                    }
                    prop_assert_eq!(said, reached, "a version says all that has moved");
                    views.push(built.view.clone());
                    check(built, &expected, &model);
                    expected = Expected::default();
                }
            }
            let Between::Rebase { back } = between else { continue };
            let older = &views[views.len().saturating_sub(back + 1)];
            if older.version() > Version(0) && older.version() >= builder.state.base {
                let merged = older.merge_snapshot(LIFE, &ground.cache).expect("it merges");
                let base = merged.into_base().expect("it maps");
                let rebased = builder.state.step(Input::Rebase(Rebase { base }), now, &ground.metrics);
                prop_assert!(rebased.expect("it fits").is_none() && builder.state.unsaid.since.is_some());
                prop_assert_eq!(contents(&builder.state.view), plain(&model));
            }
        }
        prop_assert!(rest.is_empty(), "{} records are in no batch", rest.len());
        for (partition, end) in ends.into_iter().enumerate() {
            prop_assert_eq!(reached[partition], end.max(from[partition]));
        }
        drop(views);
        prop_assert_eq!(memory.used(), 0, "memory comes back with the versions");
    }
}
