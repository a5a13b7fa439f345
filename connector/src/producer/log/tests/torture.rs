//! A small log, damaged at every byte of every file: what comes back is exactly a prefix of what was written, and the
//! rest is fetched from the right place.
//!
//! `STILLWELL_TORTURE=every` takes every byte of every file: a bit flipped there, and cut off there where files grow at
//! their end. `all` does so to the one log that has two generations of files of all kinds, and to a small one; to the
//! others at one byte of four. `90s` or `3m` takes the small one to its end, and of the others as many, by chance, as go
//! in that time for each. A number is the seed of a sample; without it the sample's seed is a new one in each run, and
//! printed when something fails. `STILLWELL_TORTURE_ONLY="MANIFEST-000005 CutAt(17)"` leaves those whose name holds the
//! text.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;

use self::maker::{InWal, Maker, copy, scratch, small};
use super::*;
use crate::clock::Entropy;
use crate::disk::check;

mod maker;

/// The scene with files of all kinds, two generations of each.
const ALL_KINDS: &str = "numbers used again";
/// The scene that is always taken to its end, where more than a sample is asked for.
const SMALL: &str = "small";
/// Cases of each scene, in a sample.
const SAMPLE: usize = 40;
/// No case takes longer, or it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Lives that a log may need until it goes on: the first meets the damage, the second the database put aside.
const LIVES: usize = 4;

/// Every fifth offset holds no record, as a transaction's marker does.
fn is_marker(offset: i64) -> bool {
    offset % 5 == 4
}

fn body(partition: i32, offset: i64) -> Vec<u8> {
    value(partition, offset, 50 + ((offset * 13 + i64::from(partition) * 7) % 30) as usize)
}

/// What Kafka has of these ranges.
fn fetched(ranges: &[(i32, i64, i64)]) -> Chunk {
    let mut builder = ChunkBuilder::new();
    for (partition, from, to) in ranges {
        let slot = builder.slot(&source(*partition), *from);
        for offset in (*from..*to).filter(|offset| !is_marker(*offset)) {
            let key = format!("key {offset}");
            let body = body(*partition, offset);
            builder.push(slot, offset, offset, Body::Upsert { key: key.as_bytes(), value: &body });
        }
        builder.advance(slot, *to);
    }
    builder.finish()
}

/// Positions of both partitions.
type At = [i64; 2];

fn positions(at: At) -> [Position; 2] {
    [self::at(0, at[0]), self::at(1, at[1])]
}

/// A log as it lies on the disk, and what is known of it.
struct Scene {
    name: &'static str,
    root: tempfile::TempDir,
    dir: PathBuf,
    /// What is announced.
    announced: At,
    /// Where the log ends.
    end: At,
    /// Of chunks in the write-ahead log.
    logged: Vec<InWal>,
    /// Of chunks that were written out: their bytes, the positions before and after them.
    blobs: Vec<(Bytes, At, At)>,
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    Gone,
    CutAt(usize),
    Flip(usize, u8),
}

impl Scene {
    fn files(&self) -> Vec<(String, disk::FileKind, u64)> {
        let files = disk::raw::files(&self.dir).unwrap();
        // RocksDB makes these two anew whatever is in them.
        files.into_iter().filter(|(name, ..)| name != "LOCK" && !name.starts_with("LOG")).collect()
    }

