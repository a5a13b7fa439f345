use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use super::*;
use crate::clock::Entropy;
use crate::failpoint::forks;
use crate::format::chunk::{Body, ChunkBuilder};
use crate::record::SourcePartition;

pub(in crate::disk) fn options() -> Options {
    Options { clock: Clock::manual(1_760_000_000_000), write_buffer_bytes: 1 << 20 }
}

pub(in crate::disk) fn chunk(seq: u64, bytes: usize) -> Chunk {
    let source = SourcePartition { topic: "t".into(), topic_id: Default::default(), partition: 0 };
    let mut builder = ChunkBuilder::new();
    let slot = builder.slot(&source, seq as i64);
    // Large ones are noise, so that they lie on the disk as long as they are.
    let noise = crate::clock::Entropy::seeded(seq);
    let value: Vec<u8> = match bytes {
        0..32_000 => (0..bytes).map(|n| (n as u64 * 31 + seq) as u8).collect(),
        _ => (0..bytes).map(|_| noise.next_u64() as u8).collect(),
    };
    builder.push(slot, seq as i64, 0, Body::Upsert { key: b"k", value: &value });
    builder.finish()
}

pub(in crate::disk) fn open(dir: &Path) -> Opened {
    Database::open(dir, &options()).unwrap()
}

pub(in crate::disk) fn append(database: &Database, numbers: std::ops::Range<u64>, bytes: usize) {
    for number in numbers {
        database.append([(number, &chunk(number, bytes))].into_iter()).unwrap();
    }
}

pub(in crate::disk) fn numbers(survey: &Survey) -> Vec<u64> {
    survey.chunks.iter().map(|(number, _)| *number).collect()
}

/// The one file with this extension, or the largest of them.
pub(in crate::disk) fn file(dir: &Path, extension: &str) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut found: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|found| found == extension)).collect();
    found.sort_by_key(|file| file.metadata().unwrap().len());
    found.pop().unwrap_or_else(|| panic!("no .{extension} in {}", dir.display()))
}

pub(in crate::disk) fn change(file: &Path, how: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    how(&mut bytes);
    fs::write(file, bytes).unwrap();
}

#[test]
fn chunks_come_back_until_they_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    let Opened { database, aside, survey } = open(&dir);
    assert_eq!((aside, survey), (None, Survey::default()));
    append(&database, 0..10, 5_000);
    database.reclaim().unwrap();
    append(&database, 10..20, 5_000);
    assert_eq!(database.chunk(7).unwrap().encoded(), chunk(7, 5_000).encoded());
    database.forget(0, 5, false).unwrap();
    database.forget(18, 19, true).unwrap();
    drop(database);
    let Opened { database, aside, survey } = open(&dir);
    assert_eq!(aside, None);
    assert_eq!(numbers(&survey), [&(5..18).collect::<Vec<_>>()[..], &[19]].concat());
    assert_eq!((survey.next, survey.cut, survey.missing), (20, None, 0));
    assert_eq!(survey.chunks[0].1, chunk(5, 5_000).summary());
    assert!(matches!(database.chunk(4), Err(Error::Corrupt { seq: 4, .. })));
    // Of those from 3 on, 3 and 4 are gone, and 20 to 32.
    database.clean(33, 3);
    drop(database);
    let survey = open(&dir).survey;
    assert_eq!(
        (survey.next, survey.missing),
        (33, 15),
        "a clean close had left more: said, and no number used again"
    );
    assert_eq!(open(&dir).survey.missing, 0, "said once");
}

#[test]
fn a_second_one_is_refused_with_the_directory_and_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    let held = open(&dir);
    let refused = Database::open(&dir, &options()).unwrap_err();
    assert!(matches!(refused, Error::Locked { .. }) && !refused.is_transient());
    let text = refused.to_string();
    assert!(
        text.contains(&*dir.to_string_lossy()) && text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    drop(held);
    let survey = open(&dir).survey;
    assert_eq!(survey, Survey::default());
    // RocksDB's own lock, held by somebody who knows nothing of ours
    let theirs = open_db(&dir, &options()).unwrap();
    assert!(matches!(Database::open(&dir, &options()), Err(Error::Locked { .. })));
    drop(theirs);
    open(&dir);
}

