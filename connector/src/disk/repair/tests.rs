use super::*;
use crate::disk::rocksdb::tests::{append, change, chunk, file, numbers, open, options};

fn quiet() -> impl FnMut(u64) {
    |_| {}
}

/// The lines of an index, and the bytes that each speaks of.
fn copied(repaired: &Repaired) -> Vec<(serde_json::Value, Vec<u8>)> {
    let (bytes, index) = repaired.copy.as_ref().expect("there is a copy");
    let bytes = fs::read(bytes).unwrap();
    let index = fs::read_to_string(index).unwrap();
    index
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let at = line["at"].as_u64().unwrap() as usize;
            let piece = bytes[at..at + line["length"].as_u64().unwrap() as usize].to_vec();
            (line, piece)
        })
        .collect()
}

/// Eight chunks, five of them in a blob file.
fn made(dir: &Path) {
    let database = open(dir).database;
    append(&database, 0..5, 2_000);
    database.reclaim().unwrap();
    append(&database, 5..8, 2_000);
}

fn whole(dir: &Path, count: u64) {
    let again = repair(dir, &options(), &mut quiet()).unwrap();
    assert_eq!(
        (again.outcome, again.copy.is_none()),
        (Outcome::Whole, true),
        "a second repair has nothing to do"
    );
    let opened = open(dir);
    assert_eq!((opened.aside, numbers(&opened.survey)), (None, (0..count).collect()));
    for number in 0..count {
        assert_eq!(opened.database.chunk(number).unwrap().encoded(), chunk(number, 2_000).encoded());
    }
}

#[test]
fn nothing_is_done_to_what_is_whole_or_held_or_not_there() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    assert!(matches!(repair(&dir, &options(), &mut quiet()), Err(Error::NoLog { .. })));
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    made(&dir);
    whole(&dir, 8);
    let held = open(&dir);
    let refused = repair(&dir, &options(), &mut quiet()).unwrap_err();
    assert!(
        matches!(&refused, Error::Locked { by, .. } if by.contains(&std::process::id().to_string())),
        "{refused}"
    );
    drop(held);
    whole(&dir, 8);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2, "log and lock");
}

#[test]
fn a_damaged_blob_is_cut_with_all_behind_it_and_copied_as_found() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    made(&dir);
    let path = file(&dir, "blob");
    let third = chunk(3, 2_000);
    let mut spoiled = third.encoded().to_vec();
    spoiled[500] ^= 0x20;
    change(&path, |bytes| {
        let at = bytes.windows(third.len()).position(|piece| piece == &third.encoded()[..]).unwrap();
        bytes[at + 500] ^= 0x20;
    });
    let repaired = repair(&dir, &options(), &mut quiet()).unwrap();
    assert_eq!(repaired.outcome, Outcome::Cut(Some(3)));
    assert!(matches!(&repaired.found.damage[..], [Damage::Chunk { number: 3, .. }]), "{:?}", repaired.found);
    let copied = copied(&repaired);
    assert_eq!(copied.len(), 5);
    for ((line, bytes), number) in copied.iter().zip(3u64..) {
        assert_eq!((line["number"].as_u64(), line["what"].as_str()), (Some(number), Some("chunk")));
        assert_eq!(line["ranges"][0]["from"].as_u64(), Some(number), "{line}");
        assert_eq!(line["whole"].as_bool(), Some(number != 3));
        let expected = if number == 3 { spoiled.clone() } else { chunk(number, 2_000).encoded().to_vec() };
        assert_eq!(*bytes, expected, "as found, and the damaged one too");
    }
    assert_eq!((repaired.taken.chunks, repaired.taken.whole, repaired.taken.records), (5, 4, 5));
    whole(&dir, 3);
}

#[test]
fn a_summary_that_cannot_be_read_is_cut_like_its_chunk() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    made(&dir);
    let database = open(&dir).database;
    database.damage(6, |bytes| *bytes = chunk(7, 2_000).encoded().to_vec());
    drop(database);
    let repaired = repair(&dir, &options(), &mut quiet()).unwrap();
    assert_eq!(repaired.outcome, Outcome::Cut(Some(6)));
    let copied = copied(&repaired);
    assert_eq!(
        copied.iter().map(|(line, _)| line["whole"].as_bool().unwrap()).collect::<Vec<_>>(),
        [false, true]
    );
    whole(&dir, 6);
}