    /// Every byte of every file, or a sample.
    fn cases(&self, seed: Option<u64>) -> Vec<(String, Harm)> {
        let files = self.files();
        let mut cases: Vec<_> = files.iter().map(|(name, ..)| (name.clone(), Harm::Gone)).collect();
        if let Some(seed) = seed {
            let entropy = Entropy::seeded(seed);
            // Every kind of file as often as any other, else nearly all bytes were those of blobs.
            while cases.len() < SAMPLE {
                let (name, _, length) = &files[(entropy.next_u64() % files.len() as u64) as usize];
                if *length > 0 {
                    let (at, bit) = ((entropy.next_u64() % length) as usize, (entropy.next_u64() % 8) as u8);
                    cases.push((
                        name.clone(),
                        if bit % 4 == 0 { Harm::CutAt(at) } else { Harm::Flip(at, bit) },
                    ));
                }
            }
            return cases;
        }
        for (name, kind, length) in &files {
            // How far apart bits are flipped, and cuts are made.
            let (flips, cuts) = match kind {
                // It grows at its end, and tears there.
                disk::FileKind::Manifest | disk::FileKind::WriteAheadLog => (1, 1),
                // Thousands of options: no records are in them, and RocksDB hardly looks.
                disk::FileKind::Other if *length > 1_000 => (512, 512),
                // Identity and our own notes.
                disk::FileKind::Other => (4, 4),
                // Written whole, and synced before anything names it: one end that is missing is like another.
                disk::FileKind::Sorted | disk::FileKind::Blob => (1, 16),
            };
            for at in 0..*length as usize {
                if at % cuts == 0 {
                    cases.push((name.clone(), Harm::CutAt(at)));
                }
                if at % flips == 0 {
                    cases.push((name.clone(), Harm::Flip(at, (at % 8) as u8)));
                }
            }
        }
        cases
    }