const HELD: &str = "STILLWELL_TEST_HOLD_LOG";

/// The other process of the test below.
#[test]
#[ignore = "run by a_second_process_is_refused"]
fn hold() {
    let Ok(dir) = std::env::var(HELD) else { return };
    let _held = open(Path::new(&dir));
    println!("\nholding");
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    let mut other = Command::new(std::env::current_exe().unwrap());
    other
        .args(["--exact", "disk::rocksdb::tests::hold", "--ignored", "--nocapture"])
        .env(HELD, &dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut other = forks::spawn(&mut other).unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "holding"));
    let refused = Database::open(&dir, &options()).unwrap_err().to_string();
    assert!(refused.contains(&format!("by process {}", other.id())), "{refused}");
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success());
    open(&dir);
}

#[test]
fn a_directory_that_cannot_be_written_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    fs::write(&file, "").unwrap();
    for path in [file.join("log"), file.clone(), PathBuf::from("/proc/log")] {
        let refused = Database::open(&path, &options()).unwrap_err();
        assert!(matches!(refused, Error::Directory { .. }) && !refused.is_transient(), "{refused:?}");
        assert!(refused.to_string().contains(&*path.to_string_lossy()), "{refused}");
    }
}

#[test]
fn what_rocksdb_refuses_is_put_aside_and_an_empty_log_begins() {
    type Spoil = fn(&Path);
    let spoil: [(&str, Spoil); 5] = [
        ("garbage in CURRENT", |dir| fs::write(dir.join("CURRENT"), "nonsense").unwrap()),
        ("no CURRENT", |dir| fs::remove_file(dir.join("CURRENT")).unwrap()),
        ("no manifest", |dir| {
            let manifest = fs::read_to_string(dir.join("CURRENT")).unwrap();
            fs::remove_file(dir.join(manifest.trim())).unwrap();
        }),
        ("no sorted file", |dir| fs::remove_file(file(dir, "sst")).unwrap()),
        ("corrupt when last used", |dir| fs::write(dir.join(SUSPECT), "block checksum mismatch").unwrap()),
    ];
    for (what, spoil) in spoil {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("log");
        let database = open(&dir).database;
        append(&database, 0..5, 5_000);
        database.reclaim().unwrap();
        append(&database, 5..8, 5_000);
        drop(database);
        for _ in 0..2 {
            spoil(&dir);
            let Opened { database, aside, survey } = open(&dir);
            let (aside, why) = aside.unwrap_or_else(|| panic!("{what}: opened with {survey:?}"));
            assert!(aside.to_string_lossy().contains("log.refused-1760000000000"), "{aside:?}");
            assert!(aside.is_dir() && !why.is_empty());
            assert_eq!(survey, Survey::default());
            append(&database, 0..5, 5_000);
            database.reclaim().unwrap();
            append(&database, 5..8, 5_000);
            drop(database);
            let again = open(&dir);
            assert_eq!((again.aside, numbers(&again.survey)), (None, (0..8).collect()), "{what}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 4, "log, its lock, and two put aside");
    }
}

#[test]
fn a_blob_file_that_is_gone_is_found_when_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..5, 5_000);
    database.reclaim().unwrap();
    append(&database, 5..8, 5_000);
    drop(database);
    fs::remove_file(file(&dir, "blob")).unwrap();
    let Opened { database, survey, .. } = open(&dir);
    assert_eq!(numbers(&survey), (0..8).collect::<Vec<_>>(), "the end is whole, and more is not read yet");
    assert!(matches!(database.chunk(0), Err(Error::Corrupt { seq: 0, .. })));
    // cut, it is a log again, and stays one
    database.forget(0, u64::MAX, true).unwrap();
    append(&database, 8..10, 5_000);
    database.reclaim().unwrap();
    drop(database);
    let again = open(&dir);
    assert_eq!((again.aside, numbers(&again.survey), again.survey.cut), (None, vec![8, 9], None));
}