#[test]
fn the_end_of_a_write_ahead_log_is_copied_and_what_is_whole_behind_the_damage_is_named() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    let database = open(&dir).database;
    append(&database, 0..60, 2_000);
    drop(database);
    let path = file(&dir, "log");
    let first = chunk(20, 2_000);
    let mut rest = Vec::new();
    change(&path, |bytes| {
        let at = bytes.windows(64).position(|piece| piece == &first.encoded()[..64]).unwrap();
        bytes[at + 8] ^= 1;
        rest = bytes.clone();
    });
    let repaired = repair(&dir, &options(), &mut quiet()).unwrap();
    assert_eq!(repaired.outcome, Outcome::Cut(None));
    let [Damage::Broken(broken)] = &repaired.found.damage[..] else { panic!("{:?}", repaired.found) };
    let copied = copied(&repaired);
    let (line, bytes) = &copied[0];
    assert_eq!((line["what"].as_str(), line["file_at"].as_u64()), (Some("bytes"), Some(broken.at)));
    assert_eq!(bytes[..], rest[broken.at as usize..]);
    let behind: Vec<u64> = copied[1..].iter().map(|(line, _)| line["number"].as_u64().unwrap()).collect();
    assert!(behind.len() > 10 && behind.ends_with(&[58, 59]) && behind[0] > 20, "{behind:?}");
    whole(&dir, 20);
}

#[test]
fn what_rocksdb_refuses_is_put_aside_and_its_whole_chunks_are_copied() {
    type Spoil = fn(&Path);
    let spoil: [(&str, Spoil); 5] = [
        ("no CURRENT", |dir| fs::remove_file(dir.join("CURRENT")).unwrap()),
        ("garbage in CURRENT", |dir| fs::write(dir.join("CURRENT"), "nonsense").unwrap()),
        ("a sorted file is gone", |dir| fs::remove_file(file(dir, "sst")).unwrap()),
        ("a block of a sorted file", |dir| change(&file(dir, "sst"), |bytes| bytes[20] ^= 1)),
        ("suspect", |dir| fs::write(dir.join("SUSPECT"), "said so").unwrap()),
    ];
    for (what, spoil) in spoil {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("log");
        made(&dir);
        spoil(&dir);
        let repaired = repair(&dir, &options(), &mut quiet()).unwrap();
        let Outcome::Aside(to) = &repaired.outcome else { panic!("{what}: {repaired:?}") };
        assert!(to.is_dir() && to.to_string_lossy().contains("log.refused-"), "{what}");
        assert!(repaired.found.damage[0].is_of_all(), "{what}");
        let mut copied: Vec<_> = copied(&repaired)
            .into_iter()
            .map(|(line, bytes)| (line["number"].as_u64().unwrap(), bytes))
            .collect();
        copied.sort();
        let all: Vec<_> = (0..8).map(|number| (number, chunk(number, 2_000).encoded().to_vec())).collect();
        assert_eq!(copied, all, "{what}");
        let again = repair(&dir, &options(), &mut quiet()).unwrap();
        assert_eq!((again.outcome, again.copy), (Outcome::Whole, None), "there is none now");
        let opened = open(&dir);
        assert_eq!((opened.aside.is_none(), opened.survey.chunks.is_empty()), (true, true));
        append(&opened.database, 0..2, 2_000);
        drop(opened);
        whole(&dir, 2);
    }
}

#[test]
fn chunks_that_are_gone_without_a_trace_are_said_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    made(&dir);
    let database = open(&dir).database;
    database.clean(12, 0);
    drop(database);
    let repaired = repair(&dir, &options(), &mut quiet()).unwrap();
    assert_eq!(repaired.found.damage, [Damage::Missing(4)]);
    assert_eq!((repaired.outcome, repaired.copy), (Outcome::Cut(None), None));
    whole(&dir, 8);
}