    /// Whether a file that was cut there is whole, only shorter: between two records of a write-ahead log, or of a manifest
    /// that nobody closed. Nobody can tell it from one that never went further; nor does any crash cut a manifest there.
    fn is_whole(&self, name: &str, harm: Harm) -> bool {
        let Harm::CutAt(cut) = harm else { return false };
        let grows = match disk::FileKind::of(name) {
            disk::FileKind::WriteAheadLog => true,
            disk::FileKind::Manifest => !self.dir.join("CLEAN").exists(),
            _ => false,
        };
        let bytes = fs::read(self.dir.join(name)).unwrap();
        // Checksum (4), length (2), type (1): from 5 on, with the number of its log (4). A record of type 1 or 5 is a
        // whole one, of 4 or 8 the last part of one. Blocks are larger than any of these files.
        let (mut at, mut ends) = (0, vec![0]);
        while let Some([_, _, _, _, low, high, kind]) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
            at += if *kind >= 5 { 11 } else { 7 } + usize::from(u16::from_le_bytes([*low, *high]));
            if [1, 4, 5, 8].contains(kind) {
                ends.push(at);
            }
        }
        grows && ends.contains(&cut)
    }

    /// Where the log must end exactly, where that can be known: before the first chunk that is not whole.
    fn expected(&self, name: &str, harm: Harm) -> Option<At> {
        let spoiled = match harm {
            Harm::CutAt(at) | Harm::Flip(at, _) => at,
            Harm::Gone => 0,
        };
        if self.logged.iter().any(|logged| logged.file == name) {
            let lost = self.logged.iter().find(|logged| logged.file == name && logged.end > spoiled as u64);
            return Some(lost.map_or(self.end, |lost| lost.before));
        }
        if !name.ends_with(".blob") || !matches!(harm, Harm::Flip(..)) {
            return None;
        }
        let bytes = fs::read(self.dir.join(name)).unwrap();
        self.blobs.iter().find_map(|(chunk, before, after)| {
            let found = bytes.windows(chunk.len()).position(|window| window == &chunk[..])?;
            let hit = (found..found + chunk.len()).contains(&spoiled);
            let needed = (0..2).any(|partition| after[partition] > self.announced[partition]);
            hit.then_some(if needed { *before } else { self.end })
        })
    }

    /// Damages a copy, and goes on with it as the next process would.
    async fn survive(&self, name: &str, harm: Harm, thrice: bool) {
        let root = scratch();
        let dir = root.path().join("log");
        copy(&self.dir, &dir);
        let path = dir.join(name);
        match harm {
            Harm::Gone => fs::remove_file(&path).unwrap(),
            Harm::CutAt(at) => {
                fs::File::options().write(true).open(&path).unwrap().set_len(at as u64).unwrap()
            }
            Harm::Flip(at, bit) => {
                let mut bytes = fs::read(&path).unwrap();
                bytes[at] ^= 1 << bit;
                fs::write(&path, bytes).unwrap();
            }
        }
        let checked = check(&dir, &mut |_| {}).map(|checked| checked.damage);

        let log = Log::open(&dir, small()).await.unwrap();
        let next = self.lives(&log).await;
        let expected = self.expected(name, harm);
        if let Some(expected) = expected {
            let expected = [0, 1].map(|partition| expected[partition].max(self.announced[partition]));
            assert_eq!(next, expected, "it ends before the first chunk that is not whole");
        }
        if next != self.end {
            // A file that is gone altogether leaves nothing that could be checked.
            let said = !matches!(&checked, Ok(damage) if damage.is_empty())
                || harm == Harm::Gone
                || self.is_whole(name, harm);
            assert!(said, "`log verify` calls it whole, and it ends at {next:?} instead of {:?}", self.end);
        }
        // What is missing, and then something new, come from Kafka.
        let more = [self.end[0] + 7, self.end[1] + 7];
        let mut reader = roomy(&log);
        let mut read = self.read(&mut reader, self.announced, next).await.unwrap();
        for to in [self.end, more] {
            let ranges = [(0, read[0].max(next[0]), to[0]), (1, read[1].max(next[1]), to[1])];
            let ranges: Vec<_> = ranges.into_iter().filter(|(_, from, to)| from < to).collect();
            if !ranges.is_empty() {
                log.appender().try_append(fetched(&ranges)).unwrap();
                read = self.read(&mut reader, read, to).await.unwrap();
            }
        }
        log.close().await.unwrap();

        // And the process after it has all of that, or at the least a log to go on with.
        let log = Log::open(&dir, small()).await.unwrap();
        let again = self.lives(&log).await;
        let aside = fs::read_dir(root.path()).unwrap().count() > 2;
        assert!(again == more || aside, "{again:?}, and nothing was put aside");
        log.close().await.unwrap();
        // Every one of them is opened twice; a third time shows that the damage is out of it.
        if again == more && thrice {
            let log = Log::open(&dir, small()).await.unwrap();
            assert_eq!(self.lives(&log).await, more);
            log.close().await.unwrap();
        }
    }

    /// Lives until one reads all that the log says it has; where it ends.
    async fn lives(&self, log: &Log) -> At {
        for _ in 0..LIVES {
            let next = log.resume(&origin(1), &positions(self.announced)).await.unwrap();
            let next = [next[0].offset, next[1].offset];
            let most = [self.end[0] + 7, self.end[1] + 7];
            assert!((0..2).all(|p| (self.announced[p]..=most[p]).contains(&next[p])), "{next:?}");
            match self.read(&mut roomy(log), self.announced, next).await {
                Ok(_) => {
                    return log.resume(&origin(1), &positions(self.announced)).await.map(|_| next).unwrap();
                }
                Err(error) => {
                    let said = format!("{error:?}");
                    assert!(error.is_transient() && !said.contains("panicked"), "{said}");
                }
            }
        }
        panic!("{LIVES} lives did not get over it");
    }

    /// Reads from `from` to `to`: every record that Kafka has there, in order, once.
    async fn read(&self, reader: &mut Reader, from: At, to: At) -> Result<At, Error> {
        let mut at = from;
        while (0..2).any(|partition| at[partition] < to[partition]) {
            let next = tokio::time::timeout(PATIENCE, reader.next()).await;
            let logged =
                next.unwrap_or_else(|_| panic!("{to:?} awaited, {at:?} reached"))?.expect("it is open");
            let ranges = logged.chunk.ranges();
            for (_, record) in logged.chunk.iter() {
                let partition = ranges[record.slot as usize].source.partition;
                if record.offset < logged.from[record.slot as usize] {
                    continue;
                }
                let next = &mut at[partition as usize];
                while is_marker(*next) {
                    *next += 1;
                }
                assert_eq!(record.offset, *next, "of partition {partition}");
                let Body::Upsert { key, value } = record.body else { panic!("{record:?} was never written") };
                assert_eq!(key, format!("key {}", record.offset).as_bytes());
                assert_eq!(value, body(partition, record.offset));
                *next += 1;
            }
            for range in ranges {
                let next = &mut at[range.source.partition as usize];
                assert!(
                    (*next..range.to).all(is_marker),
                    "records before {} of {} are missing",
                    range.to,
                    range.source
                );
                *next = range.to.max(*next);
            }
        }
        Ok(at)
    }

    /// All its cases, several at a time. A failure names the case, and how to see it again.
    fn run(self) {
        let given = std::env::var("STILLWELL_TORTURE");
        let bound = given.as_deref().ok().and_then(bound);
        let seed = match given.as_deref() {
            Ok("all" | "every") => None,
            Ok(_) if bound.is_some() => None,
            Ok(seed) => Some(seed.parse().expect("STILLWELL_TORTURE is `every`, `all`, a time or a number")),
            Err(_) => Some(Entropy::system().next_u64()),
        };
        let mut cases = self.cases(seed);
        let bound = bound.filter(|_| self.name != SMALL);
        if given.as_deref() != Ok("every") && seed.is_none() && ![ALL_KINDS, SMALL].contains(&self.name) {
            cases.retain(|(_, harm)| match harm {
                Harm::Gone => true,
                // Cuts of some files are made at every 16th byte.
                Harm::CutAt(at) => at % 4 == 0,
                Harm::Flip(at, _) => at % 4 == 1,
            });
        }
        // Those of one file, or one case alone, in the words in which a failure says it.
        if let Ok(only) = std::env::var("STILLWELL_TORTURE_ONLY") {
            cases.retain(|(file, harm)| format!("{file} {harm:?}").contains(&only));
        }
        let (count, name, chance) = (cases.len(), self.name, Entropy::system());
        if bound.is_some() {
            cases.sort_by_cached_key(|_| chance.next_u64());
        }
        println!(
            "{name}: {count} cases, now in {}/case-N, of {:?}",
            self.root.path().display(),
            self.files().iter().map(|(name, ..)| name).collect::<Vec<_>>()
        );
        let (clock, thrice) = (Clock::system(), if count > 1_000 { 8 } else { 1 });
        let mode = seed.map_or("every".to_owned(), |seed| seed.to_string());
        let began = clock.now();
        let is_over = || bound.is_some_and(|bound| clock.now() - began > bound);
        let next = AtomicUsize::new(0);
        let (harmed, failed): (Mutex<BTreeSet<String>>, Mutex<Option<String>>) = Default::default();
        let take = |thread: usize| {
            let mut runtime = runtime();
            while !is_over() && lock(&failed).is_none() {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some((file, harm)) = cases.get(at) else { return };
                let context = format!("{name}: {file} {harm:?} (STILLWELL_TORTURE={mode})");
                // What kills the process leaves this behind.
                fs::write(self.root.path().join(format!("case-{thread}")), &context).unwrap();
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    runtime.block_on(async {
                        tokio::time::timeout(
                            PATIENCE * 2,
                            self.survive(file, *harm, at.is_multiple_of(thrice)),
                        )
                        .await
                    })
                }));
                match outcome {
                    Ok(Ok(())) => lock(&harmed).insert(file.clone()),
                    Ok(Err(_)) => lock(&failed).replace(format!("{context}: it hangs")).is_none(),
                    Err(_) => lock(&failed).replace(format!("{context}: see above")).is_none(),
                };
                if lock(&failed).is_some() {
                    // A thread of RocksDB's would be waited for.
                    std::mem::replace(&mut runtime, self::runtime()).shutdown_background();
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| (0..threads).for_each(|thread| drop(scope.spawn(move || take(thread)))));
        if let Some(failed) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            panic!("{failed}");
        }
        let harmed = harmed.into_inner().unwrap_or_else(PoisonError::into_inner);
        assert!(harmed.len() > 3 || std::env::var_os("STILLWELL_TORTURE_ONLY").is_some(), "{harmed:?}");
        let done = next.into_inner().min(count);
        println!("{name}: {done} of {count} cases survived in {:.0?}", clock.now() - began);
    }
}