#[test]
fn a_torn_write_ahead_log_gives_what_was_whole() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..6, 3_000);
    drop(database);
    let whole = fs::read(file(&dir, "log")).unwrap();
    let used = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..40 {
        let at = used * n / 40;
        let copy = root.path().join(format!("torn {n}"));
        copy_dir(&dir, &copy);
        if n % 2 == 0 {
            change(&file(&copy, "log"), |bytes| bytes.truncate(at));
        } else {
            change(&file(&copy, "log"), |bytes| bytes[at] ^= 0x10);
        }
        let Opened { database, aside, survey } = open(&copy);
        assert_eq!(aside, None);
        let count = survey.chunks.len() as u64;
        assert_eq!(numbers(&survey), (0..count).collect::<Vec<_>>(), "the beginning, without a hole");
        for number in 0..count {
            assert_eq!(database.chunk(number).unwrap().encoded(), chunk(number, 3_000).encoded());
        }
        seen.insert(count);
        // and it goes on from there
        append(&database, survey.next..survey.next + 1, 10);
        drop(database);
        assert_eq!(open(&copy).survey.chunks.len() as u64, count + 1);
    }
    assert!(seen.len() > 4, "{seen:?}");
}

pub(in crate::disk) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Whatever byte of whatever file is flipped: each chunk that is handed out is the one that was written, and within
/// two openings there is a log to go on with.
#[test]
fn any_flipped_byte_is_found_or_harmless() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..6, 2_000);
    append(&database, 6..12, 100); // small enough to lie in the sorted file
    database.reclaim().unwrap();
    append(&database, 12..15, 2_000);
    drop(database);
    let entropy = Entropy::seeded(7);
    let kinds = ["sst", "blob", "log", "CURRENT", "MANIFEST"];
    for round in 0..60 {
        let copy = root.path().join(format!("flipped {round}"));
        copy_dir(&dir, &copy);
        let kind = kinds[round % kinds.len()];
        let target = match kind {
            "CURRENT" => copy.join("CURRENT"),
            "MANIFEST" => copy.join(fs::read_to_string(copy.join("CURRENT")).unwrap().trim()),
            extension => file(&copy, extension),
        };
        let len = fs::metadata(&target).unwrap().len();
        let at = (entropy.next_u64() % len) as usize;
        change(&target, |bytes| bytes[at] ^= 1 << (round % 8));
        let context = format!("round {round}: byte {at} of {len} in {}", target.display());
        let mut usable = false;
        for _ in 0..2 {
            let Opened { database, survey, .. } = open(&copy);
            for (number, summary) in &survey.chunks {
                let bytes = if (6..12).contains(number) { 100 } else { 2_000 };
                match database.chunk(*number) {
                    Ok(found) => assert_eq!(found.encoded(), chunk(*number, bytes).encoded(), "{context}"),
                    Err(Error::Corrupt { .. }) => {}
                    Err(other) => panic!("{context}: {other}"),
                }
                assert_eq!(*summary, chunk(*number, bytes).summary(), "{context}");
            }
            let first_bad = survey.chunks.iter().map(|(n, _)| *n).find(|n| database.chunk(*n).is_err());
            if let Some(bad) = first_bad {
                database.forget(bad, u64::MAX, true).unwrap();
            }
            append(&database, survey.next..survey.next + 2, 2_000);
            usable = database.reclaim().is_ok() && database.chunk(survey.next + 1).is_ok();
        }
        assert!(usable, "{context}");
    }
}