/// Like 90s or 3m.
fn bound(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = [("s", 1), ("m", 60)].into_iter().find(|(name, _)| *name == unit)?.1;
    Some(Duration::from_secs(number.parse::<u64>().ok()? * seconds))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn every_byte_of_a_small_log() {
    let runtime = runtime();
    let scene = runtime.block_on(async {
        let mut maker = Maker::new().await;
        // Large enough for a file of blobs, and not.
        for by in [[8, 7], [1, 0]] {
            maker.append(by).await;
        }
        maker.flush().await;
        for by in [[2, 0], [1, 1]] {
            maker.append(by).await;
        }
        maker.crashed(SMALL).await
    });
    use disk::FileKind::{Blob, Manifest, Sorted, WriteAheadLog};
    for kind in [Blob, Manifest, Sorted, WriteAheadLog] {
        assert!(scene.files().iter().any(|(_, found, bytes)| *found == kind && *bytes > 0), "{kind:?}");
    }
    scene.run();
}

#[test]
fn all_of_it_in_the_write_ahead_log() {
    let runtime = runtime();
    let scene = runtime.block_on(async {
        let mut maker = Maker::new().await;
        for by in [[3, 2], [0, 4], [5, 0], [1, 1], [2, 6], [12, 3]] {
            maker.append(by).await;
        }
        maker.crashed("in the write-ahead log").await
    });
    assert_eq!(scene.logged.len(), 6);
    scene.run();
}

#[test]
fn sorted_and_blob_files_and_a_write_ahead_log() {
    let runtime = runtime();
    let scene = runtime.block_on(async {
        let mut maker = Maker::new().await;
        for by in [[8, 7], [2, 1], [0, 14], [3, 0]] {
            maker.append(by).await;
        }
        maker.flush().await;
        for by in [[4, 4], [9, 8], [1, 0]] {
            maker.append(by).await;
        }
        maker.crashed("sorted, blob and write-ahead log").await
    });
    assert!(scene.files().iter().any(|(name, _, bytes)| name.ends_with(".blob") && *bytes > 1_000));
    scene.run();
}

#[test]
fn trimmed_in_part() {
    let runtime = runtime();
    let scene = runtime.block_on(async {
        let mut maker = Maker::new().await;
        for by in [[8, 7], [2, 1], [10, 4], [8, 8]] {
            maker.append(by).await;
        }
        maker.flush().await;
        maker.announce([12, 9]).await;
        for by in [[8, 4], [9, 8]] {
            maker.append(by).await;
        }
        maker.flush().await;
        maker.append([4, 4]).await;
        maker.announce([25, 20]).await;
        maker.append([2, 2]).await;
        maker.crashed("trimmed in part").await
    });
    scene.run();
}

#[test]
fn numbers_used_again() {
    let runtime = runtime();
    let scene = runtime.block_on(async {
        let mut maker = Maker::new().await;
        for by in [[8, 7], [2, 1], [10, 4]] {
            maker.append(by).await;
        }
        maker.flush().await;
        maker.append([3, 3]).await;
        // What a cut leaves: the last two are gone, and their numbers are free.
        let cut = maker.chunks.pop().map(|(.., before, _)| before).into_iter().chain([maker
            .blobs
            .pop()
            .unwrap()
            .1]);
        maker.end = cut.last().unwrap();
        maker.on_disk(|database| database.forget(2, u64::MAX, true)).await;
        maker.log.close().await.unwrap();
        fs::remove_file(maker.root.path().join("log/CLEAN")).unwrap();
        maker.log = Log::open(&maker.root.path().join("log"), small()).await.unwrap();
        assert_eq!(maker.log.resume(&origin(1), &positions([0, 0])).await.unwrap(), positions(maker.end));
        maker.logged.clear();
        maker.appended = 0;
        for by in [[9, 5], [1, 9]] {
            maker.append(by).await;
        }
        assert_eq!(maker.appended, 4, "numbers 2 and 3 again");
        maker.append([5, 5]).await;
        maker.crashed(ALL_KINDS).await
    });
    scene.run();
}

#[test]
fn closed_in_order() {
    let runtime = runtime();
    let scene = runtime.block_on(async {
        let mut maker = Maker::new().await;
        for by in [[8, 7], [2, 1]] {
            maker.append(by).await;
        }
        maker.restart().await;
        for by in [[3, 3], [7, 9]] {
            maker.append(by).await;
        }
        maker.announce([4, 4]).await;
        maker.closed("closed in order").await
    });
    assert!(scene.dir.join("CLEAN").exists());
    scene.run();
}
